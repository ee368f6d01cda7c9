"""Which keypoints and boxes are of one object, in files that say it by groups, or only by where they lie."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value
from semcorr.core.text_files import JsonMapping
from semcorr.data.coco_fields import Corners, Id
from semcorr.data.coco_file import Notes
from semcorr.inference.transfer.objects import AnnotatedObject, TransferImage, build_object

XY = tuple[float, float]
OBJECT = "object"  # category of keypoints where no box names one
TOLERANCE = 1.0  # pixels by which a keypoint may lie outside its box


class MarkedPoint(NamedTuple):
    """A keypoint that stands by itself."""

    name: str
    point: XY  # of a frame whose corner is at 0
    group: str | None  # what says of which object it is


class MarkedBox(NamedTuple):
    """A box."""

    label: str
    corners: Corners  # x1, y1, x2, y2, of a frame whose corner is at 0
    group: str | None


class MarkedObject(NamedTuple):
    """The box and keypoints of one object."""

    box: MarkedBox | None
    points: dict[str, XY]


def group_points(
    points: Sequence[MarkedPoint], boxes: Sequence[MarkedBox], location: str, remedy: str
) -> list[MarkedObject]:
    """Return the objects of an image: one for each box and group, and one of keypoints where there is no box.

    A keypoint is of its group; without one, of the only box of the image, or of the only box that contains it.

    Args:
        points: Keypoints of the image.
        boxes: Boxes of the image.
        location: File and image, for messages.
        remedy: What to do in the tool, for messages.

    Raises:
        UserError: A keypoint may be of several boxes or of none, or one object has a keypoint twice.
    """
    box_groups = [box.group for box in boxes if box.group is not None]
    if len(set(box_groups)) < len(box_groups):
        raise UserError(f"{location}: two boxes are in one group. {remedy}")
    objects: dict[object, MarkedObject] = {}  # by group, or by number of the box
    keys = [i if box.group is None else box.group for i, box in enumerate(boxes)]
    objects.update((key, MarkedObject(box, {})) for key, box in zip(keys, boxes, strict=True))
    for name, point, group in points:
        key: object = group
        if group is None and boxes:
            inside = [key for key, box in zip(keys, boxes, strict=True) if contains(box.corners, [point])]
            choices = keys if len(boxes) == 1 else inside
            if len(choices) != 1:
                raise UserError(
                    f"{location}: the keypoint {quote_value(name)} lies in {len(inside)} of {len(boxes)} boxes, so it "
                    f"is unclear which object it belongs to. {remedy}"
                )
            key = choices[0]
        marked = objects.setdefault(key, MarkedObject(None, {}))
        if name in marked.points:
            raise UserError(f"{location}: one object has the keypoint {quote_value(name)} twice. {remedy}")
        marked.points[name] = point
    return list(objects.values())


def assign_boxes(
    objects: Sequence[tuple[Mapping[str, XY], str | None]], boxes: Sequence[MarkedBox], location: str, remedy: str
) -> list[MarkedObject]:
    """Return objects with their boxes, then boxes without an object: a box is of its group, or of what it contains.

    Args:
        objects: Keypoints and group of each object.
        boxes: Boxes of the image.
        location: File and image, for messages.
        remedy: What to do in the tool, for messages.

    Raises:
        UserError: It is unclear which box belongs to which object.
    """
    owners: dict[int, int] = {}  # of boxes, by number
    for number, (points, group) in enumerate(objects):
        choices = [i for i, box in enumerate(boxes) if group is not None and box.group == group]
        if points and not choices:  # every box contains a skeleton without points
            choices = [i for i, box in enumerate(boxes) if contains(box.corners, list(points.values()))]
        if len(choices) > 1 or any(i in owners for i in choices):
            raise UserError(f"{location}: it is unclear which box belongs to which object. {remedy}")
        owners.update((i, number) for i in choices)
    by_object = {number: boxes[i] for i, number in owners.items()}
    marked = [MarkedObject(by_object.get(number), dict(points)) for number, (points, _) in enumerate(objects)]
    return marked + [MarkedObject(box, {}) for i, box in enumerate(boxes) if i not in owners]


def label_objects(
    objects: Sequence[tuple[TransferImage, MarkedObject]], path: Path, remedy: str, notes: Notes
) -> list[tuple[TransferImage, str, MarkedObject]]:
    """Return objects with their categories: the labels of their boxes.

    An object without a box is of the only category there is, which is called OBJECT if no box names it. Boxes of a
    label that no keypoints have are left out, which is noted.

    Args:
        objects: Objects, each with its image.
        path: File of the annotations, for messages.
        remedy: What to do in the tool, for messages.
        notes: Notes on what is left out, to which those boxes are added.

    Raises:
        UserError: There are several categories, and objects without a box.
    """
    labels = dict.fromkeys(marked.box.label for _, marked in objects if marked.box and marked.points)
    labels = labels or dict.fromkeys(marked.box.label for _, marked in objects if marked.box)
    unboxed = [photo.name for photo, marked in objects if marked.box is None]
    if unboxed and len(labels) > 1:
        raise UserError(
            f"{path}: there are boxes of {', '.join(map(quote_value, labels))}, and keypoints of "
            f"{len(unboxed)} images, such as {unboxed[0]}, are in no box, so their category is unclear. {remedy}"
        )
    pairs = []
    for photo, marked in objects:
        label = marked.box.label if marked.box else next(iter(labels), OBJECT)
        if marked.box and label not in labels:
            note_boxes(photo, [marked.box], notes)
        else:
            pairs.append((photo, label, marked))
    return pairs


def note_boxes(photo: TransferImage, boxes: Sequence[MarkedBox], notes: Notes) -> None:
    """Note boxes that are left out."""
    note = "boxes are of labels that are around no keypoints, and are left out"
    notes.setdefault(note, []).extend(f"{photo.name}: {quote_value(box.label)}" for box in boxes)


def contains(corners: Corners, points: Sequence[XY]) -> bool:
    """Tell whether a box contains all points; they may lie outside by a pixel."""
    x1, y1, x2, y2 = corners
    return all(x1 - TOLERANCE <= x <= x2 + TOLERANCE and y1 - TOLERANCE <= y <= y2 + TOLERANCE for x, y in points)


def rotated_corners(corners: Corners, degrees: float, pivot: XY) -> Corners:
    """Return the upright box around a box that is turned clockwise about a pivot.

    >>> rotated_corners((0.0, 0.0, 4.0, 2.0), 90, (0.0, 0.0))
    (-2.0, 0.0, 0.0, 4.0)
    """
    if degrees % 360 == 0:
        return corners
    x1, y1, x2, y2 = corners
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    ends = (np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)]) - pivot) @ turn.T + pivot
    (left, upper), (right, lower) = ends.min(0).round(6).tolist(), ends.max(0).round(6).tolist()
    return left, upper, right, lower


def to_objects(
    marked_objects: Sequence[tuple[TransferImage, str, MarkedObject]], categories: Mapping[Id, JsonMapping]
) -> list[AnnotatedObject]:
    """Return objects of the categories of their labels, numbered from 1; pixel centres are at integers."""
    ids = {str(entry["name"]): key for key, entry in categories.items()}
    objects = []
    for number, (photo, label, marked) in enumerate(marked_objects, 1):
        places = [marked.points.get(name) for name in categories[ids[label]]["keypoints"]]
        centres = [None if place is None else (place[0] - 0.5, place[1] - 0.5) for place in places]
        box = None
        if marked.box:
            x1, y1, x2, y2 = marked.box.corners
            box = (x1, y1, x2 - x1, y2 - y1)
        objects.append(build_object(number, photo, ids[label], box, centres))
    return objects
