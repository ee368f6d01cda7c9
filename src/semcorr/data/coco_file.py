"""The one reader of COCO keypoint files: images, categories and annotations, checked, with the ids of the file.

The dialects of annotation tools are understood, and what was left out or assumed is reported once, with counts.
Contradictions are refused: the error names the annotation, the field and the value as the file has them.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import NamedTuple, TypeVar

from semcorr.core.errors import UserError
from semcorr.core.paths import find_inside
from semcorr.core.text_files import JsonMapping, read_json
from semcorr.data.coco_fields import (
    LAYOUTS,
    CocoBox,
    Id,
    are_shares,
    box_overhang,
    find_by_id,
    is_plausible_box,
    other_corners,
    quote_json,
    read_box,
    read_flag,
    read_keypoints,
    read_size,
    require_id,
)
from semcorr.data.pictures import measure_picture, warn_about_frames
from semcorr.data.record import Point

log = logging.getLogger(__name__)

REMEDY = "Give a COCO keypoint file: an object with images, annotations and categories."
NO_BOX_NOTE = "annotations have no `bbox`, and the box around their keypoints serves"
NO_POINT_NOTE = "annotations show no keypoint and are left out"
FLAT_BOX_NOTE = "annotations have a `bbox` without area, which is none"
NEGATIVE_NOTE = "annotations have keypoints of v = -1, which are not annotated"
MAX_EXAMPLES = 3  # examples in a warning
Notes = dict[str, list[str]]  # what is to be said, and of what
Owner = TypeVar("Owner")  # of an annotation: its image or its category


class CocoImage(NamedTuple):
    """An image of the file."""

    id: Id
    file_name: str  # as in the file
    name: str  # as the file is called below the folder
    path: Path  # it need not exist
    size: tuple[int, int] | None  # width and height, if they are said


class CocoCategory(NamedTuple):
    """A category; one without keypoints has nothing to be annotated."""

    id: Id
    name: str
    keypoints: tuple[str, ...]
    entry: JsonMapping  # as in the file


class CocoAnnotation(NamedTuple):
    """An object, no crowd, of a category with keypoints."""

    id: Id  # a free one, where the file has none
    location: str  # for messages
    image: CocoImage
    category: CocoCategory
    box: CocoBox | None  # None: none, or none with an area
    flat: list | None  # the one without area, as in the file; None: there is none such
    points: list[Point]

    @property
    def annotated(self) -> bool:
        """Whether any keypoint is annotated."""
        return any(point is not None for point in self.points)


class CocoFile(NamedTuple):
    """The checked content of a COCO file."""

    images: dict[Id, CocoImage]
    categories: list[CocoCategory]  # one of each name
    annotations: list[CocoAnnotation]
    referenced_images: set[Id]  # images that an annotation names, if only that of a crowd


def read_coco(path: Path, folder: Path, option: str, layout: str = "xywh", layout_option: str = "") -> CocoFile:
    """Read and check a file.

    Args:
        path: COCO: images, annotations, categories. AnimalPose's dialect is understood, too.
        folder: The folder of the images, subfolders included.
        option: The option that gives the folder, for messages.
        layout: Layout of the boxes: `xywh` or `xyxy`.
        layout_option: The option that gives the layout, for messages.

    Raises:
        UserError: The file is not a COCO file, or contradicts itself.
    """
    content = read_json(path, REMEDY, unique=True)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__} and no object. {REMEDY}")
    notes: Notes = {}
    images = _read_images(_require_image_entries(content, path), folder, path, option, notes)
    categories = _read_categories(_require_list(content, "categories", path), path, notes)
    entries = _require_list(content, "annotations", path)
    ids = _assign_annotation_ids(entries, path)
    named: set[Id] = set()
    annotations: list[CocoAnnotation] = []
    for number, (key, entry) in enumerate(zip(ids, entries, strict=True)):
        location = (
            f"{path}, annotations[{number}]" if entry.get("id") is None else f"{path}, annotation {quote_json(key)}"
        )
        image, category = (
            _find_owner(entry, "image_id", images, location),
            _find_owner(entry, "category_id", categories, location),
        )
        location += f" of {quote_json(image.file_name)}"
        if read_flag(entry, "iscrowd", location):
            notes.setdefault("annotations of crowds are left out", []).append(str(key))
        elif not category.keypoints:
            _require_none(entry, category, location)
            notes.setdefault("annotations of categories without keypoints are left out", []).append(str(key))
        else:
            annotation = _read_annotation(key, entry, image, category, location, (layout, layout_option), notes)
            if not annotation.annotated and annotation.flat is not None and not any(annotation.flat):
                notes.setdefault("annotations show no keypoint and no box, and are left out", []).append(str(key))
                continue  # begun and left: of its image nothing is said
            annotations.append(annotation)
        named.add(image.id)
    _require_pixels(annotations, path)
    _check_boxes(annotations, layout, layout_option, path, notes)
    warn_notes(path, notes)
    return CocoFile(images, _unique_categories(categories), annotations, named)


def warn_notes(path: Path, notes: Mapping[str, list[str]]) -> None:
    """Warn of what was left out or assumed, with counts.

    Args:
        path: File that is read.
        notes: What was left out or assumed, as it follows a count; with the things that it is said of.
    """
    for note, examples in notes.items():
        ellipsis = ", ..." if len(examples) > MAX_EXAMPLES else ""
        log.warning("%s: %d %s (%s%s)", path, len(examples), note, ", ".join(examples[:MAX_EXAMPLES]), ellipsis)


def _require(entry: object, key: str, location: str) -> object:
    if not isinstance(entry, Mapping):
        raise UserError(f"{location} is {quote_json(entry)} and no object. {REMEDY}")
    if key not in entry:
        raise UserError(f"{location}: no field `{key}`. {REMEDY}")
    return entry[key]


def _require_list(content: object, key: str, path: Path) -> list:
    entries = _require(content, key, str(path))
    if not isinstance(entries, list):
        raise UserError(f"{path}: `{key}` must be a list, got {quote_json(entries)}. {REMEDY}")
    return entries


def _require_image_entries(content: object, path: Path) -> list:
    """Return the entries of the images; AnimalPose has names by ids in place of a list."""
    names = _require(content, "images", str(path))
    if not isinstance(names, dict):
        return _require_list(content, "images", path)
    integer_ids = {str(int(i)): int(i) for i in names if re.fullmatch("[0-9]{1,20}", i)}
    return [{"id": integer_ids.get(i, i), "file_name": name} for i, name in names.items()]


def _read_images(entries: list, folder: Path, path: Path, option: str, notes: Notes) -> dict[Id, CocoImage]:
    """Return the images by id."""
    images: dict[Id, CocoImage] = {}
    for number, entry in enumerate(entries):
        _require(entry, "id", f"{path}, images[{number}]")
        key = require_id(entry, "id", f"{path}, images[{number}]")
        location = f"{path}, image {quote_json(key)}"
        file_name = _require(entry, "file_name", location)
        name = find_inside(folder, file_name, f"{location}, field `file_name`,", option)
        assert isinstance(file_name, str)
        if name != file_name:
            note = "names of images are read as their files are called"
            notes.setdefault(note, []).append(f"{quote_json(file_name)} as {quote_json(name)}")
        if key in images:
            raise UserError(f"{path}: two images have the id {quote_json(key)}. Give each its own.")
        images[key] = CocoImage(key, file_name, name, folder / name, read_size(entry, location))
    return images


def _read_categories(entries: list, path: Path, notes: Notes) -> dict[Id, CocoCategory]:
    """Return the categories by id; those of the same name are one."""
    categories: dict[Id, CocoCategory] = {}
    by_name: dict[str, CocoCategory] = {}
    for number, entry in enumerate(entries):
        _require(entry, "id", f"{path}, categories[{number}]")
        key = require_id(entry, "id", f"{path}, categories[{number}]")
        location = f"{path}, category {quote_json(key)}"
        name = str(key) if entry.get("name") is None else entry["name"]
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{location}: `name` is {quote_json(name)}; it must be a text. Correct it.")
        if key in categories:
            raise UserError(f"{path}: two categories have the id {quote_json(key)}. Give each its own.")
        categories[key] = CocoCategory(key, name, _keypoint_names(entry.get("keypoints"), location), entry)
        if not categories[key].keypoints:
            continue
        first = by_name.setdefault(name, categories[key])
        if first.keypoints != categories[key].keypoints:
            raise UserError(
                f"{path}: the categories {quote_json(first.id)} and {quote_json(key)} are both called "
                f"{quote_json(name)}, and have other keypoints. Rename one, or give both the same keypoints."
            )
        if first.id != key:
            notes.setdefault("categories are those of the same name before", []).append(f"{key} is {first.id}")
            categories[key] = first
    if not by_name:
        raise UserError(f"{path} has no category that has keypoints: it has no `keypoints`, their names. Add them.")
    return categories


def _keypoint_names(names: object, location: str) -> tuple[str, ...]:
    if names is None or names == []:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{location}: `keypoints` is {quote_json(names)}; it must be a list of names. Correct it.")
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise UserError(
            f"{location}: two of its `keypoints` are called {quote_json(duplicate)}. Give each a name of its own."
        )
    return tuple(names)


def _unique_categories(categories: Mapping[Id, CocoCategory]) -> list[CocoCategory]:
    return list({category.id: category for category in categories.values()}.values())


def _assign_annotation_ids(entries: list, path: Path) -> list[Id]:
    """Return each annotation's id; without one in the file its position, or the next free number."""
    ids: list[Id | None] = []
    unique_ids: set[Id] = set()
    for number, entry in enumerate(entries):
        _require(entry, "image_id", f"{path}, annotations[{number}]")
        key = None if entry.get("id") is None else require_id(entry, "id", f"{path}, annotations[{number}]")
        if key is not None and key in unique_ids:
            raise UserError(f"{path}: two annotations have the id {quote_json(key)}. Give each its own, or drop one.")
        ids.append(key)
        if key is not None:
            unique_ids.add(key)
    used_texts = {str(key) for key in unique_ids}
    return [
        key if key is not None else next(i for i in count(number, len(ids)) if str(i) not in used_texts)
        for number, key in enumerate(ids)
    ]


