"""Similarity to cells: where in the target each query point lies.

Every rule takes similarity (b n h w) and returns cells (b n 2), (x, y) with cell centres at
integers; `coords.to_image` turns them into pixels. `temperature` divides the similarity before a
softmax: small is sharp. Cells are computed in single precision at least, and without a matrix product:
bfloat16 has 8 bits, and so has what autocast multiplies.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from semcorr.errors import UserError


def argmax(similarity: Float[Tensor, "b n h w"]) -> Float[Tensor, "b n 2"]:
    """The most similar cell.

    >>> argmax(torch.tensor([[[[0.1, 0.9, 0.2]]]]))
    tensor([[[1., 0.]]])
    """
    similarity = _precise(similarity)
    return torch.stack(_best(similarity), dim=-1).to(similarity.dtype)


def soft_argmax(similarity: Float[Tensor, "b n h w"], temperature: float = 0.02) -> Float[Tensor, "b n 2"]:
    """Expected cell under a softmax over the whole map (SFNet; 0.02 as in GeoAware-SC).

    A second, far mode pulls the answer off both; hence the two rules below.
    """
    return _expectation(_precise(similarity) / temperature)


def window_soft_argmax(
    similarity: Float[Tensor, "b n h w"], window: int = 15, temperature: float = 0.02
) -> Float[Tensor, "b n 2"]:
    """Soft-argmax over a window x window square around the best cell ("Telling Left from Right", 4.3).

    Cells outside the window get no weight at all, and the window is cut at the border. (The released
    code zeroes their similarity instead, which leaves them e^0 each.)
    """
    if window < 1 or window % 2 == 0:
        raise UserError(f"`localise.window` must be odd and positive, got {window}")
    h, w = similarity.shape[-2:]
    x, y = _best(similarity)
    columns, rows = (_reach(best, window // 2, length) for best, length in ((x, w), (y, h)))  # (b n k), (b n l)
    cells = rows.clamp(0, h - 1)[..., None] * w + columns.clamp(0, w - 1)[..., None, :]
    near = similarity.flatten(2).gather(-1, cells.flatten(2)).view(cells.shape)
    inside = ((rows >= 0) & (rows < h))[..., None] & ((columns >= 0) & (columns < w))[..., None, :]
    found = _expectation((_precise(near) / temperature).masked_fill(~inside, -torch.inf))
    return found + torch.stack((columns[..., 0], rows[..., 0]), dim=-1)


def kernel_soft_argmax(
    similarity: Float[Tensor, "b n h w"], sigma: float = 7.0, temperature: float = 0.03
) -> Float[Tensor, "b n 2"]:
    """Soft-argmax of the map times a Gaussian around the best cell (SFNet).

    `sigma` is in cells; 7 and 0.03 as in the unified benchmark's code.
    """
    similarity = _precise(similarity)
    along_x, along_y = (
        torch.exp(-((torch.arange(length, device=best.device) - best[..., None]) ** 2) / (2 * sigma**2))
        for best, length in zip(_best(similarity), similarity.shape[:-3:-1], strict=True)
    )  # the Gaussian is their product
    return _expectation((similarity * along_x[..., None, :]).mul_((along_y / temperature)[..., None]))


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _expectation(logits: Float[Tensor, "b n h w"]) -> Float[Tensor, "b n 2"]:
    """Mean cell under softmax(logits)."""
    h, w = logits.shape[-2:]
    weights = logits.flatten(2).softmax(-1).unflatten(-1, (h, w))
    columns, rows = (torch.arange(length, dtype=weights.dtype, device=weights.device) for length in (w, h))
    return torch.stack(((weights.sum(-2) * columns).sum(-1), (weights.sum(-1) * rows).sum(-1)), dim=-1)


def _best(similarity: Float[Tensor, "b n h w"]) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]:
    """Column and row of the best cell, the first of equals."""
    best = similarity.detach().flatten(2).max(-1).indices  # `argmax` takes three times as long on a CPU
    w = similarity.shape[-1]
    return best % w, best // w


def _reach(best: Int[Tensor, "b n"], reach: int, length: int) -> Int[Tensor, "b n k"]:
    """Positions up to `reach` to either side, none further than a map of `length` is long."""
    reach = min(reach, length - 1)
    return best[..., None] + torch.arange(-reach, reach + 1, device=best.device)
