"""Position embeddings resampled by DINOv2's own rule, against loops over cells and taps."""

import copy
import math

import pytest
import torch

from semcorr.core.errors import UserError
from semcorr.models.backbones.position_embedding import resample_by_scale
from semcorr.models.backbones.timm_model import TimmModel

TINY = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


def tap(distance: float) -> float:
    """Weight of a cubic kernel with a slope of -0.75, at a distance in cells."""
    x = abs(distance)
    if x <= 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def slow_resample(embedding: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Each cell at ((k + 1/2) g0 / (g + 0.1) - 1/2), from the 4 x 4 cells around it, those at the border repeated."""
    side = math.isqrt(embedding.shape[1])
    grid = embedding[0].reshape(side, side, -1)
    rows = []
    for i in range(height):
        for j in range(width):
            y, x = ((k + 0.5) * side / (g + 0.1) - 0.5 for k, g in ((i, height), (j, width)))
            total = torch.zeros(grid.shape[-1], dtype=grid.dtype)
            for row in range(math.floor(y) - 1, math.floor(y) + 3):
                for column in range(math.floor(x) - 1, math.floor(x) + 3):
                    cell = grid[min(max(row, 0), side - 1), min(max(column, 0), side - 1)]
                    total += tap(y - row) * tap(x - column) * cell
            rows.append(total)
    return torch.stack(rows)[None]


@pytest.mark.parametrize(("height", "width"), [(11, 11), (3, 3), (4, 9), (60, 60)])
def test_embeddings_are_resampled_at_a_scale_with_a_tenth_of_a_cell_too_much(height, width):
    embedding = torch.randn(1, 25, 6, dtype=torch.double)

    found = resample_by_scale(embedding, height, width)

    torch.testing.assert_close(found, slow_resample(embedding, height, width))


def test_on_their_own_grid_embeddings_stay_as_they_are():
    embedding = torch.randn(1, 25, 6)

    assert torch.equal(resample_by_scale(embedding, 5, 5), embedding)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_a_network_adds_them_to_its_cells_and_leaves_its_prefix_tokens(name):
    """With and without an embedding of the class token; and so does its copy, with its own."""
    options = TINY | ({"patch_size": 14} if "14" in name else {})
    backbones = [
        TimmModel(name, 112, pretrained=False, position_embedding=way, **options) for way in ("timm", "dinov2")
    ]
    model = backbones[1].model
    backbones[0].model.load_state_dict(model.state_dict())
    image, patch = torch.rand(1, 3, 112, 112), options["patch_size"]
    prefix = 0 if model.no_embed_class else 1

    plain, found = (each.model._pos_embed(each.model.patch_embed(image)) for each in backbones)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.pos_embed.zero_()

    cells = slow_resample(model.pos_embed[:, prefix:].detach(), 112 // patch, 112 // patch)
    expected = model.patch_embed(image).flatten(1, 2) + cells
    torch.testing.assert_close(found[:, model.num_prefix_tokens :], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, : model.num_prefix_tokens], plain[:, : model.num_prefix_tokens])
    assert (found - plain).abs().max() > 1e-4
    without = copied._pos_embed(copied.patch_embed(image))[:, model.num_prefix_tokens :]
    torch.testing.assert_close(without, model.patch_embed(image).flatten(1, 2))


def test_maps_from_the_whole_and_from_a_frozen_prefix_agree():
    backbone = TimmModel("vit_tiny_patch16_224", 112, pretrained=False, position_embedding="dinov2", **TINY).eval()
    image = torch.rand(1, 3, 112, 112)

    torch.testing.assert_close(backbone.suffix(backbone.prefix(image, 1), 1).values, backbone(image).values)


@pytest.mark.parametrize(("name", "way", "message"), [
    ("vit_tiny_patch16_224", "dino", "must be one of timm, dinov2, got 'dino'"),
    ("resnet18", "dinov2", "ResNet has no position embeddings that are resampled"),
])  # fmt: skip
def test_what_has_none_or_is_unknown_is_refused(name, way, message):
    with pytest.raises(UserError, match=message):
        TimmModel(name, 64, pretrained=False, position_embedding=way)
