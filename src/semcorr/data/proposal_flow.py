"""Proposal flow benchmarks: PF-PASCAL and PF-WILLOW.

The lists are CSV files: train and val name two images, a 1-based class and whether both are
mirrored, and their points are in the .mat annotations; test carries its points itself. 488 rows of
train are exact duplicates and 302 of its images are in test as well: kept, as everyone keeps them,
and counted by `prepare --verify`.

Coordinates are those of images scaled to a longer side of 300 pixels, which the official ones are.
(No point of the test list exceeds 299.8, and on pictures that AnimalPose annotates too, both sets
of points agree to a pixel after scaling by the longer side / 300.) Where PASCAL VOC's own, larger
frames are used instead, points and boxes are scaled to them.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Unpack

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value, require_file_name
from semcorr.core.tables import read_rows, read_table
from semcorr.core.text_files import parse_number
from semcorr.data.datamodule import PairDataModule, PairListEntry, PairOptions
from semcorr.data.download.recipe import ArchiveInfo, DownloadRecipe
from semcorr.data.keypoints import benchmark_metadata
from semcorr.data.mat_file import read_mat_file
from semcorr.data.record import (
    ImageRecord,
    PairRecord,
    Point,
    build_image_record,
    image_size,
    keypoint_bounding_box,
    log,
    longer_side,
    pad_keypoints,
    require_root,
)

LISTS = {"train": ("train", "trn"), "val": ("val",), "test": ("test",)}
FRAME = 300  # longer side of the images the points were measured in
FOLDERS = ("PF-dataset-PASCAL", "PF-PASCAL", ".")  # the official one; HPF's and CATs' re-packed one
EXTENTS = ("image", "box")
# As published, and as pandas or an editor saves it again.
FLIPS = dict.fromkeys(("0", "0.0", "false", ""), False) | dict.fromkeys(("1", "1.0", "true"), True)
Annotation = tuple[list[Point], list[float]]  # keypoints, box


class PFPascal(PairDataModule):
    """`root` holds the pair lists and PF-dataset-PASCAL/{JPEGImages,Annotations}.

    Args:
        extent: The length that alpha is a fraction of: the longer side of the target `image` (as published), or
            of its `box`, which only the .mat annotations have.
        **options: As for every benchmark.
    """

    name = "pf_pascal"
    official = benchmark_metadata("pf_pascal")["official"]
    recipe = DownloadRecipe(
        licence="research use; images from PASCAL VOC (Flickr terms)",
        archives=(
            ArchiveInfo(
                "PF-dataset-PASCAL.zip",
                "https://www.di.ens.fr/willow/research/proposalflow/dataset/PF-dataset-PASCAL.zip",
            ),
            ArchiveInfo(
                "pf-pascal_image_pairs.zip", "https://www.robots.ox.ac.uk/~xinghui/sd4match/pf-pascal_image_pairs.zip"
            ),
        ),
        marker_file="PF-dataset-PASCAL/JPEGImages",
    )

    def __init__(self, *, extent: str = "image", **options: Unpack[PairOptions]) -> None:
        super().__init__(**options)
        if extent not in EXTENTS:
            raise UserError(f"`data.extent` must be one of {', '.join(EXTENTS)}, got {extent!r}")
        self.extent = extent

    def pair_list(self, split: str) -> Sequence[PairListEntry]:
        """Return the rows of the CSV file, which need no images."""
        path = find_pair_list(self.root, split)
        return [
            PairListEntry(
                Path(row["source_image"]).stem,
                Path(row["target_image"]).stem,
                _category(row["class"], f"{path}, line {i}"),
                _is_mirrored(row, f"{path}, line {i}"),
            )
            for i, row in read_pair_list(path)
        ]

    def records(self, split: str) -> Sequence[PairRecord]:
        """Return the pairs in the order of the list, duplicates included."""
        return read_pascal_pairs(self.root, split, self.extent)


def read_pascal_pairs(root: Path, split: str, extent: str = "image") -> list[PairRecord]:
    """Read all rows of a split's list.

    Args:
        root: The benchmark's folder.
        split: train, val or test.
        extent: The length that alpha is a fraction of: `image` or `box`, see `PFPascal`.

    Raises:
        UserError: The list or an image is absent, or a row or an annotation is damaged.
    """
    require_root(root, "PF-PASCAL", "Run `python -m semcorr.prepare pf_pascal`, or give data.root=DIR.")
    path = find_pair_list(root, split)
    rows = read_pair_list(path)
    folder = next((root / name for name in FOLDERS if (root / name / "JPEGImages").is_dir()), None)
    if folder is None:
        tried = ", ".join(str(root / name / "JPEGImages") for name in FOLDERS)
        raise UserError(f"PF-PASCAL's images are at none of {tried}. Unpack PF-dataset-PASCAL.zip into {root}.")
    size, annotation = cache(image_size), cache(read_pascal_annotation)
    pairs = [_build_pair(folder, path, i, row, extent, size, annotation) for i, row in rows]
    images = {image.path: max(image.size) for pair in pairs for image in (pair.source, pair.target)}
    if larger := sum(side > FRAME for side in images.values()):
        log.warning(
            "%s: %d of %d images are not the official ones, which have a longer side of %d pixels; "
            "points and boxes are scaled to them",
            path,
            larger,
            len(images),
            FRAME,
        )
    return pad_keypoints(pairs)


def find_pair_list(root: Path, split: str) -> Path:
    """Find a split's list under any of its published names, in the root or a folder of it.

    Raises:
        UserError: There is none.
    """
    names = [f"{word}{rest}.csv" for word in LISTS[split] for rest in ("_pairs", "_pairs_pf_pascal")]
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    pair_list = next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)
    if pair_list is None:
        raise UserError(f"No list of PF-PASCAL's {split} pairs in {root}: none of {', '.join(names)}. Put one there.")
    return pair_list


def read_pair_list(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Read the rows of a list with their line numbers, whatever its further columns."""
    rows = read_table(path, ("class", "source_image", "target_image"), "Restore the official list.")
    for line, row in rows:
        for column in ("source_image", "target_image"):
            require_file_name(row[column], f"{path}, line {line}, column {column},", folders=True)
    return rows


