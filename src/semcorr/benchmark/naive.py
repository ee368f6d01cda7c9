"""What others do for each pair, in our words: the slow twins that benchmarks compare with, and their answers.

Read in the public evaluators, whose coordinates are replaced by ours so that the answers can be compared; what
is computed, how often, and on what is theirs. Where two differ, the cheaper way is taken:

- GeoAware-SC (`pck_train.py`, `calculate_keypoint_transformation`) and sd-dino (`pck_spair_pascal.py`) normalise both
  maps of the pair and compute the similarity of every source cell with every target cell; the rows of the cells
  that hold the keypoints are used. GeoAware-SC reads out all rows, not these alone, and reads both maps from a file;
  sd-dino loops over the source cells. `full_correlation` does neither.
- The unified benchmark (`utils/evaluator.py`, `utils/matching.py`), as SD4Match before it, reads out in four ways.
  Each samples the source and normalises the target anew, bilinear nearest four times, and the nearest cell is found
  by sorting all of them. `each_read_out` follows that.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample

from semcorr.core.coords import to_grid

SOFT, KERNEL, SIGMA = 0.02, 0.03, 7.0  # temperatures and cells; those of our read-outs, too

Map = Float[Tensor, "c h w"]
Points = Float[Tensor, "n 2"]
Answers = dict[str, Points]  # cells by read-out
Loop = Callable[[Map, Map, Points, float], Answers]


def match_by_full_correlation(source: Map, target: Map, points: Points, stride: float) -> Answers:
    """All cells of the source against all of the target, then four read-outs of the keypoints' rows."""
    h, w = target.shape[-2:]
    queries, cells = (_normalised(one).flatten(1).T for one in (source, target))  # (hw c)
    similarity = queries @ cells.T  # (hw hw)
    column, row = (points.T / stride).long().clamp(0, w - 1)
    rows = similarity[row * w + column]
    return {
        "nearest": _best(rows, w),
        "bilinear": _blended(lambda at: _best(similarity[(at[:, 1] * w + at[:, 0]).long()], w), points, stride, h, w),
        "soft": _mean_cell(rows / SOFT, h, w),
        "kernel": _mean_cell(rows * _kernel(rows, h, w) / KERNEL, h, w),
    }


def match_by_each_readout(source: Map, target: Map, points: Points, stride: float) -> Answers:
    """Four read-outs, each from the maps."""
    h, w = target.shape[-2:]

    def sorted_best(at: Points) -> Points:
        order = (_sampled(source, at) @ _normalised(target).flatten(1)).argsort(dim=-1, descending=True)
        return _cells(order[:, 0], w)

    at = to_grid(points, stride).clamp(min=0, max=w - 1)
    bilinear = _blended(sorted_best, points, stride, h, w)
    nearest = sorted_best(at)
    soft = _sampled(source, at) @ _normalised(target).flatten(1)
    kernel = _sampled(source, at) @ _normalised(target).flatten(1)
    return {
        "nearest": nearest,
        "bilinear": bilinear,
        "soft": _mean_cell(soft / SOFT, h, w),
        "kernel": _mean_cell(kernel * _kernel(kernel, h, w) / KERNEL, h, w),
    }


LOOPS: dict[str, Loop] = {"full correlation": match_by_full_correlation, "each read-out anew": match_by_each_readout}


def _normalised(features: Map) -> Map:
    return features / (features.norm(dim=0, keepdim=True) + 1e-10)


def _sampled(source: Map, at: Points) -> Float[Tensor, "n c"]:
    """Unit descriptors, bilinear, at cells."""
    h, w = source.shape[-2:]
    place = 2 * at / torch.tensor([w - 1, h - 1], device=at.device) - 1
    read = grid_sample(source[None], place[None, :, None], align_corners=True)[0, :, :, 0].T
    return read / (read.norm(dim=-1, keepdim=True) + 1e-10)


def _blended(match: Callable[[Points], Points], points: Points, stride: float, h: int, w: int) -> Points:
    """The matches of the four cells around each point, weighted by how near they are (NC-Net)."""
    at = torch.minimum(to_grid(points, stride).clamp(min=0), torch.tensor([w - 1, h - 1], device=points.device) - 1e-5)
    low = at.floor()
    blended = torch.zeros_like(points)
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        step = torch.tensor(corner, device=points.device)
        weight = torch.where(step.bool(), at - low, 1 - (at - low)).prod(-1, keepdim=True)
        blended = blended + weight * match(low + step)
    return blended


def _best(rows: Float[Tensor, "n hw"], w: int) -> Points:
    return _cells(rows.max(dim=-1).indices, w)


def _cells(index: Tensor, w: int) -> Points:
    return torch.stack((index % w, index // w), dim=-1).float()


def _kernel(rows: Float[Tensor, "n hw"], h: int, w: int) -> Float[Tensor, "n hw"]:
    """A Gaussian around each row's best cell."""
    apart = _grid(h, w, rows.device)[None] - _best(rows, w)[:, None]
    return torch.exp(-(apart**2).sum(-1) / (2 * SIGMA**2))


def _mean_cell(logits: Float[Tensor, "n hw"], h: int, w: int) -> Points:
    weights = logits.softmax(-1)
    return (weights[..., None] * _grid(h, w, logits.device)).sum(1)


def _grid(h: int, w: int, device: torch.device) -> Float[Tensor, "hw 2"]:
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    return torch.stack((x, y), dim=-1).flatten(0, 1).float()
