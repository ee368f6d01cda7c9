"""Results of a matcher: points of one picture in another, and a flow from one to the other."""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor


class Match(NamedTuple):
    """Matches of points of one picture in another; on the CPU, in the order of the points."""

    source: Float[Tensor, "n 2"]  # (x, y), original pixels of the source: the query points
    points: Float[Tensor, "n 2"]  # (x, y), original pixels of the target
    scores: Float[Tensor, " n"]  # similarity at the match: a cosine for most heads; that of consensus in [0, 1]
    consistent: Bool[Tensor, " n"]  # whether the match, matched back, lies within `cycle` cells of the point
    returned: Float[Tensor, "n 2"]  # the match matched back, in original pixels of the source


class Flow(NamedTuple):
    """The match of every pixel of one picture in another."""

    flow: Float[Tensor, "h w 2"]  # displacement to add to a pixel's (x, y), in original pixels
    confidence: Float[Tensor, "h w"]  # similarity of cycle-consistent matches, 0 elsewhere and in padding


class RoundTrip(NamedTuple):
    """Matches and their matches back, in pixels of the two squares that the network sees."""

    points: Float[Tensor, "n 2"]  # in the target
    scores: Float[Tensor, " n"]
    near: Bool[Tensor, " n"]  # whether the match back lies near the query point
    returned: Float[Tensor, "n 2"]  # matched back, in the source
