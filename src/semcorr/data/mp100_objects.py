"""The annotated objects of MP-100: COCO keypoint files, in which each category has keypoints of its own."""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from semcorr.core.errors import UserError
from semcorr.core.paths import require_file_name
from semcorr.core.text_files import ANNOTATIONS, JsonMapping, read_mapping
from semcorr.data.coco_fields import (
    CocoBox,
    Id,
    find_by_id,
    quote_json,
    read_box,
    read_keypoints,
    read_size,
    require_id,
)
from semcorr.data.coco_file import FLAT_BOX_NOTE, NEGATIVE_NOTE, NO_BOX_NOTE, NO_POINT_NOTE, warn_notes
from semcorr.data.record import Point, require_field, require_list

REMEDY = "Restore the official file."


class PosedObject(NamedTuple):
    """An annotated object of an image."""

    points: Sequence[Point]
    box: CocoBox | None
    size: tuple[int, int] | None  # of the image, where the file says it
    file: Path


class PosedObjects(NamedTuple):
    """The objects of all files, and the names of categories; ids of categories are texts here."""

    by_image: Mapping[tuple[str, str], Sequence[PosedObject]]  # by the image's file and the category's id
    names: Mapping[str, str]
    without_points: Set[tuple[str, str]]  # files of images and ids of categories, of annotations that are left out
    folder: Path  # of the files


def read_posed_objects(files: Sequence[Path]) -> PosedObjects:
    """Read annotation files, each with its own ids of images; objects without any point are left out.

    What is assumed of an object is told once for each file, with counts.

    Raises:
        UserError: A file is not such a file, or contradicts itself.
    """
    objects: dict[tuple[str, str], list[PosedObject]] = {}
    names: dict[str, str] = {}
    without_points: set[tuple[str, str]] = set()
    for file in files:
        content, notes = read_mapping(file, REMEDY, ANNOTATIONS), dict[str, list[str]]()
        images = _index_entries(content, "images", file)
        if "categories" in content:
            names |= {str(i): _read_name(i, x, file) for i, x in _index_entries(content, "categories", file).items()}
        for number, entry in enumerate(require_list(content, "annotations", file)):
            location = f"{file}, annotations[{number}]"
            image, category = _find_image(entry, images, location), read_id(entry, "category_id", location)
            points, num_negative = _read_points(entry.get("keypoints"), location)
            if num_negative:
                notes.setdefault(NEGATIVE_NOTE, []).append(f"[{number}]")
            if any(point is not None for point in points):
                file_name = f"{location}: the `file_name` of its image"
                name = require_file_name(require_field(image, "file_name", location), file_name, folders=True)
                box, size = read_box(entry.get("bbox"), "xywh", location), read_size(image, f"{location}: its image")
                if box is None:
                    notes.setdefault(NO_BOX_NOTE, []).append(f"[{number}]")
                    if entry.get("bbox") not in (None, []):
                        notes.setdefault(FLAT_BOX_NOTE, []).append(f"[{number}]")
                objects.setdefault((name, str(category)), []).append(PosedObject(points, box, size, file))
            else:
                notes.setdefault(NO_POINT_NOTE, []).append(f"[{number}]")
                without_points.add((str(image.get("file_name")), str(category)))
        warn_notes(file, notes)
    return PosedObjects(objects, names, without_points, files[0].parent)


def read_id(entry: object, key: str, location: str) -> Id:
    """Return an id: a whole number, or a text; refuse anything else, by its place and the field."""
    require_field(entry, key, location)
    assert isinstance(entry, Mapping)
    return require_id(entry, key, location)


def _index_entries(content: object, key: str, file: Path) -> dict[Id, JsonMapping]:
    """Return the entries of a list by their ids; the same entry may be there twice."""
    entries: dict[Id, JsonMapping] = {}
    for number, entry in enumerate(require_list(content, key, file)):
        entry_id = read_id(entry, "id", f"{file}, {key}[{number}]")
        if entries.setdefault(entry_id, entry) != entry:
            raise UserError(f"{file}: two of `{key}` have the id {quote_json(entry_id)}. {REMEDY}")
    return entries


def _read_name(category: Id, entry: JsonMapping, file: Path) -> str:
    name = entry.get("name", str(category))
    if not isinstance(name, str) or not name.strip():
        raise UserError(
            f"{file}, category {quote_json(category)}: `name` is {quote_json(name)}; it must be a text. {REMEDY}"
        )
    return name


def _find_image(entry: object, images: Mapping[Id, JsonMapping], location: str) -> JsonMapping:
    image_id = read_id(entry, "image_id", location)
    if (image := find_by_id(images, image_id)) is None:
        raise UserError(f"{location} names image_id {quote_json(image_id)}, which the file does not define. {REMEDY}")
    return image


def _read_points(values: object, location: str) -> tuple[tuple[Point, ...], int]:
    """Return the points, whose names are their numbers, and how many have v = -1."""
    count = len(values) // 3 if isinstance(values, list) else 0
    points, num_negative = read_keypoints(values, [str(i) for i in range(count)], location)
    return tuple(points), num_negative
