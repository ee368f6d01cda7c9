"""Match-to-match attention (TransforMatcher): every match is a token of Fastformer's additive attention."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.utils.checkpoint import checkpoint

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.models.heads.correlation import correlation, sample_correlation

Output = TypeVar("Output")
NUMBERS = 4  # channels of a head: a pair rotated by x, a pair rotated by y


class MatchTokens(NamedTuple):
    """Tokens for the matches of some source cells with every target cell, and the rotary angles of their heads.

    The channels of a token lie far apart in memory, the same channel of neighbouring tokens side by side: channels
    are few, and every operation applies to all tokens.
    """

    values: Float[Tensor, "b c n m"]
    source: Float[Tensor, "half 2 n 1"]  # for half of the heads: angles by position in the source
    target: Float[Tensor, "half 2 1 m"]  # for the other half: angles by position in the target


class FastformerLayer(nn.Module):
    """A layer of Fastformer's attention (Wu et al. 2021) and an MLP.

    All queries are summed to one, by learned weights; keys are multiplied with it and summed to one; values are
    multiplied with that. Rotated channels are multiplied pair by pair, so that the product depends on how far two
    matches are from each other.

    Args:
        width: Channels of a token.
        heads: Attention heads, of `NUMBERS` channels each.
        middle: Channels in the middle of the MLP.
    """

    def __init__(self, width: int, heads: int, middle: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, heads * NUMBERS, bias=False) for _ in range(3))
        self.query_weight = nn.Linear(NUMBERS, 1, bias=False)
        self.key_weight = nn.Linear(NUMBERS // 2, 1, bias=False)
        self.spread = nn.Linear(NUMBERS // 2, NUMBERS)
        self.merge = nn.Linear(heads * NUMBERS, width)
        self.widen, self.narrow = nn.Linear(width, middle), nn.Linear(middle, width)

    def forward(self, tokens: list[MatchTokens]) -> list[MatchTokens]:
        """Apply the layer in three passes over all parts: queries, keys, values."""
        query = _combine_parts([run_checkpointed(self._sum_queries, part) for part in tokens])
        key = _combine_parts([run_checkpointed(self._sum_keys, part, query) for part in tokens])
        return [part._replace(values=run_checkpointed(self._update_values, part, query, key)) for part in tokens]

    def _sum_queries(self, part: MatchTokens) -> tuple[Tensor, Tensor]:
        """Return the softmax mean of a part's rotated queries, with the logarithm of its normaliser."""
        queries = self._project_to_heads(self.query, norm_over_second_axis(self.norm1, part.values))
        return _softmax_mean(apply_rotary(queries, part), _attention_logits(self.query_weight, queries.flatten(2, 3)))

    def _sum_keys(self, part: MatchTokens, query: Float[Tensor, "b heads 2 2"]) -> tuple[Tensor, Tensor]:
        """Return the softmax mean of a part's rotated keys, weighted by their products with the global query."""
        keys = apply_rotary(self._project_to_heads(self.key, norm_over_second_axis(self.norm1, part.values)), part)
        return _softmax_mean(keys, _attention_logits(self.key_weight, _pair_products(keys, query)))

    def _update_values(
        self, part: MatchTokens, query: Float[Tensor, "b heads 2 2"], key: Float[Tensor, "b heads 2 2"]
    ) -> Float[Tensor, "b c n m"]:
        """Return a part's tokens after attention and MLP, each added to its input."""
        x = norm_over_second_axis(self.norm1, part.values)
        products = _pair_products(apply_rotary(self._project_to_heads(self.value, x), part), key)
        spread = (
            linear_over_second_axis(self.spread, products.flatten(0, 1)).unflatten(0, (-1, self.heads)).flatten(1, 2)
        )
        x = part.values + linear_over_second_axis(self.merge, spread + linear_over_second_axis(self.query, x))
        return x + linear_over_second_axis(
            self.narrow, gelu(linear_over_second_axis(self.widen, norm_over_second_axis(self.norm2, x)))
        )

    def _project_to_heads(
        self, linear: nn.Linear, values: Float[Tensor, "b c n m"]
    ) -> Float[Tensor, "b heads 2 2 n m"]:
        """Project tokens to channels of every head, as pairs that rotate by x and by y."""
        return linear_over_second_axis(linear, values).unflatten(1, (self.heads, 2, 2))


def run_checkpointed(work: Callable[..., Output], *args: object) -> Output:
    """Call `work`; in training, keep only its inputs and outputs, and repeat it in backward."""
    if not torch.is_grad_enabled():
        return work(*args)
    output: Output = checkpoint(work, *args, use_reentrant=False, preserve_rng_state=False)
    return output


def linear_over_second_axis(linear: nn.Linear, values: Float[Tensor, "b c n m"]) -> Float[Tensor, "b d n m"]:
    """Apply a linear layer over the second axis."""
    weight = linear.weight.expand(len(values), -1, -1)  # a product of two and three axes would copy the tokens
    output = torch.bmm(weight, values.flatten(2))
    return (output if linear.bias is None else output.add_(linear.bias[:, None])).unflatten(2, values.shape[2:])


def norm_over_second_axis(norm: nn.LayerNorm, values: Float[Tensor, "b c n m"]) -> Float[Tensor, "b c n m"]:
    """Apply a layer norm over the second axis."""
    values = values - values.mean(1, keepdim=True)
    values = values * (values.square().mean(1, keepdim=True) + norm.eps).rsqrt()
    return torch.addcmul(norm.bias[:, None, None], values, norm.weight[:, None, None])


