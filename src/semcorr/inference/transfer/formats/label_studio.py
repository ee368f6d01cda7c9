"""Label Studio's JSON: keypoints and rectangles of its tasks.

x and y are percent of the image's width and height from its left upper corner: the first pixel's centre is at half a
pixel. A task names its image by a URL.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value
from semcorr.core.text_files import JsonMapping, read_json
from semcorr.data.coco_file import Notes, warn_notes
from semcorr.data.pictures import SUFFIXES
from semcorr.inference.transfer.formats.fields import ImageFolder, read_number, read_side, require_json_value
from semcorr.inference.transfer.formats.grouping import (
    MarkedBox,
    MarkedObject,
    MarkedPoint,
    group_points,
    label_objects,
    rotated_corners,
    to_objects,
)
from semcorr.inference.transfer.objects import AnnotationFile, LabelStudioNames, TransferImage, build_categories

REMEDY = "Export the project from Label Studio as JSON (not JSON-MIN), and give that file."
GROUP = "Draw a rectangle around each object, and drag its keypoints onto it in the list of regions."
REGIONS = {"keypointlabels": "keypoints", "rectanglelabels": "rectangles"}  # regions that are read, and their controls
UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)")  # what Label Studio calls a file that was uploaded
IMAGE_SUFFIXES = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)


class _Task(NamedTuple):
    """A task with what is annotated in it."""

    photo: TransferImage
    data: JsonMapping
    objects: list[MarkedObject]  # in pixels from the image's corner
    is_annotated: bool  # by any region, even one that is left out


def read_label_studio_objects(path: Path, folder: Path) -> AnnotationFile:
    """Read the annotations of tasks; predictions, and annotations that were cancelled, are not annotations.

    A keypoint belongs to the rectangle that it is under in the list of regions, otherwise to the only one, or the only
    one that contains it; a rectangle without keypoints is an object to be labelled. The rectangle's label is the
    category (`label_objects`). A task without regions is one without annotation.

    Args:
        path: The export.
        folder: Folder of the images.

    Raises:
        UserError: The file is not such an export, or contradicts itself or the folder.
    """
    entries = read_json(path, REMEDY, unique=True)
    if not isinstance(entries, list):
        raise UserError(f"{path} holds a {type(entries).__name__} and no list of tasks. {REMEDY}")
    notes: Notes = {}
    controls: dict[str, str] = {}
    finder = ImageFolder(folder, notes)
    tasks = [_read_task(i, entry, path, finder, controls, notes) for i, entry in enumerate(entries)]
    _require_unique([(entry.get("id"), task.photo.name) for entry, task in zip(entries, tasks, strict=True)], path)
    objects = label_objects([(task.photo, marked) for task in tasks for marked in task.objects], path, GROUP, notes)
    keypoints: dict[str, list[str]] = {}
    for _, label, marked in objects:
        names = keypoints.setdefault(label, [])
        names += [name for name in marked.points if name not in names]
    categories = build_categories(keypoints)
    warn_notes(path, notes)
    return AnnotationFile(
        categories,
        {task.photo.id: task.photo for task in tasks},
        to_objects(objects, categories),
        {task.photo.id for task in tasks if task.is_annotated},
        LabelStudioNames({task.photo.id: task.data for task in tasks}, **controls),
    )


def _require_unique(tasks: Sequence[tuple[object, str]], path: Path) -> None:
    """Refuse a task that is there twice, as of exports that were joined: its objects would count twice."""
    known: set[tuple[str, str]] = set()
    for number, name in tasks:
        if number is not None and (str(number), name) in known:
            raise UserError(f"{path}: task {quote_value(number)} of {quote_value(name)} is there twice. Drop one.")
        known.add((str(number), name))


def _read_task(
    number: int, task: object, path: Path, folder: ImageFolder, controls: dict[str, str], notes: Notes
) -> _Task:
    """Read a task; `controls` are names of LabelStudioNames so far."""
    if not isinstance(task, Mapping) or not isinstance(task.get("data"), Mapping):
        raise UserError(f"{path}, task {number}: there is no `data` in it. {REMEDY}")
    location = f"{path}, task {quote_value(task.get('id', number))}"
    require_json_value(task["data"], f"{location}: `data`")
    url = _find_url(task["data"], controls, location)
    name = folder.find(url, location, _name_candidates(url))
    results = _choose_results(task, location, notes)
    size = _read_size(results, location)
    photo = TransferImage(number + 1, name, folder.folder / name, size)
    points: list[MarkedPoint] = []
    boxes: list[MarkedBox] = []
    is_annotated = False
    ids = {_read_group(result, "id") for result in results if result.get("type") == "rectanglelabels"}
    for result in results:
        kind, where = str(result.get("type")), f"{location}, region {quote_value(result.get('id'))}"
        is_annotated = is_annotated or kind in REGIONS or "original_width" in result  # else it is of the whole image
        if kind not in REGIONS:
            names = notes.setdefault("regions are neither keypoints nor rectangles with a label, and are left out", [])
            names.append(f"{name}: {quote_value(kind)}")
            continue
        assert size is not None  # each of these has one
        label, x, y = _read_region(result, kind, size, where)
        _note_controls(result, REGIONS[kind], controls, where)
        if kind == "keypointlabels":
            parent = _read_group(result, "parentID")
            points.append(MarkedPoint(label, (x, y), parent if parent in ids else None))
        else:
            corners = _read_corners(result["value"], x, y, size, where)
            boxes.append(MarkedBox(label, corners, _read_group(result, "id")))
    return _Task(photo, task["data"], group_points(points, boxes, location, GROUP), is_annotated)


def _read_group(result: JsonMapping, field: str) -> str | None:
    return None if result.get(field) is None else str(result[field])


def _find_url(data: JsonMapping, controls: dict[str, str], location: str) -> str:
    """Return the image's URL: that under the key of the tasks before, under `image`, or the only one there is."""
    urls = [
        key
        for key, value in data.items()
        if isinstance(value, str) and _name_candidates(value)[0].lower().endswith(IMAGE_SUFFIXES)
    ]
    key = controls.get("url", "image")
    if not isinstance(data.get(key), str):
        if len(urls) != 1:
            keys = ", ".join(map(quote_value, data)) or "nothing"
            raise UserError(f"{location}: `data` has {keys}, and it is unclear which is the image. Call it `image`.")
        key = urls[0]
    controls.setdefault("url", key)
    return str(data[key])


