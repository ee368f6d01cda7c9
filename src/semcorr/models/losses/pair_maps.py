"""Both images of each pair of a training step, which a loss without keypoints compares at points of its own choice."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d

from semcorr.core.interfaces import SiameseHead
from semcorr.core.types import FeatureMap


class SourceImages(NamedTuple):
    """Pixels of the sources of a step, and the function that encodes them or others."""

    image: Float[Tensor, "b 3 h w"]  # RGB in [0, 1]
    encode: Callable[[Tensor], FeatureMap]  # from such images to their features, as the head compares them


class PairMaps(NamedTuple):
    """Features of the images of each pair, with the head that compares them.

    `source` and `target` are what the head compares: transformed already by a head that takes one image at a time.
    """

    head: nn.Module
    source: FeatureMap
    target: FeatureMap
    source_box: Float[Tensor, "b 4"]  # x1 y1 x2 y2 of the object, in pixels of the image given to the backbone
    target_box: Float[Tensor, "b 4"]
    side: int  # of the images, in pixels
    categories: Sequence[str]  # of the pairs
    context: Callable[[], AbstractContextManager[object]] = nullcontext  # in which the head compares: a teacher's
    masks: tuple[Bool[Tensor, "b s s"], Bool[Tensor, "b s s"]] | None = None  # of the objects, if a loss reads them

    @property
    def swapped(self) -> "PairMaps":
        """The same pairs from target to source."""
        return self._replace(
            source=self.target,
            target=self.source,
            source_box=self.target_box,
            target_box=self.source_box,
            masks=None if self.masks is None else self.masks[::-1],
        )

    def select(self, i: int) -> "PairMaps":
        """Return pair `i` alone."""
        row = slice(i, i + 1)
        return self._replace(
            source=self.source._replace(values=self.source.values[row]),
            target=self.target._replace(values=self.target.values[row]),
            source_box=self.source_box[row],
            target_box=self.target_box[row],
            categories=self.categories[row],
            masks=None if self.masks is None else (self.masks[0][row], self.masks[1][row]),
        )

    def roll_targets(self) -> "PairMaps":
        """Return pairs of each source and the target of the next pair, the first after the last."""
        return self._replace(
            target=self.target._replace(values=self.target.values.roll(-1, 0)),
            target_box=self.target_box.roll(-1, 0),
            masks=None if self.masks is None else (self.masks[0], self.masks[1].roll(-1, 0)),
        )

    def similarity(self, points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of points, in pixels of the sources, to every target cell."""
        head = self.head
        with self.context():
            if isinstance(head, SiameseHead):
                return head.compare(head.describe(self.source, points), self.target).float()
            similarity: Tensor = head(self.source, self.target, points)
            return similarity.float()

    def draw_points(self, count: int, in_box: bool) -> Float[Tensor, "b n 2"]:
        """Draw `count` points of each source, uniformly in the box of the object or in the whole image, in pixels."""
        low, high = (edge[:, None] for edge in self.source_box.clamp(-0.5, self.side - 0.5).split(2, dim=-1))
        share = torch.rand(len(low), count, 2, device=low.device)
        return low + share * (high - low) if in_box else share * self.side - 0.5

    def lattice(self, count: int | None) -> Float[Tensor, "b n 2"]:
        """Return the centres of count x count equal squares of each source, in pixels, row by row.

        Args:
            count: Squares along a side; None returns the centres of the source's cells.
        """
        b, _, h, w = self.source.values.shape
        rows, columns = (h, w) if count is None else (count, count)
        device = self.source.values.device
        x, y = (
            (torch.arange(n, device=device, dtype=torch.float32) + 0.5) * (self.side / n) - 0.5 for n in (columns, rows)
        )
        points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        return points.flatten(0, 1).expand(b, -1, -1)


def covered_cells(mask: Bool[Tensor, "b s s"], h: int, w: int) -> Bool[Tensor, "b h w"]:
    """Tell which cells of a grid over each image show any of its object; all, if none does."""
    covered = adaptive_max_pool2d(mask.float(), (h, w)) > 0
    return covered | ~covered.flatten(1).any(-1)[:, None, None]
