"""Mistakes in a package of a user's own: each ends in a sentence that says where it is, with exit code 2."""

import sys
from pathlib import Path

import pytest

from semcorr import evaluate, train
from semcorr.core.errors import UserError
from semcorr.inference import Matcher

pytestmark = pytest.mark.integration

CODE = """
from torch import nn


class Net(nn.Module):
    def __init__(self, size, reason="ValueError"):
        if reason == "super":
            self.stem = nn.Conv2d(3, 3, 1)
        raise {"ValueError": ValueError, "OSError": OSError, "RuntimeError": RuntimeError}[reason]("width\\nis odd")


def my_loss(similarity, cells, mask): ...
def my_readout(similarity): ...
def my_tuner(backbone): ...
"""
FILES = {
    "__init__.py": "",
    "conf/__init__.py": "",
    "net.py": CODE,
    "unclosed.py": "\ndef f(:\n",
    "needs.py": "\n\nimport no_such_package\n",
    "ends.py": "import sys\nsys.exit('run setup first')\n",
    "conf/backbone/own.yaml": "_target_: plug.net.Net\nsize: 32\n",
}


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package with a tree that no entry point announces."""
    for name, text in FILES.items():
        write(tmp_path / "code" / "plug" / name, text)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "code" / "plug"
    for name in [name for name in sys.modules if name.partition(".")[0] == "plug"]:
        del sys.modules[name]


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def error_of(capsys: pytest.CaptureFixture[str], *line: str, verb=evaluate, tree: str = "pkg://plug.conf") -> str:
    """The sentence that a line ends in."""
    assert verb.main([f"hydra.searchpath=[{tree}]", *line]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error[error.index("Error: ") :]


DAMAGED = {
    "a tab": ("_target_: plug.net.Net\n\tsize: 32\n", 2, "cannot start any token"),
    "a key twice": ("_target_: plug.net.Net\nsize: 32\nsize: 64\n", 3, "duplicate key size"),
    "two documents": ("size: 32\n---\nsize: 64\n", 2, "expected a single document in the stream, but found another"),
    "a tag": ("size: 32\nfoo: !!python/object/apply:os.system ['true']\n", 2, "could not determine a constructor"),
    "Latin-1": (b"size: 32\n# \xe9\n", 2, "it is not UTF-8"),
}


@pytest.mark.parametrize(("content", "line", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_is_not_yaml_is_named_with_its_line(plug, capsys, content, line, reason):
    file = plug / "conf/backbone/own.yaml"
    write(file, content)

    error = error_of(capsys, "backbone=own")

    assert f"Error: {file}, line {line}: " in error
    assert reason in error
    with pytest.raises(UserError, match=rf"own\.yaml, line {line}: "):
        Matcher.load("backbone=own hydra.searchpath=[pkg://plug.conf]")


def test_a_damaged_header_is_named(plug, capsys):
    write(plug / "conf/backbone/own.yaml", "# @package\nsize: 32\n")

    assert f"{plug / 'conf/backbone/own.yaml'}: Expected header format" in error_of(capsys, "backbone=own")


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("ValueError", "ValueError: width is odd (Net.__init__, line 9"),
        ("OSError", "OSError: width is odd (Net.__init__, line 9"),
        ("RuntimeError", "RuntimeError: width is odd (Net.__init__, line 9"),
        ("super", "AttributeError: cannot assign module before Module.__init__() call (Net.__init__, line 8"),
    ],
)
def test_a_constructor_that_fails_says_why_and_where(plug, capsys, reason, expected):
    with pytest.raises(UserError) as refused:
        Matcher.load(f"backbone=own +backbone.reason={reason} hydra.searchpath=[pkg://plug.conf]")

    assert str(refused.value) == f"`backbone._target_`: plug.net.Net failed: {expected} of {plug / 'net.py'})."


@pytest.mark.parametrize("option", ["hydra.searchpath=[file://{}]", "+hydra.searchpath=[{}]", "--config-dir={}"])
def test_a_file_with_the_name_of_one_of_ours_is_refused(monkeypatch, tmp_path, capsys, option):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "conf/backbone/tiny.yaml", "_target_: x.Y\nsize: 32\n")

    assert evaluate.main([option.format(tmp_path / "conf"), "backbone=tiny", "--cfg", "job"]) == 2

    error = capsys.readouterr().err
    assert f"{tmp_path / 'conf/backbone/tiny.yaml'} of `" in error
    assert "has the name of a file of semcorr. Rename it, or leave" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ("pkg://nowhere.conf", "pkg://nowhere.conf is in no package that Python finds. Install the package"),
        ("pkg://plug.cnf", "pkg://plug.cnf is in no package that Python finds"),
        ("pkg://plug", "pkg://plug has no folder of a group, as backbone. Did you mean pkg://plug.conf?"),
        ("pkg://plug.other", "pkg://plug.other has no __init__.py. Add one"),
        ("file:///none", "file:///none is not a folder. Give one that exists"),
        ("code/plug", "code/plug has no folder of a group, as backbone. Did you mean code/plug/conf?"),
        ("plug/conf", "plug/conf is not a folder."),
        ("http://a.b", "http://a.b is not a folder."),
    ],
)
def test_a_tree_that_is_not_there_is_refused(plug, capsys, tree, expected):
    write(plug / "other/head/own.yaml", "_target_: x.Y\n")

    assert f"Error: `hydra.searchpath`: {expected}" in error_of(capsys, "backbone=tiny", tree=tree)

    with pytest.raises(UserError, match=r"`hydra\.searchpath`: "):
        Matcher.load(f"backbone=tiny hydra.searchpath=[{tree}]")


def test_a_config_dir_without_groups_is_refused(plug, capsys):
    assert evaluate.main(["--config-dir", str(plug), "backbone=tiny"]) == 2

    assert f"`--config-dir`: {plug} has no folder of a group" in capsys.readouterr().err


def test_a_tree_that_is_named_twice_is_one_tree(plug, capsys):
    line = [f"hydra.searchpath=[pkg://plug.conf,file://{plug / 'conf'}]", f"--config-dir={plug / 'conf'}"]

    assert evaluate.main([*line, "backbone=own", "--cfg", "job"]) == 0


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("plug.net.Nett", "there is no 'plug.net.Nett' (plug.net has no Nett). Did you mean plug.net.Net?"),
        ("plug.nett.Net", "there is no 'plug.nett.Net' (plug has no nett). Did you mean plug.net?"),
        ("plug.net.Net.Inner", "there is no 'plug.net.Net.Inner' (plug.net.Net has no Inner)."),
        ("Net", "there is no 'Net' (no module Net is found)."),
        ("plug.net", "there is no 'plug.net' (a module is nothing that can be called)."),
        ("plug..Net", "'plug..Net' is not a path as my_package.backbone.MyBackbone."),
        ("plug.unclosed.A", "{}/unclosed.py, line 2: SyntaxError: invalid syntax. Correct it."),
        ("plug.needs.A", "{}/needs.py, line 3: ModuleNotFoundError: No module named 'no_such_package'."),
        ("plug.ends.A", "{}/ends.py, line 2: SystemExit: run setup first."),
    ],
)
@pytest.mark.parametrize("section", ["backbone", "data"])
def test_a_target_that_cannot_be_imported_says_why(plug, capsys, target, expected, section):
    error = error_of(capsys, "backbone=own", "data=spair", f"{section}._target_={target}")

    expected = expected.format(plug)
    start = f"{target!r} cannot be imported: " if expected.startswith("/") else ""
    assert f"Error: `{section}._target_`: {start}{expected}" in error


LATER = [
    ("loss", "my_loss", "similarity"),
    ("localise", "my_readout", "similarity"),
    ("finetune", "my_tuner", "backbone"),
]


@pytest.mark.parametrize(("group", "function", "argument"), LATER)
def test_a_function_that_is_called_later_must_be_partial(plug, capsys, group, function, argument):
    write(plug / f"conf/{group}/own.yaml", f"_target_: plug.net.{function}\n")

    error = error_of(capsys, "backbone=tiny", "data=spair", f"{group}=own", verb=train)

    assert f"Error: `{group}`: plug.net.{function} is called later, with `{argument}`, which no config" in error
    assert f"Add `_partial_: true` to its YAML, or give ++{group}._partial_=true" in error


SHAPES = {
    "empty": ("", "has no `_target_`."),
    "text": ("just text\n", "has no `_target_`."),
    "a list": ("- _target_: plug.net.Net\n", "holds a list. Give it keys"),
    "no target": ("target: plug.net.Net\nsize: 32\n", "has no `_target_`."),
    "no size": ("_target_: plug.net.Net\n", "has no `size`, which a run reads. Add it."),
    "partial": (
        "_target_: plug.net.Net\nsize: 32\n_partial_: true\n",
        "has `_partial_: true`, and a backbone is built",
    ),
    "elsewhere": ("# @package _global_\n_target_: plug.net.Net\nsize: 32\n", "puts nothing at `backbone`."),
}


@pytest.mark.parametrize(("content", "reason"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("more", [[], ["backbone.size=32"]], ids=["", "with a size"])
def test_a_file_without_what_a_run_reads_is_named(plug, capsys, content, reason, more):
    file = plug / "conf/backbone/own.yaml"
    write(file, content)

    error = error_of(capsys, "backbone=own", *more)

    assert f"Error: `backbone=own`: {file} {reason}" in error


def test_a_file_of_another_group_that_lacks_something_is_named(plug, capsys):
    for group, content in (("protocol", "_target_: a.B\n"), ("data", "_target_: a.B\nroot: x\n"), ("head", "a: 1\n")):
        write(plug / f"conf/{group}/own.yaml", content)

    assert "protocol/own.yaml has no `name`, which a run reads" in error_of(capsys, "protocol=own")
    assert "data/own.yaml has no `resize`, which a run reads" in error_of(capsys, "data=own")
    assert "`head=own`: " in error_of(capsys, "head=own")
    with pytest.raises(UserError, match=r"head/own\.yaml has no `_target_`"):
        Matcher.load("head=own hydra.searchpath=[pkg://plug.conf]")


def test_an_unknown_choice_names_those_of_the_line(plug, capsys):
    write(plug / "conf/backbone/other.yaml", "defaults: [timmy]\nsize: 32\n")
    write(plug / "conf/backbone/ended.yml", "_target_: plug.net.Net\nsize: 32\n")

    assert "has no choice 'othr'. Did you mean other?" in error_of(capsys, "backbone=othr")
    error = error_of(capsys, "backbone=other")
    assert f"no choice 'timmy', which {plug / 'conf/backbone/other.yaml'} names. Did you mean timm or tiny?" in error
    assert f"{plug / 'conf/backbone/ended.yml'} ends in .yml. Rename it to ended.yaml." in error_of(
        capsys, "backbone=ended"
    )
    assert "unknown config key `backbone.raeson`. Did you mean +backbone.reason?" in error_of(
        capsys, "backbone=own", "backbone.raeson=x"
    )
