"""From values of cells to values of pixels: maps laid over a picture, sampled at the centres of a raster."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, conv2d, interpolate

from semcorr.core.coords import to_grid, to_image
from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.inference.encoded import Flow, PicturePlacement, RoundTrip
from semcorr.matching.batched import match_to_target
from semcorr.matching.readouts import Rule, needs_four_queries

MOST = 2**24  # pixels of a raster, at most
STRIP = 2**20  # pixels that are computed at once


def pixel_grid(size: tuple[int, int], original: tuple[int, int]) -> tuple[Float[Tensor, " w"], Float[Tensor, " h"]]:
    """Return columns and rows of a raster laid over a whole picture, in the picture's pixels.

    >>> pixel_grid((2, 1), original=(4, 3))  # two pixels wide in place of four, one high in place of three
    (tensor([0.5000, 2.5000]), tensor([1.]))
    """
    if min(size) < 1 or size[0] * size[1] > MOST:
        raise UserError(
            f"`size` must be a width and a height of at least 1 with at most {MOST / 1e6:.0f} million pixels, got "
            f"{size[0]} x {size[1]}. Give a smaller one, as size=(1024, 768): it is laid over the whole picture"
        )
    x, y = ((torch.arange(n) + 0.5) * (pixels / n) - 0.5 for n, pixels in zip(size, original, strict=True))
    return x, y


def sample_bilinear(
    values: Float[Tensor, "i j c"], x: Float[Tensor, " w"], y: Float[Tensor, " h"]
) -> Float[Tensor, "h w c"]:
    """Interpolate bilinearly at columns `x` and rows `y`, in cells; extrapolate up to half a cell beyond the border.

    >>> sample_bilinear(torch.tensor([[[0.0], [10.0]]]), torch.tensor([-0.5, 0.25, 9.0]), torch.tensor([0.0]))[..., 0]
    tensor([[-5.0000,  2.5000, 15.0000]])
    """
    return _interpolate_rows(_interpolate_rows(values.swapaxes(0, 1), x).swapaxes(0, 1), y)


def _interpolate_rows(values: Float[Tensor, "i j c"], coordinate: Float[Tensor, " n"]) -> Float[Tensor, "n j c"]:
    """Interpolate linearly along the first axis."""
    length = len(values)
    coordinate = coordinate.clamp(-0.5, length - 0.5)
    low, high = _neighbours(coordinate, length)
    return torch.lerp(values[low], values[high], (coordinate - low)[:, None, None].to(values))


def interpolate_matches(
    matches: Float[Tensor, "i j 2"], x: Float[Tensor, " w"], y: Float[Tensor, " h"], stride: float, max_distance: float
) -> Float[Tensor, "h w 2"]:
    """Interpolate the matches of cells at columns `x` and rows `y`.

    Bilinear between four cells whose matches lie together; where they do not, an object ends, and points move with
    the nearest cell: a position between two objects is on neither.

    Args:
        matches: Match of every cell, in pixels.
        x: Columns, in cells.
        y: Rows, in cells.
        stride: Pixels per cell, in source and target.
        max_distance: Distance in pixels up to which the matches of four cells lie together.

    >>> matches = torch.tensor([[[0.0, 0.0], [10.0, 0.0], [90.0, 0.0]]])  # the third lies on another object
    >>> x, y = torch.tensor([0.5, 1.25, 1.75]), torch.tensor([0.0])
    >>> interpolate_matches(matches, x, y, stride=8, max_distance=16)[..., 0]
    tensor([[ 5., 12., 88.]])
    """
    rows = y.split(max(1, STRIP // max(1, len(x))))
    return torch.cat([_interpolate_strip(matches, x, chunk, stride, max_distance) for chunk in rows])


def _interpolate_strip(
    matches: Float[Tensor, "i j 2"], x: Float[Tensor, " w"], y: Float[Tensor, " h"], stride: float, max_distance: float
) -> Float[Tensor, "h w 2"]:
    """Interpolate the matches of cells at a strip of rows, see `interpolate_matches`."""
    near_x, near_y = (
        coordinate.round().clamp(0, n - 1).long() for coordinate, n in ((x, matches.shape[1]), (y, matches.shape[0]))
    )
    nearest = matches[near_y][:, near_x]
    offset = torch.stack(torch.meshgrid(x - near_x, y - near_y, indexing="xy"), dim=-1) * stride
    columns, rows = (_neighbours(coordinate, n) for coordinate, n in ((x, matches.shape[1]), (y, matches.shape[0])))
    corners = [matches[row][:, column] for row in rows for column in columns]
    together = torch.stack([(corner - nearest).norm(dim=-1) <= max_distance for corner in corners]).all(0)
    return torch.where(together[..., None], sample_bilinear(matches, x, y), nearest + offset)


def _neighbours(coordinate: Float[Tensor, " n"], length: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Return the indices of the two cells around each coordinate; at the border, of the last two."""
    low = coordinate.floor().clamp(0, max(length - 2, 0)).long()
    return low, (low + 1).clamp(max=length - 1)


