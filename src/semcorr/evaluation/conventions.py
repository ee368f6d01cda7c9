"""Conversions of published evaluators from points to pixels and cells and back, beside those of `coords`.

Everything is computed in double precision: where a point falls exactly between two cells, the definition decides.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.core.coords import to_image
from semcorr.core.errors import UserError
from semcorr.data.record import ImageRecord, PairRecord, longer_side
from semcorr.data.views import fit_to_square, split_resize
from semcorr.evaluation.protocols import Protocol
from semcorr.metrics.pck import normalised_error

EPSILON = 1e-4  # how far inside the view SD4Match, Visual-AI and MARCO keep points


class ResizeGeometry(NamedTuple):
    """Geometry of the originals of a batch in their square views, in pixels."""

    size: Float[Tensor, "b 2"]  # width and height of the originals
    inside: Float[Tensor, "b 2"]  # of the resized original inside the view
    offset: Float[Tensor, "b 2"]  # padding to the left and above
    scale: Float[Tensor, "b 2"]  # view pixels per original pixel, by the plain ratio of sides
    side: int  # of the view, without its margin


def resize_geometry(
    size: Float[Tensor, "b 2"], inside: Float[Tensor, "b 2"], offset: Float[Tensor, "b 2"], side: int
) -> ResizeGeometry:
    """Build the geometry; one ratio for both axes where the aspect is kept, however `inside` was rounded.

    Args:
        size: Width and height of the originals, in pixels.
        inside: Width and height of the resized originals inside the view; both are `side` where they are stretched.
        offset: Padding to the left and above, in view pixels.
        side: Side of the view, in pixels.
    """
    stretched = (inside == side).all(-1, keepdim=True)
    scale = torch.where(stretched, side / size, side / size.amax(-1, keepdim=True))
    return ResizeGeometry(size, inside, offset, scale, side)


def original_to_view(
    points: Float[Tensor, "b n 2"], geometry: ResizeGeometry, fit: str, clamp: bool = False
) -> Float[Tensor, "b n 2"]:
    """Convert original pixels to view pixels.

    exact: (x + 1/2) s + o - 1/2, s = inside / size. ratio: x S / W + o. fitted: x inside / size + o, each axis by
    itself. whole: as ratio, cut to whole pixels. aligned: x (inside - 1) / (size - 1) + o.

    Args:
        points: Original pixels.
        geometry: Geometry of the images that the points are in.
        fit: One of the formulas above, as `Protocol.scaling` names them.
        clamp: Keep points within the image's part of the view.
    """
    factor, offset = _factor(geometry, fit)[:, None], geometry.offset[:, None]
    view = (points + 0.5) * factor + offset - 0.5 if fit == "exact" else points * factor + offset
    view = view.trunc() if fit == "whole" else view
    if not clamp:
        return view
    low = offset + EPSILON
    return view.clamp(low, offset + geometry.inside[:, None] - 1 - EPSILON)


def view_to_original(points: Float[Tensor, "b n 2"], geometry: ResizeGeometry, fit: str) -> Float[Tensor, "b n 2"]:
    """Convert view pixels to original pixels: the inverse of `original_to_view`, except where it clamps or cuts."""
    factor, offset = _factor(geometry, fit)[:, None], geometry.offset[:, None]
    return (points + 0.5 - offset) / factor - 0.5 if fit == "exact" else (points - offset) / factor


def _factor(geometry: ResizeGeometry, fit: str) -> Float[Tensor, "b 2"]:
    """Return the view pixels per original pixel of each axis."""
    if fit in ("exact", "fitted"):
        return geometry.inside / geometry.size
    return (geometry.inside - 1) / (geometry.size - 1) if fit == "aligned" else geometry.scale


def view_to_source_cell(points: Float[Tensor, "b n 2"], side: int, grid: int, lookup: str) -> Float[Tensor, "b n 2"]:
    """Convert view pixels to the (fractional) cell at which a source map of `grid` x `grid` cells is read.

    centre: (x + 1/2) g / S - 1/2. containing: floor(x g / S). aligned: x (g - 1) / (S - 1).
    fraction: x g / S. aligned_fraction: x (g - 1) / S. Cells beyond the map become the nearest on it.

    Args:
        points: View pixels.
        side: Side S of the view, in pixels.
        grid: Cells g along a side of the map.
        lookup: One of the formulas above, as `Protocol.lookup` names them.

    >>> points = torch.tensor([[[6.5, 14.0]]]).double()
    >>> view_to_source_cell(points, 840, 60, "centre"), view_to_source_cell(points, 840, 60, "containing")
    (tensor([[[0.0000, 0.5357]]], dtype=torch.float64), tensor([[[0., 1.]]], dtype=torch.float64))
    """
    if lookup == "centre":
        cells = (points + 0.5) * grid / side - 0.5
    elif lookup == "containing":
        cells = (points * grid / side).floor()
    elif lookup == "aligned":
        cells = points * (grid - 1) / (side - 1)
    else:
        cells = points * (grid if lookup == "fraction" else grid - 1) / side
    return cells.clamp(0, grid - 1)


def target_cell_to_view(cells: Float[Tensor, "b n 2"], side: int, grid: int, decode: str) -> Float[Tensor, "b n 2"]:
    """Convert cells of the target to view pixels.

    centre: (k + 1/2) S / g - 1/2; for 60 cells in 840 pixels, 14 k + 6.5. half_stride: k S / g + S / 2g; 14 k + 7.
    aligned: k (S - 1) / (g - 1). fraction: k S / g.

    Args:
        cells: Cells k, fractional where the readout is.
        side: Side S of the view, in pixels.
        grid: Cells g along a side of the map.
        decode: One of the formulas above, as `Protocol.decode` names them; `native` is none of them.

    >>> last = torch.tensor([[[0.0, 59.0]]]).double()
    >>> ways = ("centre", "half_stride", "aligned", "fraction")
    >>> [target_cell_to_view(last, 840, 60, decode).flatten().tolist() for decode in ways]
    [[6.5, 832.5], [7.0, 833.0], [0.0, 839.0], [0.0, 826.0]]
    """
    stride = side / grid
    if decode == "centre":
        return (cells + 0.5) * stride - 0.5
    if decode == "half_stride":
        return cells * stride + stride / 2
    return cells * ((side - 1) / max(grid - 1, 1)) if decode == "aligned" else cells * stride


def box_extent(box: Float[Tensor, "b 4"], geometry: ResizeGeometry, fit: str) -> Float[Tensor, " b"]:
    """Return the longer side of a box, given in original pixels, after each axis is scaled to view pixels."""
    return ((box[:, 2:] - box[:, :2]) * _factor(geometry, fit)).amax(-1)


class GroundTruth(NamedTuple):
    """Annotations of a batch, in original pixels and double precision."""

    source: Float[Tensor, "b n 2"]
    target: Float[Tensor, "b n 2"]
    source_geometry: ResizeGeometry
    target_geometry: ResizeGeometry
    box: Float[Tensor, "b 4"]  # x1 y1 x2 y2 of the target's object
    extent: Float[Tensor, " b"]  # what alpha is a fraction of
    by_image: Bool[Tensor, " b"]  # the extent is the longer side of the image, not of the box


def ground_truth(records: Sequence[PairRecord], side: int, resize: str, device: torch.device) -> GroundTruth:
    """Read the annotations from the benchmark's records, which are exact where the geometry of the views is rounded.

    A margin of the view is left out: probe3d pads its 800 pixels to a whole number of patches (evals/models/dino.py:61)
    and leaves points and cells in the 800.

    Args:
        records: Records of the pairs.
        side: Side of the view, in pixels, with its margin.
        resize: Placing of the images in the view, as `data.resize` takes it.
        device: Device of the result.

    Raises:
        UserError: The extent of a pair is neither of its target's box nor of its image.
    """
    resize, margin = split_resize(resize)
    side -= 2 * margin

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
    """Compute the geometry of images in their square views.

    Args:
        images: Records of the images.
        side: Side of the view, in pixels, without a margin.
        resize: Placing of the images in the view: `squash`, `letterbox` or `corner`.
        device: Device of the result.
    """
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


def query_points(pairs: GroundTruth, protocol: Protocol, grid: int, stride: float) -> Float[Tensor, "b n 2"]:
    """Return the view pixels, in our own convention, where a source map of grid x grid cells is read.

    Args:
        pairs: Annotations of the pairs.
        protocol: Protocol that defines where the map is read.
        grid: Cells along a side of the map.
        stride: Pixels of the whole view, its margin included, per cell.
    """
    side = pairs.source_geometry.side
    points = pairs.source.floor() if protocol.points == "floor" else pairs.source
    view = original_to_view(points, pairs.source_geometry, protocol.scaling, protocol.clamp)
    return to_image(view_to_source_cell(view, side, grid, protocol.lookup), stride).float()


def score_predictions(
    pairs: GroundTruth, protocol: Protocol, cells: Float[Tensor, "b n 2"], grid: int
) -> tuple[Float[Tensor, "b n 2"], Float[Tensor, "b n"]]:
    """Compute predictions in original target pixels, and their distance from the truth over the extent.

    Args:
        pairs: Annotations of the pairs.
        protocol: Protocol that defines the error.
        cells: Predicted cells of the target's map, or its original pixels where the protocol decodes natively.
        grid: Cells along a side of the map; of no meaning where the protocol decodes natively.

    Returns:
        Predictions in original target pixels, and their errors as fractions of the extent, in the protocol's frame.
    """
    geometry = pairs.target_geometry
    if protocol.points == "floor":
        pairs = pairs._replace(target=pairs.target.floor(), box=pairs.box.floor())
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
