"""Match-to-match attention (TransforMatcher): every match of the correlation is a token, and attends to all."""

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

TOKENS = {"cpu": 2**13}  # tokens of a part on a CPU: they fit into a core's cache
MANY = 2**20  # tokens of a part elsewhere: enough to keep the device busy


class MatchToMatch(nn.Module):
    """Additive attention among the cells of a correlation (Kim et al., "TransforMatcher"), linear in their number.

    As published: 16 channels a token, six layers of Fastformer's attention with 8 heads of 4 channels and rotary
    position encodings, and MLPs of four times the width, a norm before each; then one number per match. Works on maps
    of any grid.

    Ours, where they leave it open or have 26 correlations:
    - A token's input is one number, the cosine of the unchanged features.
    - In half of the heads one pair of channels is rotated by x in the source and one by y, in the other half by
      those in the target; at as many speeds as there are such heads, from half a turn to two and a half over half
      of the image.
    - The output is added to the correlation, and starts at zero: an untrained head is the cosine, and its scale is
      that of cosines.
    - No final upsampling to twice the grid: the read-outs here answer between cells.
    - Sums over all tokens are computed one part at a time, which in training is repeated in backward. Memory holds
      16 numbers per match and layer: at 60 x 60 cells, 0.8 GB per layer.

    Args:
        width: Channels of a token.
        depth: Number of layers.
        heads: Attention heads; an even number.
        mlp: Channels in the middle of an MLP, as a multiple of a token's.
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
        """Compute the similarity of `points`, given in source pixels, with every target cell."""
        with torch.autocast(source.values.device.type, enabled=False):
            return sample_correlation(self.refined(correlation(source.values, target.values)), points, source.stride)

    def refined(self, correlation: Float[Tensor, "b h w k l"]) -> Float[Tensor, "b h w k l"]:
        """Return the correlation with the update by attention among its matches."""
        tokens = list(self._embed_matches(correlation))
        for layer in self.layers:
            tokens = layer(tokens)
        update = torch.cat([checkpointed(self._score_matches, part.values) for part in tokens], dim=2)
        return correlation + update.reshape(correlation.shape)

    def _embed_matches(self, correlation: Float[Tensor, "b h w k l"]) -> Iterator[MatchTokens]:
        b, h, w, k, l = correlation.shape  # noqa: E741
        source, target = (rotary_angles(*size, self.heads // 2).to(correlation.device) for size in ((h, w), (k, l)))
        at_once = max(1, TOKENS.get(correlation.device.type, MANY) // (b * k * l))
        matches = correlation.flatten(3).flatten(1, 2)[:, None].split(at_once, dim=2)
        for part, angles in zip(matches, source.split(at_once, dim=2), strict=True):
            yield MatchTokens(
                checkpointed(linear_over_second_axis, self.embed, part), angles[..., None], target[:, :, None]
            )

    def _score_matches(self, values: Float[Tensor, "b c n m"]) -> Float[Tensor, "b 1 n m"]:
        return linear_over_second_axis(self.out, norm_over_second_axis(self.norm, values))


def rotary_angles(h: int, w: int, speeds: int) -> Float[Tensor, "speeds 2 cells"]:
    """Return rotation angles by x and by y, row by row. The image spans [-1, 1]; the slowest is half a turn per unit.

    >>> rotary_angles(1, 2, 1)[0] / math.pi
    tensor([[-0.5000,  0.5000],
            [ 0.0000,  0.0000]])
    """
    y, x = ((2 * torch.arange(length) + 1) / length - 1 for length in (h, w))
    coordinates = torch.stack((x.expand(h, w), y[:, None].expand(h, w))).flatten(1)
    return coordinates * (math.pi * torch.linspace(1, 5, speeds))[:, None, None]