def read_pascal_annotation(path: Path) -> Annotation:
    """Read the keypoints (NaN is not annotated) and the box, x1 y1 x2 y2, of one .mat annotation.

    Raises:
        UserError: The file is absent or no such annotation.
    """
    remedy = "Unpack PF-dataset-PASCAL.zip again."
    rows, box = read_mat_file(path, ("kps", "bbox"), remedy)
    if rows.shape[1] != 2 or box.size != 4:
        raise UserError(
            f"{path} is not a PF-PASCAL annotation: `kps` is {rows.shape}, `bbox` {box.shape}; they must be (n, 2) and "
            f"(1, 4). {remedy}"
        )
    points = rows.tolist()
    return [None if any(map(math.isnan, row)) else (row[0], row[1]) for row in points], box.ravel().tolist()


def _build_pair(
    folder: Path,
    path: Path,
    line: int,
    row: Mapping[str, str],
    extent: str,
    size: Callable[[Path], tuple[int, int]],
    annotation: Callable[[Path], Annotation],
) -> PairRecord:
    location = f"{path}, line {line}"
    category, mirrored = _category(row["class"], location), _is_mirrored(row, location)
    stems = [Path(row[f"{side}_image"]).stem for side in ("source", "target")]
    listed = [_parse_points(row, side, location) for side in "AB"] if "XA" in row else None
    records = []
    points: Sequence[Point]
    box: Sequence[float]
    for i, stem in enumerate(stems):
        if listed and extent == "image":  # all that the test list has
            points, box = listed[i], keypoint_bounding_box(listed[i])
        else:
            points, box = annotation(folder / "Annotations" / category / f"{stem}.mat")
        picture = folder / "JPEGImages" / f"{stem}.jpg"
        records.append(
            _build_pascal_image(stem, picture, size(picture), listed[i] if listed else points, box, mirrored, path)
        )
    source, target = records
    target_extent = float(max(target.size)) if extent == "image" else longer_side(target.box)
    name = f"{line - 1:04d}-{source.name}-{target.name}"
    return PairRecord(name, category, source, target, target_extent)


def _build_pascal_image(
    stem: str,
    picture: Path,
    size: tuple[int, int],
    points: Sequence[Point],
    box: Sequence[float],
    mirrored: bool,
    path: Path,
) -> ImageRecord:
    """Build the record of an image. A flip=1 row mirrors both images, so ids keep matching and are not swapped."""
    if max(size) > FRAME:
        larger = max(size) / FRAME
        points = [None if p is None else (p[0] * larger, p[1] * larger) for p in points]
        box = [larger * value for value in box]
    if not mirrored:
        return build_image_record(stem, picture, size, points, box, path)
    last = size[0] - 1  # pixel centres are at integers; published code takes the width
    points = [None if p is None else (last - p[0], p[1]) for p in points]
    box = (last - box[2], box[1], last - box[0], box[3])
    return build_image_record(f"{stem}~mirrored", picture, size, points, box, path)._replace(mirrored=True)


