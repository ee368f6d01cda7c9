"""What a loss may know of a training step, and how it is asked."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Which points count; or, where a pair is met in several variants, how much each of them does.
Counted = Bool[Tensor, "b n"] | Float[Tensor, "b n"]


class Descriptors(NamedTuple):
    """Of both images' keypoints, pair by pair: row i of the source is to be found at row i of the target."""

    source: Float[Tensor, "p n c"]
    target: Float[Tensor, "p n c"]
    mask: Tensor  # (p n), as `Counted`
    original: Bool[Tensor, " p"]  # neither image is mirrored for this pair's sake


class LossInputs(NamedTuple):
    """A step's query points with everything that is known of them."""

    similarity: Float[Tensor, "b n h w"]
    cells: Float[Tensor, "b n 2"]  # where the points truly lie in the target, in cells of `similarity`
    mask: Tensor  # (b n), as `Counted`
    starts: Float[Tensor, "b n 2"]  # where they lie in the source, in cells of the same size
    extent: Float[Tensor, "b n 2"]  # longer side of the target's box, in cells along x and along y
    number: int  # optimiser steps made before this one
    descriptors: Descriptors | None = None  # where a loss reads them


@runtime_checkable
class StructuredLoss(Protocol):
    """A loss that takes the whole step."""

    reads_descriptors: bool
    whole_cells: bool  # points are read at the centre of the cell they fall in, not between cells

    def __call__(self, step: LossInputs) -> Float[Tensor, ""]:
        """The loss of it."""


Loss = Callable[[Tensor, Tensor, Tensor], Tensor] | StructuredLoss


def evaluate_loss(loss: Loss, step: LossInputs) -> Float[Tensor, ""]:
    """A plain function of similarity, cells and mask gets those; any other loss the step."""
    return loss(step) if isinstance(loss, StructuredLoss) else loss(step.similarity, step.cells, step.mask)


def reads_descriptors(loss: Loss | None) -> bool:
    """Whether the step must describe the targets' keypoints for this loss."""
    return isinstance(loss, StructuredLoss) and loss.reads_descriptors


def reads_whole_cells(loss: Loss | None) -> bool:
    """Whether points are to be read at cells' centres for this loss."""
    return isinstance(loss, StructuredLoss) and loss.whole_cells


def weighted_mean(value: Float[Tensor, "b n"], mask: Counted) -> Float[Tensor, ""]:
    """Over the points that count, each as much as it does; 0 if none does. The others may be anything, NaN included.

    >>> value = torch.tensor([[1.0, 5.0, torch.nan]])
    >>> masks = torch.tensor([[True, True, False]]), torch.tensor([[0.75, 0.25, 0.0]])
    >>> tuple(weighted_mean(value, mask) for mask in masks)
    (tensor(3.), tensor(2.))
    """
    weight = mask.to(value.dtype)
    return (weight * torch.where(weight > 0, value, 0.0)).sum() / weight.sum().clamp(min=1e-12)


def mask_values(values: Float[Tensor, "b n *s"], mask: Counted) -> Float[Tensor, "b n *s"]:
    """In single precision at least, and 0 at the points that do not count: their gradient is 0, too.

    Selecting them by a mask would do the same, but a GPU would have to tell how many there are.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return torch.where((mask > 0).reshape(*mask.shape, *[1] * (values.ndim - 2)), values, 0.0)
