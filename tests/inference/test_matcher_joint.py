"""A matcher encodes each picture once also where features are of a pair, and finds what pair by pair finds."""

import pytest
import torch
from matched_pictures import drawn_cats
from pair_passes import PixelPairs, count_passes
from tiny_diffusion import parts, write_parts
from torch.testing import assert_close

from semcorr import Matcher
from semcorr.models.finetune.prompts import conditional_prompt

pytestmark = pytest.mark.integration

DINO = {"dino": "vit_tiny_patch16_224", "dino_size": 32, "pretrained": False, "patch_size": 8}
DINO |= {"embed_dim": 24, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("sd"), parts())


@pytest.fixture(scope="module")
def cats(tmp_path_factory):
    return drawn_cats(tmp_path_factory.mktemp("cats") / "drawn")


@pytest.fixture
def load(weights):
    def build(prompt: bool, *overrides: str) -> Matcher:
        given = [f"backbone.weights={weights}", "backbone.size=64", "backbone.ensemble=1", "backbone.layers=[1,4,7]"]
        matcher = Matcher.load("sd", *given, *overrides, device="cpu", batch=2)
        if prompt:
            torch.manual_seed(1)
            conditional_prompt(matcher.module.backbone, 3, 5, 0.5, **DINO)
        return matcher

    return build


@pytest.mark.parametrize(("prompt", "overrides"), [(False, ["backbone.components=6"]), (True, [])])
def test_each_picture_is_encoded_once_for_all_its_pairs(load, cats, prompt, overrides):
    matcher, slow = load(prompt, *overrides), load(prompt, *overrides)
    slow.module.backbone.__class__ = PixelPairs
    points = [[10, 10], [30, 20], [25, 40]]

    with count_passes(matcher.module) as passes:
        found = list(matcher.matches(cats[0], cats[1:], points))
    expected = [slow.match(cats[0], cat, points) for cat in cats[1:]]

    assert sum(passes.vae) == 3
    assert sum(passes.unet) == (4 if prompt else 3)
    assert max(passes.vae + passes.unet) <= 2  # `batch`
    for one, other in zip(found, expected, strict=True):
        assert_close(one.scores, other.scores, atol=1e-4, rtol=0)
        assert_close(one.points, other.points, atol=0.01, rtol=0)


def test_what_is_kept_of_a_picture_is_counted(load, cats):
    encoded = load(False, "backbone.components=6").encode(cats[0])

    assert encoded.maps is None
    assert encoded.pixels is None
    values = 24 * (1 * 1) + 24 * (2 * 2) + 16 * (4 * 4)  # of layers 1, 4 and 7, each on its own grid
    assert encoded.nbytes == 4 * values
