"""The head of CATs: a transformer over the correlation, by the target's cells and then by the source's."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, Positive, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.models.heads.correlation import correlation, mutual_matching, sample_correlation


class CATs(nn.Module):
    """Cost aggregation by attention (Cho et al. 2021, "CATs"), with one feature map and one block.

    A cell's token is its correlation with every cell of the other image, and its projected features. The
    correlation, after mutual matching, goes through the transformer with the target's cells as tokens, the input is
    added, and the sum goes through the same weights with the source's cells as tokens. One feature map is one
    level, so that attention between levels has nothing to do: it is left out, as in their code.

    The output is a correlation, and needs no other temperature than cosines do. Their grid is 16 x 16 cells: a
    token has g * g + 128 numbers, so weights belong to a grid and grow with its fourth power (2.0 million for 16
    cells a side, 17 for 32, 181 for 60).

    Ours, where they leave it open:
    - Cosines below zero become zero before they are filtered.
    - The last projection starts at zero: an untrained head leaves the correlation as it is.
    - Heads have width // heads channels, also where that leaves a remainder (3,728 channels at 60 cells).

    Args:
        channels: Channels of the features.
        grid: Cells along a side of a feature map; other maps are refused.
        depth: Number of blocks; the unified benchmark has one.
        heads: Attention heads of each block.
        projected: Channels to which the features are projected for a token.
        mlp: Channels in the middle of a block's MLP, as a multiple of a token's.

    Raises:
        UserError: A token has fewer numbers than there are heads; or, when called, the features are of another grid.
    """

    @check_arguments("head")
    def __init__(
        self,
        channels: Count,
        grid: Count,
        depth: Count = 1,
        heads: Count = 6,
        projected: Count = 128,
        mlp: Positive = 4.0,
    ) -> None:
        super().__init__()
        width = grid**2 + projected
        if heads > width:
            raise UserError(f"`head.heads` must be between 1 and {width}, got {heads}")
        self.grid = grid
        self.project = nn.Linear(channels, projected)
        self.columns = nn.Parameter(torch.empty(grid, width // 2))
        self.rows = nn.Parameter(torch.empty(grid, width - width // 2))
        self.blocks = nn.Sequential(*(AggregationBlock(width, heads, int(mlp * width)) for _ in range(depth)))
        self.out = nn.Linear(width, grid**2)
        for parameter in self.parameters():  # as in Vision Transformers
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of `points`, given in source pixels, with every target cell."""
        for maps in (source, target):
            self._check_grid(maps.values)
        raw = mutual_matching(correlation(source.values, target.values).relu())
        return sample_correlation(self.aggregate(raw, source.values, target.values), points, source.stride)

    def aggregate(
        self, raw: Float[Tensor, "b h w k l"], source: Float[Tensor, "b c h w"], target: Float[Tensor, "b c k l"]
    ) -> Float[Tensor, "b h w k l"]:
        """Refine the correlation by the target's tokens, then the result by the source's."""
        matrix = raw.flatten(3).flatten(1, 2)  # (b source target)
        refined = self._transform(matrix.mT, target).mT + matrix
        return (self._transform(refined, source) + matrix).view(raw.shape)

    def _transform(
        self, matrix: Float[Tensor, "b cells others"], features: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b cells others"]:
        """Transform the rows of a correlation, each a token beside its cell's projected features."""
        precision = self.project.weight.dtype  # features may be in half precision
        projected = self.project(features.flatten(2).mT.to(precision))
        position = torch.cat(
            (self.columns.expand(self.grid, -1, -1), self.rows[:, None].expand(-1, self.grid, -1)), dim=-1
        )
        tokens = torch.cat((matrix, projected.to(matrix.dtype)), dim=-1) + position.flatten(0, 1)
        return self.out(self.blocks(tokens)).float()

    def _check_grid(self, values: Float[Tensor, "b c h w"]) -> None:
        """Refuse features of another grid than the head has weights for."""
        h, w = values.shape[-2:]
        if (h, w) != (self.grid, self.grid):
            raise UserError(
                f"`head=cats` has weights for {self.grid} x {self.grid} cells, and was given features of {w} x {h}. "
                f"Give `backbone.grid={self.grid}`, or train a head of another `head.grid`"
            )


class AggregationBlock(nn.Module):
    """A block of attention and an MLP, each after a norm and added to its input.

    Args:
        width: Channels of a token.
        heads: Attention heads, each of width // heads channels.
        middle: Channels in the middle of the MLP.
    """

    def __init__(self, width: int, heads: int, middle: int) -> None:
        super().__init__()
        self.heads, inner = heads, width // heads * heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv, self.merge = nn.Linear(width, 3 * inner), nn.Linear(inner, width)
        self.mlp = nn.Sequential(nn.Linear(width, middle), nn.GELU(), nn.Linear(middle, width))

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Apply the block; every token attends to all tokens of its image."""
        q, k, v = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        tokens = tokens + self.merge(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm2(tokens))
