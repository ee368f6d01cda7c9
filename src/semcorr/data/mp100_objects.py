"""The annotated objects of MP-100: COCO keypoint files, in which each category has keypoints of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from semcorr.core.errors import UserError
from semcorr.core.paths import require_file_name
from semcorr.core.text_files import JsonMapping, read_json
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


def read_posed_objects(files: Sequence[Path]) -> PosedObjects:
    """Read annotation files, each with its own ids of images; objects without any point are left out.

    Raises:
        UserError: A file is not such a file, or contradicts itself.
    """
    objects: dict[tuple[str, str], list[PosedObject]] = {}
    names: dict[str, str] = {}
    for file in files:
        content = read_json(file, REMEDY)
        images = _index_entries(content, "images", file)
        if isinstance(content, Mapping) and "categories" in content:
            names |= {str(i): _read_name(i, x, file) for i, x in _index_entries(content, "categories", file).items()}
        for number, entry in enumerate(require_list(content, "annotations", file)):
            location = f"{file}, annotations[{number}]"
            image, category = _find_image(entry, images, location), read_id(entry, "category_id", location)
            points = _read_points(entry.get("keypoints"), location)
            if any(point is not None for point in points):
                file_name = f"{location}: the `file_name` of its image"
                name = require_file_name(require_field(image, "file_name", location), file_name, folders=True)
                box, size = read_box(entry.get("bbox"), "xywh", location), read_size(image, f"{location}: its image")
                objects.setdefault((name, str(category)), []).append(PosedObject(points, box, size, file))
    return PosedObjects(objects, names)


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


def _read_points(values: object, location: str) -> tuple[Point, ...]:
    """Return the points, whose names are their numbers."""
    count = len(values) // 3 if isinstance(values, list) else 0
    points, _ = read_keypoints(values, [str(i) for i in range(count)], location)
    return tuple(points)