APART = 2.0  # cells of the target within which matches of neighbouring source cells lie together


def transfer_points(
    head: nn.Module,
    source: FeatureMap,
    target: FeatureMap,
    points: Float[Tensor, "n 2"],
    rule: Rule,
    subcell: bool = True,
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """Transfer points from source pixels to target pixels, and return the similarity of the best cells, too.

    A read-out with a small temperature is insensitive to the position between two cells: its match is that of one or
    the other. With `subcell` the four cells around a point are matched as well; if their matches lie together, they
    are interpolated by the point's position between the four cells (as NC-Net transfers points, and
    `localise=bilinear_nn`), and extrapolated in the outer half of a border cell. If they do not, the object ends or
    they disagree, and the point's own match is taken.

    Args:
        head: The head, which turns features and points into similarities.
        source: Features of the source image; adapted, if the head is a `SiameseHead`.
        target: Features of the target image; adapted as the source.
        points: Query points in source pixels.
        rule: The read-out.
        subcell: Whether the four cells around each point are matched, too.
    """
    if needs_four_queries(rule) or not subcell or not len(points):
        matches = match_to_target(head, target, [source], [points], [rule])
        return matches.points[0], matches.score
    h, w = source.values.shape[-2:]
    corners, weights = bilinear_cells(to_grid(points, source.stride), (w, h))
    query_points = torch.cat((points[:, None], to_image(corners, source.stride)), dim=1)
    matches = match_to_target(head, target, [source], [query_points.flatten(0, 1)], [rule])
    direct, four = matches.cells[0].unflatten(0, (-1, 5)).split((1, 4), dim=1)
    together = ((four - direct).norm(dim=-1) <= APART) | (weights.abs() < 1e-6)
    interpolated = (four * weights[..., None]).sum(1)
    cells = torch.where(together.all(-1, keepdim=True), interpolated, direct[:, 0])
    return to_image(cells, matches.stride), matches.score.unflatten(0, (-1, 5))[:, 0]


def transfer_with_cycle_check(
    head: nn.Module,
    maps: tuple[FeatureMap, FeatureMap],
    placement: PicturePlacement,
    points: Float[Tensor, "n 2"],
    rule: Rule,
    cycle: float,
    subcell: bool = True,
) -> RoundTrip:
    """Transfer points to the target and back, and tell which return near to where they started.

    Args:
        head: The head, which turns features and points into similarities.
        maps: Features of the source and the target.
        placement: Placement of the target's picture in its square: a match in the padding moves onto the picture.
        points: Query points in source pixels.
        rule: The read-out.
        cycle: Distance up to which a returned point counts as near, in cells of the source.
        subcell: Whether the four cells around each point are matched, too.
    """
    source, target = maps
    matches, scores = transfer_points(head, source, target, points, rule, subcell)
    matches = placement.to_view(placement.from_view(matches))
    cycle_points, _ = transfer_points(head, target, source, matches, rule, subcell)
    return RoundTrip(
        matches, scores.float(), (cycle_points - points).norm(dim=-1) <= cycle * source.stride, cycle_points
    )


def bilinear_cells(
    cells: Float[Tensor, "n 2"], grid: tuple[int, int]
) -> tuple[Float[Tensor, "n 4 2"], Float[Tensor, "n 4"]]:
    """Return the four cells around each position and their bilinear weights; at the border they extrapolate.

    >>> bilinear_cells(torch.tensor([[-0.5, 0.25]]), (3, 3))[1]
    tensor([[ 1.1250,  0.3750, -0.3750, -0.1250]])
    """
    count = torch.tensor(grid, device=cells.device)
    cells = cells.clamp(min=-0.5).minimum(count - 0.5)
    low = cells.floor().clamp(min=0).minimum((count - 2).clamp(min=0))
    share = cells - low
    corners = _unit_square(cells.device)
    weights = torch.where(corners.bool(), share[:, None], 1 - share[:, None]).prod(-1)
    return (low[:, None] + corners).minimum((count - 1).to(low)), weights


def _unit_square(device: torch.device) -> Int[Tensor, "4 2"]:
    """Return the corners of the unit square."""
    return torch.cartesian_prod(*[torch.arange(2, device=device)] * 2)  # (0 0), (0 1), (1 0), (1 1)


def cell_centres(maps: FeatureMap) -> Float[Tensor, "n 2"]:
    """Return the centres of all cells, row by row, in pixels."""
    h, w = maps.values.shape[-2:]
    y, x = torch.meshgrid(*(torch.arange(n, device=maps.values.device).float() for n in (h, w)), indexing="ij")
    return to_image(torch.stack((x, y), dim=-1).flatten(0, 1), maps.stride)


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
        tolerance: Pixels of the source per pixel of the flow: displacements within this many standard deviations of
            the Gaussian agree.
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