def _parse_points(row: Mapping[str, str], side: str, location: str) -> list[Point]:
    x, y = (_parse_numbers(row[f"{axis}{side}"].split(";"), f"{location}: {axis}{side}") for axis in "XY")
    if len(x) != len(y):
        raise UserError(
            f"{location}: X{side} and Y{side} must be numbers, as many in both, got {len(x)} and {len(y)}. "
            "Restore the official list."
        )
    return list(zip(x, y, strict=True))


def _parse_numbers(cells: Sequence[str], location: str) -> list[float]:
    numbers: list[float] = []
    for cell in cells:
        if (number := parse_number(cell)) is None:
            raise UserError(f"{location}: {quote_value(cell)} must be a finite number. Restore the official list.")
        numbers.append(number)
    return numbers


def _is_mirrored(row: Mapping[str, str], location: str) -> bool:
    flip = row.get("flip", "")
    if flip.strip().lower() not in FLIPS:
        raise UserError(f"{location}: flip must be 0 or 1, got {quote_value(flip)}. Restore the official list.")
    return FLIPS[flip.strip().lower()]


def _category(number: str, location: str) -> str:
    classes = benchmark_metadata("pf_pascal")["classes"]  # 1-based, the 20 of PASCAL VOC
    if not re.fullmatch(r"[0-9]{1,3}", number) or not 1 <= int(number) <= len(classes):
        raise UserError(
            f"{location}: class must be 1 to {len(classes)}, got {quote_value(number)}. Restore the official list."
        )
    return str(classes[int(number) - 1])


POINTS = 10
COLUMNS = 2 + 4 * POINTS  # two images; then x of A, y of A, x of B, y of B
ImageSizes = Callable[[Path], tuple[int, int]]  # width and height of a file


class PFWillow(PairDataModule):
    """`root` holds test_pairs.csv and PF-dataset/."""

    name = "pf_willow"
    recipe = DownloadRecipe(
        licence="research use; images collected from the web",
        archives=(
            ArchiveInfo("PF-dataset.zip", "https://www.di.ens.fr/willow/research/proposalflow/dataset/PF-dataset.zip"),
            ArchiveInfo("test_pairs.csv", "https://www.robots.ox.ac.uk/~xinghui/sd4match/test_pairs.csv"),
        ),
        marker_file="PF-dataset/car(G)",
    )
    official = benchmark_metadata("pf_willow")["official"]
    splits = ("test",)

    def records(self, split: str) -> Sequence[PairRecord]:
        """Return the pairs in the order of the list."""
        return read_willow_pairs(self.root)


def read_willow_pairs(root: Path) -> list[PairRecord]:
    """Read all rows of test_pairs.csv.

    Raises:
        UserError: The list or an image is absent, or a row is damaged.
    """
    require_root(root, "PF-WILLOW", "Run `python -m semcorr.prepare pf_willow`, or give data.root=DIR.")
    path = root / "test_pairs.csv"
    if not path.is_file():
        raise UserError(f"{path} does not exist. Put the benchmark's pair list there.")
    size = cache(image_size)
    rows = read_rows(path, "Restore the official list.")
    if rows and all(parse_number(cell) is None for cell in rows[0].cells[2:]):
        rows = rows[1:]  # without the header, which an editor may have dropped
    return [_pair(root, path, line, row, size) for line, row in rows]


def _pair(root: Path, path: Path, line: int, row: list[str], size: ImageSizes) -> PairRecord:
    if len(row) != COLUMNS:
        raise UserError(f"{path}, line {line}: {len(row)} columns, expected {COLUMNS}. Restore the official list.")
    numbers = _parse_numbers(row[2:], f"{path}, line {line}")
    records = []
    for column, start in enumerate((0, 2 * POINTS)):
        name = require_file_name(row[column], f"{path}, line {line}, column {column + 1},", folders=True)
        if len(Path(name).parts) < 3:
            raise UserError(
                f"{path}, line {line}: {quote_value(name)} is not PF-dataset/CLASS/FILE. Restore the official list."
            )
        points = list(zip(numbers[start : start + POINTS], numbers[start + POINTS : start + 2 * POINTS], strict=True))
        records.append(_build_willow_image(root, path, name, points, size))
    source, target = records
    category = Path(row[0]).parts[1]
    name = f"{source.name}-{target.name}"
    return PairRecord(name, category, source, target, longer_side(target.box))


def _build_willow_image(
    root: Path, path: Path, name: str, points: list[tuple[float, float]], size: ImageSizes
) -> ImageRecord:
    """Build the record of an image. Its box is that of the keypoints: nothing else is annotated."""
    picture = root / name
    xs, ys = zip(*points, strict=True)
    box = (min(xs), min(ys), max(xs), max(ys))
    short = "/".join(Path(name).with_suffix("").parts[1:])
    return build_image_record(short, picture, size(picture), points, box, path)
