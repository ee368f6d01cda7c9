"""Similarity and true cells to a scalar."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gaussian_cross_entropy(
    similarity: Float[Tensor, "b n h w"],
    cells: Float[Tensor, "b n 2"],
    mask: Bool[Tensor, "b n"],
    temperature: float = 0.03,
    kernel: int = 7,
    sigma: float = 1.5,
) -> Float[Tensor, ""]:
    """Cross-entropy between a Gaussian around the true cell and the softmax over all target cells.

    As in SD4Match and the unified benchmark: the probability map is read bilinearly on a
    kernel x kernel grid of unit steps centred on the *continuous* true cell, and -log p there is
    weighted by the normal density (`sigma` in cells, not renormalised). Steps that leave the grid are
    dropped; the mean is over the points in `mask`. With no such point the loss is 0.

    Theirs takes log of the interpolated probability, which is log 0 where a softmax underflows;
    here interpolation happens in log space.
    """
    log_p = (similarity / temperature).flatten(2).log_softmax(-1)[mask]
    log_p = log_p.unflatten(-1, similarity.shape[-2:])  # (m h w), m points to score
    if len(log_p) == 0:
        return similarity.sum() * 0.0
    steps = torch.arange(kernel, device=cells.device) - kernel // 2
    dy, dx = torch.meshgrid(steps, steps, indexing="ij")
    density = torch.exp(-(dx**2 + dy**2) / (2 * sigma**2)) / (2 * math.pi * sigma**2)
    points = cells[mask][:, None] + torch.stack((dx, dy), -1).flatten(0, 1)  # (m k 2)
    value, inside = _interpolate_log(log_p, points)
    return -(density.flatten() * value.masked_fill(~inside, 0.0)).sum(-1).mean()


def _interpolate_log(
    log_p: Float[Tensor, "m h w"], points: Float[Tensor, "m k 2"]
) -> tuple[Float[Tensor, "m k"], Bool[Tensor, "m k"]]:
    """Log of the bilinearly interpolated p at `points`, and which of them lie within the cell centres."""
    h, w = log_p.shape[-2:]
    last = torch.tensor([w - 1, h - 1], device=points.device)
    inside = ((points >= 0) & (points <= last)).all(-1)
    low = points.floor().clamp(min=0)
    low = torch.minimum(low, last.to(low.dtype))
    part = points - low
    terms = []
    for corner in ((0, 0), (1, 0), (0, 1), (1, 1)):
        step = torch.tensor(corner, device=points.device)
        weight = torch.where(step.bool(), part, 1 - part).prod(-1)
        x, y = torch.minimum(low + step, last.to(low.dtype)).long().unbind(-1)
        value = log_p.flatten(1).gather(1, y * w + x)
        terms.append(torch.where(weight > 0, value + weight.clamp(min=1e-30).log(), -torch.inf))
    return torch.logsumexp(torch.stack(terms), dim=0), inside
