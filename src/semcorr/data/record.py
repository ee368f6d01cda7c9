"""Records of a benchmark's pairs, in original pixels and original keypoint ids, and the checks of them.

A benchmark's reader builds these and nothing else; everything after it is shared. The checks name
the file and the field, because the reader of the message has to mend one of them.
"""

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.nn.functional import pad

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value
from semcorr.core.text_files import ANNOTATIONS, JsonObject, read_mapping
from semcorr.data.corruptions.corruption import Corruption
from semcorr.data.keypoints import Groups
from semcorr.data.open_image import open_image
from semcorr.data.pictures import SYSTEM_FOLDERS, stored_size

log = logging.getLogger(__name__)

# Pixels of an extent: outside of them, an error over it is 0 or infinite in single precision.
MIN_EXTENT, MAX_EXTENT = 1e-6, 1e9
Point = Sequence[float] | None  # (x, y), or None where the keypoint is not annotated


class Segmentation(NamedTuple):
    """The mask of an image, and the value of the object's class in it."""

    path: Path
    value: int  # of the pixels of the object's class


class ImageRecord(NamedTuple):
    """One annotated object in one image."""

    name: str  # unique in its benchmark; the same image always has the same name
    path: Path
    size: tuple[int, int]  # width, height
    keypoints: Tensor  # (n 2) float, one row per original id, (0, 0) where not visible
    visible: Tensor  # (n) bool
    box: tuple[float, float, float, float]  # x1 y1 x2 y2
    mirrored: bool = False  # the file's pixels are to be mirrored; keypoints and box are already
    azimuth: int | None = None  # viewpoint in steps of 45 degrees, 0 to 7; None: not known
    segmentation: Segmentation | None = None
    upright: bool = False  # coordinates of the picture as viewers show it; False: as stored, EXIF not applied
    corruption: Corruption | None = None  # what is done to the pixels before anything else


class PairRecord(NamedTuple):
    """One pair of images as the benchmark states it."""

    name: str
    category: str
    source: ImageRecord
    target: ImageRecord
    extent: float  # the length that alpha is a fraction of, in target pixels
    groups: Groups = ()  # symmetry groups of the category
    flip: tuple[int, ...] | None = None  # row i of the mirrored image is row flip[i]; None: not known
    details: Mapping = {}  # viewpoint, scale, truncation, occlusion ... where known


def build_image_record(
    name: str,
    path: Path,
    size: tuple[int, int],
    keypoints: Sequence[object],
    box: object,
    source: Path,
    upright: bool = False,
) -> ImageRecord:
    """Build a record, refusing what cannot be scored.

    Args:
        name: Name of the image, unique in its benchmark.
        path: The image file.
        size: Width and height in pixels.
        keypoints: One entry per original id, x y in pixels, or None where there is none; as in the file.
        box: x1 y1 x2 y2 in pixels; as in the file.
        source: The annotation file, for the messages.
        upright: Whether coordinates refer to the picture as viewers show it, as users' own do, or to the stored pixels.

    Raises:
        UserError: The image is absent, the box has no area, or a coordinate is not finite.
    """
    if not path.is_file():
        raise UserError(f"{source}: names the image {path}, which does not exist. Restore it or drop the entry.")
    if not _is_box(box):
        raise UserError(
            f"{source}: box {_quote_values(box)} of {name} must be x1 y1 x2 y2 with x1 < x2 and y1 < y2. Correct it."
        )
    points: list[Sequence[float]] = []
    for i, point in enumerate(keypoints):
        if point is not None and not _is_point(point):
            raise UserError(
                f"{source}: keypoint {i} of {name} is {_quote_values(point)}; it must be two finite numbers. "
                "Correct it."
            )
        points.append((0.0, 0.0) if point is None else (float(point[0]), float(point[1])))
    visible = torch.tensor([p is not None for p in keypoints], dtype=torch.bool)
    x1, y1, x2, y2 = map(float, box)
    places = torch.tensor(points, dtype=torch.float32).reshape(-1, 2)
    return ImageRecord(name, path, size, places, visible, (x1, y1, x2, y2), upright=upright)


def _is_box(box: object) -> TypeGuard[Sequence[float]]:
    if not isinstance(box, list | tuple) or len(box) != 4 or not (_is_point(box[:2]) and _is_point(box[2:])):
        return False
    return bool(box[2] > box[0] and box[3] > box[1])


def _quote_values(values: object) -> str:
    return quote_value(list(values) if isinstance(values, tuple) else values)


