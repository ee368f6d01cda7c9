"""The head of CATs++: convolutions embed the correlation, attention with short keys aggregates it. IFCAT's variant."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, scaled_dot_product_attention

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.matching.similarity import cosine_similarity
from semcorr.models.heads.conv4d import PivotConv4d
from semcorr.models.heads.correlation import correlation, resize_correlation, sample_correlation

POOLED = 8  # target cells along a side, to which a source cell's correlation is averaged for its query and its key


class Aggregated(NamedTuple):
    """A correlation of several channels, and the features of the cells on its first axes."""

    volume: Float[Tensor, "b c h w k l"]
    features: Float[Tensor, "b a h w"]


class EfficientBlock(nn.Module):
    """A block of attention among the source's cells and an MLP of 4-D convolutions, each added to its input.

    Queries and keys are short: they are made of a convolution of the correlation, averaged over the target to a few
    cells, beside the cell's features. Values are the correlation, convolved: every channel is a head.

    Args:
        width: Channels of the correlation, and heads.
        features: Channels of the cells' features.
        projected: Channels of queries and of keys, of all heads together.
        mlp: Channels in the middle of the MLP, as a multiple of the correlation's.
        integrate: Whether the same attention aggregates the features.
    """

    def __init__(self, width: int, features: int, projected: int, mlp: int, integrate: bool) -> None:
        super().__init__()
        self.heads = width
        self.norm1, self.norm2, self.norm_qk, self.norm_value = (nn.GroupNorm(1, width) for _ in range(4))
        self.convolve, self.value = PivotConv4d(width, width), PivotConv4d(width, width)
        self.qk = nn.Linear(width * POOLED**2 + features, 2 * projected)
        self.position = nn.Parameter(torch.empty(projected // width, POOLED, POOLED))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.mlp = nn.Sequential(PivotConv4d(width, mlp * width), nn.GELU(), PivotConv4d(mlp * width, width))
        self.feature_value, self.merge = (nn.Conv2d(features, features, 1) if integrate else None for _ in range(2))

    def forward(self, state: Aggregated) -> Aggregated:
        """Apply the block; every cell on the first axes attends to all of them."""
        volume, features = state
        h, w, k, l = volume.shape[2:]  # noqa: E741
        normed = self.norm1(volume)
        query, key = self._project(normed, features)
        values = [self.norm_value(self.value(normed)).flatten(4).flatten(2, 3)]  # (b heads cells k*l)
        if self.feature_value is not None:
            values.append(self.feature_value(features).flatten(2).unflatten(1, (self.heads, -1)).mT)
        attended = scaled_dot_product_attention(query, key, torch.cat(values, dim=-1))
        volume = volume + attended[..., : k * l].unflatten(3, (k, l)).unflatten(2, (h, w))
        if self.merge is not None:
            features = features + self.merge(attended[..., k * l :].mT.flatten(1, 2).unflatten(2, (h, w)))
        return Aggregated(volume + self.mlp(self.norm2(volume)), features)

    def _project(
        self, volume: Float[Tensor, "b c h w k l"], features: Float[Tensor, "b a h w"]
    ) -> tuple[Float[Tensor, "b heads cells d"], Float[Tensor, "b heads cells d"]]:
        """Compute the queries and keys of all cells, with their positions."""
        cells = self.norm_qk(self.convolve(volume)).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)  # (b cells c k l)
        pooled = average_to(cells.flatten(0, 1), POOLED).unflatten(0, cells.shape[:2]).flatten(2)
        tokens = torch.cat((pooled, features.flatten(2).mT), dim=-1)
        place = interpolate(self.position[None], features.shape[-2:], mode="bilinear", align_corners=False)
        query, key = self.qk(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4) + place.flatten(2).mT
        return query, key


class CATsPlusPlus(nn.Module):
    """CATs++ (Cho et al., "CATs++: Boosting Cost Aggregation with Convolutions and Transformers"), on one feature map.

    A centre-pivot convolution of stride 2 embeds the correlation in a few channels on half as many cells; blocks of
    attention aggregate it by the source's cells and, with the same weights, by the target's; the three are summed.
    As in their code: 4 channels and heads, queries and keys of 512 numbers, features projected to 128, an MLP of four
    times the width. Works on maps of any grid; its weights do not grow with the grid, as those of `CATs` do.

    With `integrate` it is a variant in the manner of IFCAT (Hong et al., "Integrative Feature and Cost Aggregation
    with Transformers"): the attention of the blocks aggregates the features as well; the cells of each image then
    attend to those of the other, by their features and by the correlation so far; and the cosines of the features
    are one more channel of the result. It follows the abstract, not the equations.

    Ours, where they differ:
    - One level; theirs are three, from coarse to fine, each with a correlation for each of many layers.
    - Queries and keys see the target averaged to 8 x 8 cells, where theirs have strides that make 8 x 8 of their three
      fixed grids; positions are learned on 8 x 8 cells and interpolated.
    - The channels are summed by learned weights that start at zero, enlarged to the grid and added to the cosines,
      where theirs are averaged: an untrained head is the cosine, and its scale is that of cosines.
    - No dropout of features of its own: `feature_dropout` is for all heads.

    Args:
        channels: Channels of the features.
        width: Channels of the embedded correlation, and attention heads.
        depth: Number of blocks.
        features: Channels to which features are projected; a multiple of `width`.
        projected: Channels of queries and of keys; a multiple of `width`.
        mlp: Channels in the middle of a block's MLP, as a multiple of `width`.
        integrate: Whether features are aggregated too.
    """

    @check_arguments("head")
    def __init__(
        self,
        channels: Count,
        width: Count = 4,
        depth: Count = 1,
        features: Count = 128,
        projected: Count = 512,
        mlp: Count = 4,
        integrate: bool = False,
    ) -> None:
        super().__init__()
        for option, value in (("features", features), ("projected", projected)):
            if value % width:
                raise UserError(f"`head.{option}` must be a multiple of `head.width`, {width}, got {value}")
        self.embed = nn.Sequential(PivotConv4d(1, width, stride=2), nn.GroupNorm(1, width), nn.ReLU())
        self.project = nn.Sequential(nn.Conv2d(channels, features, 3, stride=2, padding=1), nn.ReLU())
        self.blocks = nn.Sequential(*(EfficientBlock(width, features, projected, mlp, integrate) for _ in range(depth)))
        self.cross = CrossAggregation(width, features) if integrate else None
        self.out = nn.Parameter(torch.zeros(width + integrate))

    def forward(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of `points`, given in source pixels, with every target cell."""
        with torch.autocast(source.values.device.type, enabled=False):
            return sample_correlation(self.refine(source.values, target.values), points, source.stride)

    def refine(self, source: Float[Tensor, "b c h w"], target: Float[Tensor, "b c k l"]) -> Float[Tensor, "b h w k l"]:
        """Compute the cosines of all cells with the update by what is aggregated."""
        cosines = correlation(source, target)
        update = self.aggregate(cosines.to(self.out.dtype).relu(), source, target)
        return cosines + resize_correlation(update, source.shape[-2:], target.shape[-2:])

    def aggregate(
        self, cosines: Float[Tensor, "b h w k l"], source: Float[Tensor, "b c h w"], target: Float[Tensor, "b c k l"]
    ) -> Float[Tensor, "b i j m n"]:
        """Aggregate a correlation on half as many cells, by the source's cells and by the target's."""
        volume = self.embed(cosines[:, None])
        of_source, of_target = (self.project(values.to(self.out.dtype)) for values in (source, target))
        by_source = self.blocks(Aggregated(volume, of_source))
        by_target = self.blocks(Aggregated(transpose_volume(volume), of_target))
        volume = volume + by_source.volume + transpose_volume(by_target.volume)
        if self.cross is None:
            return torch.einsum("bchwkl,c->bhwkl", volume, self.out)
        of_source = self.cross(by_source.features, by_target.features, volume)
        of_target = self.cross(by_target.features, by_source.features, transpose_volume(volume))
        similar = (
            cosine_similarity(of_source.flatten(2).mT, of_target).unflatten(1, of_source.shape[-2:]).to(volume.dtype)
        )
        return torch.einsum("bchwkl,c->bhwkl", torch.cat((volume, similar[:, None]), dim=1), self.out)


class CrossAggregation(nn.Module):
    """Attention of the cells of one image to those of the other: by features, and by the channels of a correlation.

    Args:
        width: Channels of the correlation, and heads.
        features: Channels of the features.
    """

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.heads = width
        self.query, self.key, self.value, self.merge = (nn.Conv2d(features, features, 1) for _ in range(4))

    def forward(
        self,
        features: Float[Tensor, "b a h w"],
        others: Float[Tensor, "b a k l"],
        volume: Float[Tensor, "b c h w k l"],
    ) -> Float[Tensor, "b a h w"]:
        """Add to features what their cells find in the other image."""
        query, key, value = (
            layer(values).flatten(2).unflatten(1, (self.heads, -1)).mT
            for layer, values in ((self.query, features), (self.key, others), (self.value, others))
        )
        attended = scaled_dot_product_attention(query, key, value, volume.flatten(4).flatten(2, 3))
        return features + self.merge(attended.mT.flatten(1, 2).unflatten(2, features.shape[-2:]))


def average_to(maps: Float[Tensor, "b c h w"], cells: int) -> Float[Tensor, "b c g g"]:
    """Average maps to `cells` x `cells`, as adaptive pooling does: of n positions, cell i has i n / g to (i + 1) n / g.

    PyTorch's has no deterministic gradient on a GPU, and raises where one is asked for. Then positions are gathered and
    added up: the same but for the last bit.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return adaptive_avg_pool2d(maps, cells)
    return _average_last(_average_last(maps, cells).mT, cells).mT


def _average_last(values: Float[Tensor, "*b n"], cells: int) -> Float[Tensor, "*b g"]:
    """Average the last axis to `cells` positions; both ends of a span are rounded outwards."""
    length, cell = values.shape[-1], torch.arange(cells, device=values.device)
    first, end = cell * length // cells, ((cell + 1) * length + cells - 1) // cells
    place = first[:, None] + torch.arange(-(-length // cells) + 1, device=values.device)  # the longest span, at least
    spans = values.index_select(-1, place.clamp(max=length - 1).flatten()).unflatten(-1, place.shape)
    return (spans * (place < end[:, None])).sum(-1) / (end - first)


def transpose_volume(volume: Float[Tensor, "b c h w k l"]) -> Float[Tensor, "b c k l h w"]:
    """Exchange source and target in a correlation of several channels."""
    return volume.permute(0, 1, 4, 5, 2, 3)