def _find_owner(entry: JsonMapping, key: str, entries_by_id: Mapping[Id, Owner], location: str) -> Owner:
    """Return the image or category of an annotation."""
    _require(entry, key, location)
    value = require_id(entry, key, location)
    if (owner := find_by_id(entries_by_id, value)) is None:
        raise UserError(
            f"{location} names {key} {quote_json(value)}, which the file does not define. Drop or correct it."
        )
    return owner


def _require_none(entry: JsonMapping, category: CocoCategory, location: str) -> None:
    values = entry.get("keypoints")
    if values and (not isinstance(values, list) or any(values)):
        raise UserError(
            f"{location} has keypoints, and its category {quote_json(category.name)} has no `keypoints`, their "
            "names. Add them."
        )


def _read_annotation(
    key: Id,
    entry: JsonMapping,
    image: CocoImage,
    category: CocoCategory,
    location: str,
    layout: tuple[str, str],
    notes: Notes,
) -> CocoAnnotation:
    points, num_negative = read_keypoints(entry.get("keypoints"), category.keypoints, location)
    bbox = entry.get("bbox")
    box = read_box(bbox, layout[0], location, layout[1])
    flat = None if box or bbox == [] else bbox
    num_visible = sum(point is not None for point in points)
    if num_negative:
        notes.setdefault(NEGATIVE_NOTE, []).append(str(key))
    if num_visible and flat:
        notes.setdefault(FLAT_BOX_NOTE, []).append(str(key))
    if (num_keypoints := entry.get("num_keypoints")) not in (None, num_visible, len(points)):
        note = "annotations have a `num_keypoints` that contradicts their keypoints, which count"
        notes.setdefault(note, []).append(f"{key}: {quote_json(num_keypoints)}, not {num_visible}")
    return CocoAnnotation(key, location, image, category, box, flat, points)


