"""KAP: matching as detection, so that a match to a keypoint that is not visible has a cost.

The definition is of "Viewpoint-Guided Spherical Maps" (Mariotti et al. 2024).
Every keypoint visible in the source makes one guess within reach of its target and one beyond; the
best similarities of both are ranked together, and their average precision is the score.
"""

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonObject

KAP_ALPHAS = (0.01, 0.05, 0.1)
SCHEMA = pa.schema(
    [
        ("pair", pa.string()),
        ("category", pa.string()),
        ("keypoint", pa.int32()),  # original id, visible in the source
        ("visible", pa.bool_()),  # in the target
        ("alpha", pa.float64()),
        ("inside", pa.float32()),  # best similarity within alpha times the extent of the target's point
        ("outside", pa.float32()),  # and beyond
        ("corner_inside", pa.float32()),  # the same with every cell at its first corner, as Jamais Vu has it
        ("corner_outside", pa.float32()),
    ]
)


def inside_outside(
    similarity: Float[Tensor, "n h w"],
    cells: Float[Tensor, "h w 2"],
    target: Float[Tensor, "n 2"],
    reach: float,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return the best similarity within reach of each target point and beyond it, scaled to [0, 1] over the pair.

    Where no cell is within reach, or none is beyond, the value is 0, the least there is (as released).

    Args:
        similarity: Similarities of all source-visible keypoints of one pair.
        cells: Positions of the cells, in original target pixels: their centres, or their first corners.
        target: Annotated keypoints, in original target pixels; of no meaning where they are not visible.
        reach: Alpha times the extent; a cell exactly that far is within.

    Example:
        >>> similarity = torch.tensor([[[0.0, 0.8, 1.0]]])
        >>> cells = torch.tensor([[[0.0, 0.0], [10.0, 0.0], [20.0, 0.0]]])
        >>> inside_outside(similarity, cells, torch.tensor([[4.0, 0.0]]), reach=6.0)  # the first two cells
        (tensor([0.8000]), tensor([1.]))
    """
    if not len(similarity):
        return similarity.new_zeros(0), similarity.new_zeros(0)
    low, high = similarity.aminmax()
    scaled = (similarity - low) / (high - low).clamp_min(torch.finfo(similarity.dtype).tiny)
    x, y = (cells.double() - target.double()[:, None, None]).unbind(-1)
    near = (x * x + y * y).sqrt() <= reach
    return (scaled * near).flatten(1).amax(-1), (scaled * ~near).flatten(1).amax(-1)


def average_precision(score: Float[np.ndarray, " k"], positive: Bool[np.ndarray, " k"]) -> float | None:
    """Sum precision times gained recall over the distinct scores, best first; None without positives.

    >>> average_precision(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False]))  # 1/2 * 1 + 1/2 * 2/3
    0.8333333333333333
    """
    if not positive.any():
        return None
    _, index = np.unique(-score, return_inverse=True)
    true, total = np.bincount(index, positive), np.bincount(index)
    precision = np.cumsum(true) / np.cumsum(total)
    return float((precision * true).sum() / positive.sum())


def keypoint_average_precision(table: pa.Table, alpha: float = 0.1, released: bool = False) -> JsonObject:
    """Compute KAP of a table of detections: the mean over pairs, and that of all scores pooled.

    Args:
        table: Table with the columns of `SCHEMA`.
        alpha: One of the tolerances in the table.
        released: Repeat two properties of Jamais Vu's released function. It works out what a keypoint means that the
            target does not show (no positive, and the best of the whole image as a negative), and then returns the
            arrays from before: an invisible keypoint is a positive too, near wherever its coordinates happen to point.
            And it compares indices of cells, that is their first corners, with points in units of cells.

    Returns:
        `image`, the mean over the pairs with a positive; `point`, that of all scores pooled; and `pairs`, the number of
        pairs with a positive. The first two are None where there is no positive.

    Raises:
        UserError: No row is of this tolerance.
    """
    column = {name: table[name].to_numpy() for name in table.schema.names}
    known = sorted(set(column["alpha"].tolist()))
    if known and alpha not in known:
        allowed = ", ".join(f"{value:g}" for value in known)
        raise UserError(f"`alpha` must be one of the table's, {allowed}, got {alpha}. Give one of them")
    selected = column["alpha"] == alpha
    names = ("corner_inside", "corner_outside") if released else ("inside", "outside")
    inside, outside = (column[name][selected].astype(float) for name in names)
    visible = np.ones(len(inside), bool) if released else column["visible"][selected].astype(bool)
    negative = np.where(visible, outside, np.maximum(inside, outside))
    score = np.concatenate((inside[visible], negative))
    positive = np.arange(len(score)) < visible.sum()
    _, pair = np.unique(column["pair"][selected].astype(str), return_inverse=True)
    pair = np.concatenate((pair[visible], pair))
    order = np.argsort(pair, kind="stable")
    ends = np.flatnonzero(np.diff(pair[order])) + 1
    precisions = (
        [average_precision(score[rows], positive[rows]) for rows in np.split(order, ends)] if len(order) else []
    )
    defined = [value for value in precisions if value is not None]
    return {
        "image": float(np.mean(defined)) if defined else None,
        "point": average_precision(score, positive),
        "pairs": len(defined),
    }
