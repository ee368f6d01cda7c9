"""The tables of CUB-200-2011, as its README documents them: each line has an id and the values of its entry.

images.txt (file), classes.txt (name), image_class_labels.txt (class), train_test_split.txt (1: training),
bounding_boxes.txt (x y width height), parts/parts.txt (name) and parts/part_locs.txt (image, part, x y visible).
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value, require_file_name
from semcorr.core.text_files import parse_number, read_numbered_lines
from semcorr.data.record import MAX_EXTENT, Point

REMEDY = "Unpack CUB_200_2011.tgz again."
VALIDATION_STRIDE = 10  # of so many training images of a species one is for validation


class Bird(NamedTuple):
    """An image as annotated."""

    file: str  # below images/
    species: str
    split: str
    box: Sequence[float]  # x1 y1 x2 y2
    points: Sequence[Point]


class CUBRow(NamedTuple):
    """A line of a table, without its ids."""

    path: Path
    line: int  # counted from 1
    words: Sequence[str]

    @property
    def location(self) -> str:
        """The file and the line, for messages."""
        return f"{self.path}, line {self.line}"


CUBTable = dict[str, CUBRow]  # by the ids of the lines


def read_birds(root: Path) -> tuple[list[Bird], list[str]]:
    """Read the annotations of all images, and the names of the parts in the order of their rows.

    Raises:
        UserError: A file is missing or damaged, or the files are not of the same images and parts.
    """
    files, species = _read_named_table(root / "images.txt"), _read_named_table(root / "classes.txt")
    parts = _read_named_table(root / "parts" / "parts.txt")
    classes, uses, boxes = (
        _read_table(root / f"{name}.txt", words)
        for name, words in (("image_class_labels", 1), ("train_test_split", 1), ("bounding_boxes", 4))
    )
    points = _read_table(root / "parts" / "part_locs.txt", 3, key_words=2)
    for table in (classes, uses, boxes):
        _require_ids(table, list(files), "images.txt")
    _require_ids(points, [f"{image} {part}" for image in files for part in parts], "images.txt and parts.txt")
    birds: list[Bird] = []
    training: Counter[str] = Counter()
    for image, row in files.items():
        (file,) = row.words
        require_file_name(file, f"{row.location},", folders=True)
        name = _find_species(species, classes[image])
        trains = _to_flag(uses[image], 0, "whether the image trains")
        split = "test" if not trains else "train" if training[name] % VALIDATION_STRIDE else "val"
        training[name] += trains
        places = [_to_point(points[f"{image} {part}"]) for part in parts]
        birds.append(Bird(file, name, split, _to_box(boxes[image]), places))
    return birds, [row.words[0] for row in parts.values()]


def _read_table(path: Path, words: int = 1, key_words: int = 1) -> CUBTable:
    """Read the lines of a file, `key_words` ids and `words` words each, by their ids; the last word may hold blanks."""
    rows: CUBTable = {}
    for line, text in read_numbered_lines(path, REMEDY):
        row = text.split(maxsplit=key_words + words - 1)
        key = " ".join(row[:key_words])
        if len(row) < key_words + words or key in rows:
            problem = (
                f"is of an id that line {rows[key].line} has already"
                if key in rows
                else f"has fewer than {key_words + words} words"
            )
            raise UserError(f"{path}, line {line}: {quote_value(text)} {problem}. {REMEDY}")
        rows[key] = CUBRow(path, line, row[key_words:])
    if not rows:
        raise UserError(f"{path} has no line. {REMEDY}")
    return rows


def _read_named_table(path: Path) -> CUBTable:
    """Read a file that gives each id a name of its own."""
    rows = _read_table(path)
    lines: dict[str, int] = {}
    for row in rows.values():
        (name,) = row.words
        if (first := lines.setdefault(name, row.line)) != row.line:
            raise UserError(f"{row.location} gives a second id to {quote_value(name)}, after line {first}. {REMEDY}")
    return rows


def _require_ids(rows: CUBTable, ids: Sequence[str], names: str) -> None:
    """Require a line for each of the ids that other files define, and no other line."""
    known = set(ids)
    for key, row in rows.items():
        if key not in known:
            raise UserError(f"{row.location}: {quote_value(key)} is not defined by {names}. {REMEDY}")
    if (missing := next((key for key in ids if key not in rows), None)) is not None:
        path = next(iter(rows.values())).path
        raise UserError(f"{path} has no line for {quote_value(missing)}, defined by {names}. {REMEDY}")


def _find_species(species: CUBTable, row: CUBRow) -> str:
    """Return the name of the class of an image."""
    (number,) = row.words
    if number not in species:
        raise UserError(f"{row.location}: {quote_value(number)} is not defined by classes.txt. {REMEDY}")
    return species[number].words[0]


def _to_point(row: CUBRow) -> Point:
    """Convert x, y and visible to a point; None: not visible, whatever x and y are."""
    if not _to_flag(row, 2, "whether the part is visible"):
        return None
    x, y = _to_numbers(row, 2)
    return (x, y)


def _to_box(row: CUBRow) -> Sequence[float]:
    """Convert x, y, width and height to x1, y1, x2 and y2."""
    x, y, width, height = _to_numbers(row, 4)
    box = [x, y, x + width, y + height]
    if box[2] <= box[0] or box[3] <= box[1]:
        raise UserError(
            f"{row.location}: the box {quote_value(' '.join(row.words))} must have a width and a height above 0. "
            f"{REMEDY}"
        )
    return box


def _to_flag(row: CUBRow, column: int, meaning: str) -> bool:
    word = row.words[column]
    if word not in ("0", "1"):
        raise UserError(f"{row.location}: {quote_value(word)} says {meaning}, and must be 0 or 1. {REMEDY}")
    return word == "1"


def _to_numbers(row: CUBRow, count: int) -> list[float]:
    """Convert the first words of a line to numbers of pixels."""
    numbers: list[float] = []
    for word in row.words[:count]:
        number = parse_number(word)
        if number is None or abs(number) > MAX_EXTENT:
            raise UserError(f"{row.location}: {quote_value(word)} must be a finite number of pixels. {REMEDY}")
        numbers.append(number)
    return numbers