def _require_pixels(annotations: Iterable[CocoAnnotation], path: Path) -> None:
    """Refuse a file whose coordinates are fractions of the images' sides."""
    annotated = [annotation for annotation in annotations if annotation.annotated]
    points = [value for annotation in annotated for point in annotation.points if point is not None for value in point]
    boxes = [value for annotation in annotated if annotation.box for value in annotation.box.xywh]
    for kind, values in (("keypoints", points), ("boxes", boxes)):
        if values and are_shares(values):
            raise UserError(
                f"{path}: all its {kind} are from 0 to 1, as those of annotation {quote_json(annotated[0].id)}: they "
                "are fractions of the images' sides, and COCO counts pixels. Multiply x by width and y by height."
            )


def _check_boxes(annotations: Iterable[CocoAnnotation], layout: str, option: str, path: Path, notes: Notes) -> None:
    """Refuse boxes that make sense in the other layout, and not in this one; note those that reach outside.

    An xyxy box read as xywh still holds its keypoints, but reaches outside the image where the object is to the right
    or below; an xywh box read as xyxy misses them. Hardly any correct box makes sense as both.
    """
    sizes = cache(lambda image: image.size or _measure_image(image.path))
    boxed = [
        (annotation, annotation.box, size)
        for annotation in annotations
        if annotation.box and (size := sizes(annotation.image))
    ]
    wrong = [
        annotation for annotation, box, size in boxed if not is_plausible_box(box.corners, annotation.points, size)
    ]
    otherwise = sum(
        is_plausible_box(other_corners(box, layout), annotation.points, size) for annotation, box, size in boxed
    )
    least = 1 if layout == "xywh" else len(boxed) // 2 + 1
    if len(wrong) >= max(least, 2 * (len(boxed) - otherwise)) and 10 * otherwise >= 9 * len(boxed):
        other_layout = next(name for name in LAYOUTS if name != layout)
        raise UserError(
            f"{path}: {len(wrong)} of {len(boxed)} boxes, as that of annotation {quote_json(wrong[0].id)}, read as "
            f"{LAYOUTS[layout]}, reach outside their images or miss their keypoints, and as "
            f"{LAYOUTS[other_layout]} "
            f"{len(boxed) - otherwise} do. Give {option}={other_layout}; if they are {layout} all the same, "
            "correct them."
        )
    if outside := [str(annotation.id) for annotation, box, size in boxed if box_overhang(box.corners, size) > 1]:
        notes["annotations have a `bbox` that reaches outside its image, and is used as it is"] = outside
    if strange := [str(annotation.id) for annotation, box, _ in boxed if _holds_none(box, annotation.points)]:
        notes["annotations have a `bbox` that holds none of their keypoints, and is used as it is"] = strange


def _holds_none(box: CocoBox, points: Iterable[Point]) -> bool:
    """Return whether a box holds none of the annotated keypoints, within a pixel; it may be that of another object."""
    x1, y1, x2, y2 = box.corners
    inside = [x1 - 1 <= p[0] <= x2 + 1 and y1 - 1 <= p[1] <= y2 + 1 for p in points if p is not None]
    return bool(inside) and not any(inside)


def _measure_image(path: Path) -> tuple[int, int] | None:
    """Return the size of an image where the file gives none; its reader refuses or leaves out unreadable ones."""
    with suppress(UserError), warn_about_frames(None):
        return measure_picture(path).size
    return None
