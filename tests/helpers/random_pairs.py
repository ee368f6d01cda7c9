"""A training step for losses without keypoints: random features of both images of each pair."""

import torch
from torch import nn

from semcorr.core.types import FeatureMap
from semcorr.models.heads.cosine import Cosine
from semcorr.models.losses import LossInputs, PairMaps, SourceImages

STRIDE, HEIGHT, WIDTH, CHANNELS = 8, 4, 4, 3
SIDE = STRIDE * WIDTH


def made_pairs(
    pairs: int = 2, dtype: torch.dtype = torch.float32, head: nn.Module | None = None
) -> tuple[PairMaps, list[torch.Tensor]]:
    """Pairs of random features, and these, which have a gradient."""
    leaves = [torch.randn(pairs, CHANNELS, HEIGHT, WIDTH).to(dtype).requires_grad_() for _ in range(2)]
    boxes = torch.tensor([[2.0, 4.0, 27.0, 21.0], [5.0, 1.0, 30.0, 29.0]]).repeat(pairs, 1)
    maps = [FeatureMap(leaf, float(STRIDE)) for leaf in leaves]
    return PairMaps(head or Cosine(), *maps, boxes[:pairs], boxes[-pairs:], SIDE, ["cat"] * pairs), leaves


def made_sources(pairs: int = 2) -> SourceImages:
    """Random images, whose features are their mean colours in every cell."""

    def encode(image: torch.Tensor) -> FeatureMap:
        return FeatureMap(nn.functional.avg_pool2d(image, STRIDE), float(STRIDE))

    return SourceImages(torch.rand(pairs, CHANNELS, SIDE, SIDE), encode)


def step_of(pairs: PairMaps, **others: object) -> LossInputs:
    """The step of a loss that reads nothing of keypoints: they are not there."""
    b = len(pairs.source.values)
    points = torch.zeros(b, 1, 2)
    return LossInputs(
        torch.zeros(b, 1, HEIGHT, WIDTH), points, torch.ones(b, 1, dtype=torch.bool), points, points, 4, None, pairs
    )._replace(**others)


def slow_cosines(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cosines of every cell of a source (c h w) with every cell of a target, both row by row, one by one."""
    first, second = source.detach().flatten(1).T, target.detach().flatten(1).T
    rows = [[(a @ b / (a.norm() * b.norm())).reshape(1) for b in second] for a in first]
    return torch.stack([torch.cat(row) for row in rows])
