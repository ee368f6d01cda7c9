"""Heads with LoFTR's attention (linear in the number of cells) within an image or between two, then cosines."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import elu

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.matching.similarity import cosine_similarity, sample_descriptors
from semcorr.models.heads.cosine import Cosine


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

    Args:
        h: Rows of the grid.
        w: Columns of the grid.
        channels: Length of an encoding, a multiple of four.
        device: Device of the result; PyTorch's default if None.

    >>> sine_position_encoding(1, 2, 4)  # sin x, cos x, sin y, cos y
    tensor([[0.0000, 1.0000, 0.0000, 1.0000],
            [0.8415, 0.5403, 0.0000, 1.0000]])
    """
    rates = 10_000 ** -torch.linspace(0, 1, channels // 4, dtype=torch.float32, device=device)
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

    Raises:
        UserError: The channels are not a multiple of the heads, or of four.
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
        context: Float[Tensor, "b m c"],
        position: Float[Tensor, "n c"],
        context_position: Float[Tensor, "m c"],
    ) -> Float[Tensor, "b n c"]:
        """Update tokens by attention to others.

        Args:
            tokens: Tokens of one image.
            context: Tokens that they attend to: the same ones, or those of the other image.
            position: Position encodings of `tokens`.
            context_position: Position encodings of `context`.
        """
        queries, keys, values = self.query(tokens + position), self.key(context + context_position), self.value(context)
        split = (x.unflatten(-1, (self.heads, -1)) for x in (queries, keys, values))
        message = self.norm1(self.merge(linear_attention(*split).flatten(-2).to(queries.dtype)))
        return tokens + self.norm2(self.mlp(torch.cat((tokens, message), dim=-1)))


class CellTokens(NamedTuple):
    """The cells of feature maps as tokens of attention."""

    values: Float[Tensor, "b n c"]  # features, scaled to unit mean square: backbones differ by factors of 100
    position: Float[Tensor, "n c"]  # position encodings
    scale: Float[Tensor, "b 1 1"]  # root mean square of the original features


class SelfAttention(Cosine):
    """Attention of every cell to its own image, the unified benchmark's attention block, then cosine similarity.

    Untrained it is the identity, to the bit.

    Args:
        channels: Channels of the features and of the attention.
        depth: Number of layers; the benchmark speaks of one block.
        heads: Attention heads of each layer; LoFTR has 8.
        width: Channels in the middle of the MLPs; twice the channels if left out, 1,536 for DINOv2-B.
    """

    @check_arguments("head")
    def __init__(self, channels: Count, depth: Count = 1, heads: Count = 8, width: Count | None = None) -> None:
        super().__init__()
        self.layers = _build_layers(channels, depth, heads, width)

    def transform(self, maps: FeatureMap) -> FeatureMap:
        """Return the features with what the layers add to them."""
        tokens = _to_tokens(maps, next(self.parameters()).dtype)
        values = tokens.values
        for layer in self.layers:
            values = layer(values, values, tokens.position, tokens.position)
        return _add_update(maps, tokens, values)


class CrossAttention(nn.Module):
    """Attention of every cell to its own image, then to the other one: the unified benchmark's "self + cross".

    Each image attends to the other as it was before the layer, through the same weights: exchange the images, and
    the similarity of cells is transposed. (LoFTR's second image sees the first as already changed.) Untrained it
    is the cosine of the features.

    Args:
        channels: Channels of the features and of the attention.
        depth: Number of layers of each kind.
        heads: Attention heads of each layer.
        width: Channels in the middle of the MLPs; twice the channels if left out.
    """

    @check_arguments("head")
    def __init__(self, channels: Count, depth: Count = 1, heads: Count = 8, width: Count | None = None) -> None:
        super().__init__()
        self.within, self.across = (_build_layers(channels, depth, heads, width) for _ in range(2))

    def forward(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of `points`, given in source pixels, with every target cell."""
        source, target = self.transform_both(source, target)
        return cosine_similarity(sample_descriptors(source.values, points, source.stride), target.values)

    def transform_both(self, source: FeatureMap, target: FeatureMap) -> tuple[FeatureMap, FeatureMap]:
        """Return the features of both images with what the layers add to them."""
        first, second = (_to_tokens(maps, next(self.parameters()).dtype) for maps in (source, target))
        a, b = first.values, second.values
        for within, across in zip(self.within, self.across, strict=True):
            a, b = within(a, a, first.position, first.position), within(b, b, second.position, second.position)
            a, b = across(a, b, first.position, second.position), across(b, a, second.position, first.position)
        return _add_update(source, first, a), _add_update(target, second, b)


def _build_layers(channels: int, depth: int, heads: int, width: int | None) -> nn.ModuleList:
    """Build the encoder layers of a head; their MLPs are twice as wide as the features if `width` is None."""
    return nn.ModuleList(
        LoFTREncoderLayer(channels, heads, 2 * channels if width is None else width) for _ in range(depth)
    )


def _to_tokens(maps: FeatureMap, precision: torch.dtype) -> CellTokens:
    """Convert a feature map to tokens of unit mean square, with position encodings."""
    values = maps.values.flatten(2).mT.to(precision)
    scale = values.float().square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-12).to(precision)
    h, w = maps.values.shape[-2:]
    return CellTokens(
        values / scale, sine_position_encoding(h, w, values.shape[-1], values.device).to(precision), scale
    )


def _add_update(maps: FeatureMap, tokens: CellTokens, updated_values: Float[Tensor, "b n c"]) -> FeatureMap:
    """Add the change of the tokens to the original features, at their own scale."""
    update = ((updated_values - tokens.values) * tokens.scale).mT.unflatten(-1, maps.values.shape[-2:])
    return FeatureMap(maps.values + update, maps.stride)
