"""A user's own package: examples/my_backbone, installed and used wherever a name is taken."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from repository import ROOT

from semcorr import evaluate, match, prepare, train
from semcorr.app.choices import list_backbone_names
from semcorr.cli.compose import compose_config
from semcorr.core.errors import UserError
from semcorr.engine.options import check_options
from semcorr.engine.packages import list_choices, list_config_trees
from semcorr.engine.run_name import name_choice
from semcorr.engine.saved_config import read_run_config, save_config
from semcorr.inference import Matcher

pytestmark = pytest.mark.integration

PACKAGE = ROOT / "examples" / "my_backbone"
SMALL_DATA = ["data.train=4", "data.val=2", "data.test=3", "data.pixels=96", "data.steps=1", "trainer.max_epochs=1"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package is installed into, as pip does it."""
    folder, copy = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("package") / "my_backbone"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
    line = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", folder, copy]
    subprocess.run([sys.executable, "-m", *line], check=True, capture_output=True, timeout=120)
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(site)
    yield site
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_backbone"]:
        del sys.modules[name]


def run_verb(monkeypatch: pytest.MonkeyPatch, verb, *line: str) -> int:
    """The exit code of `python -m semcorr.VERB` with the line."""
    return verb.main(line)


def install_tree(site: Path, name: str, entry: str, files: dict[str, str]) -> None:
    """What pip leaves of a distribution that announces a tree."""
    about = site / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[semcorr.conf]\n{name} = {entry}\n")
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)


def test_a_users_backbone_trains_by_its_experiment_and_is_scored_and_loaded(installed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root, run = f"data.root={tmp_path / 'creatures'}", tmp_path / "run"
    line = ["experiment=my_experiment", root, *SMALL_DATA, "backbone.size=64", "trainer=cpu"]

    assert run_verb(monkeypatch, train, *line, f"run_dir={run}") == 0
    assert run_verb(monkeypatch, evaluate, f"checkpoint={run}", root, "trainer=cpu", "run_dir=again") == 0

    assert {name: read_run_config(run)[name]._target_ for name in ("backbone", "head", "loss")} == {
        "backbone": "my_backbone.backbone.MyBackbone",
        "head": "my_backbone.head.MyHead",
        "loss": "my_backbone.loss.my_loss",
    }
    assert type(Matcher.load(run).module.head).__name__ == "MyHead"


def test_a_range_that_the_package_states_is_checked_before_anything_is_built(installed):
    with pytest.raises(UserError, match=r"`loss\.temperature` must be between 1e-06 and 1000000, got 0"):
        check_options({"loss": {"_target_": "my_backbone.loss.my_loss", "_partial_": True, "temperature": 0}})


def test_a_range_that_the_package_states_is_checked_in_python(installed):
    from my_backbone.loss import my_loss

    with pytest.raises(UserError, match=r"`loss\.temperature` must be between 1e-06 and 1000000, got 0"):
        my_loss(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.bool), temperature=0)


def test_names_of_the_package_are_accepted_wherever_a_name_is(installed):
    assert compose_config("evaluate", ["data=my_data"]).data.root.endswith("my_data")
    assert type(Matcher.load("my_backbone").module.backbone).__name__ == "MyBackbone"
    assert "my_backbone" in list_backbone_names()  # of the page
    assert name_choice("data", compose_config("evaluate", ["data=my_data"]).data) == "my_data"  # in a dashboard
    assert prepare.compose_benchmark("my_data").data._target_ == "semcorr.data.coco_keypoints.COCOKeypoints"


@pytest.mark.parametrize(
    ("verb", "line", "expected"),
    [
        (evaluate, ["backbone=my_bakbone"], "`backbone` has no choice 'my_bakbone'. Did you mean my_backbone?"),
        (train, ["loss=my_los"], "`loss` has no choice 'my_los'. Did you mean my_loss?"),
        (train, ["experiment=my_experimnt"], "Did you mean my_experiment?"),
        (prepare, ["my_dta"], "no benchmark is called `my_dta`. Did you mean my_data?"),
        (prepare, ["my_data"], "`my_data` has nothing to download"),
        (evaluate, ["backbone=my_backbone", "backbone.widt=3"], "Did you mean backbone.width or"),
    ],
)
def test_suggestions_include_the_names_of_the_package(installed, monkeypatch, tmp_path, capsys, verb, line, expected):
    monkeypatch.chdir(tmp_path)

    assert run_verb(monkeypatch, verb, *line) == 2

    assert expected in capsys.readouterr().err


