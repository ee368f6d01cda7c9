"""Runs that were written before the package was moved into rooms are read, scored and gone on with as they were."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from exact_weights import write_exact_weights
from omegaconf import OmegaConf
from repository import ROOT
from torch.testing import assert_close

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

    rows, again = (pq.read_table(run / "predictions.parquet") for run in (folder, tmp_path / "again"))
    which = ["pair", "keypoint", "localise"]
    assert again.select(which).equals(rows.select(which))
    apart = np.hypot(*(again[axis].to_numpy() - rows[axis].to_numpy() for axis in ("predicted_x", "predicted_y")))
    assert (apart > 0.05).sum() <= 2  # pixels; on another processor an argmax may fall into another cell
    for subset in ("all", "geo", "std"):
        assert metrics["pck"][subset]["point"] == pytest.approx(before["pck"][subset]["point"], abs=2 / 276)
    assert {key: metrics[key] for key in ("pairs", "keypoints", "localise", "protocol", "split")} == {
        key: before[key] for key in ("pairs", "keypoints", "localise", "protocol", "split")
    }


def test_a_matcher_of_an_old_run_finds_a_point_in_the_same_picture_to_within_a_cell(old_runs):
    picture, points = ROOT / "docs" / "matches.jpg", [(30.0, 40.0), (1000.0, 600.0)]

    found = Matcher.load(old_runs / "trained").match(picture, picture, points).points

    cell = torch.tensor([1152 / 8, 682 / 8])
    assert ((found - torch.tensor(points)).abs() < cell).all(), found


def test_a_matcher_of_an_old_run_answers_as_the_run_was_scored(old_runs, creatures):
    rows = pq.read_table(old_runs / "trained" / "predictions.parquet").to_pylist()
    rows = [row for row in rows if row["pair"] == rows[0]["pair"]]
    pictures = [creatures / "JPEGImages" / f"{rows[0][side]}.jpg" for side in ("source", "target")]
    matcher = Matcher.load(old_runs / "trained", device="cpu", trim=False, subcell=False)

    found = matcher.match(*pictures, [(row["source_x"], row["source_y"]) for row in rows]).points

    truth = torch.tensor([[row["predicted_x"], row["predicted_y"]] for row in rows])
    assert len(rows) > 3
    assert_close(found, truth, atol=0.05, rtol=0)


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
