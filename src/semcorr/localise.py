"""Similarity to cells: where in the target each query point lies.

Every rule takes similarity (b n h w) and returns cells (b n 2), (x, y) with cell centres at
integers; `coords.to_image` turns them into pixels. `temperature` divides the similarity before a
softmax: small is sharp.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.errors import UserError


def argmax(similarity: Float[Tensor, "b n h w"]) -> Float[Tensor, "b n 2"]:
    """The most similar cell.

    >>> argmax(torch.tensor([[[[0.1, 0.9, 0.2]]]]))
    tensor([[[1., 0.]]])
    """
    w = similarity.shape[-1]
    best = similarity.flatten(2).argmax(-1)
    return torch.stack((best % w, best // w), dim=-1).to(similarity.dtype)


def soft_argmax(similarity: Float[Tensor, "b n h w"], temperature: float = 0.02) -> Float[Tensor, "b n 2"]:
    """Expected cell under a softmax over the whole map (SFNet; 0.02 as in GeoAware-SC).

    A second, far mode pulls the answer off both; hence the two rules below.
    """
    return _expectation(similarity / temperature)


def window_soft_argmax(
    similarity: Float[Tensor, "b n h w"], window: int = 15, temperature: float = 0.02
) -> Float[Tensor, "b n 2"]:
    """Soft-argmax over a window x window square around the best cell ("Telling Left from Right", 4.3).

    Cells outside the window get no weight at all, and the window is cut at the border. (The released
    code zeroes their similarity instead, which leaves them e^0 each.)
    """
    if window < 1 or window % 2 == 0:
        raise UserError(f"`localise.window` must be odd and positive, got {window}")
    outside = ~_near(similarity, window // 2)
    return _expectation((similarity / temperature).masked_fill(outside, -torch.inf))


def kernel_soft_argmax(
    similarity: Float[Tensor, "b n h w"], sigma: float = 7.0, temperature: float = 0.03
) -> Float[Tensor, "b n 2"]:
    """Soft-argmax of the map times a Gaussian around the best cell (SFNet).

    `sigma` is in cells; 7 and 0.03 as in the unified benchmark's code.
    """
    x, y = _steps_from_best(similarity)
    kernel = torch.exp(-(x**2 + y**2) / (2 * sigma**2))
    return _expectation(similarity * kernel / temperature)


def _expectation(logits: Float[Tensor, "b n h w"]) -> Float[Tensor, "b n 2"]:
    """Mean cell under softmax(logits)."""
    h, w = logits.shape[-2:]
    weights = logits.flatten(2).softmax(-1).unflatten(-1, (h, w))
    x = weights.sum(-2) @ torch.arange(w, dtype=weights.dtype, device=weights.device)
    y = weights.sum(-1) @ torch.arange(h, dtype=weights.dtype, device=weights.device)
    return torch.stack((x, y), dim=-1)


def _steps_from_best(
    similarity: Float[Tensor, "b n h w"],
) -> tuple[Float[Tensor, "b n 1 w"], Float[Tensor, "b n h 1"]]:
    """Cells between each column, each row and the best cell, signed."""
    h, w = similarity.shape[-2:]
    x, y = argmax(similarity)[..., None, None, :].unbind(-1)
    columns = torch.arange(w, device=similarity.device)
    rows = torch.arange(h, device=similarity.device)
    return columns - x, rows[:, None] - y


def _near(similarity: Float[Tensor, "b n h w"], reach: int) -> Bool[Tensor, "b n h w"]:
    """Cells within `reach` of the best one, in both x and y."""
    x, y = _steps_from_best(similarity)
    return (x.abs() <= reach) & (y.abs() <= reach)
