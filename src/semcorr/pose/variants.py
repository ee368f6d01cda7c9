"""An image in other poses: its mirror image and its quarter turns. All are exact, and map points, pixels and cells."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from semcorr.data.images import Shown
from semcorr.data.record import ImageRecord


class Variant(NamedTuple):
    """A square image mirrored, then turned."""

    mirrored: bool = False
    turned: int = 0  # degrees anticlockwise: 0, 90, 180 or 270

    def __str__(self) -> str:
        """For tables.

        >>> print(Variant(), Variant(mirrored=True), Variant(turned=90), sep=", ")
        plain, mirrored, turned 90
        """
        words = ["mirrored"] * self.mirrored + [f"turned {self.turned}"] * bool(self.turned)
        return " ".join(words) or "plain"

    def of(self, record: ImageRecord) -> Shown:
        """What the backbone is shown, and the key of its features."""
        return Shown(record, *self)

    def points(self, points: Float[Tensor, "*n 2"], size: tuple[int, int]) -> Float[Tensor, "*n 2"]:
        """Where pixels of an image of this width and height go.

        >>> Variant(turned=90).points(torch.tensor([3.0, 0.0]), size=(4, 2))  # the upper right corner, now upper left
        tensor([0., 0.])
        """
        x, y = points.unbind(-1)
        width, height = size
        x = width - 1 - x if self.mirrored else x
        for _ in range(self.turned // 90):
            x, y, width, height = y, width - 1 - x, height, width
        return torch.stack((x, y), dim=-1)

    def pixels(self, values: Shaped[Tensor, "*c s s"]) -> Shaped[Tensor, "*c s s"]:
        """The image itself, or anything on its grid."""
        values = values.flip(-1) if self.mirrored else values
        return values.rot90(self.turned // 90, (-2, -1))


PLAIN = Variant()


def variants(mirror: bool, turns: Sequence[int]) -> list[Variant]:
    """The image itself first; mirrored and turned, but not both at once (the paper's supplement)."""
    return [PLAIN, *([Variant(mirrored=True)] if mirror else []), *(Variant(turned=turn) for turn in turns)]
