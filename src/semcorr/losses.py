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
    here interpolation happens in log space. Nothing has a size that only the device knows, so a step on
    a GPU waits for nothing; what lies outside the mask may be anything, NaN included.
    """
    similarity = torch.where(mask[..., None, None], similarity, 0.0)
    cells = torch.where(mask[..., None], cells, 0.0)
    log_p = (similarity / temperature).flatten(2).log_softmax(-1).view_as(similarity).flatten(0, 1)
    steps = torch.arange(kernel, device=cells.device) - kernel // 2
    dy, dx = torch.meshgrid(steps, steps, indexing="ij")
    density = torch.exp(-(dx**2 + dy**2) / (2 * sigma**2)) / (2 * math.pi * sigma**2)
    points = cells.flatten(0, 1)[:, None] + torch.stack((dx, dy), -1).flatten(0, 1)  # (m k 2), m = b n
    value, inside = _interpolate_log(log_p, points)
    value = torch.where(inside & mask.flatten()[:, None], value, 0.0)
    return -(density.flatten() * value).sum() / mask.sum().clamp(min=1)


def _interpolate_log(
    log_p: Float[Tensor, "m h w"], points: Float[Tensor, "m k 2"]
) -> tuple[Float[Tensor, "m k"], Bool[Tensor, "m k"]]:
    """Log of the bilinearly interpolated p at `points`, and which of them lie within the cell centres."""
    h, w = log_p.shape[-2:]
    x, y = points.unbind(-1)
    inside = (x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1)
    left, top = x.floor().clamp(0, w - 1), y.floor().clamp(0, h - 1)
    cells, weights = [], []
    for column, along_x in ((left, left + 1 - x), (left + 1, x - left)):
        for row, along_y in ((top, top + 1 - y), (top + 1, y - top)):
            cells.append(row.clamp(max=h - 1).long() * w + column.clamp(max=w - 1).long())
            weights.append(along_x * along_y)
    weight = torch.stack(weights, dim=1)  # (m 4 k)
    corners = log_p.flatten(1).gather(1, torch.cat(cells, dim=1)).view_as(weight)
    terms = torch.where(weight > 0, corners + weight.clamp(min=1e-30).log(), -torch.inf)
    return torch.logsumexp(terms, dim=1), inside
