"""Pairs of a user's own, from a CSV file: one row for each pair, with its points.

Columns: `source_image`, `target_image` (paths below the root), `XA`, `YA` (the source's points, `;`
between them), `XB`, `YB` (the target's, in the same order), and if you like `category`, `box`
(the target's, x1;y1;x2;y2), `source_domain` and `target_domain` (photo, painting ...: what the images
are). An empty number, or NaN, is a point not visible there. Pixel centres are at integers: the top left
pixel is (0, 0).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple, Unpack
from unicodedata import normalize

from semcorr.core.errors import UserError
from semcorr.core.paths import find_inside, quote_value
from semcorr.core.tables import DECIMAL_COMMA, NOTHING, SAVE, Spreadsheet, read_spreadsheet
from semcorr.core.text_files import parse_number
from semcorr.data.coco_fields import are_shares, box_overhang, quote_json
from semcorr.data.coco_file import warn_notes
from semcorr.data.datamodule import PairDataModule, PairOptions
from semcorr.data.image_names import name_images
from semcorr.data.pictures import PictureSize, measure_picture, warn_about_frames
from semcorr.data.record import (
    MAX_EXTENT,
    ImageRecord,
    PairRecord,
    Point,
    build_image_record,
    keypoint_bounding_box,
    log,
    longer_side,
    pad_keypoints,
    require_root,
)

COLUMNS = ("source_image", "target_image", "XA", "YA", "XB", "YB")
DOMAINS = ("source_domain", "target_domain")
OPTIONAL = ("category", "box", *DOMAINS)
EXTENTS = ("image", "box", "keypoints")


class PairsCSV(PairDataModule):
    """A CSV file per split below `root`.

    Args:
        test: The file of the test pairs; null for none.
        val: The file of the validation pairs; null for none.
        train: The file of the training pairs; null for none.
        extent: The length that alpha is a fraction of: the longer side of the target `image`, of its `box`, or of
            the box around its `keypoints`.
        **options: As for every benchmark.
    """

    name = "pairs_csv"

    def __init__(
        self,
        *,
        test: str | None = "pairs.csv",
        val: str | None = None,
        train: str | None = None,
        extent: str = "image",
        **options: Unpack[PairOptions],
    ) -> None:
        if extent not in EXTENTS:
            raise UserError(f"`data.extent` must be one of {', '.join(EXTENTS)}, got {extent!r}")
        lists = {"train": train, "val": val, "test": test}
        self.lists, self.extent = {split: file for split, file in lists.items() if file}, extent
        self.splits = tuple(self.lists)
        super().__init__(**options)

    def records(self, split: str) -> Sequence[PairRecord]:
        """Return the pairs in the order of the file."""
        others = [file for other, file in self.lists.items() if other != split]
        return read_csv_pairs(self.root, self.lists[split], self.extent, others)


class _Images(NamedTuple):
    """The images of all pair lists."""

    root: Path
    names: Mapping[str, str]  # of features, by the path below the root
    files: Mapping[str, str]  # path below the root, by what stands in a list
    encoding: str
    measure: Callable[[Path], PictureSize]
    path: Path  # of the list

    def build_record(
        self, row: Mapping[str, str], side: str, points: list[Point], box: Sequence[float], location: str
    ) -> ImageRecord:
        """Build the record of one image of a row.

        Args:
            row: Row of the list.
            side: `source` or `target`.
            points: Keypoints of the image; None where one is not visible.
            box: x1, y1, x2 and y2 of the object.
            location: File and line of the row, for messages.

        Raises:
            UserError: The image is absent or cannot be measured.
        """
        column = f"{side}_image"
        file = self.files[row[column]]
        path = self.root / file
        if not path.is_file():
            read_as = "" if self.encoding == "utf-8" else f", read as {self.encoding}"
            remedy = f"{SAVE} Or restore it" if read_as and not row[column].isascii() else "Restore it, or drop the row"
            raise UserError(
                f"{location}: column {column} names {quote_value(row[column])}{read_as}, and {path} does not exist. "
                f"{remedy}."
            )
        size, upright = self.measure(path)
        return build_image_record(self.names[file], path, size, points, box, self.path, upright)


def read_csv_pairs(root: Path, file: str, extent: str, others: Sequence[str] = ()) -> list[PairRecord]:
    """Read all rows of a file.

    Args:
        root: The folder of the file; the images are below it.
        file: Name of the file.
        extent: The length that alpha is a fraction of: `image`, `box` or `keypoints`, see `PairsCSV`.
        others: Files of the other splits: images have one name in all of them.

    Raises:
        UserError: The file or an image is absent or cannot be read, or a row contradicts itself.
    """
    require_root(root, "Your set of pairs", "Give data.root=DIR.")
    path = root / file
    if not path.is_file():
        raise UserError(f"{path} does not exist. Give data.test=FILE, a CSV file below data.root.")
    table = _read(path)
    if not table.rows:
        raise UserError(f"{path} has a header and no row below it. Add a row for each pair.")
    if table.others:
        log.warning("%s: the columns %s are not read", path, ", ".join(map(quote_value, table.others[:5])))
    files = _find_files(root, table, path)
    all_files = set(files.values())
    for other_file in others:
        with suppress(UserError):  # what is wrong there is said when it is read
            all_files |= set(_find_files(root, _read(root / other_file), root / other_file).values())
    images = _Images(root, name_images(root, all_files), files, table.encoding, cache(measure_picture), path)
    with warn_about_frames(path):
        pairs = [_build_pair(images, f"{path}, line {line}", line, row, extent) for line, row in table.rows]
    _require_pixels(pairs, path)
    _warn_repeated_rows(table, path)
    if outside := [
        pair.name for pair in pairs if extent == "box" and box_overhang(pair.target.box, pair.target.size) > 1
    ]:
        warn_notes(path, {"boxes reach outside their image, and are used as they are": outside})
    return pad_keypoints(pairs)


def _warn_repeated_rows(table: Spreadsheet, path: Path) -> None:
    """Warn of rows that say what one before them says: their pair counts several times in every mean."""
    lines: dict[tuple[str | None, ...], int] = {}
    repeated = [
        f"line {line} as line {first}"
        for line, row in table.rows
        if (first := lines.setdefault(tuple(map(row.get, (*COLUMNS, *OPTIONAL))), line)) != line
    ]
    warn_notes(path, {"rows are there before, and are scored each time": repeated} if repeated else {})


def _read(path: Path) -> Spreadsheet:
    return read_spreadsheet(path, COLUMNS, OPTIONAL, "Correct the file.")


def _find_files(root: Path, table: Spreadsheet, path: Path) -> dict[str, str]:
    """Return the path below the root of every image, by its text in the table."""
    files: dict[str, str] = {}
    for line, row in table.rows:
        for column in ("source_image", "target_image"):
            if row[column] not in files:
                location = f"{path}, line {line}, column {column},"
                files[row[column]] = find_inside(root, row[column].strip(), location, "data.root")
    renamed = [f"{quote_json(cell)} as {quote_json(file)}" for cell, file in files.items() if cell.strip() != file]
    warn_notes(path, {"names of images are read as their files are called": renamed} if renamed else {})
    return files


def _build_pair(images: _Images, location: str, line: int, row: Mapping[str, str], extent: str) -> PairRecord:
    if broken := next((column for column, cell in row.items() if "\n" in cell or "\r" in cell), None):
        raise UserError(f"{location}: column {broken} goes on over several lines. Close its quote, or write it in one.")
    sides = {"source": _parse_points(row, "A", location), "target": _parse_points(row, "B", location)}
    if len(sides["source"]) != len(sides["target"]):
        raise UserError(
            f"{location}: {len(sides['source'])} points in the source, {len(sides['target'])} in the target. "
            "Give as many, empty where one is not visible."
        )
    if all(None in ends for ends in zip(*sides.values(), strict=True)):
        raise UserError(f"{location}: there is no keypoint visible in both images. Give one, or drop the row.")
    box = _parse_box(row, location)
    if box is None and extent == "box":
        lacks = "this row has none in its column `box`" if "box" in row else "there is no column `box`"
        raise UserError(f"{location}: data.extent=box needs the target's box, x1;y1;x2;y2, and {lacks}. Add it.")
    source, target = (
        images.build_record(row, side, points, (side == "target" and box) or _bounding_box(points), location)
        for side, points in sides.items()
    )
    if extent == "keypoints" and len({point for point in sides["target"] if point is not None}) < 2:
        raise UserError(
            f"{location}: data.extent=keypoints needs two points in the target, since a single one has no extent. "
            "Drop the row, or give data.extent=box or image."
        )
    lengths = {
        "image": lambda: float(max(target.size)),
        "box": lambda: longer_side(target.box),
        "keypoints": lambda: longer_side(_bounding_box(sides["target"])),
    }
    # An é is one letter or two: programs write both
    words = {column: normalize("NFC", row.get(column, "").strip()) for column in ("category", *DOMAINS)}
    name, category = f"{line - 1:06d}-{source.name}-{target.name}", words["category"] or "object"
    details = {column: words[column] or None for column in DOMAINS}
    return PairRecord(name, category, source, target, lengths[extent](), details=details)


def _bounding_box(points: Sequence[Point]) -> Sequence[float]:
    return keypoint_bounding_box(points) if any(points) else (0.0, 0.0, 1.0, 1.0)


def _parse_points(row: Mapping[str, str], side: str, location: str) -> list[Point]:
    columns = [_parse_numbers(row[f"{axis}{side}"], f"{axis}{side}", location) for axis in "XY"]
    if len(columns[0]) != len(columns[1]):
        raise UserError(f"{location}: X{side} has {len(columns[0])} numbers, Y{side} {len(columns[1])}. Give as many.")
    points: list[Point] = []
    for i, (x, y) in enumerate(zip(*columns, strict=True)):
        if x is None and y is None:
            points.append(None)
        elif x is None or y is None:
            present_axes = "".join(axis for axis, value in zip("XY", (x, y), strict=True) if value is not None)
            raise UserError(
                f"{location}: point {i + 1} has only a number in {present_axes}{side}. Give both numbers, or leave "
                "both empty."
            )
        elif x == y == -1:
            raise UserError(
                f"{location}: point {i + 1} is -1, -1 in {side}. Leave both empty if it is not visible there."
            )
        else:
            points.append((x, y))
    return points


def _parse_numbers(cell: str, column: str, location: str) -> list[float | None]:
    """Return the numbers of a cell, separated by `;`; None where there is none."""
    numbers: list[float | None] = []
    parts = cell.split(";")
    for part in map(str.strip, parts):
        if part.lower() in NOTHING:
            numbers.append(None)
            continue
        text = part.replace(",", ".") if len(parts) > 1 and DECIMAL_COMMA.fullmatch(part) else part
        if "," in text:
            raise UserError(
                f"{location}: {column} holds {quote_value(part)}, and it is unclear whether it is several numbers. "
                "Write ; between numbers, a point before decimals, and nothing between thousands."
            )
        if (number := parse_number(text)) is None:
            raise UserError(
                f"{location}: {column} holds {quote_value(part)}, which is not a finite number. Correct it."
            )
        if not abs(number) <= MAX_EXTENT:
            raise UserError(
                f"{location}: {column} holds {quote_value(part)}, which is not a number of pixels. Correct it."
            )
        numbers.append(number)
    return numbers


def _parse_box(row: Mapping[str, str], location: str) -> list[float] | None:
    cell = row.get("box", "")
    if cell.strip().lower() in NOTHING:
        return None
    numbers = [number for number in _parse_numbers(cell, "box", location) if number is not None]
    if len(numbers) != 4 or cell.count(";") != 3 or numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
        raise UserError(
            f"{location}: box is {quote_value(cell)}; it must be x1;y1;x2;y2 with x1 < x2, y1 < y2. Correct it."
        )
    return numbers


def _require_pixels(pairs: Sequence[PairRecord], path: Path) -> None:
    """Refuse a file whose points are fractions of the images' sides."""
    images = [image for pair in pairs for image in (pair.source, pair.target)]
    if images and are_shares(
        [value for record in images for value in record.keypoints[record.visible].flatten().tolist()]
    ):
        raise UserError(
            f"{path}: all its points are from 0 to 1: they are fractions of the images' sides, and must be in pixels. "
            "Multiply x by width and y by height."
        )
