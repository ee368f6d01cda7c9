"""Naive loops: what public evaluators do for each pair, in our words, for benchmarks to compare with.

They follow the public evaluators in what is computed, how often, and on what; the coordinates are ours, so that the
matches can be compared. Where two evaluators differ, the cheaper way is taken:

- GeoAware-SC (`pck_train.py`, `calculate_keypoint_transformation`) and sd-dino (`pck_spair_pascal.py`) normalise both
  maps of the pair and compute the similarity of every source cell with every target cell; the rows of the cells
  that hold the keypoints are used. GeoAware-SC reads out all rows, not these alone, and reads both maps from a file;
  sd-dino loops over the source cells. `match_by_full_correlation` does neither.
- The unified benchmark (`utils/evaluator.py`, `utils/matching.py`), as SD4Match before it, reads out in four ways.
  Each samples the source and normalises the target again, bilinear nearest four times, and the nearest cell is found
  by sorting all of them. `match_by_each_readout` follows that.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample

from semcorr.core.coords import to_grid

SOFT, KERNEL, SIGMA = 0.02, 0.03, 7.0  # two temperatures and a width in cells, as those of our readouts

Map = Float[Tensor, "c h w"]
Points = Float[Tensor, "n 2"]
Answers = dict[str, Points]  # cells by readout
Loop = Callable[[Map, Map, Points, float], Answers]


def match_by_full_correlation(source: Map, target: Map, points: Points, stride: float) -> Answers:
    """Compare all cells of the source with all of the target, then read the keypoints' rows out in four ways.

    Args:
        source: Features of the source.
        target: Features of the target, on the same grid.
        points: Query points (x, y) in pixels of the source.
        stride: Pixels per cell.

    Returns:
        Cells of the target, with fractions, by the name of the readout.
    """
    h, w = target.shape[-2:]
    queries, cells = (_normalise(features).flatten(1).T for features in (source, target))  # (hw c)
    similarity = queries @ cells.T  # (hw hw)
    column, row = (points.T / stride).long().clamp(0, w - 1)
    rows = similarity[row * w + column]
    return {
        "nearest": _best_cells(rows, w),
        "bilinear": _blend_matches(
            lambda corners: _best_cells(similarity[(corners[:, 1] * w + corners[:, 0]).long()], w),
            points,
            stride,
            h,
            w,
        ),
        "soft": _mean_cell(rows / SOFT, h, w),
        "kernel": _mean_cell(rows * _gaussian_weights(rows, h, w) / KERNEL, h, w),
    }


def match_by_each_readout(source: Map, target: Map, points: Points, stride: float) -> Answers:
    """Read out in four ways, each of which starts from the feature maps.

    Args:
        source: Features of the source.
        target: Features of the target, on the same grid.
        points: Query points (x, y) in pixels of the source.
        stride: Pixels per cell.

    Returns:
        Cells of the target, with fractions, by the name of the readout.
    """
    h, w = target.shape[-2:]

    def sorted_best(query_cells: Points) -> Points:
        order = (_sample_descriptors(source, query_cells) @ _normalise(target).flatten(1)).argsort(
            dim=-1, descending=True
        )
        return _index_to_cells(order[:, 0], w)

    query_cells = to_grid(points, stride).clamp(min=0, max=w - 1)
    bilinear = _blend_matches(sorted_best, points, stride, h, w)
    nearest = sorted_best(query_cells)
    soft = _sample_descriptors(source, query_cells) @ _normalise(target).flatten(1)
    kernel = _sample_descriptors(source, query_cells) @ _normalise(target).flatten(1)
    return {
        "nearest": nearest,
        "bilinear": bilinear,
        "soft": _mean_cell(soft / SOFT, h, w),
        "kernel": _mean_cell(kernel * _gaussian_weights(kernel, h, w) / KERNEL, h, w),
    }


LOOPS: dict[str, Loop] = {  # by the keys of benchmark.json
    "full correlation": match_by_full_correlation,
    "each read-out recomputed": match_by_each_readout,
}


def _normalise(features: Map) -> Map:
    return features / (features.norm(dim=0, keepdim=True) + 1e-10)


def _sample_descriptors(source: Map, cells: Points) -> Float[Tensor, "n c"]:
    """Sample unit descriptors at cells, bilinearly."""
    h, w = source.shape[-2:]
    coordinates = 2 * cells / torch.tensor([w - 1, h - 1], device=cells.device) - 1
    descriptors = grid_sample(source[None], coordinates[None, :, None], align_corners=True)[0, :, :, 0].T
    return descriptors / (descriptors.norm(dim=-1, keepdim=True) + 1e-10)


def _blend_matches(match: Callable[[Points], Points], points: Points, stride: float, h: int, w: int) -> Points:
    """Match the four cells around each point, and blend the matches by how near the cells are (NC-Net)."""
    cells = torch.minimum(
        to_grid(points, stride).clamp(min=0), torch.tensor([w - 1, h - 1], device=points.device) - 1e-5
    )
    low = cells.floor()
    blended = torch.zeros_like(points)
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        step = torch.tensor(corner, device=points.device)
        weight = torch.where(step.bool(), cells - low, 1 - (cells - low)).prod(-1, keepdim=True)
        blended = blended + weight * match(low + step)
    return blended


def _best_cells(rows: Float[Tensor, "n hw"], w: int) -> Points:
    return _index_to_cells(rows.max(dim=-1).indices, w)


def _index_to_cells(index: Tensor, w: int) -> Points:
    return torch.stack((index % w, index // w), dim=-1).float()


def _gaussian_weights(rows: Float[Tensor, "n hw"], h: int, w: int) -> Float[Tensor, "n hw"]:
    """Compute a Gaussian around each row's best cell."""
    offsets = _cell_grid(h, w, rows.device)[None] - _best_cells(rows, w)[:, None]
    return torch.exp(-(offsets**2).sum(-1) / (2 * SIGMA**2))


def _mean_cell(logits: Float[Tensor, "n hw"], h: int, w: int) -> Points:
    weights = logits.softmax(-1)
    return (weights[..., None] * _cell_grid(h, w, logits.device)).sum(1)


def _cell_grid(h: int, w: int, device: torch.device) -> Float[Tensor, "hw 2"]:
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    return torch.stack((x, y), dim=-1).flatten(0, 1).float()
