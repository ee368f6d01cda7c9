"""LoFTR's attention after the backbone, within an image or between two, then cosines."""

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
    """The cells of maps as attention sees them."""

    values: Float[Tensor, "b n c"]  # of unit mean square over a map: backbones differ in scale by factors of 100
    place: Float[Tensor, "n c"]
    scale: Float[Tensor, "b 1 1"]


class SelfAttention(Cosine):
    """Every cell looks at its own image: the unified benchmark's attention block, by itself.

    Untrained it is the identity, to the bit.

    Args:
        channels: Of the features, and of the attention.
        depth: How many layers; the benchmark speaks of one block.
        heads: Of each layer; LoFTR has 8.
        width: Of the MLPs' middle; twice the channels if left out, 1,536 for DINOv2-B.
    """

    @check_arguments("head")
    def __init__(self, channels: Count, depth: Count = 1, heads: Count = 8, width: Count | None = None) -> None:
        super().__init__()
        self.layers = _layers(channels, depth, heads, width)

    def adapt(self, maps: FeatureMap) -> FeatureMap:
        """What the layers add to the features."""
        before = _tokens(maps, next(self.parameters()).dtype)
        values = before.values
        for layer in self.layers:
            values = layer(values, values, before.place, before.place)
        return _changed(maps, before, values)


class CrossAttention(nn.Module):
    """Every cell looks at its own image, then at the other: the same block's "self + cross".

    Both images look at what the other was before, through the same weights: exchange them, and the
    similarity of cells is transposed. (LoFTR's second image sees the first as already changed.) Untrained
    it is the cosine of the features.

    Args:
        channels: Of the features, and of the attention.
        depth: How many times a layer of each kind.
        heads: Of each layer.
        width: Of the MLPs' middle; twice the channels if left out.
    """

    @check_arguments("head")
    def __init__(self, channels: Count, depth: Count = 1, heads: Count = 8, width: Count | None = None) -> None:
        super().__init__()
        self.within, self.across = (_layers(channels, depth, heads, width) for _ in range(2))

    def forward(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """`points` are in source pixels."""
        source, target = self.adapt_both(source, target)
        return cosine_similarity(sample_descriptors(source.values, points, source.stride), target.values)

    def adapt_both(self, source: FeatureMap, target: FeatureMap) -> tuple[FeatureMap, FeatureMap]:
        """What the layers add to the features of both."""
        first, second = (_tokens(maps, next(self.parameters()).dtype) for maps in (source, target))
        a, b = first.values, second.values
        for within, across in zip(self.within, self.across, strict=True):
            a, b = within(a, a, first.place, first.place), within(b, b, second.place, second.place)
            a, b = across(a, b, first.place, second.place), across(b, a, second.place, first.place)
        return _changed(source, first, a), _changed(target, second, b)


def _layers(channels: int, depth: int, heads: int, width: int | None) -> nn.ModuleList:
    return nn.ModuleList(
        LoFTREncoderLayer(channels, heads, 2 * channels if width is None else width) for _ in range(depth)
    )


def _tokens(maps: FeatureMap, precision: torch.dtype) -> CellTokens:
    values = maps.values.flatten(2).mT.to(precision)
    scale = values.float().square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-12).to(precision)
    h, w = maps.values.shape[-2:]
    return CellTokens(
        values / scale, sine_position_encoding(h, w, values.shape[-1], values.device).to(precision), scale
    )


def _changed(maps: FeatureMap, before: CellTokens, after: Float[Tensor, "b n c"]) -> FeatureMap:
    """The features as they were, and what attention added to them at their own scale."""
    added = ((after - before.values) * before.scale).mT.unflatten(-1, maps.values.shape[-2:])
    return FeatureMap(maps.values + added, maps.stride)
