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
from semcorr.engine.build import build_datamodule_and_module
from semcorr.engine.scoring import score_and_save
from semcorr.engine.trainer import build_trainer
from semcorr.models.backbones.diffusion import StableDiffusion
from semcorr.train import train

pytestmark = pytest.mark.integration

PCA = ["backbone.components=6"]
CPM = ["finetune=cpm", "finetune.dino=vit_tiny_patch16_224", "finetune.pretrained=false", "+finetune.depth=1"]
CPM += ["+finetune.scale=0.5"]


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


CHOICES = {"components": PCA, "both": [*PCA, *CPM], "prompt": CPM}


@pytest.mark.parametrize("options", [["store.place=memory"], ["store.place=disk", "head=bottleneck"]])
def test_components_take_one_pass_an_image_and_score_as_pair_by_pair(config, sd, monkeypatch, options):
    """A pixel backbone of pairs sees at most the pairs that are encoded at once."""
    together, pair = [], PixelPairs.pair
    monkeypatch.setattr(PixelPairs, "pair", lambda self, a, b: together.append(len(a)) or pair(self, a, b))
    passes, pck, rows, (images, pairs) = scored(config("evaluate", *sd, *PCA, *options))
    assert not together
    slow_passes, slow_pck, slow_rows, _ = scored(config("evaluate", *sd, *PCA, *options), slowly=True)
    assert (max(together), sum(together)) == (2, pairs)

    assert sum(passes.vae) == sum(passes.unet) == images < pairs
    assert max(passes.vae + passes.unet) == 2  # data.encode_batch
    assert sum(slow_passes.vae) == sum(slow_passes.unet) == 2 * pairs
    assert pck == slow_pck
    require_same_rows(rows, slow_rows, 1e-4)


@pytest.mark.parametrize("choice", ["prompt", pytest.param("both", marks=pytest.mark.slow)])
def test_a_prompt_of_pairs_takes_one_latent_an_image_and_scores_as_pair_by_pair(config, sd, choice):
    passes, pck, rows, (images, pairs) = scored(config("evaluate", *sd, *CHOICES[choice], "kap=true"))
    _, slow_pck, slow_rows, _ = scored(config("evaluate", *sd, *CHOICES[choice], "kap=true"), slowly=True)

    assert (sum(passes.vae), sum(passes.unet)) == (images, 2 * pairs)
    assert max(passes.vae + passes.unet) == 2
    assert pck == slow_pck
    require_same_rows(rows, slow_rows, 1e-4)


@pytest.mark.parametrize("choice", ["components", "prompt"])
@pytest.mark.slow
def test_features_cached_in_half_precision_score_nearly_the_same(config, sd, choice):
    _, _, rows, _ = scored(config("evaluate", *sd, *CHOICES[choice]))
    _, _, halved, _ = scored(config("evaluate", *sd, *CHOICES[choice], "store.dtype=float16"))

    a, b = (torch.tensor([row["score"] for row in table]) for table in (rows, halved))
    assert not torch.equal(a, b)
    assert_close(a, b, atol=0.02, rtol=0)


def test_another_run_reads_the_maps_from_the_store(config, sd, tmp_path):
    store = ["store=disk", f"store.root={tmp_path / 'store'}", "store.dtype=float32"]
    first, _, rows, (images, _) = scored(config("evaluate", *sd, *PCA, *store))
    second, _, again, _ = scored(config("evaluate", *sd, *PCA, *store))

    assert (sum(first.unet), second.unet, second.vae) == (images, [], [])
    require_same_rows(again, rows, 1e-6)


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
@pytest.mark.parametrize("tuned", ["finetune=frozen", "finetune.blocks=1"])
@pytest.mark.slow
def test_training_with_components_starts_from_cached_blocks_and_ends_as_without(
    config, sd, tmp_path, monkeypatch, tuned
):
    encoded = []
    encode = StableDiffusion.encode
    monkeypatch.setattr(
        StableDiffusion, "encode", lambda self, image: encoded.append(len(image)) or encode(self, image)
    )
    quick = ["data.steps=6", "data.batch_size=2", "trainer.max_epochs=1", "head=bottleneck", "data.workers=0"]
    sd = [override for override in sd if override != "finetune=frozen"]

    def trained(name: str, place: str) -> tuple[dict, int]:
        encoded.clear()
        run = [f"run_dir={tmp_path / name}", f"store.place={place}"]
        options = ["finetune=frozen"] if tuned == "finetune=frozen" else ["finetune=last_blocks", tuned]
        return train(config("train", *sd, *PCA, *quick, *options, *run))["pck"], sum(encoded)

    (cached, few), (again, many) = trained("cached", "memory"), trained("again", "off")

    assert cached == again
    assert few < many
