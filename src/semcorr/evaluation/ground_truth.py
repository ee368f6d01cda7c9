"""Ground truth of a batch under a protocol: the query points in the source, and errors from cells of the target."""

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
    """Annotations of a batch, in original pixels and double precision."""

    source: Float[Tensor, "b n 2"]
    target: Float[Tensor, "b n 2"]
    source_at: ResizeGeometry
    target_at: ResizeGeometry
    box: Float[Tensor, "b 4"]  # of the target
    extent: Float[Tensor, " b"]
    by_image: Bool[Tensor, " b"]  # the extent is the longer side of the image, not of the box


def ground_truth(records: Sequence[PairRecord], side: int, resize: str, device: torch.device) -> GroundTruth:
    """Read the annotations from the benchmark's records, which are exact where the geometry of the views is rounded."""

    def stack_keypoints(images: Sequence[ImageRecord]) -> Tensor:
        """Stack the keypoints of images."""
        return torch.stack([image.keypoints for image in images]).double().to(device)

    sources, targets = [pair.source for pair in records], [pair.target for pair in records]
    return GroundTruth(
        stack_keypoints(sources),
        stack_keypoints(targets),
        view_geometry(sources, side, resize, device),
        view_geometry(targets, side, resize, device),
        torch.tensor([image.box for image in targets], dtype=torch.double, device=device),
        torch.tensor([pair.extent for pair in records], dtype=torch.double, device=device),
        torch.tensor([extent_is_of_image(pair) for pair in records], device=device),
    )


def view_geometry(images: Sequence[ImageRecord], side: int, resize: str, device: torch.device) -> ResizeGeometry:
    """Compute the geometry of images in their square views."""
    fits = [fit_to_square(image.size, side, resize) for image in images]
    sizes = ([image.size for image in images], [fit.size for fit in fits], [fit.offset for fit in fits])
    size, inside, offset = (torch.tensor(values, dtype=torch.double, device=device) for values in sizes)
    return resize_geometry(size, inside, offset, side)


def extent_is_of_image(pair: PairRecord) -> bool:
    """Tell whether a pair's extent is a side of its target image, or of its box.

    Conventions scale the two differently.

    Raises:
        UserError: The extent is neither.
    """
    if pair.extent == longer_side(pair.target.box):
        return False
    if pair.extent == max(pair.target.size):
        return True
    raise UserError(
        f"`protocol`: pair {pair.name} has an extent of {pair.extent}, the longer side neither of its target's box nor "
        "of its image: published protocols do not say how to scale that. Use protocol=semcorr."
    )


def query_points(pairs: GroundTruth, protocol: Protocol, grid: int) -> Float[Tensor, "b n 2"]:
    """Return the view pixels, in our own convention, where a source map of grid x grid cells is read."""
    side = pairs.source_at.side
    view = original_to_view(pairs.source, pairs.source_at, protocol.scaling, protocol.clamp)
    return to_image(view_to_source_cell(view, side, grid, protocol.lookup), side / grid).float()


def score_predictions(
    pairs: GroundTruth, protocol: Protocol, cells: Float[Tensor, "b n 2"], grid: int
) -> tuple[Float[Tensor, "b n 2"], Float[Tensor, "b n"]]:
    """Compute predictions in original target pixels, and their distance from the truth over the extent.

    Args:
        pairs: Annotations of the pairs.
        protocol: Protocol that defines the error.
        cells: Predicted cells of the target's map, or its original pixels where the protocol decodes natively.
        grid: Cells along a side of the map.
    """
    geometry = pairs.target_at
    if protocol.decode == "native":
        original = cells.double()
        view = original_to_view(original, geometry, protocol.scaling)
    else:
        view = target_cell_to_view(cells.double(), geometry.side, grid, protocol.decode)
        original = view_to_original(view, geometry, protocol.scaling)
    if protocol.frame == "original":
        return original, normalised_error(original, pairs.target, pairs.extent)
    truth = original_to_view(pairs.target, geometry, protocol.scaling, protocol.clamp)
    if protocol.frame == "view":
        boxes = box_extent(pairs.box, geometry, protocol.scaling)
        return original, normalised_error(view, truth, torch.where(pairs.by_image, float(geometry.side), boxes))
    unit = torch.where(pairs.by_image, 1.0, (pairs.box[:, 2:] - pairs.box[:, :2]).amax(-1) / geometry.size.amax(-1))
    return original, normalised_error(view / geometry.side, truth / geometry.side, unit)
