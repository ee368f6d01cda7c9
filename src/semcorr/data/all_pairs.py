"""Batches of images of one category, of which every ordered pair is trained on: m images, m (m - 1) pairs."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from semcorr.core.errors import UserError
from semcorr.core.types import ImageBatch
from semcorr.data.augment import Augmentation, mirror_annotations, share_keypoint
from semcorr.data.image_variants import unique_images
from semcorr.data.loaders import BatchStream
from semcorr.data.pose_variants import PoseVariant, image_weights
from semcorr.data.record import ImageRecord, PairRecord
from semcorr.data.views import ALONE, LocalProcesses, ViewCache


class CategoryImages(NamedTuple):
    """The training images of a category."""

    category: str
    images: Sequence[ImageRecord]
    pairs: int  # how many the benchmark lists
    flip: tuple[int, ...] | None  # row i of the mirrored image is row flip[i]; None: not known


class ImageSampleIndex(NamedTuple):
    """Some images of a category, and their batch's number in the stream of all processes."""

    category_index: int
    images: tuple[int, ...]  # indices among the category's images
    number: int


def images_by_category(pairs: Sequence[PairRecord]) -> list[CategoryImages]:
    """Return the categories of which two images share a keypoint, sorted by name, with their images.

    Images mirrored by the benchmark (half of PF-PASCAL's training list) are left out: their rows keep the
    ids of the unmirrored image, so that left is right among both. `augment.flip` mirrors with ids exchanged.

    Raises:
        UserError: Keypoints are stated per pair, so that rows of images of different pairs have nothing in common; or
            no two images share a keypoint.
    """
    by_category: dict[str, list[PairRecord]] = defaultdict(list)
    for pair in pairs:
        by_category[pair.category].append(pair)
    categories = []
    for category, members in sorted(by_category.items()):
        _require_one_annotation(members)
        images = [image for image in unique_images(members) if not image.mirrored]
        if images and share_keypoint(torch.stack([image.visible for image in images])):
            categories.append(CategoryImages(category, images, len(members), members[0].flip))
    if not categories:
        raise UserError("`data.all_pairs`: no category has two images that share a keypoint. Set data.all_pairs=null.")
    return categories


def _require_one_annotation(pairs: Sequence[PairRecord]) -> None:
    first_records: dict[str, ImageRecord] = {}
    for image in (image for pair in pairs for image in (pair.source, pair.target)):
        first = first_records.setdefault(image.name, image)
        if first is not image and not (
            torch.equal(first.visible, image.visible) and torch.equal(first.keypoints, image.keypoints)
        ):
            raise UserError(
                f"`data.all_pairs`: {image.name} has other keypoints in other pairs, so pairs that are not listed "
                "cannot be made of it. Set data.all_pairs=null."
            )


class ImageStream(BatchStream[ImageSampleIndex]):
    """Batches of `count` images: a category in proportion to its listed pairs, then images of it without repetition.

    A smaller category yields all its images. A draw in which no two images share a keypoint is drawn again.

    Args:
        categories: The categories, in each of which two images share a keypoint.
        count: Number of images in a batch.
        steps: Number of batches of a process in an epoch; None: about a pass over all images.
        seed: Seed of all draws.
        rank: Rank of this process.
        world: Number of processes.
        epoch: Function that returns the number of epochs that are done, called whenever the stream is iterated.
    """

    def __init__(
        self,
        categories: Sequence[CategoryImages],
        count: int,
        steps: int | None,
        seed: int,
        rank: int = 0,
        world: int = 1,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        self.categories, self.count, self.seed = categories, count, seed
        self.visible = [torch.stack([image.visible for image in category.images]) for category in categories]
        pairs = np.array([category.pairs for category in categories])
        self.shares = pairs / pairs.sum()
        images = sum(len(category.images) for category in categories)
        super().__init__(steps or images // count // world, rank, world, epoch)  # about a pass over the images

    def batch(self, number: int) -> ImageSampleIndex:
        """Return batch `number`; it depends on the seed and `number` alone."""
        rng = np.random.default_rng([self.seed, number, 1])  # augmentation takes [seed, number]
        category = int(rng.choice(len(self.shares), p=self.shares))
        visible = self.visible[category]
        while True:  # ends: a category has two images that share a keypoint
            images = rng.choice(len(visible), min(self.count, len(visible)), replace=False).tolist()
            if share_keypoint(visible[images]):
                return ImageSampleIndex(category, tuple(images), number)

    def images_ahead(self, epochs: int, steps: int | None = None) -> list[ImageRecord]:
        """Return the images in the batches that `batches_ahead` lists, each once."""
        images_by_name: dict[str, ImageRecord] = {}
        all_names = {image.name for category in self.categories for image in category.images}
        for draw in self.batches_ahead(epochs, steps):
            images = self.categories[draw.category_index].images
            images_by_name.update((images[i].name, images[i]) for i in draw.images)
            if len(images_by_name) == len(all_names):
                break
        return list(images_by_name.values())


class TrainingImages(Dataset[ImageBatch]):
    """Whole batches by their draw, augmented if requested; like `TrainingPairs` a function of seed and draw.

    Args:
        categories: The categories that draws refer to.
        side: Side of the square that images are resized to, in pixels.
        resize: How images become squares, as in `BenchmarkModule`.
        augment: How images are changed at each use; None: not at all.
        seed: Seed of the augmentation.
        pixels: Whether batches come with their pixels.
        cache_gb: Memory for resized images, in GB of 10^9 bytes; 0: none.
        variants: Pose variants that are trained on; None: none.
        processes: Processes of the run on this machine, which make their caches at the same time.
    """

    def __init__(
        self,
        categories: Sequence[CategoryImages],
        side: int,
        resize: str,
        augment: Augmentation | None = None,
        seed: int = 42,
        pixels: bool = True,
        cache_gb: float = 0.0,
        variants: PoseVariant | None = None,
        processes: LocalProcesses = ALONE,
    ) -> None:
        self.categories, self.augment, self.seed = categories, augment, seed
        self.variants = variants or PoseVariant()
        self.first_view = [0, *accumulate(len(category.images) for category in categories)]  # of each category
        images = [image for category in categories for image in category.images]
        self.views = ViewCache(images, side, resize, pixels, cache_gb, processes)

    def __getitem__(self, draw: ImageSampleIndex) -> ImageBatch:
        category = self.categories[draw.category_index]
        views = [self.views[self.first_view[draw.category_index] + i] for i in draw.images]
        if self.augment is not None:
            views = self.augment.augment_views(views, category.flip, np.random.default_rng([self.seed, draw.number]))
        batch = default_collate(views)
        if not self.variants:
            return ImageBatch(batch, category.category, find_queries(batch.visible))
        mirrored = default_collate([mirror_annotations(view, category.flip) for view in views])
        weights = image_weights(batch.visible, mirrored.visible, self.variants)
        return ImageBatch(batch, category.category, weights.nonzero(), [mirrored])


def find_queries(visible: Bool[Tensor, "m n"]) -> Int[Tensor, "r 3"]:
    """Return (source, keypoint, target) wherever the keypoint is visible in both, sorted.

    >>> find_queries(torch.tensor([[True, True], [False, True]])).tolist()
    [[0, 1, 1], [1, 1, 0]]
    """
    visible_in_both = visible[:, :, None] & visible.T[None]
    return (visible_in_both & ~torch.eye(len(visible), dtype=torch.bool)[:, None]).nonzero()
