"""Fastformer's additive attention among very many small tokens, a part of them at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.utils.checkpoint import checkpoint

NUMBERS = 4  # of a head: a pair that turns with x, a pair that turns with y


class MatchTokens(NamedTuple):
    """Some source cells' matches with every target cell, and the angles by which their heads are turned.

    Numbers of a token lie far apart in memory, those of neighbouring tokens side by side: there are few of the
    former, and whatever is done to one is done to all tokens.
    """

    values: Float[Tensor, "b c n m"]
    source: Float[Tensor, "half 2 n 1"]  # half of the heads know where in the source,
    target: Float[Tensor, "half 2 1 m"]  # half where in the target


class FastformerLayer(nn.Module):
    """Fastformer's attention (Wu et al. 2021) and an MLP.

    All queries are summed up in one, by weights of their own; keys are multiplied with it and summed up in one;
    values are multiplied with that. Turned numbers are multiplied pair by pair, so that what comes of it depends
    on how far two matches are from each other.
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
        """Three times over all parts: queries, keys, values."""
        query = _together([checkpointed(self._queries, part) for part in tokens])
        key = _together([checkpointed(self._keys, part, query) for part in tokens])
        return [part._replace(values=checkpointed(self._values, part, query, key)) for part in tokens]

    def _queries(self, part: MatchTokens) -> tuple[Tensor, Tensor]:
        queries = self._split(self.query, norm_over_second_axis(self.norm1, part.values))
        return _summed(apply_rotary(queries, part), _weighed(self.query_weight, queries.flatten(2, 3)))

    def _keys(self, part: MatchTokens, query: Float[Tensor, "b heads 2 2"]) -> tuple[Tensor, Tensor]:
        keys = apply_rotary(self._split(self.key, norm_over_second_axis(self.norm1, part.values)), part)
        return _summed(keys, _weighed(self.key_weight, _pairwise(keys, query)))

    def _values(
        self, part: MatchTokens, query: Float[Tensor, "b heads 2 2"], key: Float[Tensor, "b heads 2 2"]
    ) -> Float[Tensor, "b c n m"]:
        x = norm_over_second_axis(self.norm1, part.values)
        products = _pairwise(apply_rotary(self._split(self.value, x), part), key)
        spread = (
            linear_over_second_axis(self.spread, products.flatten(0, 1)).unflatten(0, (-1, self.heads)).flatten(1, 2)
        )
        x = part.values + linear_over_second_axis(self.merge, spread + linear_over_second_axis(self.query, x))
        return x + linear_over_second_axis(
            self.narrow, gelu(linear_over_second_axis(self.widen, norm_over_second_axis(self.norm2, x)))
        )

    def _split(self, linear: nn.Linear, values: Float[Tensor, "b c n m"]) -> Float[Tensor, "b heads 2 2 n m"]:
        return linear_over_second_axis(linear, values).unflatten(1, (self.heads, 2, 2))


def checkpointed(work: Callable[..., Any], *args: Any) -> Any:
    """In training, keep only what goes in and what comes out."""
    if not torch.is_grad_enabled():
        return work(*args)
    return checkpoint(work, *args, use_reentrant=False, preserve_rng_state=False)


def linear_over_second_axis(linear: nn.Linear, values: Float[Tensor, "b c n m"]) -> Float[Tensor, "b d n m"]:
    """A linear layer over the second axis."""
    weight = linear.weight.expand(len(values), -1, -1)  # a product of two and three axes would copy the tokens
    found = torch.bmm(weight, values.flatten(2))
    return (found if linear.bias is None else found.add_(linear.bias[:, None])).unflatten(2, values.shape[2:])


def norm_over_second_axis(norm: nn.LayerNorm, values: Float[Tensor, "b c n m"]) -> Float[Tensor, "b c n m"]:
    """A layer norm over the second axis."""
    values = values - values.mean(1, keepdim=True)
    values = values * (values.square().mean(1, keepdim=True) + norm.eps).rsqrt()
    return torch.addcmul(norm.bias[:, None, None], values, norm.weight[:, None, None])


def apply_rotary(numbers: Float[Tensor, "b heads 2 2 n m"], part: MatchTokens) -> Float[Tensor, "b heads 2 2 n m"]:
    """Every pair turned in its plane."""
    both = []
    for pairs, angle in zip(numbers.chunk(2, dim=1), (part.source, part.target), strict=True):
        (a, b), cos, sin = pairs.unbind(3), angle.cos(), angle.sin()
        both.append(torch.stack((a * cos - b * sin, a * sin + b * cos), dim=3))
    return torch.cat(both, dim=1)


def _pairwise(
    numbers: Float[Tensor, "b heads 2 2 n m"], one: Float[Tensor, "b heads 2 2"]
) -> Float[Tensor, "b heads 2 n m"]:
    """Inner products of pairs."""
    a, b = numbers.unbind(3)
    c, d = one[..., None, None].unbind(3)
    return torch.addcmul(a * c, b, d)


def _weighed(linear: nn.Linear, numbers: Float[Tensor, "b heads d n m"]) -> Float[Tensor, "b heads tokens"]:
    return linear_over_second_axis(linear, numbers.flatten(0, 1)).view(*numbers.shape[:2], -1) * NUMBERS**-0.5


def _summed(
    numbers: Float[Tensor, "b heads 2 2 n m"], logits: Float[Tensor, "b heads tokens"]
) -> tuple[Float[Tensor, "b heads"], Float[Tensor, "b heads 2 2"]]:
    """A part's mean under a softmax over its tokens, and the logarithm of what that softmax divides by."""
    mean = numbers.flatten(4).flatten(2, 3) @ logits.softmax(-1)[..., None]
    return logits.logsumexp(-1), mean.unflatten(2, (2, 2))[..., 0]


def _together(parts: list[tuple[Tensor, Tensor]]) -> Float[Tensor, "b heads 2 2"]:
    """The mean under a softmax over the tokens of all parts."""
    totals, means = (torch.stack(some) for some in zip(*parts, strict=True))
    return (totals.softmax(0)[..., None, None] * means).sum(0)
