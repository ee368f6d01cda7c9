"""Attention in time linear in the number of cells, position encodings, and LoFTR's encoder layer of the two."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import elu

from semcorr.core.errors import UserError


def linear_attention(
    queries: Float[Tensor, "b n heads d"], keys: Float[Tensor, "b m heads d"], values: Float[Tensor, "b m heads e"]
) -> Float[Tensor, "b n heads e"]:
    """Average the values, weighted by products of query and key after elu(x) + 1 (Katharopoulos et al. 2020).

    Keys and values are summed once, for all queries: n + m steps, not n m. Always in single precision, since the
    sums run over all cells.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = elu(queries.float()) + 1, elu(keys.float()) + 1
        summary = torch.einsum("bmhd,bmhe->bhde", keys, values.float())
        weight = torch.einsum("bnhd,bhd->bnh", queries, keys.sum(1))
        return torch.einsum("bnhd,bhde->bnhe", queries, summary) / weight.clamp_min(1e-6)[..., None]


def sine_position_encoding(
    h: int, w: int, channels: int, device: torch.device | None = None
) -> Float[Tensor, "cells channels"]:
    """Return sines and cosines of column and row at rates of 1 to 1/10,000, a quarter of the channels each.

    Positions are counted in cells, so that a grid of any size and shape has them.

    >>> sine_position_encoding(1, 2, 4)  # sin x, cos x, sin y, cos y
    tensor([[0.0000, 1.0000, 0.0000, 1.0000],
            [0.8415, 0.5403, 0.0000, 1.0000]])
    """
    rates = 10_000 ** -torch.linspace(0, 1, channels // 4, device=device)
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    angles = [coordinate.flatten()[:, None] * rates for coordinate in (x, y)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=-1)


class LoFTREncoderLayer(nn.Module):
    """LoFTR's encoder layer (Sun et al. 2021): every token is updated by a message from its own or the other image.

    Attention, merged and normalised, is the message; token and message side by side go through an MLP, whose
    normalised output is added to the token. Two choices are ours. The position encoding is added to queries and
    keys, and not to the token. The last norm starts at zero: an untrained layer changes nothing.

    Args:
        channels: Channels of a token.
        heads: Attention heads.
        width: Channels in the middle of the MLP.
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
        """Update `tokens` by attention to `others`: themselves, or the tokens of the other image."""
        queries, keys, values = self.query(tokens + place), self.key(others + others_place), self.value(others)
        split = (x.unflatten(-1, (self.heads, -1)) for x in (queries, keys, values))
        message = self.norm1(self.merge(linear_attention(*split).flatten(-2).to(queries.dtype)))
        return tokens + self.norm2(self.mlp(torch.cat((tokens, message), dim=-1)))
