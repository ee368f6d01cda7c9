"""Attention in time linear in the number of cells, where a cell is, and LoFTR's layer made of the two."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import elu

from semcorr.core.errors import UserError


def linear_attention(
    queries: Float[Tensor, "b n heads d"], keys: Float[Tensor, "b m heads d"], values: Float[Tensor, "b m heads e"]
) -> Float[Tensor, "b n heads e"]:
    """Means of the values, weighted by the product of query and key after elu(x) + 1 (Katharopoulos et al. 2020).

    Keys and values are summed up once, for all queries: n + m steps, not n m. In single precision
    whatever comes in, for the sums run over all cells.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = elu(queries.float()) + 1, elu(keys.float()) + 1
        summary = torch.einsum("bmhd,bmhe->bhde", keys, values.float())
        weight = torch.einsum("bnhd,bhd->bnh", queries, keys.sum(1))
        return torch.einsum("bnhd,bhde->bnhe", queries, summary) / weight.clamp_min(1e-6)[..., None]


def sine_position_encoding(
    h: int, w: int, channels: int, device: torch.device | None = None
) -> Float[Tensor, "cells channels"]:
    """Sines and cosines of a cell's column and of its row at rates of 1 to 1/10,000, a quarter of the channels each.

    Counted in cells, so that a grid of any size and shape has them.

    >>> sine_position_encoding(1, 2, 4)  # sin x, cos x, sin y, cos y
    tensor([[0.0000, 1.0000, 0.0000, 1.0000],
            [0.8415, 0.5403, 0.0000, 1.0000]])
    """
    rates = 10_000 ** -torch.linspace(0, 1, channels // 4, device=device)
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    angles = [place.flatten()[:, None] * rates for place in (x, y)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=-1)


class LoFTREncoderLayer(nn.Module):
    """LoFTR's encoder layer (Sun et al. 2021): every token takes in a message, from its own image or another.

    Attention, merged and normalised, is the message; token and message side by side go through an MLP, whose
    normalised output is added to the token. Ours are two choices. Where a token is goes into queries
    and keys, and not into the token. The last norm starts at zero: an untrained layer changes nothing.

    Args:
        channels: Of a token.
        heads: Of the attention.
        width: Of the MLP's middle.
    """

    def __init__(self, channels: int, heads: int, width: int) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise UserError(f"`head.heads` must divide the {channels} channels of the features, got {heads}")
        if channels % 4:
            raise UserError(f"Attention needs features whose channels divide by 4, for positions; got {channels}")
        self.heads = heads
        self.query, self.key, self.value, self.merge = (nn.Linear(channels, channels, bias=False) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(2 * channels, width, bias=False), nn.ReLU(), nn.Linear(width, channels, bias=False)
        )
        for matrix in (parameter for parameter in self.parameters() if parameter.ndim > 1):
            nn.init.xavier_uniform_(matrix)
        nn.init.zeros_(self.norm2.weight)

    def forward(
        self,
        tokens: Float[Tensor, "b n c"],
        others: Float[Tensor, "b m c"],
        place: Float[Tensor, "n c"],
        others_place: Float[Tensor, "m c"],
    ) -> Float[Tensor, "b n c"]:
        """`others` are what `tokens` look at: themselves, or the other image's."""
        queries, keys, values = self.query(tokens + place), self.key(others + others_place), self.value(others)
        split = (some.unflatten(-1, (self.heads, -1)) for some in (queries, keys, values))
        message = self.norm1(self.merge(linear_attention(*split).flatten(-2).to(queries.dtype)))
        return tokens + self.norm2(self.mlp(torch.cat((tokens, message), dim=-1)))