def _name_candidates(url: str) -> list[str]:
    """Return what the file of a URL may be called: as it is, and as it was before it was uploaded.

    >>> _name_candidates("/data/upload/1/0a1b2c3d-cat.jpg")
    ['data/upload/1/0a1b2c3d-cat.jpg', 'cat.jpg']
    >>> _name_candidates("/data/local-files/?d=cats/1.jpg"), _name_candidates("s3://bucket/cats/1.jpg")
    (['cats/1.jpg'], ['bucket/cats/1.jpg'])
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # no URL, if it begins as one
        return [url]
    files = parse_qs(parts.query).get("d", [])
    path = files[0] if files else f"{parts.netloc}/{parts.path}" if parts.netloc else parts.path or url
    path = path.strip("/").replace("//", "/")
    match = UPLOAD.fullmatch(path.rpartition("/")[2])
    return [path, match[1]] if match and "upload" in path.split("/") else [path]


def _choose_results(task: JsonMapping, location: str, notes: Notes) -> list[JsonMapping]:
    """Return the regions of the one annotation of a task that counts; none, if there is none."""
    annotations = task.get("annotations", task.get("completions"))
    if annotations is None:
        annotations = []
    if not isinstance(annotations, list) or not all(isinstance(entry, Mapping) for entry in annotations):
        raise UserError(f"{location}: `annotations` must be a list of objects. {REMEDY}")
    valid = [entry for entry in annotations if not entry.get("was_cancelled")]
    number = location.rpartition(" ")[2]
    if len(valid) < len(annotations):
        notes.setdefault("annotations were cancelled, and are left out", []).append(number)
    if not valid and task.get("predictions"):
        notes.setdefault("tasks have predictions alone, which are not annotations", []).append(number)
    truths = [entry for entry in valid if entry.get("ground_truth")] if len(valid) > 1 else valid
    if len(valid) > 1 and len(truths) != 1:
        raise UserError(
            f"{location} has {len(valid)} annotations, and it is unclear which of them counts. Mark one as the "
            "ground truth in Label Studio, or delete the others."
        )
    results = truths[0].get("result", []) if truths else []
    if not isinstance(results, list) or not all(isinstance(entry, Mapping) for entry in results):
        raise UserError(f"{location}: `result` must be a list of objects. {REMEDY}")
    return results


def _read_size(results: Sequence[JsonMapping], location: str) -> tuple[int, int] | None:
    """Return the size of the image that all regions give; None without regions."""
    sizes = set()
    for result in results:
        if str(result.get("type")) in REGIONS:
            sides = ("original_width", "original_height")
            width, height = (read_side(result.get(side), side, location) for side in sides)
            sizes.add((width, height))
            if result.get("image_rotation") not in (None, 0):
                raise UserError(
                    f"{location}: the image was turned in Label Studio (`image_rotation`), which is not read. Turn the "
                    "file itself, and annotate it again."
                )
    if len(sizes) > 1:
        raise UserError(f"{location}: its regions are of images of several sizes, {sorted(sizes)}. Correct them.")
    return next(iter(sizes), None)


def _read_region(result: JsonMapping, kind: str, size: tuple[int, int], location: str) -> tuple[str, float, float]:
    """Return a region's one label and its place in pixels."""
    value = result.get("value")
    labels = value.get(kind) if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(labels, list) or len(labels) != 1:
        raise UserError(f"{location} must have one label in `{kind}`, got {quote_value(labels)}. Correct it.")
    if not isinstance(labels[0], str) or not labels[0].strip():
        raise UserError(f"{location}: {quote_value(labels[0])} is not a label. Correct it.")
    return labels[0], _to_pixels(value, "x", size[0], location), _to_pixels(value, "y", size[1], location)


def _read_corners(
    value: JsonMapping, x: float, y: float, size: tuple[int, int], location: str
) -> tuple[float, float, float, float]:
    """Return the corners of a rectangle; of one turned about its left upper corner, of what is around it."""
    w, h = _to_pixels(value, "width", size[0], location), _to_pixels(value, "height", size[1], location)
    if w <= 0 or h <= 0:
        raise UserError(f"{location} is {w:g} x {h:g} pixels, and has no area. Drop or correct it.")
    return rotated_corners((x, y, x + w, y + h), read_number(value.get("rotation", 0), "rotation", location), (x, y))


def _to_pixels(value: JsonMapping, field: str, side: int, location: str) -> float:
    return read_number(value.get(field), field, location) * side / 100


def _note_controls(result: JsonMapping, control: str, controls: dict[str, str], location: str) -> None:
    """Note the names that the labelling interface gives its controls, which predictions must name."""
    for key, field in ((control, "from_name"), ("image", "to_name")):
        name = result.get(field)
        if not isinstance(name, str):
            raise UserError(f"{location}: `{field}` is {quote_value(name)}, and no name of a control. {REMEDY}")
        if controls.setdefault(key, name) != name:
            raise UserError(
                f"{location} is of {quote_value(name)} in the labelling interface, and those before of "
                f"{quote_value(controls[key])}. Use one control for each kind of region."
            )
