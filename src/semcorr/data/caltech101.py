"""Caltech-101 (Fei-Fei et al. 2006) as semantic correspondence scores it: masks carried between 1,515 pairs.

The list of pairs and outlines is that of Kim et al. 2013, as published with CNNGeometric (Rocco et al. 2017): two
images, a class, and the outlines of both objects.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value, require_file_name
from semcorr.core.tables import read_table
from semcorr.core.text_files import parse_number
from semcorr.data.dense_pairs import DenseImage, DensePair, LabelTransferBenchmark
from semcorr.data.download.recipe import ArchiveInfo, DownloadRecipe
from semcorr.data.record import image_size, require_root

LIST = "test_pairs_caltech_with_category.csv"
LISTS = (LIST, "caltech_img_pairs.csv", "test_pairs.csv")  # names under which it is passed on
FOLDER = "101_ObjectCategories"
COLUMNS = ("source_image", "target_image", "class", "XA", "YA", "XB", "YB")
REMEDY = "Restore the published list."
Outline = tuple[tuple[float, float], ...]


class Outlines(NamedTuple):
    """Outlines of the objects of a pair, in pixels."""

    source: Outline
    target: Outline


class Caltech101(LabelTransferBenchmark):
    """Caltech-101, with its list of pairs and 101_ObjectCategories/ in `root`.

    Each pixel of the list's target image takes the label at its match in the list's source image.

    Arguments are those of every benchmark.
    """

    name, title = "caltech101", "Caltech-101"
    official: Mapping[str, int] = MappingProxyType({"pairs, test": 1515})
    recipe = DownloadRecipe(
        licence="research use; images collected from the web",
        archives=(
            ArchiveInfo(
                "101_ObjectCategories.tar.gz",
                "http://www.vision.caltech.edu/Image_Datasets/Caltech101/101_ObjectCategories.tar.gz",
            ),
            ArchiveInfo(LIST, f"http://www.di.ens.fr/willow/research/cnngeometric/other_resources/{LIST}"),
        ),
        marker_file=FOLDER,
    )

    def read_pairs(self, split: str) -> list[DensePair]:
        """Read all rows of the list.

        Raises:
            UserError: The list or an image is absent, or a row is damaged.
        """
        require_root(self.root, "Caltech-101", "Run `python -m semcorr.prepare caltech101`, or give data.root=DIR.")
        path = next((self.root / name for name in LISTS if (self.root / name).is_file()), None)
        if path is None:
            raise UserError(f"{self.root} holds none of {', '.join(LISTS)}. Put the published list there.")
        size = cache(image_size)
        pairs = []
        for line, row in read_table(path, COLUMNS, REMEDY):
            location = f"{path}, line {line}"
            files = [_find_image(self.root, row[column], f"{location}, {column},") for column in COLUMNS[:2]]
            a, b = (DenseImage(file, size(file)) for file in files)
            outlines = Outlines(_read_outline(row, "B", b.size, location), _read_outline(row, "A", a.size, location))
            name = f"{line - 1:04d}-{a.path.parent.name}-{a.path.stem}-{b.path.stem}"
            pairs.append(DensePair(name, a.path.parent.name, b, a, outlines))
        return pairs

    def labels(self, pair: DensePair) -> tuple[UInt8[Tensor, "h w"], UInt8[Tensor, "height width"]]:
        """Return the foregrounds within the outlines: 1, and 0 elsewhere."""
        return fill_outline(pair.truth.source, pair.source.size), fill_outline(pair.truth.target, pair.target.size)


def fill_outline(outline: Outline, size: tuple[int, int]) -> UInt8[Tensor, "h w"]:
    """Return 1 within an outline and on it, 0 elsewhere.

    Args:
        outline: Corners (x, y) in pixels.
        size: Width and height of the image.

    >>> fill_outline(((1, 0), (3, 0), (3, 1), (1, 1)), (5, 3)).tolist()
    [[0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    """
    canvas = Image.new("L", size)
    ImageDraw.Draw(canvas).polygon(outline, fill=1, outline=1)
    return torch.from_numpy(np.array(canvas))


def _find_image(root: Path, name: str, location: str) -> Path:
    """Find an image by its name in the list, whatever stands before the folder of the categories."""
    parts = Path(require_file_name(name, location, folders=True)).parts
    if FOLDER in parts:
        parts = parts[parts.index(FOLDER) :]
    if len(parts) < 2:
        raise UserError(f"{location} is {quote_value(name)}, and not CATEGORY/FILE. {REMEDY}")
    path = root.joinpath(*parts)
    if not path.is_file():
        raise UserError(f"{location} names {path}, which does not exist. Unpack 101_ObjectCategories.tar.gz again.")
    return path


def _read_outline(row: Mapping[str, str], side: str, size: tuple[int, int], location: str) -> Outline:
    """Read the outline of one image; its numbers are separated by commas or by semicolons."""
    columns = []
    for axis in "XY":
        words = [word for word in re.split(r"[,;\s]+", row[f"{axis}{side}"].strip(" []")) if word]
        numbers = [parse_number(word) for word in words]
        if None in numbers:
            word = quote_value(words[numbers.index(None)])
            raise UserError(f"{location}: {axis}{side} holds {word}; it must hold finite numbers. {REMEDY}")
        columns.append([number for number in numbers if number is not None])
    x, y = columns
    if len(x) != len(y) or len(x) < 3:
        raise UserError(
            f"{location}: X{side} and Y{side} must be an outline: at least 3 numbers, as many in both, got "
            f"{len(x)} and {len(y)}. {REMEDY}"
        )
    outline = tuple(zip(x, y, strict=True))
    if not fill_outline(outline, size).any():
        raise UserError(
            f"{location}: the outline of X{side} and Y{side} lies outside its image of {size[0]} x {size[1]}. {REMEDY}"
        )
    return outline
