"""A batch of pairs under a protocol: where the source is asked, and from cells to errors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.core.coords import to_image
from semcorr.core.errors import UserError
from semcorr.data.record import ImageRecord, PairRecord, longer_side
from semcorr.data.transforms import fit_to_square
from semcorr.evaluation.conventions import (
    ResizeGeometry,
    box_extent,
    original_to_view,
    resize_geometry,
    target_cell_to_view,
    view_to_original,
    view_to_source_cell,
)
from semcorr.evaluation.protocols import Protocol
from semcorr.metrics.pck import normalised_error


class GroundTruth(NamedTuple):
    """What the benchmark says of a batch, in original pixels and double precision."""

    source: Float[Tensor, "b n 2"]
    target: Float[Tensor, "b n 2"]
    source_at: ResizeGeometry
    target_at: ResizeGeometry
    box: Float[Tensor, "b 4"]  # of the target
    extent: Float[Tensor, " b"]
    by_image: Bool[Tensor, " b"]  # the extent is the longer side of the image, not of the box


def ground_truth(records: Sequence[PairRecord], side: int, resize: str, device: torch.device) -> GroundTruth:
    """From the benchmark's own records, which know what the geometry of the views has rounded."""

    def points(images: Sequence[ImageRecord]) -> Tensor:
        return torch.stack([image.keypoints for image in images]).double().to(device)

    sources, targets = [pair.source for pair in records], [pair.target for pair in records]
    return GroundTruth(
        points(sources),
        points(targets),
        view_geometry(sources, side, resize, device),
        view_geometry(targets, side, resize, device),
        torch.tensor([image.box for image in targets], dtype=torch.double, device=device),
        torch.tensor([pair.extent for pair in records], dtype=torch.double, device=device),
        torch.tensor([extent_is_of_image(pair) for pair in records], device=device),
    )


def view_geometry(images: Sequence[ImageRecord], side: int, resize: str, device: torch.device) -> ResizeGeometry:
    """How images land in their squares."""
    fits = [fit_to_square(image.size, side, resize) for image in images]
    sizes = ([image.size for image in images], [one.size for one in fits], [one.offset for one in fits])
    size, inside, offset = (torch.tensor(each, dtype=torch.double, device=device) for each in sizes)
    return resize_geometry(size, inside, offset, side)


def extent_is_of_image(pair: PairRecord) -> bool:
    """Whether a pair's extent is a side of its target image, or of its box. Conventions scale them differently."""
    if pair.extent == longer_side(pair.target.box):
        return False
    if pair.extent == max(pair.target.size):
        return True
    raise UserError(
        f"`protocol`: pair {pair.name} has an extent of {pair.extent}, the longer side neither of its target's box nor "
        "of its image: published protocols do not say how to scale that. Use protocol=semcorr."
    )


def query_points(pairs: GroundTruth, protocol: Protocol, grid: int) -> Float[Tensor, "b n 2"]:
    """Pixels of the view, in our own convention, where a source map of grid x grid cells is read."""
    side = pairs.source_at.side
    view = original_to_view(pairs.source, pairs.source_at, protocol.scaling, protocol.clamp)
    return to_image(view_to_source_cell(view, side, grid, protocol.lookup), side / grid).float()


def score_predictions(
    pairs: GroundTruth, protocol: Protocol, cells: Float[Tensor, "b n 2"], grid: int
) -> tuple[Float[Tensor, "b n 2"], Float[Tensor, "b n"]]:
    """Predictions in original target pixels, and their distance from the truth over the extent.

    Args:
        pairs: Annotations.
        protocol: By which.
        cells: Of the target's map, or its original pixels where the protocol reads it natively.
        grid: Cells along a side of the map.
    """
    at = pairs.target_at
    if protocol.decode == "native":
        original = cells.double()
        view = original_to_view(original, at, protocol.scaling)
    else:
        view = target_cell_to_view(cells.double(), at.side, grid, protocol.decode)
        original = view_to_original(view, at, protocol.scaling)
    if protocol.frame == "original":
        return original, normalised_error(original, pairs.target, pairs.extent)
    truth = original_to_view(pairs.target, at, protocol.scaling, protocol.clamp)
    if protocol.frame == "view":
        boxes = box_extent(pairs.box, at, protocol.scaling)
        return original, normalised_error(view, truth, torch.where(pairs.by_image, float(at.side), boxes))
    unit = torch.where(pairs.by_image, 1.0, (pairs.box[:, 2:] - pairs.box[:, :2]).amax(-1) / at.size.amax(-1))
    return original, normalised_error(view / at.side, truth / at.side, unit)
