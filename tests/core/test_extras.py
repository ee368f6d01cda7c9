"""What is imported is declared, and what is optional and missing is named with its extra."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from repository import ROOT

from semcorr.core import extras
from semcorr.core.errors import UserError
from semcorr.core.extras import is_installed, require_extra

OWN = {"semcorr", "hydra_plugins"}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def normal(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=~;]", requirement)[0]).lower()


def imported(tree: Path) -> dict[str, str]:
    """The packages that the files of a tree import, each with one of the files."""
    found: dict[str, str] = {}
    for path in tree.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.partition(".")[0]: path.relative_to(ROOT).as_posix() for name in names}
    return found


@pytest.mark.parametrize("tree", ["src", "scripts"])
def test_every_package_that_is_imported_is_declared(tree):
    declared = project()
    groups = [declared["dependencies"], *declared["optional-dependencies"].values()]
    declared_names = {normal(requirement) for group in groups for requirement in group}
    distributions = packages_distributions() | {"griffe": ["griffelib"]}  # of `make docs`, which may not be installed
    files = {path.stem for path in (ROOT / tree).glob("*.py")}
    undeclared = {
        package: file
        for package, file in imported(ROOT / tree).items()
        if package not in sys.stdlib_module_names | OWN | files
        and not declared_names & {normal(name) for name in distributions.get(package, [package])}
    }
    assert not undeclared


def test_every_extra_that_a_message_or_a_page_names_exists():
    known = set(project()["optional-dependencies"])
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "conf").rglob("*.yaml"), *(ROOT / "docs").rglob("*.md")]
    text = "".join(path.read_text() for path in (*files, ROOT / "README.md", *(ROOT / "examples").glob("*.py")))
    named = {extra for extras in re.findall(r"(?:semcorr|'\.)\[([a-z,]+)\]", text) for extra in extras.split(",")}
    assert {"wandb", "onnx", "sam"} <= named <= known


def test_what_is_missing_is_named_with_its_extra():
    with pytest.raises(UserError) as error:
        require_extra("logger=wandb", "wandb", "torch", "no_such_package")
    assert str(error.value) == (
        "logger=wandb needs no_such_package, which is not installed: pip install 'semcorr[wandb]'"
    )
    require_extra("training", "none", "torch", "lightning")


def test_a_folder_where_the_command_was_typed_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "left_by_a_run").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_installed("left_by_a_run")


@pytest.mark.parametrize(
    ("line", "package", "extra"),
    [
        ("logger=wandb", "wandb", "wandb"),
        ("logger=[csv,tensorboard]", "tensorboard", "tensorboard"),
        ("pose=adaptive pose.mask=sam pose.sam_weights=FILE", "segment_anything", "sam"),
    ],
)
def test_a_line_whose_package_is_missing_is_refused_before_any_work(
    line, package, extra, tiny, tmp_path, monkeypatch, capsys
):
    from semcorr import evaluate

    own = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == package else own(name))
    monkeypatch.chdir(tmp_path)
    code = evaluate.main([*tiny, *line.split(), "run_dir=RUN"])
    assert code == 2
    assert f"needs {package}, which is not installed: pip install 'semcorr[{extra}]'" in capsys.readouterr().err
    assert not (tmp_path / "RUN").exists()
