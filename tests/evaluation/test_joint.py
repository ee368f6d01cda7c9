"""What a joint backbone computes of an image is computed once, and pairs are scored as if all was computed for each."""

from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, open_dict
from pair_passes import Passes, PixelPairs, count_passes
from repository import SMALL
from tiny_diffusion import parts, write_parts
from torch.testing import assert_close

from semcorr.data.image_variants import unique_images
from semcorr.engine.build import (
    build_datamodule_and_module,
    build_trainer,
    build_training_parts,
    score_and_save,
    use_cached_features,
)
from semcorr.train import train

pytestmark = pytest.mark.integration

PCA = ["backbone.components=6"]
CPM = ["finetune=cpm", "finetune.dino=vit_tiny_patch16_224", "finetune.pretrained=false", "+finetune.depth=1"]
CPM += ["finetune.scale=0.5"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_parts(tmp_path_factory.mktemp("sd"), parts())


@pytest.fixture
def sd(creatures, weights) -> list[str]:
    """Overrides for a tiny Stable Diffusion that reads three layers."""
    given = ["data=synthetic", f"data.root={creatures}", *SMALL, "data.workers=0", "trainer=cpu", "backbone=sd"]
    given += [f"backbone.weights={weights}", "backbone.size=64", "backbone.ensemble=1", "backbone.layers=[1,4,7]"]
    return [*given, "finetune=frozen", "data.encode_batch=2"]


def scored(cfg: DictConfig, slowly: bool = False) -> tuple[Passes, dict, list[dict], tuple[int, int]]:
    """Passes, scores and rows of an evaluation, and its numbers of images and pairs."""
    if slowly:
        with open_dict(cfg):
            cfg.backbone._target_ = f"{PixelPairs.__module__}.PixelPairs"
    torch.manual_seed(0)
    module, data = build_datamodule_and_module(cfg)
    trainer = build_trainer(cfg, Path(cfg.run_dir))
    with count_passes(module.backbone) as passes:
        metrics = score_and_save(cfg, trainer, module, data)
    rows, pairs = module.result.tables["predictions"].to_pylist(), data.pairs("test")
    return passes, metrics["pck"], rows, (len(unique_images(pairs)), len(pairs))


def require_same_rows(rows: list[dict], expected: list[dict], atol: float) -> None:
    assert len(rows) == len(expected) > 0
    for key in ("pair", "keypoint"):
        assert [row[key] for row in rows] == [row[key] for row in expected]
    for key, most in (("score", atol), ("predicted_x", 100 * atol), ("predicted_y", 100 * atol)):
        given, wanted = (torch.tensor([row[key] for row in table]) for table in (rows, expected))
        assert_close(given, wanted, atol=most, rtol=0)


@pytest.mark.parametrize("store", [["store.place=memory"], ["store.place=disk"]])
def test_components_take_one_pass_an_image_and_score_as_pair_by_pair(config, sd, store):
    passes, pck, rows, (images, pairs) = scored(config("evaluate", *sd, *PCA, *store))
    slow_passes, slow_pck, slow_rows, _ = scored(config("evaluate", *sd, *PCA, *store), slowly=True)

    assert sum(passes.vae) == sum(passes.unet) == images < pairs
    assert max(passes.vae + passes.unet) == 2  # data.encode_batch
    assert sum(slow_passes.vae) == sum(slow_passes.unet) == 2 * pairs
    assert pck == slow_pck
    require_same_rows(rows, slow_rows, 1e-4)
