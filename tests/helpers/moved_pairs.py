"""Pairs of features of which one is the other moved, and a training step on them, for losses that compare pairs."""

from collections.abc import Callable

import pytest
import torch

from semcorr.core.coords import to_grid
from semcorr.core.types import FeatureMap
from semcorr.models.heads.cosine import Cosine
from semcorr.models.losses import LossInputs, PairMaps

CELLS, STRIDE = 12, 8
SIDE = CELLS * STRIDE
KEYPOINTS = torch.tensor([[20.0, 20.0], [60.0, 28.0], [36.0, 60.0], [68.0, 68.0]])


def moved_pairs(shift: int = 2, pairs: int = 2, noise: float = 0.0) -> PairMaps:
    """Cells with a direction of their own each; the target is the source, moved by so many cells along x."""
    cells = torch.randn(pairs, 64, CELLS, CELLS)
    target = cells.roll(shift, -1) + noise * torch.randn(pairs, 64, CELLS, CELLS)
    maps = [FeatureMap(values.requires_grad_(), float(STRIDE)) for values in (cells, target)]
    box = torch.tensor([[-0.5, -0.5, SIDE - 0.5, SIDE - 0.5]]).repeat(pairs, 1)
    whole = torch.ones(pairs, SIDE, SIDE, dtype=torch.bool)
    return PairMaps(Cosine(), *maps, box, box, SIDE, ["cat"] * pairs, masks=(whole, whole))


def step_of(pairs: PairMaps, teacher: PairMaps, shift: int = 2) -> LossInputs:
    """A step whose keypoints are moved as the features are."""
    b, n = len(pairs.source_box), len(KEYPOINTS)
    starts = to_grid(KEYPOINTS, STRIDE).expand(b, n, 2)
    mask = torch.ones(b, n, dtype=torch.bool)
    similarity = torch.zeros(b, n, CELLS, CELLS)
    cells = starts + torch.tensor([float(shift), 0.0])
    return LossInputs(similarity, cells, mask, starts, starts, 0, pairs=pairs, teacher=teacher)


def assert_slope_of_student(evaluate: Callable[[LossInputs], torch.Tensor], step: LossInputs) -> None:
    """A small move along the student's gradient changes the loss by as much, and the teacher has no gradient."""
    pairs = step.pairs
    leaves = [pairs.source.values, pairs.target.values]
    gradients = torch.autograd.grad(evaluate(step), leaves)

    length = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            moved = [leaf + sign * 0.1 / length * slope for leaf, slope in zip(leaves, gradients, strict=True)]
        maps = [FeatureMap(values, float(STRIDE)) for values in moved]
        ends.append(evaluate(step._replace(pairs=pairs._replace(source=maps[0], target=maps[1]))).item())
    assert (ends[0] - ends[1]) / 0.2 == pytest.approx(float(length), rel=2e-2)
    evaluate(step).backward()
    assert step.teacher.source.values.grad is None
