"""Propagation of labels from frames to the next: each cell takes the labels of the cells that it resembles most.

The rule is that of Jabri et al. 2020 ("Space-Time Correspondence as a Contrastive Random Walk") as DINO's released
evaluation has it (Caron et al. 2021): cosine similarities to a window around the cell in each of several earlier
frames, the most similar k cells of all of them together, softmax weights.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

VALUES = 2**25  # similarities in memory at once: 128 MiB
# Range of a label, of its largest value, below which it is of rounding: weights do not quite sum to one.
MIN_LABEL_RANGE = 1e-5


class PropagationRule(NamedTuple):
    """The rule by which labels are propagated; the values are DINO's.

    Attributes:
        neighbours: Number of cells that a label is a mean of, among those of all earlier frames together.
        radius: Cells that a label may move along x and along y between two of the frames; None, any number.
        temperature: Temperature of the softmax over the neighbours' similarities.
    """

    neighbours: int = 5
    radius: int | None = 12
    temperature: float = 0.1


def propagate_labels(
    target: Float[Tensor, "c h w"],
    sources: Float[Tensor, "t c h w"],
    labels: Float[Tensor, "t n h w"],
    rule: PropagationRule,
    values: int = VALUES,
) -> Float[Tensor, "n h w"]:
    """Propagate the soft labels of earlier frames to the cells of a frame.

    Args:
        target: Features of the frame.
        sources: Features of the t earlier frames.
        labels: Share of each of n labels in every cell of the earlier frames.
        rule: Rule by which cells take labels from others.
        values: Largest number of similarities in memory at once.

    Returns:
        Share of each label in every cell of the frame.
    """
    h, w = target.shape[-2:]
    target, sources = normalize(target, dim=0), normalize(sources, dim=1)
    reach = max(h, w) if rule.radius is None else rule.radius
    rows_at_once = max(1, values // (w * len(sources) * h * w))
    parts = []
    for top in range(0, h, rows_at_once):
        bottom = min(h, top + rows_at_once)
        low, high = max(0, top - reach), min(h, bottom + reach)  # rows that are within reach of one of these
        part = sources[:, :, low:high].flatten(2)
        similarity = torch.einsum("cm,tck->mtk", target[:, top:bottom].flatten(1), part)
        far = _are_apart(range(top, bottom), range(low, high), w, reach, target.device)
        similarity = similarity.masked_fill(far[:, None], -torch.inf).flatten(1)
        best = similarity.topk(min(rule.neighbours, similarity.shape[1]), dim=1)
        weights = (best.values / rule.temperature).softmax(1)  # cells out of reach are -inf: weight 0
        candidates = labels[:, :, low:high].flatten(2).transpose(0, 1).flatten(1)  # (n, t k), as the similarities
        parts.append((candidates[:, best.indices] * weights).sum(-1).unflatten(1, (bottom - top, w)))
    return torch.cat(parts, dim=1)


def _are_apart(targets: range, sources: range, width: int, reach: int, device: torch.device) -> Tensor:
    """Tell which cells of some rows are further than `reach` in x or y from which cells of others."""
    rows = _distance(torch.tensor(targets, device=device), torch.tensor(sources, device=device)) > reach
    columns = _distance(*[torch.arange(width, device=device)] * 2) > reach
    return (rows[:, None, :, None] | columns[None, :, None, :]).flatten(2).flatten(0, 1)


def _distance(a: Int[Tensor, " m"], b: Int[Tensor, " n"]) -> Int[Tensor, "m n"]:
    return (a[:, None] - b[None]).abs()


def sharpen_labels(labels: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Stretch each label's shares to [0, 1], as the released evaluations do before they take the largest.

    A label that is the same everywhere has no range to be stretched and stays as it is, so that an object keeps a frame
    that it fills. In the released code it is 0 / 0, which is then the largest, or rounding.
    """
    low, high = labels.flatten(1).amin(1)[:, None, None], labels.flatten(1).amax(1)[:, None, None]
    span = high - low
    ranges = span > MIN_LABEL_RANGE * high
    return torch.where(ranges, (labels - low) / span.where(ranges, 1.0), labels)
