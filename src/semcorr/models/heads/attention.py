"""Heads with LoFTR's attention after the backbone, within an image or between two, then cosines."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.ranges import Count, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.matching.similarity import cosine_similarity, sample_descriptors
from semcorr.models.heads.cosine import Cosine
from semcorr.models.heads.linear_attention import LoFTREncoderLayer, sine_position_encoding


class CellTokens(NamedTuple):
    """The cells of feature maps as tokens of attention."""

    values: Float[Tensor, "b n c"]  # features, scaled to unit mean square: backbones differ by factors of 100
    place: Float[Tensor, "n c"]  # position encodings
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

    def adapt(self, maps: FeatureMap) -> FeatureMap:
        """Return the features with what the layers add to them."""
        before = _to_tokens(maps, next(self.parameters()).dtype)
        values = before.values
        for layer in self.layers:
            values = layer(values, values, before.place, before.place)
        return _add_update(maps, before, values)


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
        source, target = self.adapt_both(source, target)
        return cosine_similarity(sample_descriptors(source.values, points, source.stride), target.values)

    def adapt_both(self, source: FeatureMap, target: FeatureMap) -> tuple[FeatureMap, FeatureMap]:
        """Return the features of both images with what the layers add to them."""
        first, second = (_to_tokens(maps, next(self.parameters()).dtype) for maps in (source, target))
        a, b = first.values, second.values
        for within, across in zip(self.within, self.across, strict=True):
            a, b = within(a, a, first.place, first.place), within(b, b, second.place, second.place)
            a, b = across(a, b, first.place, second.place), across(b, a, second.place, first.place)
        return _add_update(source, first, a), _add_update(target, second, b)


def _build_layers(channels: int, depth: int, heads: int, width: int | None) -> nn.ModuleList:
    return nn.ModuleList(
        LoFTREncoderLayer(channels, heads, 2 * channels if width is None else width) for _ in range(depth)
    )


def _to_tokens(maps: FeatureMap, precision: torch.dtype) -> CellTokens:
    values = maps.values.flatten(2).mT.to(precision)
    scale = values.float().square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-12).to(precision)
    h, w = maps.values.shape[-2:]
    return CellTokens(
        values / scale, sine_position_encoding(h, w, values.shape[-1], values.device).to(precision), scale
    )


def _add_update(maps: FeatureMap, before: CellTokens, after: Float[Tensor, "b n c"]) -> FeatureMap:
    """Add the change of the tokens to the original features, at their own scale."""
    update = ((after - before.values) * before.scale).mT.unflatten(-1, maps.values.shape[-2:])
    return FeatureMap(maps.values + update, maps.stride)
