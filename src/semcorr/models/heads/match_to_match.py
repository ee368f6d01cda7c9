"""Match-to-match attention (TransforMatcher): every match of the correlation is a token, and sees all others."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.models.heads.additive_attention import (
    FastformerLayer,
    MatchTokens,
    checkpointed,
    linear_over_second_axis,
    norm_over_second_axis,
)
from semcorr.models.heads.correlation import correlation, sample_correlation

TOKENS = {"cpu": 2**13}  # looked at together: on a CPU, what a core's cache holds;
MANY = 2**20  # elsewhere, what keeps the device busy


class MatchToMatch(nn.Module):
    """Additive attention among the cells of a correlation (Kim et al., "TransforMatcher"), linear in their number.

    As published: 16 numbers a token, six layers of Fastformer's attention with 8 heads of 4 numbers, turned by
    where they are (rotary), and MLPs of four times the width, a norm before each; then one number per match.
    Works on maps of any grid.

    Ours, where they leave it open or have 26 correlations:
    - One correlation, of the features as they come, is the token's one number at first.
    - In half of the heads a pair turns with x in the source and a pair with y, in the other half so for the
      target; at as many speeds as there are such heads, from half a turn to two and a half over the image's half.
    - What comes out is added to the correlation, and starts at zero: an untrained head is the cosine, and its
      scale is that of cosines.
    - No upsampling to twice the grid in the end: localisers here answer between cells.
    - Sums over all tokens go a part at a time, which in training is computed anew in backward. Held are 16
      numbers a match and layer: at 60 x 60 cells, 0.8 GB each.

    Args:
        width: Of a token.
        depth: Layers.
        heads: Of the attention; an even number.
        mlp: The middle of an MLP, in widths.
    """

    @check_arguments("head")
    def __init__(self, width: Count = 16, depth: Count = 6, heads: int = 8, mlp: Count = 4) -> None:
        super().__init__()
        if heads < 2 or heads % 2:
            raise UserError(f"`head.heads` must be even: half of them look at each image; got {heads}")
        self.heads = heads
        self.embed = nn.Linear(1, width)
        self.layers = nn.ModuleList(FastformerLayer(width, heads, mlp * width) for _ in range(depth))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """`points` are in source pixels."""
        with torch.autocast(source.values.device.type, enabled=False):
            return sample_correlation(self.refined(correlation(source.values, target.values)), points, source.stride)

    def refined(self, correlation: Float[Tensor, "b h w k l"]) -> Float[Tensor, "b h w k l"]:
        """The correlation, and what its matches make of each other."""
        tokens = list(self._embedded(correlation))
        for layer in self.layers:
            tokens = layer(tokens)
        found = torch.cat([checkpointed(self._score, part.values) for part in tokens], dim=2)
        return correlation + found.reshape(correlation.shape)

    def _embedded(self, correlation: Float[Tensor, "b h w k l"]) -> Iterator[MatchTokens]:
        b, h, w, k, l = correlation.shape  # noqa: E741
        source, target = (rotary_angles(*size, self.heads // 2).to(correlation.device) for size in ((h, w), (k, l)))
        at_once = max(1, TOKENS.get(correlation.device.type, MANY) // (b * k * l))
        matches = correlation.flatten(3).flatten(1, 2)[:, None].split(at_once, dim=2)
        for part, place in zip(matches, source.split(at_once, dim=2), strict=True):
            yield MatchTokens(
                checkpointed(linear_over_second_axis, self.embed, part), place[..., None], target[:, :, None]
            )

    def _score(self, values: Float[Tensor, "b c n m"]) -> Float[Tensor, "b 1 n m"]:
        return linear_over_second_axis(self.out, norm_over_second_axis(self.norm, values))


def rotary_angles(h: int, w: int, speeds: int) -> Float[Tensor, "speeds 2 cells"]:
    """By x and by y, row by row. The image spans [-1, 1]; half a turn there is the slowest.

    >>> rotary_angles(1, 2, 1)[0] / math.pi
    tensor([[-0.5000,  0.5000],
            [ 0.0000,  0.0000]])
    """
    y, x = ((2 * torch.arange(length) + 1) / length - 1 for length in (h, w))
    places = torch.stack((x.expand(h, w), y[:, None].expand(h, w))).flatten(1)
    return places * (math.pi * torch.linspace(1, 5, speeds))[:, None, None]
