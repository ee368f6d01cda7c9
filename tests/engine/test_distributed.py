"""Two processes give what one gives, to the last digit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from repository import ROOT, SMALL

from semcorr.cli.compose import merge_checkpoint_config
from semcorr.evaluate import evaluate
from semcorr.train import train

pytestmark = pytest.mark.integration

HELPERS = ROOT / "tests" / "helpers"
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]


def _run(verb: str, creatures: Path, run: Path, *line: str) -> dict:
    done = _started(verb, run, "data=synthetic", f"data.root={creatures}", *SMALL, *line)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((run / "metrics.json").read_text())


def _trained(run: Path) -> dict[str, torch.Tensor]:
    """The weights after the last step."""
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def _started(verb: str, run: Path, *line: str) -> subprocess.CompletedProcess:
    """To its end. Processes that wait for each other for ever are killed: PyTorch would ask them politely."""
    command = [sys.executable, "-m", f"semcorr.{verb}", "data.workers=0", "backbone=tiny", f"run_dir={run}", *line]
    environment = os.environ | {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{HELPERS}"}
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True, env=environment) as process:
        try:
            out, err = process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _apart(folder: Path, count: int) -> list[str]:
    """Pairs of which no two share an image."""
    folder.mkdir()
    chance = np.random.default_rng(0)
    for name in (f"{side}{i}.png" for i in range(count) for side in "ab"):
        Image.fromarray(chance.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(folder / name)
    lines = [f"a{i}.png,b{i}.png,10;30;50,12;33;40,11;33;52,14;30;44" for i in range(count)]
    (folder / "pairs.csv").write_text("\n".join(["source_image,target_image,XA,YA,XB,YB", *lines]))
    return ["data=pairs_csv", f"data.root={folder}"]


@pytest.mark.slow
def test_two_processes_and_one_give_the_same_metrics(tmp_path):
    """25 pairs, 15 target images: 8 for one process, 7 for the other. Seconds are the only difference."""
    uneven = "data.pairs_per_category=5"
    one = _run("evaluate", tmp_path / "drawn", tmp_path / "one", uneven, "trainer=cpu")
    two = _run("evaluate", tmp_path / "drawn", tmp_path / "two", uneven, *TWO)

    assert one.pop("seconds")
    assert two.pop("seconds")
    assert one == two
    assert one["pairs"] == 25
    tables = [pq.read_table(tmp_path / run / "predictions.parquet") for run in ("one", "two")]
    names = ["pair", "keypoint", "target_x", "extent", "ambiguous"]
    assert tables[0].select(names).equals(tables[1].select(names))


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["+trainer.limit_test_batches=1"]])
def test_shares_of_different_length_are_scored(tmp_path, options):
    """Three pairs of six images: the second process, which has one of them, must encode the images of all."""
    data = _apart(tmp_path / "data", 3)

    done = _started("evaluate", tmp_path / "run", *data, *TWO, *options)

    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["pairs"] == (2 if options else 3)


@pytest.mark.slow
def test_shares_of_different_length_are_validated(tmp_path):
    """The frozen blocks' output is computed ahead for the images of training and of all three pairs."""
    data = [*_apart(tmp_path / "data", 3), "data.train=pairs.csv", "data.val=pairs.csv", "data.test=pairs.csv"]
    short = ["finetune.blocks=2", "data.steps=1", "data.batch_size=1", "trainer.max_epochs=1"]

    done = _started("train", tmp_path / "run", *data, *short, *TWO)

    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.slow
def test_more_processes_than_there_is_to_score_are_refused(tmp_path):
    done = _started("evaluate", tmp_path / "run", *_apart(tmp_path / "data", 1), *TWO)

    assert done.returncode == 2
    assert "`trainer.devices` must be at most 1 here, got 2 processes" in done.stderr


def test_two_processes_train_validate_and_test(creatures, tmp_path, config):
    """Both take their own batches; validation is complete; one run directory."""
    metrics = _run(
        "train", creatures, tmp_path / "run", *TWO, "data.steps=2", "data.batch_size=4", "trainer.max_epochs=1"
    )

    line = ["data=synthetic", f"data.root={creatures}", *SMALL, "data.workers=0", "backbone=tiny", "trainer=cpu"]
    line += [f"checkpoint={tmp_path / 'run'}", f"run_dir={tmp_path / 'again'}"]
    alone = evaluate(merge_checkpoint_config(config("evaluate", *line), line))
    assert metrics["pck"] == alone["pck"]
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


@pytest.mark.slow
def test_two_processes_fill_one_store_and_a_third_run_takes_it_from_there(creatures, tmp_path):
    """Fifteen images, fifteen entries; the numbers are those of a run that keeps nothing."""
    store = ["store=disk", f"store.root={tmp_path / 'store'}", "store.dtype=null"]
    plain = _run("evaluate", creatures, tmp_path / "plain", "trainer=cpu")

    two = _run("evaluate", creatures, tmp_path / "two", *TWO, *store)
    entries = {path: path.stat().st_ino for path in (tmp_path / "store").glob("*/*.safetensors")}
    again = _run("evaluate", creatures, tmp_path / "again", "trainer=cpu", *store)

    assert two["pck"] == plain["pck"] == again["pck"]
    assert len(entries) == 15
    assert entries == {path: path.stat().st_ino for path in (tmp_path / "store").glob("*/*.safetensors")}


@pytest.mark.slow
def test_two_processes_that_divide_a_batch_train_the_weights_of_one(creatures, tmp_path, config):
    """Six steps of 8 pairs over 30: what each process takes of them does not matter, the number of their points either.

    By plain descent, which keeps a difference of rounding as small as it is. Batches of 4 for each process, whose
    passes end elsewhere, give other weights.
    """
    steps = ["data.steps=6", "trainer.max_epochs=1", "finetune.blocks=1", "+trainer.limit_val_batches=1"]
    steps += ["optimizer._target_=plain_sgd.sgd", "optimizer.backbone_lr=0.1"]
    line = ["data=synthetic", f"data.root={creatures}", *SMALL, "data.workers=0", "backbone=tiny", *steps]

    train(config("train", *line, "trainer=cpu", "data.batch_size=8", f"run_dir={tmp_path / 'one'}"))
    _run("train", creatures, tmp_path / "two", *steps, *TWO, "data.global_batch_size=8")
    _run("train", creatures, tmp_path / "other", *steps, *TWO, "data.batch_size=4")

    one, two, other = (_trained(tmp_path / name) for name in ("one", "two", "other"))
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-6
    assert max(float((one[key] - other[key]).abs().max()) for key in one) > 1e-4


@pytest.mark.slow
def test_a_batch_that_does_not_divide_ends_in_a_user_error(creatures, tmp_path):
    line = ["data=synthetic", f"data.root={creatures}", *SMALL, "finetune.blocks=1", "data.global_batch_size=5"]

    done = _started("train", tmp_path / "run", *line, *TWO)

    assert done.returncode == 2
    assert done.stderr.startswith(
        "Error: `data.global_batch_size` must be a multiple of 2, the number of processes, got"
    )
    assert done.stderr.count("\n") == 1
