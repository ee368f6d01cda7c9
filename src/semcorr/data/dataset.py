"""Datasets of records: pairs, batches of them, and images."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from semcorr.core.types import PairBatch, View
from semcorr.data.augment import Augmentation, mirror_annotations, mirror_view
from semcorr.data.image_variants import ImageVariant
from semcorr.data.keypoints import geometry_aware_mask
from semcorr.data.loaders import SampleIndex
from semcorr.data.object_masks import view_mask
from semcorr.data.pose_variants import PoseVariant
from semcorr.data.record import PairRecord
from semcorr.data.views import ALONE, LocalProcesses, ViewCache, make_view


class PairDataset(Dataset[PairBatch]):
    """Pairs, with their pixels or (once their images are encoded) without.

    Args:
        pairs: Records of the pairs.
        side: Side of the square that images are resized to, in pixels.
        resize: How images become squares, as in `BenchmarkModule`.
        pixels: Whether pairs come with their pixels.
        cache_gb: Memory for resized images, in GB of 10^9 bytes; 0: none.
        processes: Processes of the run on this machine, which make their caches at the same time.
    """

    def __init__(
        self,
        pairs: Sequence[PairRecord],
        side: int,
        resize: str,
        pixels: bool = True,
        cache_gb: float = 0.0,
        processes: LocalProcesses = ALONE,
    ) -> None:
        self.pairs = pairs
        indices: dict[int, int] = {}  # by identity: a benchmark may annotate an image differently in every pair
        ends = [[indices.setdefault(id(image), len(indices)) for image in (p.source, p.target)] for p in pairs]
        records = {indices[id(image)]: image for p in pairs for image in (p.source, p.target)}
        self.view_indices = torch.tensor(ends)  # of each pair, indices of the views
        images = [records[index] for index in range(len(records))]
        self.views = ViewCache(images, side, resize, pixels, cache_gb, processes)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> PairBatch:
        pair, (source, target) = (
            self.pairs[index],
            (self.views[view_index] for view_index in self.view_indices[index].tolist()),
        )
        twins = geometry_aware_mask(source.visible & target.visible, target.visible, pair.groups)
        return PairBatch(source, target, twins, torch.tensor(pair.extent), pair.category, pair.name)


class PairBatches(Dataset[PairBatch]):
    """Batches of pairs without pixels, by the list of their indices: rows of a table of the images.

    Equal to collating the items of a `PairDataset`, and much faster.

    Args:
        pairs: The pairs, without pixels.
    """

    def __init__(self, pairs: PairDataset) -> None:
        self.pairs = pairs
        self.images: View = default_collate([pairs.views[index] for index in range(len(pairs.views))])
        row_by_target: dict[tuple, int] = {}  # row of the ambiguous keypoints, by target and its category's groups
        keys = zip(pairs.view_indices[:, 1].tolist(), (pair.groups for pair in pairs.pairs), strict=True)
        self.twin_rows = torch.tensor([row_by_target.setdefault(key, len(row_by_target)) for key in keys])
        visible_and_groups = [(pairs.views[index].visible, groups) for index, groups in row_by_target]
        self.twins = torch.stack(
            [geometry_aware_mask(visible, visible, groups) for visible, groups in visible_and_groups]
        )
        self.extents = torch.tensor([pair.extent for pair in pairs.pairs])

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, indices: list[int]) -> PairBatch:
        records = [self.pairs.pairs[index] for index in indices]
        source, target = (self._select_images(view_indices) for view_indices in self.pairs.view_indices[indices].T)
        twins = source.visible & target.visible & self.twins[self.twin_rows[indices]]
        categories, names = [pair.category for pair in records], [pair.name for pair in records]
        return PairBatch(source, target, twins, self.extents[indices], categories, names)

    def _select_images(self, indices: Tensor) -> View:
        *columns, names = self.images
        return View._make([*(column[indices] for column in columns), [names[index] for index in indices.tolist()]])


class TrainingPairs(Dataset[PairBatch]):
    """Pairs by their draw, augmented if requested, and with mirror images where pose variants are trained on.

    A sample's randomness depends on the seed and the draw's number alone: a resumed run, and any number of loader
    processes, give the same.

    Args:
        pairs: The pairs that draws refer to.
        augment: How pairs are changed at each use; None: not at all.
        seed: Seed of the augmentation.
        variants: Pose variants that are trained on; None: none.
        masks: Whether pairs come with the masks of their objects.
    """

    def __init__(
        self,
        pairs: PairDataset,
        augment: Augmentation | None = None,
        seed: int = 42,
        variants: PoseVariant | None = None,
        masks: bool = False,
    ) -> None:
        self.pairs, self.augment, self.seed, self.variants = pairs, augment, seed, variants or PoseVariant()
        self.masks = masks

    def __getitem__(self, draw: SampleIndex) -> PairBatch:
        pair, record = self.pairs[draw.pair], self.pairs.pairs[draw.pair]
        if self.masks:
            views = self.pairs.views
            pair = pair._replace(
                masks=tuple(view_mask(image, views.side, views.resize) for image in (record.source, record.target))
            )
        if self.augment is not None:
            pair = self.augment(pair, record, np.random.default_rng([self.seed, draw.number]))
        ends = (pair.source, pair.target)[: self.variants.mirrored]
        return pair._replace(mirrored=tuple(mirror_annotations(view, record.flip) for view in ends))


class ImageDataset(Dataset[View]):
    """Images, each once. Of a mirrored or turned one only pixels and name are as displayed; no other field is used.

    Args:
        images: The images.
        side: Side of the square that they are resized to, in pixels.
        resize: How images become squares, as in `BenchmarkModule`.
    """

    def __init__(self, images: Sequence[ImageVariant], side: int, resize: str) -> None:
        self.images, self.side, self.resize = images, side, resize

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> View:
        record, mirrored, degrees = variant = self.images[index]
        view = make_view(record, self.side, self.resize)
        if mirrored:
            view = mirror_view(view, range(len(view.keypoints)))._replace(image=view.image.flip(-1))
        return view._replace(image=view.image.rot90(degrees // 90, (-2, -1)), name=variant.name) if degrees else view
