"""Splits and data loaders for any benchmark: a subclass only lists its records."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Required, TypedDict

import torch
from torch.utils.data import DataLoader, Dataset

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import Count, OptionsOf, Seed, Weight, Whole, check_arguments
from semcorr.core.types import ImageBatch, PairBatch, View
from semcorr.data.all_pairs import ImageStream, TrainingImages, images_by_category
from semcorr.data.augment import Augmentation, require_flips
from semcorr.data.benchmark import BenchmarkModule
from semcorr.data.corruptions.corruption import Corruption
from semcorr.data.dataset import ImageDataset, PairBatches, PairDataset, TrainingPairs
from semcorr.data.heldout_keypoints import hide_keypoints
from semcorr.data.image_variants import ImageVariant, corrupt_pairs, list_variants, unique_images
from semcorr.data.loaders import (
    BatchSize,
    LoaderPlan,
    TrainingStream,
    batches_by_target,
    divide_batch,
    divide_stream,
    require_enough_batches,
    shard,
)
from semcorr.data.pose_variants import PoseVariant
from semcorr.data.record import ImageRecord, PairRecord, check_pairs
from semcorr.data.views import ALONE, LocalProcesses

BATCH_SIZE = 8  # training pairs of a step on each process, where nothing else is given
PAIRS_PER_BATCH = 32  # pairs matched at once; they look into the same image
SMOKE = 2  # of them in a fast_dev_run, whose one batch is to be quick: every pair has an image more to encode


class PairListEntry(NamedTuple):
    """A pair as a benchmark's list names it."""

    source: str  # name of the image
    target: str
    category: str
    mirrored: bool = False  # both images are mirrored


class OfficialCounts(TypedDict, total=False):
    """Published counts of a benchmark; see data/download/verify.py."""

    pairs: dict[str, int]  # by split
    tolerance: float  # share by which numbers of pairs may differ
    images: dict[str, int]  # by split, or of `all`
    pairs_per_category: dict[str, dict[str, int]]  # by split
    duplicates: dict[str, int]  # by split
    shared_images: dict[str, int]  # by two splits, as `train & val`


class PairOptions(TypedDict, total=False):
    """Options of every benchmark, see `PairDataModule`."""

    root: Required[str]
    size: Required[int]
    split: str
    resize: str
    batch_size: int | None
    global_batch_size: int | None
    steps: int | None
    encode_batch: int | None
    workers: int | None
    seed: int
    all_pairs: int | None
    cache_gb: float
    train_per_category: int | None
    val_per_category: int | None
    heldout_keypoints: Literal["half"] | Sequence[int] | None


