"""What semcorr expects of the parts of this package."""

import torch
from my_backbone.backbone import MyBackbone
from PIL import Image

from semcorr import Matcher


def test_the_network_may_be_cut_after_any_block() -> None:
    """What is frozen before a cut is computed once, so both parts together must be the whole."""
    backbone, image = MyBackbone(size=64).eval(), torch.rand(2, 3, 64, 64)

    whole = backbone(image)

    assert whole.values.shape == (2, 64, 8, 8)
    for depth in range(len(backbone.blocks) + 1):
        assert torch.equal(backbone.suffix(backbone.prefix(image, depth), depth).values, whole.values)


def test_it_is_found_by_its_name() -> None:
    """By the entry point of pyproject.toml."""
    matcher, image = Matcher.load("backbone=my_backbone head=my_head"), Image.new("RGB", (80, 60))

    match = matcher.match(image, image, [(40.0, 30.0)])

    assert match.source.tolist() == [[40.0, 30.0]]
