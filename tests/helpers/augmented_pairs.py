"""A view with keypoints, a pair of it and its record, and ways to augment them."""

from pathlib import Path

import numpy as np
import torch

from semcorr.core.types import PairBatch, View
from semcorr.data.augment import Augmentation
from semcorr.data.record import ImageRecord, PairRecord
from semcorr.data.warp import ImageWarp, affine_matrix

SIDE = 128
PLACES = torch.tensor([[44.0, 40.0], [83.5, 40.0], [40.0, 70.25], [64.0, 90.0], [88.0, 75.0]])
SWAP = (1, 0, 4, 3, 2)  # left and right in PLACES
KINDS = {
    "flip": Augmentation(flip=1),
    "rotate": Augmentation(rotate=60),
    "scale": Augmentation(scale=0.5),
    "shift": Augmentation(shift=0.2),
    "shear": Augmentation(shear=20),
    "crop": Augmentation(crop=0.5),
    "thin plate": Augmentation(thin_plate=0.08),
    "all": Augmentation(flip=0.5, rotate=30, scale=0.3, shift=0.1, shear=10, crop=0.2, thin_plate=0.05, contrast=0.3),
}


def chance(number: int) -> np.random.Generator:
    return np.random.default_rng([0, number])


def seen(image: torch.Tensor | None = None, places: torch.Tensor = PLACES) -> View:
    image = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) if image is None else image
    box = torch.tensor([20.0, 30.0, 100.0, 105.0])
    return View(image, places, torch.ones(len(places), dtype=torch.bool), box, torch.ones(2), torch.zeros(2), "one")


def pair_of(source: View, target: View) -> PairBatch:
    return PairBatch(source, target, torch.zeros_like(source.visible), torch.tensor(80.0), "cat", "one-two")


def record(**changes: object) -> PairRecord:
    points, visible = torch.zeros(len(PLACES), 2), torch.ones(len(PLACES), dtype=torch.bool)
    image = ImageRecord("one", Path("one"), (SIDE, SIDE), points, visible, (0.0, 0.0, 9.0, 9.0))
    return PairRecord("one-two", "cat", image, image, 80.0, groups=((0, 1),), flip=SWAP)._replace(**changes)


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return all(map(equal, a, b)) if isinstance(a, tuple) else a == b


def away(x: float) -> ImageWarp:
    """Shows what is `x` sides to the right."""
    return ImageWarp(affine_matrix(window=(2 * x, 0.0, 1.0)))
