"""Match-to-match attention (TransforMatcher): every match of the correlation is a token, and sees all others."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from semcorr.errors import UserError
from semcorr.heads.correlation import correlation, rows_at
from semcorr.types import FeatureMap

NUMBERS = 4  # of a head: a pair that turns with x, a pair that turns with y
TOKENS = {"cpu": 2**16}  # looked at together: what bounds the memory
MANY = 2**20  # elsewhere


class Tokens(NamedTuple):
    """Some source cells' matches with every target cell, and the angles by which their heads are turned."""

    values: Float[Tensor, "b n m c"]
    source: Float[Tensor, "n 1 half 2"]  # half of the heads know where in the source,
    target: Float[Tensor, "1 m half 2"]  # half where in the target


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

    def __init__(self, width: int = 16, depth: int = 6, heads: int = 8, mlp: int = 4) -> None:
        super().__init__()
        if heads < 2 or heads % 2:
            raise UserError(f"`head.heads` must be even: half of them look at each image; got {heads}")
        self.heads = heads
        self.embed = nn.Linear(1, width)
        self.layers = nn.ModuleList(Layer(width, heads, mlp * width) for _ in range(depth))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))
        for parameter in self.out[1].parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """`points` are in source pixels."""
        with torch.autocast(source.values.device.type, enabled=False):
            return rows_at(self.refined(correlation(source.values, target.values)), points, source.stride)

    def refined(self, correlation: Float[Tensor, "b h w k l"]) -> Float[Tensor, "b h w k l"]:
        """The correlation, and what its matches make of each other."""
        tokens = list(self._embedded(correlation))
        for layer in self.layers:
            tokens = layer(tokens)
        found = torch.cat([lean(self.out, part.values) for part in tokens], dim=1)
        return correlation + found.view(correlation.shape)

    def _embedded(self, correlation: Float[Tensor, "b h w k l"]) -> Iterator[Tokens]:
        b, h, w, k, l = correlation.shape  # noqa: E741
        source, target = (angles(*size, self.heads // 2).to(correlation.device) for size in ((h, w), (k, l)))
        at_once = max(1, TOKENS.get(correlation.device.type, MANY) // (b * k * l))
        matches = correlation.flatten(3).flatten(1, 2)[..., None].split(at_once, dim=1)
        for part, place in zip(matches, source.split(at_once), strict=True):
            yield Tokens(lean(self.embed, part), place[:, None], target[None])


class Layer(nn.Module):
    """Fastformer's attention (Wu et al. 2021) and an MLP.

    All queries are summed up in one, by weights of their own; keys are multiplied with it and summed up in one;
    values are multiplied with that. Turned numbers are multiplied pair by pair, so that what comes of it depends
    on how far two matches are from each other.
    """

    def __init__(self, width: int, heads: int, middle: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, heads * NUMBERS, bias=False) for _ in range(3))
        self.query_weight = nn.Linear(NUMBERS, 1, bias=False)
        self.key_weight = nn.Linear(NUMBERS // 2, 1, bias=False)
        self.spread = nn.Linear(NUMBERS // 2, NUMBERS)
        self.merge = nn.Linear(heads * NUMBERS, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, middle), nn.GELU(), nn.Linear(middle, width))

    def forward(self, tokens: list[Tokens]) -> list[Tokens]:
        """Three times over all parts: queries, keys, values."""
        query = _together([lean(self._queries, part) for part in tokens])
        key = _together([lean(self._keys, part, query) for part in tokens])
        return [part._replace(values=lean(self._values, part, query, key)) for part in tokens]

    def _queries(self, part: Tokens) -> tuple[Tensor, Tensor]:
        queries = self._split(self.query, part)
        return _summed(turned(queries, part), self.query_weight(queries))

    def _keys(self, part: Tokens, query: Float[Tensor, "b heads 4"]) -> tuple[Tensor, Tensor]:
        keys = turned(self._split(self.key, part), part)
        return _summed(keys, self.key_weight(_pairwise(keys, query)))

    def _values(
        self, part: Tokens, query: Float[Tensor, "b heads 4"], key: Float[Tensor, "b heads 4"]
    ) -> Float[Tensor, "b n m c"]:
        values = turned(self._split(self.value, part), part)
        found = self.spread(_pairwise(values, key)) + self._split(self.query, part)
        tokens = part.values + self.merge(found.flatten(-2))
        return tokens + self.mlp(tokens)

    def _split(self, linear: nn.Module, part: Tokens) -> Float[Tensor, "b n m heads 4"]:
        return linear(self.norm(part.values)).unflatten(-1, (self.heads, NUMBERS))


def lean(work: Callable[..., Any], *args: Any) -> Any:
    """In training, keep only what goes in and what comes out."""
    return (
        checkpoint(work, *args, use_reentrant=False, preserve_rng_state=False)
        if torch.is_grad_enabled()
        else work(*args)
    )


def angles(h: int, w: int, speeds: int) -> Float[Tensor, "cells speeds 2"]:
    """By x and by y, row by row. The image spans [-1, 1]; half a turn there is the slowest.

    >>> angles(1, 2, 1)[:, 0] / math.pi
    tensor([[-0.5000,  0.0000],
            [ 0.5000,  0.0000]])
    """
    y, x = ((2 * torch.arange(length) + 1) / length - 1 for length in (h, w))
    places = torch.stack((x.expand(h, w), y[:, None].expand(h, w)), dim=-1).flatten(0, 1)
    return places[:, None] * (math.pi * torch.linspace(1, 5, speeds))[:, None]


def turned(numbers: Float[Tensor, "b n m heads 4"], part: Tokens) -> Float[Tensor, "b n m heads 4"]:
    """Every pair turned in its plane."""
    halves = numbers.unflatten(-1, (2, 2)).chunk(2, dim=-3)
    both = []
    for pairs, angle in zip(halves, (part.source, part.target), strict=True):
        (a, b), cos, sin = pairs.unbind(-1), angle.cos(), angle.sin()
        both.append(torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1))
    return torch.cat(both, dim=-3).flatten(-2)


def _pairwise(
    numbers: Float[Tensor, "b n m heads 4"], one: Float[Tensor, "b heads 4"]
) -> Float[Tensor, "b n m heads 2"]:
    """Inner products of pairs."""
    return (numbers * one[:, None, None]).unflatten(-1, (2, 2)).sum(-1)


def _summed(
    numbers: Float[Tensor, "b n m heads 4"], logits: Float[Tensor, "b n m heads 1"]
) -> tuple[Float[Tensor, "b heads"], Float[Tensor, "b heads 4"]]:
    """A part's mean under a softmax over its tokens, and the logarithm of what that softmax divides by."""
    logits = logits.flatten(1, 2) * NUMBERS**-0.5
    return logits.logsumexp(1)[..., 0], (logits.softmax(1) * numbers.flatten(1, 2)).sum(1)


def _together(parts: list[tuple[Tensor, Tensor]]) -> Float[Tensor, "b heads 4"]:
    """The mean under a softmax over the tokens of all parts."""
    totals, means = (torch.stack(some) for some in zip(*parts, strict=True))
    return (totals.softmax(0)[..., None] * means).sum(0)
