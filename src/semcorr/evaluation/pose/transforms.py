"""Poses of an image, its mirror image and its quarter turns, as exact maps of points, pixels and cells."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from semcorr.data.image_variants import ImageVariant
from semcorr.data.record import ImageRecord


class PoseTransform(NamedTuple):
    """A pose of a square image: mirrored, then turned."""

    mirrored: bool = False
    turned: int = 0  # degrees anticlockwise: 0, 90, 180 or 270

    def __str__(self) -> str:
        """Format the pose for tables.

        >>> print(PoseTransform(), PoseTransform(mirrored=True), PoseTransform(turned=90), sep=", ")
        plain, mirrored, turned 90
        """
        words = ["mirrored"] * self.mirrored + [f"turned {self.turned}"] * bool(self.turned)
        return " ".join(words) or "plain"

    def of(self, record: ImageRecord) -> ImageVariant:
        """Return the variant of an image in this pose: the backbone's input, and the key of its features."""
        return ImageVariant(record, *self)

    def points(self, points: Float[Tensor, "*n 2"], size: tuple[int, int]) -> Float[Tensor, "*n 2"]:
        """Transform pixels of an image of this width and height.

        >>> PoseTransform(turned=90).points(torch.tensor([3.0, 0.0]), size=(4, 2))  # upper right, now upper left
        tensor([0., 0.])
        """
        x, y = points.unbind(-1)
        width, height = size
        x = width - 1 - x if self.mirrored else x
        for _ in range(self.turned // 90):
            x, y, width, height = y, width - 1 - x, height, width
        return torch.stack((x, y), dim=-1)

    def pixels(self, values: Shaped[Tensor, "*c s s"]) -> Shaped[Tensor, "*c s s"]:
        """Transform the image itself, or anything on its grid."""
        values = values.flip(-1) if self.mirrored else values
        return values.rot90(self.turned // 90, (-2, -1))


PLAIN = PoseTransform()


def list_pose_transforms(mirror: bool, turns: Sequence[int]) -> list[PoseTransform]:
    """List the image itself first, then mirrored and turned, but not both at once (the paper's supplement)."""
    return [PLAIN, *([PoseTransform(mirrored=True)] if mirror else []), *(PoseTransform(turned=turn) for turn in turns)]
