"""Losses of training from features that are kept in half precision."""

import csv
from pathlib import Path

import pytest

from semcorr.train import train

pytestmark = [pytest.mark.integration, pytest.mark.slow]

STEPS = ["data.batch_size=2", "data.steps=6", "trainer.max_epochs=1", "trainer.log_every_n_steps=1",
         "+trainer.limit_val_batches=0", "finetune.blocks=2"]  # fmt: skip
BACKBONES = {"tiny": [], "lite0": ["backbone=efficientnet_lite0", "backbone.size=128"]}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_losses_of_float16_agree_to_a_thousandth_and_better_than_those_of_bfloat16(config, tiny, tmp_path, backbone):
    def losses(dtype: str) -> list[float]:
        run = tmp_path / dtype
        train(config("train", *tiny, *STEPS, *BACKBONES[backbone], f"store.dtype={dtype}", f"run_dir={run}"))
        rows = csv.DictReader((Path(run) / "metrics.csv").read_text().splitlines())
        return [float(row["train/loss"]) for row in rows if row["train/loss"]]

    expected = losses("null")
    apart = {dtype: max(abs(a - b) / a for a, b in zip(expected, losses(dtype), strict=True))
             for dtype in ("float16", "bfloat16")}  # fmt: skip
    print(backbone, apart)

    assert len(expected) == 6
    assert 0 < apart["float16"] <= 1e-3
    assert apart["float16"] < apart["bfloat16"]
