"""Fastformer's additive attention among very many small tokens, processed one part at a time."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.utils.checkpoint import checkpoint

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
        query = _combine_parts([checkpointed(self._sum_queries, part) for part in tokens])
        key = _combine_parts([checkpointed(self._sum_keys, part, query) for part in tokens])
        return [part._replace(values=checkpointed(self._update_values, part, query, key)) for part in tokens]

    def _sum_queries(self, part: MatchTokens) -> tuple[Tensor, Tensor]:
        queries = self._project_to_heads(self.query, norm_over_second_axis(self.norm1, part.values))
        return _softmax_mean(apply_rotary(queries, part), _attention_logits(self.query_weight, queries.flatten(2, 3)))

    def _sum_keys(self, part: MatchTokens, query: Float[Tensor, "b heads 2 2"]) -> tuple[Tensor, Tensor]:
        keys = apply_rotary(self._project_to_heads(self.key, norm_over_second_axis(self.norm1, part.values)), part)
        return _softmax_mean(keys, _attention_logits(self.key_weight, _pair_products(keys, query)))

    def _update_values(
        self, part: MatchTokens, query: Float[Tensor, "b heads 2 2"], key: Float[Tensor, "b heads 2 2"]
    ) -> Float[Tensor, "b c n m"]:
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
        return linear_over_second_axis(linear, values).unflatten(1, (self.heads, 2, 2))


def checkpointed(work: Callable[..., object], *args: object) -> object:
    """Call `work`; in training, keep only its inputs and outputs, and repeat it in backward."""
    if not torch.is_grad_enabled():
        return work(*args)
    return checkpoint(work, *args, use_reentrant=False, preserve_rng_state=False)


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