def apply_rotary(numbers: Float[Tensor, "b heads 2 2 n m"], part: MatchTokens) -> Float[Tensor, "b heads 2 2 n m"]:
    """Rotate every pair of channels in its plane."""
    rotated = []
    for pairs, angle in zip(numbers.chunk(2, dim=1), (part.source, part.target), strict=True):
        (a, b), cos, sin = pairs.unbind(3), angle.cos(), angle.sin()
        rotated.append(torch.stack((a * cos - b * sin, a * sin + b * cos), dim=3))
    return torch.cat(rotated, dim=1)


def _pair_products(
    numbers: Float[Tensor, "b heads 2 2 n m"], vector: Float[Tensor, "b heads 2 2"]
) -> Float[Tensor, "b heads 2 n m"]:
    """Compute the inner products of pairs of channels with those of one vector."""
    a, b = numbers.unbind(3)
    c, d = vector[..., None, None].unbind(3)
    return torch.addcmul(a * c, b, d)


def _attention_logits(linear: nn.Linear, numbers: Float[Tensor, "b heads d n m"]) -> Float[Tensor, "b heads tokens"]:
    """Compute the scaled logits of a softmax over all tokens of a part, for each head."""
    return linear_over_second_axis(linear, numbers.flatten(0, 1)).view(*numbers.shape[:2], -1) * NUMBERS**-0.5


def _softmax_mean(
    numbers: Float[Tensor, "b heads 2 2 n m"], logits: Float[Tensor, "b heads tokens"]
) -> tuple[Float[Tensor, "b heads"], Float[Tensor, "b heads 2 2"]]:
    """Return the logarithm of a softmax's normaliser over a part's tokens, and their mean under that softmax."""
    mean = numbers.flatten(4).flatten(2, 3) @ logits.softmax(-1)[..., None]
    return logits.logsumexp(-1), mean.unflatten(2, (2, 2))[..., 0]


def _combine_parts(parts: list[tuple[Tensor, Tensor]]) -> Float[Tensor, "b heads 2 2"]:
    """Return the mean under a softmax over the tokens of all parts."""
    totals, means = (torch.stack(values) for values in zip(*parts, strict=True))
    return (totals.softmax(0)[..., None, None] * means).sum(0)


TOKENS_BY_DEVICE = {"cpu": 2**13}  # tokens of a part on a CPU: they fit into a core's cache
DEVICE_TOKENS = 2**20  # tokens of a part elsewhere: enough to keep the device busy


class MatchToMatch(nn.Module):
    """Additive attention among the cells of a correlation (Kim et al. 2022, "TransforMatcher"), linear in their number.

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
    - No final upsampling to twice the grid: the readouts here answer between cells.
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
            return sample_correlation(self.refine(correlation(source.values, target.values)), points, source.stride)

    def refine(self, correlation: Float[Tensor, "b h w k l"]) -> Float[Tensor, "b h w k l"]:
        """Return the correlation with the update by attention among its matches."""
        tokens = list(self._embed_matches(correlation))
        for layer in self.layers:
            tokens = layer(tokens)
        update = torch.cat([run_checkpointed(self._score_matches, part.values) for part in tokens], dim=2)
        return correlation + update.reshape(correlation.shape)

    def _embed_matches(self, correlation: Float[Tensor, "b h w k l"]) -> Iterator[MatchTokens]:
        """Yield the tokens of all matches in parts, with the rotary angles of their positions."""
        b, h, w, k, l = correlation.shape  # noqa: E741
        device = correlation.device
        source, target = (rotary_angles(*size, self.heads // 2, device) for size in ((h, w), (k, l)))
        at_once = max(1, TOKENS_BY_DEVICE.get(correlation.device.type, DEVICE_TOKENS) // (b * k * l))
        matches = correlation.flatten(3).flatten(1, 2)[:, None].split(at_once, dim=2)
        for part, angles in zip(matches, source.split(at_once, dim=2), strict=True):
            yield MatchTokens(
                run_checkpointed(linear_over_second_axis, self.embed, part), angles[..., None], target[:, :, None]
            )

    def _score_matches(self, values: Float[Tensor, "b c n m"]) -> Float[Tensor, "b 1 n m"]:
        """Compute the update of each match's similarity from its token."""
        return linear_over_second_axis(self.out, norm_over_second_axis(self.norm, values))


def rotary_angles(h: int, w: int, speeds: int, device: torch.device | None = None) -> Float[Tensor, "speeds 2 cells"]:
    """Return rotation angles by x and by y, row by row. The image spans [-1, 1]; the slowest is half a turn per unit.

    Args:
        h: Rows of the grid.
        w: Columns of the grid.
        speeds: Number of speeds, from half a turn to two and a half per unit.
        device: Device of the result; PyTorch's default if None.

    >>> rotary_angles(1, 2, 1)[0] / math.pi
    tensor([[-0.5000,  0.5000],
            [ 0.0000,  0.0000]])
    """
    y, x = ((2 * torch.arange(length, dtype=torch.float32, device=device) + 1) / length - 1 for length in (h, w))
    coordinates = torch.stack((x.expand(h, w), y[:, None].expand(h, w))).flatten(1)
    return coordinates * (math.pi * torch.linspace(1, 5, speeds, dtype=torch.float32, device=device))[:, None, None]
