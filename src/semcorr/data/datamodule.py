"""Splits and loaders, for any benchmark: a subclass only lists its records."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from semcorr.data.augment import Augment, require_flips
from semcorr.data.dataset import ImageDataset, PairDataset, TrainingPairs, unique_images
from semcorr.data.recipe import Recipe
from semcorr.data.record import PairRecord, check_pairs
from semcorr.data.sampler import TrainingStream, batches_by_target, share
from semcorr.data.transforms import RESIZES
from semcorr.errors import UserError
from semcorr.types import PairBatch, View


class Row(NamedTuple):
    """A pair as a benchmark's list names it."""

    source: str
    target: str
    category: str
    mirrored: bool = False


class PairDataModule(LightningDataModule, ABC):
    """A benchmark's pairs as Lightning wants them.

    For evaluation a benchmark is two loaders: `images` gives every image once, to be encoded; the
    pairs then come grouped by target and without pixels.

    Args:
        root: The benchmark's folder.
        size: Side of the square that images are resized to, in pixels; the backbone's.
        split: What `evaluate` scores: one of `splits`.
        resize: `squash` or `letterbox`.
        batch_size: Training pairs per process and step.
        steps: Training steps per epoch; a whole pass if left out.
        encode_batch: Images encoded at once during evaluation.
        workers: Loader processes.
        seed: Of the training order and the augmentation.

    Attributes:
        augment: How training pairs are changed at each use; None leaves them as they are. Set before `setup`.
        pixels: Pairs of the evaluation come with their pixels, for a backbone that must see both at once.
    """

    name = ""
    recipe: Recipe | None = None  # where it is to be had, if it is to be had
    official: Mapping[str, Any] = MappingProxyType({})  # published counts; see data/verify.py
    splits: Sequence[str] = ("train", "val", "test")

    def __init__(
        self,
        root: str,
        size: int,
        split: str = "test",
        resize: str = "squash",
        batch_size: int = 8,
        steps: int | None = None,
        encode_batch: int = 8,
        workers: int = 2,
        seed: int = 42,
    ) -> None:
        super().__init__()
        if resize not in RESIZES:
            raise UserError(f"`data.resize` must be one of {', '.join(RESIZES)}, got {resize!r}")
        for key, value in {"batch_size": batch_size, "encode_batch": encode_batch, "steps": steps or 1}.items():
            if value < 1:
                raise UserError(f"`data.{key}` must be at least 1, got {value}")
        self.root, self.size, self.split, self.resize = Path(root), size, split, resize
        self.batch_size, self.steps, self.encode_batch = batch_size, steps, encode_batch
        self.workers, self.seed = workers, seed
        self.augment: Augment | None = None
        self.pixels = False
        self.pairs = cache(self._checked)  # one reading per split
        self._need(split)

    def listed(self, split: str) -> Sequence[Row]:
        """The pair list by itself, for a benchmark that has one apart from the annotations."""
        return [Row(pair.source.name, pair.target.name, pair.category) for pair in self.records(split)]

    def contradictions(self, split: str) -> list[str] | None:
        """Where a benchmark's annotation files disagree with each other; None: nothing is said twice."""
        return None

    @abstractmethod
    def records(self, split: str) -> Sequence[PairRecord]:
        """The pairs of a split, in the benchmark's order. A benchmark defines this, and no more."""

    def setup(self, stage: str) -> None:
        """Read what the stage needs now, so that bad data is reported before anything runs."""
        for split in {"fit": ("train", "val"), "validate": ("val",)}.get(stage, (self.split,)):
            self.pairs(split)
        if stage == "fit" and self.augment is not None and self.augment.flip:
            require_flips(self.pairs("train"), self.name)

    def train_dataloader(self) -> DataLoader[PairBatch]:
        """Seeded, endless, sliced into epochs."""
        pairs, stream = self.pairs("train"), self.stream()
        dataset = TrainingPairs(pairs, self.size, self.resize, self.augment, self.seed)
        return self._loader(dataset, batch_sampler=stream, persistent_workers=self.workers > 0)

    def stream(self) -> TrainingStream:
        """The order of the training pairs; its length is the steps of an epoch."""
        return TrainingStream(
            len(self.pairs("train")), self.batch_size, self.steps, self.seed, *self._place(), self._epoch
        )

    def val_dataloader(self) -> DataLoader[PairBatch]:
        """This process's share of the validation pairs."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[PairBatch]:
        """This process's share of the pairs of `split`."""
        return self._evaluation(self.split)

    def images(self, split: str, batches: int) -> DataLoader[View]:
        """The images that the first `batches` batches of this process's share look at, each once.

        They come in chunks of the whole split's image list. Which chunk an image is in, and so the
        last bit of its features, does not depend on the number of processes.
        """
        pairs = self.pairs(split)
        mine = [pairs[i] for batch in self._share(split)[:batches] for i in batch]
        wanted = {image.name for image in unique_images(mine)}
        everything = unique_images(pairs)
        chunks = [
            list(range(start, min(start + self.encode_batch, len(everything))))
            for start in range(0, len(everything), self.encode_batch)
        ]
        needed = [chunk for chunk in chunks if any(everything[i].name in wanted for i in chunk)]
        return self._loader(ImageDataset(everything, self.size, self.resize), batch_sampler=needed)

    def categories(self, split: str) -> list[str]:
        """Names of the categories of a split, sorted."""
        return sorted({pair.category for pair in self.pairs(split)})

    def _checked(self, split: str) -> Sequence[PairRecord]:
        self._need(split)
        return check_pairs(self.records(split), f"{self.name} {split}")

    def _need(self, split: str) -> None:
        if split not in self.splits:
            raise UserError(f"`{self.name}` has no split {split!r}; it has {', '.join(self.splits)}")

    def _evaluation(self, split: str) -> DataLoader[PairBatch]:
        dataset = PairDataset(self.pairs(split), self.size, self.resize, self.pixels)
        return self._loader(dataset, batch_sampler=self._share(split))

    def _share(self, split: str) -> list[list[int]]:
        return share(batches_by_target(self.pairs(split), at_most=32), *self._place())

    def _place(self) -> tuple[int, int]:
        """This process's rank, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _epoch(self) -> int:
        """Epochs trained. `current_epoch` lags by one when a resumed run starts its loader."""
        return self.trainer.fit_loop.epoch_progress.current.processed if self.trainer else 0  # type: ignore[attr-defined]

    def _loader(self, dataset, **options) -> DataLoader:  # type: ignore[no-untyped-def,type-arg]
        return DataLoader(dataset, num_workers=self.workers, pin_memory=self._on_gpu(), **options)

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