class PairDataModule(BenchmarkModule):
    """A benchmark's pairs as a LightningDataModule.

    A benchmark provides pairs and images separately: `images_to_evaluate` and `images_to_train_on` list the images
    of the pairs, `encoding_loader` loads each once. The pairs then come without pixels; those to be scored are grouped
    by target.

    Args:
        root: The benchmark's folder.
        size: Side of the square that images are resized to, in pixels; the backbone's.
        batch_size: Training pairs per process and step, unless `global_batch_size` is given; None: `BATCH_SIZE`.
        all_pairs: Images of one category per step, of which all pairs are trained on; None: steps of pairs.
        steps: Training steps per epoch; None: a whole pass.
        seed: Seed of the training order and the augmentation.
        global_batch_size: Training pairs per step, divided among the processes, instead of `batch_size`.
        cache_gb: Memory for resized training images, in GB of 10^9 bytes, shared by the loader processes; for training
            with pixels.
        train_per_category: Most training pairs of a category, a seeded choice; None: all of them.
        val_per_category: Most validation pairs of a category, a seeded choice; None: all of them.
        heldout_keypoints: Original ids of keypoints that neither the training pairs nor the validation pairs have, or
            `half` of those of each category, see `list_heldout`; scores of them and of the others are in
            metrics.json. The pairs of `split` have all.
        options: The other options of `BenchmarkModule`.

    Attributes:
        augment: How training pairs are changed at each use; None leaves them as they are. Set before `setup`.
        pose_variant: Training pairs come with mirror images for these variants of them; None: without. Set before
            `setup`.
        corruption: What is done to the images of `split`, which is then not to be trained on; None: nothing. Set before
            `setup`.
        pixels: Evaluation pairs come with their pixels, for a backbone that computes nothing of an image alone.
        train_pixels: Training pairs come with their pixels, because there is more to encode than unchanged images.
        train_masks: Training pairs come with the masks of their objects, for a loss that reads them.
    """

    official = OfficialCounts()
    splits: Sequence[str] = ("train", "val", "test")

    @check_arguments("data")
    def __init__(
        self,
        root: str,
        size: int,
        batch_size: Count | None = None,
        steps: Count | None = None,
        seed: Seed = 42,
        all_pairs: int | None = None,
        cache_gb: Weight = 0.0,
        global_batch_size: Count | None = None,
        train_per_category: Count | None = None,
        val_per_category: Count | None = None,
        heldout_keypoints: Literal["half"] | Sequence[Whole] | None = None,
        **options: Annotated[Any, OptionsOf(BenchmarkModule)],
    ) -> None:
        super().__init__(root, size, **options)
        if all_pairs is not None and all_pairs < 2:
            raise UserError(f"`data.all_pairs` must be null or a number of images, at least 2, got {all_pairs}")
        if global_batch_size is not None:
            _require_alone(batch_size, all_pairs, global_batch_size)
        self.batch_size, self.global_batch_size = batch_size or BATCH_SIZE, global_batch_size
        self.steps, self.seed, self.all_pairs, self.cache_gb = steps, seed, all_pairs, cache_gb
        self.most_pairs = {"train": train_per_category, "val": val_per_category}
        self.augment: Augmentation | None = None
        self.pose_variant: PoseVariant | None = None
        self.corruption: Corruption | None = None
        self.heldout_keypoints = heldout_keypoints
        self.pixels, self.train_pixels, self.train_masks = False, True, False
        self._pairs: dict[str, Sequence[PairRecord]] = {}  # of the splits that were read
        self._images: dict[str, ImageRecord] = {}  # of all splits that were read
        self.category_images = cache(lambda: images_by_category(self.pairs("train")))
        self._require_split(self.split)

    def pair_list(self, split: str) -> Sequence[PairListEntry]:
        """Return the pair list of a split: that of the records, unless a benchmark has a file of its own for it."""
        return [PairListEntry(pair.source.name, pair.target.name, pair.category) for pair in self.records(split)]

    def annotation_conflicts(self, split: str) -> list[str] | None:
        """Return a message for each pair whose annotation files disagree; None: nothing is annotated twice."""
        return None

    @abstractmethod
    def records(self, split: str) -> Sequence[PairRecord]:
        """Return the pairs of a split in the benchmark's order. This is all that a benchmark has to define.

        Raises:
            UserError: The split cannot be read.
        """

    def pairs(self, split: str) -> Sequence[PairRecord]:
        """Return the pairs of a split, checked; a split is read once.

        Raises:
            UserError: The split cannot be read, or a pair of it cannot be scored.
        """
        if split not in self._pairs:
            self._pairs[split] = self._checked_pairs(split)
        return self._pairs[split]

    def restrict_split(self, split: str, pairs: Sequence[PairRecord]) -> None:
        """Leave a split some of its pairs.

        Args:
            split: The split.
            pairs: Those of its pairs that it keeps.
        """
        self._pairs[split] = pairs

    def fit_backbone(self, backbone: Backbone) -> None:
        """Resize images for a backbone, and give pairs their pixels if it computes nothing of an image alone."""
        super().fit_backbone(backbone)
        self.pixels = backbone.needs_pixels

    def setup(self, stage: str) -> None:
        """Read what the stage needs now, so that bad data is reported before anything runs.

        Args:
            stage: Lightning's name of it: `fit`, `validate` or `test`.

        Raises:
            UserError: A split cannot be read, or an option does not go with training on it.
        """
        splits = {"fit": ("train", "val"), "validate": ("val",)}.get(stage, (self.split,))
        if stage == "fit" and self.corruption and self.split in splits:
            raise UserError(
                f"`corrupt` changes the images that are scored, and data.split={self.split} is trained on or validated "
                "on. Give data.split=test, or corrupt=none."
            )
        if stage == "fit" and self.heldout_keypoints is not None and self.split in splits:
            raise UserError(
                f"`data.heldout_keypoints`: data.split={self.split} is scored with these keypoints, and it is trained "
                "on or validated on, too. Give data.split=test."
            )
        for split in splits:
            self.pairs(split)
        if stage == "fit" and self.augment is not None and self.augment.flip:
            require_flips(self.pairs("train"), self.name)
        if stage == "fit" and self.pose_variant:
            require_flips(self.pairs("train"), self.name, "pairs", "pairs=plain")
        if stage == "fit" and self.augment is not None and self.augment.grid:
            self._require_plain_pairs()
        if stage == "fit" and self.all_pairs is not None:
            self.category_images()

    def train_dataloader(self) -> DataLoader[PairBatch] | DataLoader[ImageBatch]:
        """Return the loader of the training stream: seeded, endless, sliced into epochs."""
        assert self.train_pixels or self.augment is None or self.augment.only_flips, "nothing to warp or recolour"
        stream = self.stream()
        recoloured = self.augment is not None and not self.augment.only_flips  # or warped: floats, not bytes
        count = 2 * self._local_batch_size() if self.all_pairs is None else self.all_pairs
        bytes_ = 4 if recoloured else 1
        count += -(-count // (3 * bytes_)) if self.train_masks else 0  # a mask has a byte a pixel
        size = BatchSize(count, self.size, bytes_) if self.train_pixels else None  # the rest takes 3 ms
        if isinstance(stream, ImageStream):
            images = TrainingImages(
                self.category_images(),
                self.size,
                self.resize,
                self.augment,
                self.seed,
                self.train_pixels,
                self.cache_gb,
                self.pose_variant,
                self._neighbours(),
            )
            return self._loader(images, size, batch_size=None, sampler=stream, persistent=True)
        options = (self.train_pixels, self.cache_gb, self._neighbours())
        pairs = PairDataset(self.pairs("train"), self.size, self.resize, *options)
        training_pairs = TrainingPairs(pairs, self.augment, self.seed, self.pose_variant, self.train_masks)
        return self._loader(training_pairs, size, batch_sampler=stream, persistent=True)

    def stream(self) -> TrainingStream | ImageStream:
        """Return the order of training; its length is the steps of an epoch."""
        stream_options = (self.steps, self.seed, *self._place(), self._epoch)
        if self.all_pairs is not None:
            return ImageStream(self.category_images(), self.all_pairs, *stream_options)
        if self.global_batch_size is not None:
            return divide_stream(len(self.pairs("train")), self.global_batch_size, *stream_options)
        return TrainingStream(len(self.pairs("train")), self.batch_size, *stream_options)

    def val_dataloader(self) -> DataLoader[PairBatch]:
        """Return the loader of this process's share of the validation pairs."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[PairBatch]:
        """Return the loader of this process's share of the pairs of `split`."""
        return self._evaluation_loader(self.split)

    def transfer_batch_to_device(
        self, batch: PairBatch | ImageBatch, device: torch.device, dataloader_idx: int
    ) -> PairBatch | ImageBatch:
        """Move a batch to the device; pairs to score stay on the CPU for a module that has `scores_on_cpu`."""
        assert self.trainer is not None, "Lightning calls it"
        if not self.trainer.training and getattr(self.trainer.lightning_module, "scores_on_cpu", False):
            return batch
        moved: PairBatch | ImageBatch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return moved

    def images_to_evaluate(self, split: str, batches: int) -> list[ImageVariant]:
        """Return the images of the first `batches` batches of all processes' shares, by name.

        The order of all processes' work follows from the list: `batches` must be the same on all.

        Args:
            split: The split.
            batches: Number of batches of each process.
        """
        _, world = self._place()
        ahead = batches_by_target(self.pairs(split), self._target_batch_size())[: batches * world]
        return list_variants(unique_images(self.pairs(split)[i] for batch in ahead for i in batch))

    def images_to_train_on(self, epochs: int, steps: int | None = None) -> list[ImageVariant]:
        """Return the images that training draws from now on, sorted by name; with mirror images where it needs them.

        Args:
            epochs: Number of epochs at the end of training, those that are done included.
            steps: Number of steps made of each epoch; None: all.
        """
        stream = self.stream()
        images: Iterable[ImageRecord]
        if isinstance(stream, ImageStream):
            images = stream.images_ahead(epochs, steps)
        else:
            pairs = {draw.pair for batch in stream.batches_ahead(epochs, steps) for draw in batch}
            images = unique_images(self.pairs("train")[i] for i in pairs)
        flips = self.augment is not None and self.augment.flip > 0
        return list_variants(images, mirrored=flips or bool(self.pose_variant))

    def encoding_loader(self, images: Sequence[ImageVariant], chunks: Iterable[Sequence[int]]) -> DataLoader[View]:
        """Return the loader of chunks of a list of images.

        Args:
            images: The images.
            chunks: Indices of the images of each batch; they are iterated lazily, as loading goes on.
        """
        size = BatchSize(self.encoding_batch, self.size)
        return self._loader(ImageDataset(images, self.size, self.resize), size, batch_sampler=chunks)

    def categories(self, split: str) -> list[str]:
        """Return the names of the categories of a split, sorted."""
        return sorted({pair.category for pair in self.pairs(split)})

    def _checked_pairs(self, split: str) -> Sequence[PairRecord]:
        self._require_split(split)
        pairs = check_pairs(self.records(split), f"{self.name} {split}", self._images)
        if self.heldout_keypoints is not None and split != self.split:
            pairs = hide_keypoints(pairs, self.heldout_keypoints, f"{self.name} {split}")
        most = self.most_pairs.get(split)
        pairs = pairs if most is None else choose_pairs(pairs, most, self.seed)
        return corrupt_pairs(pairs, self.corruption) if self.corruption and split == self.split else pairs

    def _require_split(self, split: str) -> None:
        if split not in self.splits:
            raise UserError(f"`data.split` of {self.name} must be one of {', '.join(self.splits)}, got {split!r}")

    def _require_plain_pairs(self) -> None:
        """Refuse steps of keypoints where `augment.grid` takes their place."""
        for used, key, remedy in (
            (self.all_pairs is not None, "data.all_pairs", "data.all_pairs=null"),
            (bool(self.pose_variant), "pairs", "pairs=plain"),
        ):
            if used:
                raise UserError(
                    f"`{key}`: with augment.grid an image is matched with itself, by points that are not keypoints. "
                    f"Set {remedy} or augment.grid=0."
                )

    def _evaluation_loader(self, split: str) -> DataLoader[PairBatch]:
        dataset = PairDataset(self.pairs(split), self.size, self.resize, self.pixels)
        batches = self._sharded_batches(split)
        if self.pixels:
            size = BatchSize(2 * max(map(len, batches)), self.size)
            return self._loader(dataset, size, batch_sampler=batches)
        return self._loader(PairBatches(dataset), None, batch_size=None, sampler=batches)

    def _sharded_batches(self, split: str) -> list[list[int]]:
        batches, (rank, world) = batches_by_target(self.pairs(split), self._target_batch_size()), self._place()
        require_enough_batches(batches, world)
        return shard(batches, rank, world)

    def _target_batch_size(self) -> int:
        return SMOKE if getattr(self.trainer, "fast_dev_run", False) else PAIRS_PER_BATCH

    def _neighbours(self) -> LocalProcesses:
        """Return the processes on this machine, which make their caches at the same time."""
        trainer = self.trainer
        return ALONE if trainer is None else LocalProcesses(self._local_processes(), lambda: trainer.strategy.barrier())

    def _local_batch_size(self) -> int:
        """Return the training pairs of a step of this process."""
        return divide_batch(self.global_batch_size, self._place()[1]) if self.global_batch_size else self.batch_size

    def _epoch(self) -> int:
        """Return the epochs trained. `current_epoch` lags by one when a resumed run starts its loader."""
        return int(self.trainer.fit_loop.epoch_progress.current.state_dict()["processed"]) if self.trainer else 0

    def _loader(
        self,
        dataset: Dataset,
        size: BatchSize | None,
        batch_size: int | None = 1,
        sampler: Iterable | None = None,
        batch_sampler: Iterable | None = None,
        persistent: bool = False,
    ) -> DataLoader:
        """Load by as many processes as there is room for batches of `size`; in this one, what has no pixels (None)."""
        plan = LoaderPlan(0, None) if size is None else self.plan_loading(size)
        return DataLoader(
            dataset,
            batch_size,
            sampler=sampler,
            batch_sampler=batch_sampler,
            num_workers=plan.workers,
            prefetch_factor=plan.prefetch,
            pin_memory=self.on_gpu,
            persistent_workers=persistent and plan.workers > 0,
        )


def _require_alone(batch_size: int | None, all_pairs: int | None, global_batch_size: int) -> None:
    """Refuse another option that says what a step consists of, beside `global_batch_size`."""
    for key, value, meaning in (
        ("batch_size", batch_size, "the pairs of a step on each process"),
        ("all_pairs", all_pairs, "the images of a step on each process"),
    ):
        if value is not None:
            raise UserError(
                f"`data.global_batch_size` is {global_batch_size}, the pairs of a step in all, and data.{key} is "
                f"{value}, {meaning}. Give one of them; data.{key}=null leaves it out"
            )


def choose_pairs(pairs: Sequence[PairRecord], most: int, seed: int) -> list[PairRecord]:
    """Choose at most so many pairs of each category, in their order.

    Those whose names have the smallest hash with the seed: a pair that is chosen for a number is chosen for any larger.

    Args:
        pairs: Pairs of a split.
        most: Most pairs of a category.
        seed: Seed of the choice.
    """
    ranks = {pair.name: hashlib.sha256(f"{seed}/{pair.name}".encode()).digest() for pair in pairs}
    by_category: dict[str, list[PairRecord]] = {}
    for pair in pairs:
        by_category.setdefault(pair.category, []).append(pair)
    chosen = {
        pair.name for members in by_category.values() for pair in sorted(members, key=lambda p: ranks[p.name])[:most]
    }
    return [pair for pair in pairs if pair.name in chosen]
