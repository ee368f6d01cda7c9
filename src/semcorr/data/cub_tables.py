"""The tables of CUB-200-2011, as its README documents them: each line has an id and the values of its entry.

images.txt (file), classes.txt (name), image_class_labels.txt (class), train_test_split.txt (1: training),
bounding_boxes.txt (x y width height), parts/parts.txt (name) and parts/part_locs.txt (image, part, x y visible).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value, require_file_name
from semcorr.core.text_files import read_lines
from semcorr.data.record import Point

REMEDY = "Unpack CUB_200_2011.tgz again."
VALIDATION_STRIDE = 10  # of so many training images of a species one is for validation


class Bird(NamedTuple):
    """An image as annotated."""

    file: str  # below images/
    species: str
    split: str
    box: Sequence[float]  # x1 y1 x2 y2
    points: Sequence[Point]


def read_birds(root: Path) -> tuple[list[Bird], list[str]]:
    """Read the annotations of all images, and the names of the parts in the order of their rows.

    Raises:
        UserError: A file is missing or damaged, or says nothing about an image that images.txt names.
    """
    files, species = _read_table(root / "images.txt"), _read_table(root / "classes.txt")
    parts = _read_table(root / "parts" / "parts.txt")
    points = _read_table(root / "parts" / "part_locs.txt", 3, key_words=2)
    classes, uses, boxes = (
        _read_table(root / f"{name}.txt", words)
        for name, words in (("image_class_labels", 1), ("train_test_split", 1), ("bounding_boxes", 4))
    )
    birds: list[Bird] = []
    training: Counter[str] = Counter()
    for image, (file,) in files.items():
        where = f"{root}, image {image}:"
        require_file_name(file, f"{root / 'images.txt'}, image {image},", folders=True)
        name = _find(species, _find(classes, image, "image_class_labels.txt", where)[0], "classes.txt", where)[0]
        trains = _to_flag(_find(uses, image, "train_test_split.txt", where)[0], where)
        split = "test" if not trains else "train" if training[name] % VALIDATION_STRIDE else "val"
        training[name] += trains
        x, y, width, height = _to_numbers(_find(boxes, image, "bounding_boxes.txt", where), where)
        rows = [_find(points, f"{image} {part}", "part_locs.txt", where) for part in parts]
        birds.append(Bird(file, name, split, [x, y, x + width, y + height], [_to_point(row, where) for row in rows]))
    return birds, [name for (name,) in parts.values()]


def _read_table(path: Path, words: int = 1, key_words: int = 1) -> dict[str, list[str]]:
    """Read the lines of a file, `key_words` ids and `words` words each, by their ids; the last word may hold blanks."""
    rows: dict[str, list[str]] = {}
    for line in read_lines(path, REMEDY):
        row = line.split(maxsplit=key_words + words - 1)
        key = " ".join(row[:key_words])
        if len(row) < key_words + words or key in rows:
            problem = (
                "is of an id that has a line already" if key in rows else f"has fewer than {key_words + words} words"
            )
            raise UserError(f"{path}: the line {quote_value(line)} {problem}. {REMEDY}")
        rows[key] = row[key_words:]
    return rows


def _find(rows: Mapping[str, list[str]], key: str, file: str, where: str) -> list[str]:
    """Return the row of an id."""
    if key not in rows:
        raise UserError(f"{where} {file} has no line {quote_value(key)}. {REMEDY}")
    return rows[key]


def _to_point(row: Sequence[str], where: str) -> Point:
    """Convert x, y and visible to a point; None: not visible, whatever x and y are."""
    point = _to_numbers(row[:2], where)
    return point if _to_flag(row[2], where) else None


def _to_flag(word: str, where: str) -> bool:
    if word not in ("0", "1"):
        raise UserError(
            f"{where} {quote_value(word)} says whether it trains or is visible, and must be 0 or 1. {REMEDY}"
        )
    return word == "1"


def _to_numbers(words: Iterable[str], where: str) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise UserError(f"{where} {error}. {REMEDY}") from None
