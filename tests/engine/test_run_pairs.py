"""Pairs of commands that are started at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from repository import SMALL

QUICK = ["data=synthetic", *SMALL, "data.workers=0", "backbone=tiny", "trainer=cpu", "finetune.blocks=1",
         "data.steps=1", "data.batch_size=2", "trainer.max_epochs=1"]  # fmt: skip


def start_two(verb: str, cwd: Path, *lines: list[str]) -> list[tuple[int, str]]:
    """Their exit codes, and what they said of errors."""
    commands = [[sys.executable, "-m", f"semcorr.{verb}", *line] for line in lines]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=cwd, **pipes) for command in commands]
    return [(process.wait(), error) for process in processes for error in [process.communicate()[1]]]


@pytest.mark.slow
def test_of_two_that_train_in_one_directory_one_finishes_with_its_own_weights(creatures, tmp_path) -> None:
    """Of seeds 42 and 7; config.yaml, checkpoints and scores are of one of them, the other is refused."""
    lines = [[*QUICK, f"data.root={creatures}", "run_dir=run", f"seed={seed}"] for seed in (42, 7)]

    outcomes = start_two("train", tmp_path, *lines)

    assert sorted(code for code, _ in outcomes) == [0, 2], outcomes
    (refused,) = [error for code, error in outcomes if code == 2]
    assert "Error: `run_dir`: " in refused
    assert "another process runs train in" in refused or "already holds a training run" in refused
    seed = (42, 7)[[code for code, _ in outcomes].index(0)]
    assert f"\nseed: {seed}\n" in "\n" + (tmp_path / "run" / "config.yaml").read_text()
    for which in ("best", "last"):
        content = torch.load(tmp_path / "run" / "checkpoints" / f"{which}.ckpt", weights_only=True)
        assert content["trained_as"]["seed"] == seed
    assert not list(tmp_path.rglob("*.part"))
    assert (tmp_path / "run" / ".lock").read_bytes() == b""


@pytest.mark.slow
def test_two_unnamed_runs_both_finish_with_their_own_digits(creatures, tmp_path) -> None:
    frozen = [*QUICK[:-4], f"data.root={creatures}"]
    lines = [[*frozen, "localise=argmax"], [*frozen, "localise=window_3"]]

    outcomes = start_two("evaluate", tmp_path, *lines)

    assert [code for code, _ in outcomes] == [0, 0], outcomes
    runs = sorted((tmp_path / "runs" / "evaluate").iterdir())
    readouts = sorted(json.loads((run / "metrics.json").read_text())["localise"] for run in runs)
    assert readouts == ["argmax", "window_soft_argmax(window=3)"]
