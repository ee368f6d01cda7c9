"""Two processes give what one gives, to the last digit."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
from conftest import SMALL

TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]


def _run(verb: str, creatures: Path, run: Path, *line: str) -> dict:
    common = ["data=synthetic", f"data.root={creatures}", *SMALL, "data.workers=0", "backbone=tiny", f"run_dir={run}"]
    done = subprocess.run([sys.executable, "-m", f"semcorr.{verb}", *common, *line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((run / "metrics.json").read_text())


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


def test_two_processes_train_validate_and_test(creatures, tmp_path):
    """Both take their own batches; validation is complete; one run directory."""
    metrics = _run(
        "train", creatures, tmp_path / "run", *TWO, "data.steps=2", "data.batch_size=4", "trainer.max_epochs=2"
    )

    alone = _run("evaluate", creatures, tmp_path / "again", f"checkpoint={tmp_path / 'run'}", "trainer=cpu")
    assert metrics["pck"] == alone["pck"]
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


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
