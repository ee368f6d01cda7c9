"""The inputs of losses from a training step, and the types of losses."""

from collections.abc import Callable, Collection
from enum import StrEnum
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.models.losses.pair_maps import PairMaps, SourceImages

# Which points of each row, a pair, count; or the weight of each point, where a row is a variant or holds many pairs.
KeypointWeights = Bool[Tensor, "b n"] | Float[Tensor, "b n"]


class Descriptors(NamedTuple):
    """Descriptors of both images' keypoints, pair by pair: row i of the source corresponds to row i of the target."""

    source: Float[Tensor, "p n c"]
    target: Float[Tensor, "p n c"]
    mask: Tensor  # (p n), as `KeypointWeights`
    original: Bool[Tensor, " p"]  # whether neither image is mirrored in this variant of the pair


class LossInputs(NamedTuple):
    """The query points of a training step, with all that losses may use."""

    similarity: Float[Tensor, "b n h w"]
    cells: Float[Tensor, "b n 2"]  # true positions in the target, in cells of `similarity`
    mask: Tensor  # (b n), as `KeypointWeights`
    starts: Float[Tensor, "b n 2"]  # positions in the source, in cells of the same size
    extent: Float[Tensor, "b n 2"]  # longer side of the target's box, in cells along x and along y
    number: int  # optimiser steps before this one
    descriptors: Descriptors | None = None  # if a loss reads them
    pairs: PairMaps | None = None  # the pairs themselves, without mirrored variants, if a loss reads them
    sources: SourceImages | None = None  # pixels of the sources, if a loss reads them
    teacher: PairMaps | None = None  # the same pairs as a teacher sees them, without gradients, if a loss reads it


# Where the source's features are read for a point. centre: between cells, cells at their centres. containing: at the
# centre of the cell that it falls in. aligned: between cells, corner cells on the corner pixels of the squashed image,
# in a map whose features have unit length; and the target's cells are found in the same way.
Lookup = Literal["centre", "containing", "aligned"]
LOOKUPS: tuple[Lookup, ...] = get_args(Lookup)  # the later ones take precedence in a sum


class ExtraInput(StrEnum):
    """What a loss may read besides the keypoints of a step, as it says in its attribute `reads`.

    Attributes:
        PAIRS: Both images of each pair.
        OTHERS: Also images that are not a pair, whose features must not depend on one.
        TEACHER: The pairs as a teacher sees them.
        PIXELS: The sources' pixels, which it may change and encode; features must not depend on a pair.
        MASKS: The objects' masks, with the pairs.
    """

    PAIRS = "pairs"
    OTHERS = "others"
    TEACHER = "teacher"
    PIXELS = "pixels"
    MASKS = "masks"


@runtime_checkable
class StructuredLoss(Protocol):
    """A loss that takes all inputs of a training step."""

    reads_descriptors: bool
    lookup: Lookup

    def __call__(self, step: LossInputs) -> Float[Tensor, ""]:
        """Compute the loss of a step."""


Loss = Callable[[Tensor, Tensor, Tensor], Tensor] | StructuredLoss


def evaluate_loss(loss: Loss, step: LossInputs) -> Float[Tensor, ""]:
    """Call a loss with the step, or a plain function with its similarity, cells and mask."""
    return loss(step) if isinstance(loss, StructuredLoss) else loss(step.similarity, step.cells, step.mask)


def reads_descriptors(loss: Loss | None) -> bool:
    """Tell whether the loss needs the descriptors of the keypoints."""
    return isinstance(loss, StructuredLoss) and loss.reads_descriptors


def list_reads(loss: Loss | None) -> Collection[ExtraInput]:
    """List what the loss reads besides keypoints; most losses have no attribute `reads`, and read nothing."""
    reads: Collection[ExtraInput] = getattr(loss, "reads", ())
    return reads


def point_lookup(loss: Loss | None) -> Lookup:
    """Return where the loss wants features to be read; a plain function, as no loss, at `centre`."""
    return loss.lookup if isinstance(loss, StructuredLoss) else "centre"


def weighted_mean(value: Float[Tensor, "b n"], mask: KeypointWeights) -> Float[Tensor, ""]:
    """Average over the points of each pair, then over the pairs that have any, as the unified benchmark's code does.

    Args:
        value: Value of each point. Points without weight may be NaN.
        mask: Points that count, a pair in each row; or weights, in which the mean over points and pairs is contained
            already: the weights of a pair's points add up to 1, in whatever rows they are.

    Returns:
        The mean; 0 without a point that counts.

    >>> value = torch.tensor([[1.0, 5.0, torch.nan], [9.0, 0.0, 0.0]])
    >>> pairs = torch.tensor([[True, True, False], [True, False, False]])  # 3 and 9
    >>> weights = torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.0, 0.0]])
    >>> weighted_mean(value, pairs), weighted_mean(value, weights)
    (tensor(6.), tensor(2.))
    """
    weight = mask.to(value.dtype)
    if mask.dtype == torch.bool:
        weight = weight / weight.sum(-1, keepdim=True).clamp(min=1)
    return (weight * torch.where(weight > 0, value, 0.0)).sum() / weight.sum().clamp(min=1e-12)


def mask_values(values: Float[Tensor, "b n *s"], mask: KeypointWeights) -> Float[Tensor, "b n *s"]:
    """Return values in single precision at least, with 0 at the points that do not count; their gradient is 0, too.

    Boolean indexing would do the same, but a GPU would have to report how many points there are.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return torch.where((mask > 0).reshape(*mask.shape, *[1] * (values.ndim - 2)), values, 0.0)
