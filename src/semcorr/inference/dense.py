"""Points transferred between two pictures, and flows that are smoothed for the eye."""

import math
from collections.abc import Iterable
from numbers import Integral

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, conv2d, interpolate

from semcorr.core.bilinear import bilinear_neighbours
from semcorr.core.coords import to_grid, to_image
from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.inference.encoded import Flow, PicturePlacement, RoundTrip
from semcorr.matching.batched import match_to_target
from semcorr.matching.dense import MAX_GAP
from semcorr.matching.readouts import Readout, needs_four_queries

MAX_PIXELS = 2**24  # of a raster


def pixel_grid(size: object, original: tuple[int, int]) -> tuple[Float[Tensor, " w"], Float[Tensor, " h"]]:
    """Return columns and rows of a raster laid over a whole picture, in the picture's pixels.

    Args:
        size: Width and height of the raster, as `parse_size` takes them.
        original: Width and height of the picture in pixels.

    >>> pixel_grid((2, 1), original=(4, 3))  # two pixels wide in place of four, one high in place of three
    (tensor([0.5000, 2.5000]), tensor([1.]))
    """
    x, y = (
        (torch.arange(n, dtype=torch.float32) + 0.5) * (pixels / n) - 0.5
        for n, pixels in zip(parse_size(size), original, strict=True)
    )
    return x, y


def parse_size(size: object) -> tuple[int, int]:
    """Return width and height of a raster.

    Args:
        size: Two whole numbers, in a sequence, an array or a tensor.

    Raises:
        UserError: They are not two positive whole numbers, or the raster would be too large.
    """
    rows = size.tolist() if isinstance(size, Tensor | np.ndarray) else size
    sides = tuple(rows) if isinstance(rows, Iterable) else (rows,)
    numbers = [int(side) for side in sides if isinstance(side, Integral)]
    if len(sides) != 2 or len(numbers) != 2 or min(numbers) < 1 or math.prod(numbers) > MAX_PIXELS:
        raise UserError(
            f"`size` must be a width and a height of at least 1 with at most {MAX_PIXELS / 1e6:.0f} million pixels, "
            f"got {' x '.join(map(str, sides))}. Give another, as size=(1024, 768): it is laid over the whole picture"
        )
    return numbers[0], numbers[1]


