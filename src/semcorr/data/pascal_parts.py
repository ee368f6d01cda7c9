"""PASCAL-Part (Chen et al. 2014): parts of objects carried from one image to another.

The annotations are the official ones. No list of pairs was published with them, and those of the papers that score on
them are not known to us for certain: a list is yours, and its scores are those of that list.
"""

from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value, require_file_name
from semcorr.core.tables import read_table
from semcorr.data.datamodule import PairOptions
from semcorr.data.dense_pairs import DenseImage, DensePair, LabelTransferBenchmark
from semcorr.data.mat_file import read_mat_structure
from semcorr.data.record import image_size, require_root

COLUMNS = ("source_image", "target_image", "class")
REMEDY = "Unpack the official annotations again."
LIST_REMEDY = "Correct the list."
Parts = Mapping[str, Bool[np.ndarray, "h w"]]  # masks by the names of parts


class PartFiles(NamedTuple):
    """Annotations of a pair, source and target, and the class of the object."""

    source: Path
    target: Path
    category: str


class PascalParts(LabelTransferBenchmark):
    """`root` holds JPEGImages/, Annotations_Part/ and a list of pairs (source_image, target_image, class).

    Each pixel of the list's target image takes the part at its match in the list's source image. Of several objects of
    the class the largest counts; parts that only one of the images has are background.

    Args:
        pairs: The list, below `root`.
        **options: As for every benchmark.
    """

    name, title = "pascal_parts", "PASCAL-Part"

    def __init__(self, *, pairs: str = "pairs.csv", **options: Unpack[PairOptions]) -> None:
        super().__init__(**options)
        self.list = pairs
        self.parts = lru_cache(64)(read_parts)

    def read_pairs(self, split: str) -> list[DensePair]:
        """Read all rows of the list, and the annotations that they name.

        Raises:
            UserError: The list, an image or an annotation is absent or damaged, or a pair has no part in common.
        """
        require_root(self.root, "PASCAL-Part", "Give data.root=DIR, with JPEGImages, Annotations_Part and pairs.csv.")
        path = self.root / require_file_name(self.list, "`data.pairs`", folders=True)
        size = cache(image_size)
        pairs = []
        for line, row in read_table(path, COLUMNS, LIST_REMEDY):
            location = f"{path}, line {line}"
            names = [Path(require_file_name(row[column], f"{location}, {column},")).stem for column in COLUMNS[:2]]
            images = [self.root / "JPEGImages" / f"{name}.jpg" for name in names]
            if lost := next((image for image in images if not image.is_file()), None):
                raise UserError(f"{location} names {lost}, which does not exist. Restore it, or drop the row.")
            a, b = (DenseImage(image, size(image)) for image in images)
            second, first = (self.root / "Annotations_Part" / f"{name}.mat" for name in names)
            name, category = f"{line - 1:04d}-{names[0]}-{names[1]}", row["class"].strip()
            pair = DensePair(name, category, b, a, PartFiles(first, second, category))
            if not shared_parts(*self._read(pair)):
                raise UserError(f"{location}: the images have no part of a {quote_value(category)} in common. Drop it.")
            pairs.append(pair)
        return pairs

    def labels(self, pair: DensePair) -> tuple[UInt8[Tensor, "h w"], UInt8[Tensor, "height width"]]:
        """Return the parts that both images have, numbered in the order of their names."""
        first, second = self._read(pair)
        names = shared_parts(first, second)
        return paint_parts(first, names), paint_parts(second, names)

    def _read(self, pair: DensePair) -> tuple[Parts, Parts]:
        files: PartFiles = pair.truth
        return (
            self.parts(files.source, pair.source.size, files.category),
            self.parts(files.target, pair.target.size, files.category),
        )


def read_parts(path: Path, size: tuple[int, int], category: str) -> Parts:
    """Read the masks of the parts of the largest object of a class.

    Args:
        path: The annotation of an image.
        size: Width and height of the image.
        category: Name of the class.

    Raises:
        UserError: The file is not an annotation, has no such object, or its masks are of another size.
    """
    structure = read_mat_structure(path, "anno", "an annotation of PASCAL-Part", REMEDY)
    objects = [each for each in np.atleast_1d(getattr(structure, "objects", [])) if _field(each, "class") == category]
    if not objects:
        raise UserError(f"{path} has no object of the class {quote_value(category)}. {LIST_REMEDY}")
    largest = max(objects, key=lambda each: int(np.count_nonzero(_read_mask(each, path, size))))
    return {
        str(_field(part, "part_name")): _read_mask(part, path, size) for part in np.atleast_1d(_field(largest, "parts"))
    }


def shared_parts(first: Parts, second: Parts) -> list[str]:
    """Return the names of parts that are not empty in either image, sorted."""
    return sorted(name for name in first.keys() & second.keys() if first[name].any() and second[name].any())


def paint_parts(parts: Parts, names: list[str]) -> UInt8[Tensor, "h w"]:
    """Return a label for each pixel: 1 for the first name, 0 for no part; where parts overlap, that of the smaller one.

    Args:
        parts: Masks by the names of parts, at least one.
        names: Names of the parts that get a label.
    """
    labels = np.zeros(next(iter(parts.values())).shape, np.uint8)
    for name in sorted(names, key=lambda name: (-int(parts[name].sum()), name)):
        labels[parts[name]] = names.index(name) + 1
    return torch.from_numpy(labels)


def _field(structure: object, name: str) -> Any:
    """Return a field of a structure of MATLAB; one that is absent is an empty list, as an object without parts has."""
    return getattr(structure, name, [])


def _read_mask(structure: object, path: Path, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    mask = _field(structure, "mask")
    if not isinstance(mask, np.ndarray) or mask.dtype.kind not in "biu" or mask.shape != size[::-1]:
        raise UserError(f"{path} has a mask that is not of {size[0]} x {size[1]} pixels, as its image. {REMEDY}")
    return mask > 0
