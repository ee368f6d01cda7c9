"""Transfer of points between two images by their features, also between the cells of the source."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from semcorr.core.coords import to_grid, to_image
from semcorr.core.types import FeatureMap
from semcorr.inference.encoded import PicturePlacement
from semcorr.inference.matches import RoundTrip
from semcorr.matching.batched import match_to_target
from semcorr.matching.readout_names import Rule, needs_four_queries

APART = 2.0  # cells of the target within which matches of neighbouring source cells lie together


def transfer_points(
    head: object,
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
    head: object,
    maps: tuple[FeatureMap, FeatureMap],
    place: PicturePlacement,
    points: Float[Tensor, "n 2"],
    rule: Rule,
    cycle: float,
    subcell: bool = True,
) -> RoundTrip:
    """Transfer points to the target and back, and tell which return near to where they started.

    Args:
        head: The head, which turns features and points into similarities.
        maps: Features of the source and the target.
        place: Placement of the target's picture in its square: a match in the padding moves onto the picture.
        points: Query points in source pixels.
        rule: The read-out.
        cycle: Distance up to which a returned point counts as near, in cells of the source.
        subcell: Whether the four cells around each point are matched, too.
    """
    source, target = maps
    matches, scores = transfer_points(head, source, target, points, rule, subcell)
    matches = place.to_view(place.from_view(matches))
    returned, _ = transfer_points(head, target, source, matches, rule, subcell)
    return RoundTrip(matches, scores.float(), (returned - points).norm(dim=-1) <= cycle * source.stride, returned)


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
    return torch.cartesian_prod(*[torch.arange(2, device=device)] * 2)  # (0 0), (0 1), (1 0), (1 1)


def cell_centres(maps: FeatureMap) -> Float[Tensor, "n 2"]:
    """Return the centres of all cells, row by row, in pixels."""
    h, w = maps.values.shape[-2:]
    y, x = torch.meshgrid(*(torch.arange(n, device=maps.values.device).float() for n in (h, w)), indexing="ij")
    return to_image(torch.stack((x, y), dim=-1).flatten(0, 1), maps.stride)