def test_a_model_by_its_name_in_match(installed, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "docs/matches.jpg", "a.jpg")

    assert run_verb(monkeypatch, match, "a.jpg", "a.jpg", "--model", "my_bakbone") == 2

    assert "Did you mean my_backbone?" in capsys.readouterr().err


def test_a_folder_on_the_line_does_without_an_installation(site, monkeypatch, tmp_path, capsys):
    """--config-dir and hydra.searchpath; the code is found as Python finds it."""
    monkeypatch.syspath_prepend(shutil.copytree(site / "my_backbone", tmp_path / "code" / "my_backbone").parent)
    monkeypatch.chdir(tmp_path)
    conf = tmp_path / "code" / "my_backbone" / "conf"

    assert "my_backbone" not in list_choices("backbone")
    for flag in (
        [f"--config-dir={conf}"],
        [f"hydra.searchpath=[file://{conf}]"],
        ["hydra.searchpath=['pkg://my_backbone.conf']"],
    ):
        assert run_verb(monkeypatch, evaluate, *flag, "backbone=my_backbone", "--cfg", "job") == 0
        assert "my_backbone.backbone.MyBackbone" in capsys.readouterr().out
    line = f"backbone=my_backbone hydra.searchpath=[file://{conf}]"
    matcher = Matcher.load(line)
    assert type(matcher.module.backbone).__name__ == "MyBackbone"

    (run := tmp_path / "run").mkdir()  # of an evaluation by that line
    save_config(compose_config("evaluate", line.split()), matcher.module.backbone, run)
    loaded = Matcher.load(f"checkpoint={run} hydra.searchpath=[file://{conf}]")
    assert type(loaded.module.backbone).__name__ == "MyBackbone"


@pytest.mark.slow
def test_the_tests_of_the_package_pass(site, tmp_path):
    """In a process of their own, as a user would run them."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(site), str(ROOT / "src"))), "OMP_NUM_THREADS": "1"}
    line = ["pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, str(PACKAGE / "tests")]

    done = subprocess.run(
        [sys.executable, "-m", *line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("entry", "files", "expected"),
    [
        ("absent.conf", {}, "the installed package broken"),
        ("broken.cnf", {"broken/conf/backbone/x.yaml": ""}, 'broken = "broken.cnf") has no such folder'),
        ("broken.conf", {"broken/conf/backbone/dinov2.yaml": ""}, "has the name of a file of semcorr. Rename it"),
    ],
)
def test_a_tree_that_cannot_be_read_is_a_user_error(monkeypatch, tmp_path, capsys, entry, files, expected):
    install_tree(tmp_path / "site", "broken", entry, files)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path)

    assert run_verb(monkeypatch, evaluate, "backbone=tiny") == 2

    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert expected in error
    assert "pip uninstall broken" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("code", "reason"),
    [("import no_such_package", "no_such_package"), ("1 / 0", "division by zero"), ("def f(:", "invalid syntax")],
)
def test_a_package_that_fails_to_import_is_a_user_error(monkeypatch, tmp_path, capsys, code, reason):
    name = f"failing_{len(code)}"
    target = f"_target_: {name}.net.Net\nsize: 64\n"
    files = {f"{name}/__init__.py": "", f"{name}/net.py": code, f"{name}/conf/backbone/own.yaml": target}
    install_tree(tmp_path / "site", name, f"{name}.conf", files)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path)

    assert run_verb(monkeypatch, evaluate, "backbone=own") == 2

    error = capsys.readouterr().err
    assert f"{name}.net.Net" in error
    assert reason in error
    assert "Traceback" not in error


def test_the_page_shows_the_files_of_the_package():
    page = (ROOT / "docs/adding/your_package.md").read_text()

    for language, text in re.findall(r"^```(toml|yaml)\n(.*?)^```$", page, re.M | re.S):
        name = {"toml": "pyproject.toml", "yaml": "src/my_backbone/conf/backbone/my_backbone.yaml"}[language]
        assert text in (PACKAGE / name).read_text()


def test_two_packages_with_one_name_are_refused(monkeypatch, tmp_path):
    for name in ("first", "second"):
        install_tree(tmp_path, name, f"{name}.conf", {f"{name}/conf/head/own.yaml": "_target_: x.Y\n"})
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(UserError, match=r"of the installed package second has the name of a file of first"):
        list_config_trees()
