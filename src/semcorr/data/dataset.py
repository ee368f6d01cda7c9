"""Records to samples: pairs, and every image of a set of pairs once."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from semcorr.coords import to_view
from semcorr.data.augment import Augment
from semcorr.data.groups import ambiguous
from semcorr.data.record import ImageRecord, PairRecord
from semcorr.data.sampler import Draw
from semcorr.data.transforms import fit, load_image, render
from semcorr.errors import UserError
from semcorr.types import PairBatch, View


def view(record: ImageRecord, side: int, resize: str, pixels: bool = True) -> View:
    """A record as the backbone sees it: resized into a square, keypoints and box with it."""
    how = fit(record.size, side, resize)
    scale, offset = torch.tensor(how.scale), torch.tensor(how.offset, dtype=torch.float32)
    box = to_view(torch.tensor(record.box).reshape(2, 2), scale, offset).flatten()
    keypoints = to_view(record.keypoints, scale, offset)
    image = _pixels(record, side, resize) if pixels else torch.empty(3, 0, 0)
    return View(image, keypoints, record.visible, box, scale, offset, record.name)


def _pixels(record: ImageRecord, side: int, resize: str) -> Tensor:
    image = load_image(record.path)
    if image.size != record.size:
        raise UserError(
            f"{record.path} is {image.size[0]} x {image.size[1]} pixels, its annotation says "
            f"{record.size[0]} x {record.size[1]}. Restore the official image."
        )
    if record.mirrored:
        image = ImageOps.mirror(image)
    return render(image, side, fit(record.size, side, resize))


class PairDataset(Dataset[PairBatch]):
    """Pairs, with their pixels or (once their images are encoded) without."""

    def __init__(self, pairs: Sequence[PairRecord], side: int, resize: str, pixels: bool = True) -> None:
        self.pairs, self.side, self.resize, self.pixels = pairs, side, resize, pixels

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> PairBatch:
        pair = self.pairs[index]
        source = view(pair.source, self.side, self.resize, self.pixels)
        target = view(pair.target, self.side, self.resize, self.pixels)
        twins = ambiguous(source.visible & target.visible, target.visible, pair.groups)
        extent = torch.tensor(pair.extent)
        return PairBatch(source, target, twins, extent, pair.category, pair.name)


class TrainingPairs(Dataset[PairBatch]):
    """Pairs by their draw, augmented if asked for.

    What is random in a sample follows from the seed and the draw's number: a resumed run, and any number of
    loader processes, give the same.
    """

    def __init__(
        self, pairs: Sequence[PairRecord], side: int, resize: str, augment: Augment | None = None, seed: int = 42
    ) -> None:
        self.pairs, self.augment, self.seed = PairDataset(pairs, side, resize), augment, seed

    def __getitem__(self, draw: Draw) -> PairBatch:
        pair = self.pairs[draw.pair]
        if self.augment is None:
            return pair
        return self.augment(pair, self.pairs.pairs[draw.pair], np.random.default_rng([self.seed, draw.number]))


class ImageDataset(Dataset[View]):
    """Images, each once."""

    def __init__(self, images: Sequence[ImageRecord], side: int, resize: str) -> None:
        self.images, self.side, self.resize = images, side, resize

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> View:
        return view(self.images[index], self.side, self.resize)


def unique_images(pairs: Iterable[PairRecord]) -> list[ImageRecord]:
    """Every image of the pairs once, in the order of their names."""
    images = {image.name: image for pair in pairs for image in (pair.source, pair.target)}
    return [images[name] for name in sorted(images)]