def _is_point(point: object) -> TypeGuard[Sequence[float]]:
    if not isinstance(point, list | tuple) or len(point) != 2:
        return False
    return all(is_number(value) and math.isfinite(value) for value in point)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value of a JSON file is a number, finite or not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def pad_keypoints(pairs: Sequence[PairRecord]) -> list[PairRecord]:
    """Pad the keypoint rows of all images to the same number; the new rows are not visible.

    Only `visible` distinguishes rows: no value of the padding ever enters a score.
    """
    slots = max((len(image.visible) for pair in pairs for image in (pair.source, pair.target)), default=0)
    return [
        pair._replace(
            source=_pad_record(pair.source, slots),
            target=_pad_record(pair.target, slots),
            flip=pair.flip and (*pair.flip, *range(len(pair.flip), slots)),
        )
        for pair in pairs
    ]


def _pad_record(record: ImageRecord, slots: int) -> ImageRecord:
    padding = slots - len(record.visible)
    keypoints, visible = pad(record.keypoints, (0, 0, 0, padding)), pad(record.visible, (0, padding))
    return record._replace(keypoints=keypoints, visible=visible)


def longer_side(box: Sequence[float]) -> float:
    """Return the longer side of a box, the extent of PCK@bbox."""
    return max(box[2] - box[0], box[3] - box[1])


def keypoint_bounding_box(points: Sequence[Point]) -> tuple[float, float, float, float]:
    """Return the box of the keypoints, x1 y1 x2 y2, for benchmarks that annotate none: at least a pixel wide and high.

    Args:
        points: Keypoints, of which at least one is annotated.
    """
    xs, ys = zip(*(p for p in points if p is not None), strict=True)
    return (min(xs), min(ys), max(max(xs), min(xs) + 1), max(max(ys), min(ys) + 1))


def count_outside_image(record: ImageRecord) -> int:
    """Count the annotated keypoints that lie outside their image."""
    x, y = record.keypoints[record.visible].T
    width, height = record.size
    return int(((x < -0.5) | (y < -0.5) | (x > width - 0.5) | (y > height - 0.5)).sum())


def check_pairs(
    pairs: Sequence[PairRecord], benchmark: str, checked_images: dict[str, ImageRecord] | None = None
) -> Sequence[PairRecord]:
    """Return pairs, or refuse them if they cannot be scored; warn of what is scored and may not be meant.

    That are keypoints outside their image, and pairs of a picture with itself.

    Args:
        pairs: The pairs of a split.
        benchmark: The benchmark, for messages.
        checked_images: Images of the splits that were checked before, by name; those of this split are added. None:
            no split was.

    Raises:
        UserError: There is no pair, two images or pairs have one name, or a pair has no shared keypoint, no extent, or
            numbers that are not finite.
    """
    if not pairs:
        raise UserError(f"{benchmark}: no pair to read. Check its pair list, or its minimum of shared keypoints.")
    _require_unique(pairs, benchmark, {} if checked_images is None else checked_images)
    for pair in pairs:
        rows = (len(pair.source.visible), len(pair.target.visible))
        if rows[0] != rows[1]:
            raise UserError(
                f"{benchmark}: pair {pair.name} has {rows[0]} keypoints in its source and {rows[1]} in its target. "
                "Give both a row for each keypoint of the category; those that are not visible are marked so."
            )
    for pair, is_shared in zip(pairs, _have_shared(pairs), strict=True):
        if not is_shared:
            raise UserError(
                f"{benchmark}: pair {pair.name} has no keypoint visible in both {pair.source.path.name} and "
                f"{pair.target.path.name}. Drop it from the pair list."
            )
        if not MIN_EXTENT <= pair.extent <= MAX_EXTENT:
            raise UserError(f"{benchmark}: pair {pair.name} has extent {pair.extent}; its target has no size. Drop it.")
    images = {image.name: image for pair in pairs for image in (pair.source, pair.target)}
    records = [*{id(image): image for pair in pairs for image in (pair.source, pair.target)}.values()]
    for image in records if not _are_finite(records) else ():
        if not _are_finite([image]):
            raise UserError(
                f"{benchmark}: the keypoints and box of {image.name} must be finite numbers. Correct its annotation."
            )
    outside = {name: count for name, image in images.items() if (count := count_outside_image(image))}
    if outside:
        log.warning(
            "%s: %d keypoints lie outside their image (%s%s); they are kept as annotated",
            benchmark,
            sum(outside.values()),
            ", ".join(sorted(outside)[:5]),
            " ..." if len(outside) > 5 else "",
        )
    if self_pairs := [pair.name for pair in pairs if pair.source.name == pair.target.name]:
        log.warning(
            "%s: %d pairs are of a picture with itself (%s%s), where each point is its own best match, whatever the "
            "backbone; they are scored as any other",
            benchmark,
            len(self_pairs),
            ", ".join(self_pairs[:5]),
            " ..." if len(self_pairs) > 5 else "",
        )
    return pairs


