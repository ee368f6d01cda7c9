"""Points of one image to points of another, by features alone; between the cells of the source, too."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from semcorr.core.coords import to_grid, to_image
from semcorr.core.types import FeatureMap
from semcorr.inference.encoded import PicturePlacement
from semcorr.inference.matches import RoundTrip
from semcorr.matching.batched import match_to_target
from semcorr.matching.readout_names import Rule, needs_four_queries

APART = 2.0  # cells of the target within which the answers of neighbouring source cells are of one place


def transfer_points(
    head: Any,
    source: FeatureMap,
    target: FeatureMap,
    points: Float[Tensor, "n 2"],
    rule: Rule,
    subcell: bool = True,
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """Where points of the source, in its pixels, lie in the target, in its; and the similarity of the best cell.

    A read-out with a small temperature knows little of where between two cells a point lies: it answers with one
    of them, or the other. With `subcell` the four cells around a point are asked as well; if their answers lie
    together, the point's is between them as the point is between the four (as NC-Net transfers points, and
    `localise=bilinear_nn`), and in the outer half of a border cell as far beyond. If they do not, the object
    ends here or they disagree, and the point's own answer stands.

    Args:
        head: Features and points to similarity.
        source: Of one image; adapted, if the head is separable, as
        target: that of the other.
        points: In source pixels.
        rule: A read-out.
        subcell: Ask the four cells around, too.
    """
    if needs_four_queries(rule) or not subcell or not len(points):
        found = match_to_target(head, target, [source], [points], [rule])
        return found.points[0], found.score
    h, w = source.values.shape[-2:]
    corners, weights = bilinear_cells(to_grid(points, source.stride), (w, h))
    every = torch.cat((points[:, None], to_image(corners, source.stride)), dim=1)
    found = match_to_target(head, target, [source], [every.flatten(0, 1)], [rule])
    own, four = found.cells[0].unflatten(0, (-1, 5)).split((1, 4), dim=1)
    together = ((four - own).norm(dim=-1) <= APART) | (weights.abs() < 1e-6)
    blended = (four * weights[..., None]).sum(1)
    cells = torch.where(together.all(-1, keepdim=True), blended, own[:, 0])
    return to_image(cells, found.stride), found.score.unflatten(0, (-1, 5))[:, 0]


def transfer_with_cycle_check(
    head: Any,
    maps: tuple[FeatureMap, FeatureMap],
    place: PicturePlacement,
    points: Float[Tensor, "n 2"],
    rule: Rule,
    cycle: float,
    subcell: bool = True,
) -> RoundTrip:
    """The same, and where the answers lie in the source.

    Args:
        head: Features and points to similarity.
        maps: Of the source and the target.
        place: Where the target's picture lies in its square: an answer in the padding is brought onto it.
        points: In source pixels.
        rule: A read-out.
        cycle: How many of the source's cells from its point an answer may return to.
        subcell: As above.
    """
    here, there = maps
    found, scores = transfer_points(head, here, there, points, rule, subcell)
    found = place.to_view(place.from_view(found))
    back, _ = transfer_points(head, there, here, found, rule, subcell)
    return RoundTrip(found, scores.float(), (back - points).norm(dim=-1) <= cycle * here.stride, back)


def bilinear_cells(
    cells: Float[Tensor, "n 2"], grid: tuple[int, int]
) -> tuple[Float[Tensor, "n 4 2"], Float[Tensor, "n 4"]]:
    """The four cells that a place is between, and their bilinear weights; at the border the last four, extrapolated.

    >>> bilinear_cells(torch.tensor([[-0.5, 0.25]]), (3, 3))[1]
    tensor([[ 1.1250,  0.3750, -0.3750, -0.1250]])
    """
    count = torch.tensor(grid, device=cells.device)
    cells = cells.clamp(min=-0.5).minimum(count - 0.5)
    low = cells.floor().clamp(min=0).minimum((count - 2).clamp(min=0))
    share = cells - low
    corners = _square(cells.device)
    weights = torch.where(corners.bool(), share[:, None], 1 - share[:, None]).prod(-1)
    return (low[:, None] + corners).minimum((count - 1).to(low)), weights


def _square(device: torch.device) -> Int[Tensor, "4 2"]:
    return torch.cartesian_prod(*[torch.arange(2, device=device)] * 2)  # (0 0), (0 1), (1 0), (1 1)


def cell_centres(maps: FeatureMap) -> Float[Tensor, "n 2"]:
    """Of all cells, row by row, in pixels."""
    h, w = maps.values.shape[-2:]
    y, x = torch.meshgrid(*(torch.arange(n, device=maps.values.device).float() for n in (h, w)), indexing="ij")
    return to_image(torch.stack((x, y), dim=-1).flatten(0, 1), maps.stride)
