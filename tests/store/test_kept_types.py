"""Losses of training from features that are kept in half precision."""

import csv
from pathlib import Path

import pytest
import torch
from backbone_cases import lite0
from backbone_cases import tiny as tiny_vit

from semcorr.train import train

pytestmark = pytest.mark.integration

STEPS = ["data.batch_size=2", "data.steps=6", "trainer.max_epochs=1", "trainer.log_every_n_steps=1",
         "finetune.blocks=2"]  # fmt: skip
BACKBONES = {"tiny": [], "lite0": ["backbone=efficientnet_lite0", "backbone.size=128"]}


@pytest.mark.parametrize(("build", "dtype"), [(tiny_vit, torch.float32), (lite0, torch.bfloat16)])
def test_under_autocast_a_transformers_stream_is_single_precision_and_convolutions_are_not(build, dtype):
    """What `store.dtype=null` keeps, as computed: half precision where it is computed, and nothing is lost."""
    backbone = build().eval()
    image = torch.rand(1, 3, backbone.size, backbone.size)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        values = backbone.prefix(image, 2).values

    assert {value.dtype for value in values.values()} == {dtype}


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_losses_from_half_precision_agree_to_a_thousandth(config, tiny, tmp_path, backbone):
    def losses(dtype: str) -> list[float]:
        run = tmp_path / dtype
        train(config("train", *tiny, *STEPS, *BACKBONES[backbone], f"store.dtype={dtype}", f"run_dir={run}"))
        rows = csv.DictReader((Path(run) / "metrics.csv").read_text().splitlines())
        return [float(row["train/loss"]) for row in rows if row["train/loss"]]

    expected = losses("null")
    apart = {dtype: max(abs(a - b) / a for a, b in zip(expected, losses(dtype), strict=True))
             for dtype in ("float16", "bfloat16")}  # fmt: skip

    assert len(expected) == 6
    assert all(0 < difference <= 1e-3 for difference in apart.values())