def transfer_points(
    head: nn.Module,
    source: FeatureMap,
    target: FeatureMap,
    points: Float[Tensor, "n 2"],
    readout: Readout,
    subcell: bool = True,
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """Transfer points from the source to the target, and return the similarity of the best cells, too.

    Points are in pixels of the squares that the network sees.

    A readout with a small temperature is insensitive to the position between two cells: its match is that of one or
    the other. With `subcell` the four cells around a point are matched as well; if their matches lie together, they
    are interpolated by the point's position between the four cells (as NC-Net transfers points, and
    `localise=bilinear_nn`), and extrapolated in the outer half of a border cell. If they do not, the object ends or
    they disagree, and the point's own match is taken.

    Args:
        head: The head, which turns features and points into similarities.
        source: Features of the source image; transformed, if the head is a `SiameseHead`.
        target: Features of the target image; transformed as the source.
        points: Query points in the source.
        readout: The readout.
        subcell: Whether the four cells around each point are matched, too.

    Returns:
        The points in the target, and the similarity of the cell of the target that is most similar to each query point.
    """
    if needs_four_queries(readout) or not subcell or not len(points):
        matches = match_to_target(head, target, [source], [points], [readout])
        return matches.points[0], matches.score
    h, w = source.values.shape[-2:]
    on_map = to_grid(points, source.stride).clamp(min=-0.5).minimum(points.new_tensor([w, h]) - 0.5)
    corners, weights = bilinear_neighbours(on_map, (w, h))
    query_points = torch.cat((points[:, None], to_image(corners, source.stride)), dim=1)
    matches = match_to_target(head, target, [source], [query_points.flatten(0, 1)], [readout])
    direct, four = matches.cells[0].unflatten(0, (-1, 5)).split((1, 4), dim=1)
    together = ((four - direct).norm(dim=-1) <= MAX_GAP) | (weights.abs() < 1e-6)
    interpolated = (four * weights[..., None]).sum(1)
    cells = torch.where(together.all(-1, keepdim=True), interpolated, direct[:, 0])
    return to_image(cells, matches.stride), matches.score.unflatten(0, (-1, 5))[:, 0]


def transfer_with_cycle_check(
    head: nn.Module,
    maps: tuple[FeatureMap, FeatureMap],
    placement: PicturePlacement,
    points: Float[Tensor, "n 2"],
    readout: Readout,
    cycle: float,
    subcell: bool = True,
) -> RoundTrip:
    """Transfer points to the target and back, and tell which return near to where they started.

    Args:
        head: The head, which turns features and points into similarities.
        maps: Features of the source and the target; transformed, if the head is a `SiameseHead`.
        placement: Placement of the target's picture in its square: a match in the padding moves onto the picture.
        points: Query points, in pixels of the source's square.
        readout: The readout.
        cycle: Distance up to which a returned point counts as near, in cells of the source.
        subcell: Whether the four cells around each point are matched, too.

    Raises:
        UserError: A similarity is not finite.
    """
    source, target = maps
    matches, scores = transfer_points(head, source, target, points, readout, subcell)
    if not bool(matches.isfinite().all() & scores.isfinite().all()):  # a match that is none has no way back
        raise UserError("`head`: the similarities of these pictures are not finite. Give other weights")
    matches = placement.to_view(placement.from_view(matches))
    cycle_points, _ = transfer_points(head, target, source, matches, readout, subcell)
    return RoundTrip(
        matches, scores.float(), (cycle_points - points).norm(dim=-1) <= cycle * source.stride, cycle_points
    )


COARSE = 96  # pixels of the longer side at which a flow is smoothed
SMOOTH = (0.16, 0.16, 0.08, 0.04, 0.025)  # standard deviations, as shares of the longer side
LEAST_WEIGHT = 1e-4  # of a pixel without confidence: some flow must be drawn where there is no other


def smooth_flow(flow: Flow, tolerance: float, size: tuple[int, int] | None = None) -> Flow:
    """Smooth a flow for a picture: from coarse to fine, a Gaussian mean of confident pixels that agree with the last.

    Where neighbouring cells disagree, `Matcher.dense` moves points with the nearest cell, and a warped picture falls
    into blocks. Here such cells lose their weight, and their confidence with it (normalized convolution with the
    weights of a robust mean).

    Args:
        flow: The flow.
        tolerance: Pixels of the picture that the flow leads to, per pixel of the flow: displacements that differ by
            this many standard deviations of the Gaussian still agree.
        size: Width and height of the result, laid over the same picture; those of the flow if left out.
    """
    h, w = flow.confidence.shape
    share = min(1.0, COARSE / max(h, w))
    shape = max(1, round(h * share)), max(1, round(w * share))
    confidence = adaptive_avg_pool2d(flow.confidence[None, None].double(), shape)
    weight = confidence + LEAST_WEIGHT
    weighted_flow = flow.flow.permute(2, 0, 1)[None].double() * (flow.confidence + LEAST_WEIGHT)
    displacement = adaptive_avg_pool2d(weighted_flow, shape) / weight
    agreement, mean = torch.ones_like(weight), displacement
    for sigma in (side * max(shape) for side in SMOOTH):
        mean = _blur(displacement * weight * agreement, sigma) / _blur(weight * agreement, sigma)
        reach = max(1.0, sigma / share) * tolerance
        agreement = torch.exp(-0.5 * (displacement - mean).square().sum(1, keepdim=True) / reach**2) + LEAST_WEIGHT
    finest = SMOOTH[-1] * max(shape)
    smooth_confidence = _blur(confidence * agreement, finest) / _blur(torch.ones_like(confidence), finest)
    shape = (h, w) if size is None else size[::-1]
    smooth = interpolate(torch.cat((mean, smooth_confidence), dim=1), shape, mode="bicubic", align_corners=False)[0]
    return Flow(smooth[:2].permute(1, 2, 0).to(flow.flow), smooth[2].clamp(0, 1).to(flow.confidence))


def _blur(values: Float[Tensor, "1 c h w"], sigma: float) -> Float[Tensor, "1 c h w"]:
    """Blur channels with a Gaussian; beyond the border there is nothing."""
    radius = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1).to(values) / sigma) ** 2)
    channels = values.transpose(0, 1)
    rows = conv2d(channels, kernel[None, None, :, None], padding=(radius, 0))
    return conv2d(rows, kernel[None, None, None, :], padding=(0, radius)).transpose(0, 1)
