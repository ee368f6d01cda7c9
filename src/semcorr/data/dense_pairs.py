"""Benchmarks whose every pixel is matched: pairs of images with a true flow, or with labels to carry over.

A match is made for each pixel of the `source`, and lies in the `target`. Where labels are carried over, the pixels of
the source take the labels of the target at their matches: that is how published code warps masks.
"""

from abc import abstractmethod
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from jaxtyping import UInt8
from PIL import ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from semcorr.core.errors import UserError
from semcorr.data.datamodule import PairOptions
from semcorr.data.evaluation_only import EvaluationBenchmark, keep_case
from semcorr.data.loaders import BatchSize
from semcorr.data.views import SquareFit, fit_to_square, load_image, render_square


class DenseImage(NamedTuple):
    """An image whose pixels are matched."""

    path: Path
    size: tuple[int, int]  # width, height
    mirrored: bool = False  # the file's pixels are to be mirrored


class DensePair(NamedTuple):
    """A pair of images, with what its score needs.

    Attributes:
        name: Unique in its split.
        category: Group that its score is averaged in.
        source: The image whose pixels are matched.
        target: The image in which the matches lie.
        truth: Annotation, of a type that its benchmark chooses.
    """

    name: str
    category: str
    source: DenseImage
    target: DenseImage
    truth: Any


class DenseBatch(NamedTuple):
    """A pair and both images as the backbone sees them, source first."""

    pair: DensePair
    images: UInt8[Tensor, "2 3 size size"]


class DenseBenchmark(EvaluationBenchmark):
    """A benchmark of dense pairs; a subclass lists them. Arguments are those of every benchmark."""

    def __init__(self, **options: Unpack[PairOptions]) -> None:
        super().__init__(**options)
        self.pairs = cache(self._checked_pairs)

    @abstractmethod
    def read_pairs(self, split: str) -> list[DensePair]:
        """Read the pairs of a split in the benchmark's order."""

    def cases(self, split: str) -> list[DensePair]:
        """Return the pairs of a split."""
        return self.pairs(split)

    def check(self, split: str) -> None:
        """Read the pairs of a split."""
        self.pairs(split)

    def fits(self, pair: DensePair) -> tuple[SquareFit, SquareFit]:
        """Return the geometry of source and target in the squares that the backbone sees."""
        first, second = (fit_to_square(image.size, self.size, self.resize) for image in (pair.source, pair.target))
        return first, second

    def test_dataloader(self) -> DataLoader[DenseBatch]:
        """Return the loader of this process's share of the pairs, one a batch."""
        images = DensePairImages(self.share_cases(self.cases(self.split)), self.size, self.resize)
        plan = self.plan_loading(BatchSize(2, self.size))
        return DataLoader(
            images,
            batch_size=None,
            num_workers=plan.workers,
            prefetch_factor=plan.prefetch,
            collate_fn=keep_case,
            pin_memory=self.on_gpu,
        )

    def _checked_pairs(self, split: str) -> list[DensePair]:
        pairs = self.read_pairs(split)
        if not pairs:
            raise UserError(f"{self.root} holds no pair of {self.name}. Check data.root, or its list of pairs.")
        if repeated := [name for name, times in Counter(pair.name for pair in pairs).items() if times > 1]:
            raise UserError(f"{self.root}: {self.name} has the pair {repeated[0]} twice. Drop it once from the list.")
        return pairs


class LabelTransferBenchmark(DenseBenchmark):
    """A benchmark whose pairs have a label for each pixel of both images; 0 is background."""

    section = "labels"

    @abstractmethod
    def labels(self, pair: DensePair) -> tuple[UInt8[Tensor, "h w"], UInt8[Tensor, "height width"]]:
        """Return the labels of the pixels of source and target."""


class DensePairImages(Dataset[DenseBatch]):
    """Pairs with their images, resized into the backbone's square."""

    def __init__(self, pairs: list[DensePair], size: int, resize: str) -> None:
        self.pairs, self.size, self.resize = pairs, size, resize

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> DenseBatch:
        pair = self.pairs[index]
        return DenseBatch(pair, torch.stack([self._render(image) for image in (pair.source, pair.target)]))

    def _render(self, image: DenseImage) -> UInt8[Tensor, "3 size size"]:
        pixels = load_image(image.path)
        if image.mirrored:
            pixels = ImageOps.mirror(pixels)
        return render_square(pixels, self.size, fit_to_square(image.size, self.size, self.resize))
