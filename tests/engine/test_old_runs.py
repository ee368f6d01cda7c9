"""Runs that were written before the package was moved into rooms are read, scored and gone on with as they were."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from exact_weights import write_exact_weights
from omegaconf import OmegaConf
from repository import ROOT

from semcorr import Matcher
from semcorr.cli.compose import compose_config
from semcorr.engine.renamed_targets import RENAMED_TARGETS
from semcorr.engine.saved_config import read_run_config
from semcorr.evaluate import evaluate


@pytest.fixture
def old_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training with tuned blocks and a bottleneck, and an evaluation with two readouts; where they were written."""
    write_exact_weights(tmp_path / "tiny.safetensors")
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(ROOT / "tests" / "old_runs", tmp_path / "runs")


def run(verb: str, *words: object) -> str:
    done = subprocess.run([sys.executable, "-m", f"semcorr.{verb}", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_target_of_an_old_configuration_is_there_under_its_new_name():
    from hydra.utils import get_object

    for target in RENAMED_TARGETS.values():
        assert callable(get_object(target)), target


def test_nothing_of_an_old_configuration_is_lost(old_runs):
    for folder in old_runs.iterdir():
        old, new = ((folder / "config.yaml").read_text(), OmegaConf.to_yaml(read_run_config(folder)))
        before, after = (re.findall(r"_target_: (semcorr\.\S+)", text) for text in (old, new))
        assert sorted(after) == sorted(RENAMED_TARGETS.get(target, target) for target in before)
        assert set(before) & set(RENAMED_TARGETS)


@pytest.mark.parametrize("name", ["trained", "evaluated"])
def test_an_old_run_scores_what_it_scored(old_runs, tmp_path, creatures, name):
    folder = old_runs / name
    line = (
        [f"checkpoint={folder}"]
        if name == "trained"
        else ["backbone=tiny", "backbone.weights=tiny.safetensors", "localise=[argmax,window_5]", "trainer=cpu"]
    )
    options = ["data=synthetic", "data.train=3", "data.val=2", "data.test=3", "data.pixels=96", "data.workers=0"]
    cfg = compose_config("evaluate", [*line, *options, f"data.root={creatures}"])
    cfg.run_dir = str(tmp_path / "again")

    metrics, before = evaluate(cfg), json.loads((folder / "metrics.json").read_text())

    for subset in ("all", "geo", "std"):
        assert metrics["pck"][subset]["image"] == pytest.approx(before["pck"][subset]["image"], abs=0.02)
    assert {key: metrics[key] for key in ("pairs", "keypoints", "localise", "protocol", "split")} == {
        key: before[key] for key in ("pairs", "keypoints", "localise", "protocol", "split")
    }


def test_a_matcher_is_loaded_from_an_old_run(old_runs):
    picture = ROOT / "docs" / "matches.jpg"

    match = Matcher.load(old_runs / "trained").match(picture, picture, [(30.0, 40.0)])

    assert match.points.shape == (1, 2)


@pytest.mark.slow
def test_every_command_reads_an_old_run(old_runs, tmp_path, creatures):
    trained, evaluated, data = old_runs / "trained", old_runs / "evaluated", f"data.root={creatures}"
    assert "semcorr" in run("audit", trained, data)
    run("export", trained)
    assert (trained / "export").is_dir()
    assert "PCK" in run("compare", trained, evaluated)
    run("report", trained, evaluated, "--out", tmp_path / "report")
    assert (tmp_path / "report").is_dir()
    run("evaluate", f"checkpoint={trained}", data, f"run_dir={tmp_path / 'scored'}", "logger=csv")
    assert (tmp_path / "scored" / "metrics.json").is_file()


@pytest.mark.slow
def test_an_old_training_goes_on(old_runs, creatures):
    trained = old_runs / "trained"
    shutil.copy(trained / "checkpoints" / "best.ckpt", trained / "checkpoints" / "last.ckpt")

    run("train", f"checkpoint={trained}", f"data.root={creatures}", "logger=csv")

    assert json.loads((trained / "metrics.json").read_text())["pck"]
