"""Maps of several grids are kept on their own, and what is made of them is the backbone's features to the last bit."""

import pytest
import torch
from backbone_cases import tiny
from tiny_diffusion import tiny_sd

from semcorr.evaluate import evaluate
from semcorr.models.backbones.fuse import FusedBackbone
from semcorr.models.backbones.squeezenet import SqueezeNet
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.store.cache import FeatureCache
from semcorr.store.frozen import FeatureCacheConfig, FrozenPrefix

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")


def geo_aware(normalise):
    """Stable Diffusion's coarse and fine maps and a transformer's, in miniature."""
    parts = [tiny_sd(size=256, layers=(1, 4, 7)), tiny(patch_size=14, size=224)]
    return FusedBackbone(parts, normalise=normalise)


CASES = {
    "unit": (lambda: geo_aware("layer"), True),
    "parts": (lambda: geo_aware("part"), True),
    "raw": (lambda: geo_aware("none"), True),
    "diffusion": (lambda: tiny_sd(size=128, layers=(1, 4, 7)), True),
    "squeezenet": (lambda: SqueezeNet(size=96, layers=[1, 3, 7], pretrained=False), True),
    "convolutions": (lambda: TimmModel("resnet18", 96, pretrained=False, layers=(1, 4)), True),
    "one grid": (lambda: tiny(size=112, layers=(0, 2, 3)), False),
    "one map": (lambda: tiny(size=112), False),
}


@pytest.mark.parametrize("case", CASES)
def test_features_are_those_of_the_backbone_bit_for_bit(case):
    build, on_own_grids = CASES[case]
    backbone = build().eval().requires_grad_(False)
    size, names = (backbone.size,) * 2, ["a", "b", "c", "d"]
    images, frozen = torch.rand(4, 3, *size), FrozenPrefix(backbone, FeatureCacheConfig(), {})
    frozen.cache = FeatureCache(4, CPU)
    with torch.no_grad():
        for start in (0, 2):
            frozen.cache.add(names[start : start + 2], frozen.compute(images[start : start + 2]))
        expected = torch.cat([backbone(images[start : start + 2]).values for start in (0, 2)])

    kept = frozen.features(names, size, CPU)

    assert torch.equal(kept.values, expected)
    assert kept.values.permute(0, 2, 3, 1).is_contiguous()  # as `cells` are read
    assert kept.stride == backbone.stride
    one = frozen.features(["c"], size, CPU).values
    assert torch.equal(one, expected[2:3])
    assert frozen.has_features("a") is not on_own_grids
    stored = sum(value.nbytes for value in frozen.cache["a"].values())
    assert stored < 0.9 * expected[0].nbytes if on_own_grids else stored == expected[0].nbytes


def test_a_joint_backbone_keeps_maps_of_one_grid_apart_too():
    """One image alone has no features to keep: layers of both parts are joined when a pair is."""
    parts = [tiny_sd(size=128, layers=(1, 4), components=6), tiny(patch_size=14, size=112, layers=(0, 3))]
    backbone = FusedBackbone(parts).eval().requires_grad_(False)
    images, frozen = torch.rand(2, 3, 128, 128), FrozenPrefix(backbone, FeatureCacheConfig(), {})
    frozen.cache = FeatureCache(2, CPU)
    with torch.no_grad():
        frozen.cache.add(["a", "b"], frozen.compute(images))
        expected = backbone.pair(images[:1], images[1:])

    found = backbone.join_pair(*(frozen.image_maps([name], (128, 128), CPU) for name in ("a", "b")))

    assert set(frozen.cache["a"]) == {"0/map.1", "0/map.4", "1/0", "1/1"}
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.values, other.values, atol=1e-4, rtol=0)
        assert one.stride == other.stride


def test_halves_are_joined_in_single_precision():
    backbone = geo_aware("layer").eval().requires_grad_(False)
    image = torch.rand(1, 3, 256, 256)
    frozen = FrozenPrefix(backbone, FeatureCacheConfig(dtype="float16"), {})
    frozen.cache = FeatureCache(1, CPU, dtype=torch.float16)
    with torch.no_grad():
        frozen.cache.add(["a"], frozen.compute(image))
        expected = backbone(image).values

    found = frozen.features(["a"], (256, 256), CPU).values

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_an_evaluation_from_a_store_scores_the_same(config, tiny, tmp_path):
    line = [*tiny, "backbone=squeezenet", "backbone.pretrained=false", "backbone.size=96", "backbone.layers=[1,7]"]
    plain = evaluate(config("evaluate", *line))
    store = ["store=disk", "store.dtype=null", f"store.root={tmp_path / 'store'}"]

    for _ in range(2):
        assert evaluate(config("evaluate", *line, *store))["pck"] == plain["pck"]