def _have_shared(pairs: Sequence[PairRecord]) -> list[bool]:
    """Tell which pairs have a keypoint visible in both images; all at once, which takes a tenth of the time."""
    shared = torch.cat([pair.source.visible for pair in pairs]) & torch.cat([pair.target.visible for pair in pairs])
    rows = torch.tensor([len(pair.source.visible) for pair in pairs])
    counts = torch.zeros(len(pairs), dtype=torch.long)
    counts.index_add_(0, torch.arange(len(pairs)).repeat_interleave(rows), shared.long())
    is_shared: list[bool] = (counts > 0).tolist()
    return is_shared


def _are_finite(images: Sequence[ImageRecord]) -> bool:
    """Tell whether all visible keypoints and boxes are finite numbers."""
    points, visible = (torch.cat([getattr(image, key) for image in images]) for key in ("keypoints", "visible"))
    return bool(points.isfinite().all(-1)[visible].all()) and all(math.isfinite(side) for x in images for side in x.box)


def _require_unique(pairs: Sequence[PairRecord], benchmark: str, images: dict[str, ImageRecord]) -> None:
    """Require that a name belongs to one image or pair: features and results are stored by names."""
    for image in {id(image): image for pair in pairs for image in (pair.source, pair.target)}.values():
        first = images.setdefault(image.name, image)
        if not _is_same_file(first, image):
            raise UserError(
                f"{benchmark}: two images are called {quote_value(image.name)}: {first.path} and {image.path}, or one "
                "of them mirrored or turned. Rename one of them, and what refers to it."
            )
    ends: dict[str, tuple[str, ...]] = {}
    for pair in pairs:
        names = (pair.source.name, pair.target.name, pair.category)
        if (others := ends.setdefault(pair.name, names)) != names:
            raise UserError(
                f"{benchmark}: two pairs are called {quote_value(pair.name)}: "
                f"{' to '.join(map(quote_value, others[:2]))} and {' to '.join(map(quote_value, names[:2]))}. "
                "Rename one of their images, and what refers to it."
            )


def _is_same_file(first: ImageRecord, second: ImageRecord) -> bool:
    """Return whether two records show the same pixels; a file may have several paths."""
    if (first.mirrored, first.upright) != (second.mirrored, second.upright):
        return False
    try:
        return first.path == second.path or os.path.samefile(first.path, second.path)
    except OSError:  # the reader of the file reports it
        return False


def require_root(root: Path, benchmark: str, remedy: str) -> None:
    """Refuse a benchmark's folder that does not exist; the error says what to do.

    Args:
        root: The folder.
        benchmark: Name of the benchmark, for the message.
        remedy: What the user can do, in a sentence.
    """
    if not root.is_dir():
        raise UserError(
            f"{benchmark} is not at {root}: no such folder. {remedy} "
            "To try semcorr without downloading anything: data=synthetic."
        )


def read_annotation(path: Path) -> JsonObject:
    """Read a JSON file of a benchmark, which must hold an object; an error names the file."""
    return read_mapping(path, "Unpack the benchmark again, or drop what refers to it.", ANNOTATIONS)


def list_annotations(folder: Path, pattern: str) -> list[Path]:
    """List the files below a folder that a pattern fits, sorted, without what a system puts beside them.

    Args:
        folder: The folder.
        pattern: As for `Path.glob`. Of macOS's `._00001.json` and `__MACOSX`, and other hidden names, none is listed.
    """
    return sorted(
        path
        for path in folder.glob(pattern)
        if not any(part.startswith(".") or part in SYSTEM_FOLDERS for part in path.relative_to(folder).parts)
    )


def require_field(entry: object, key: str, location: Path | str) -> Any:
    """Return a field of an annotation; an error names the file, or the place in it, and the field."""
    if not isinstance(entry, Mapping) or key not in entry:
        raise UserError(f"{location}: no field `{key}`. Restore the official annotation file.")
    return entry[key]


def require_list(entry: object, key: str, location: Path | str) -> list:
    """Return a field that is a list; an error names the file, or the place in it, and the field."""
    values = require_field(entry, key, location)
    if not isinstance(values, list):
        raise UserError(
            f"{location}: field `{key}` is {quote_value(values)}; it must be a list. Restore the official annotation "
            "file."
        )
    return values


def require_whole_number(entry: object, key: str, location: Path | str) -> int:
    """Return a field that is a whole number; an error names the file, or the place in it, and the field."""
    return parse_whole_number(require_field(entry, key, location), f"{location}: field `{key}`")


def parse_whole_number(value: object, location: str) -> int:
    """Return a whole number, which may be written as text; an error names the place of the value."""
    if not isinstance(value, int | float | str) or not re.fullmatch(r"-?[0-9]{1,15}(\.0)?", str(value)):
        raise UserError(f"{location} is {quote_value(value)}; it must be a whole number. Correct it.")
    return int(float(value))


def image_size(path: Path) -> tuple[int, int]:
    """Return the width and height of the stored pixels from the file's header, without decoding it."""
    with open_image(path) as image:
        return stored_size(image)
