"""What a matcher answers: points of one picture in another, a flow from one to the other."""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor


class Match(NamedTuple):
    """Where points of one picture lie in another; on the CPU, in the order of the points."""

    source: Float[Tensor, "n 2"]  # (x, y), original pixels of the source: as asked
    points: Float[Tensor, "n 2"]  # (x, y), original pixels of the target
    scores: Float[Tensor, " n"]  # similarity at the match: a cosine, of most heads; consensus has its own, in [0, 1]
    consistent: Bool[Tensor, " n"]  # matched back, it returns to within `cycle` cells of the point
    returned: Float[Tensor, "n 2"]  # where it returns to, in original pixels of the source


class Flow(NamedTuple):
    """Where every pixel of one picture lies in another."""

    flow: Float[Tensor, "h w 2"]  # what to add to a pixel's (x, y), in original pixels
    confidence: Float[Tensor, "h w"]  # similarity where the match is cycle-consistent, 0 elsewhere and in padding


class RoundTrip(NamedTuple):
    """There and back, in pixels of the two squares that the network sees."""

    points: Float[Tensor, "n 2"]
    scores: Float[Tensor, " n"]
    near: Bool[Tensor, " n"]
    returned: Float[Tensor, "n 2"]
