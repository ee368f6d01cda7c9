"""The elements of a CVAT file: an image with its shapes, and the labels that the file declares."""

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from semcorr.core.errors import UserError
from semcorr.core.paths import find_inside, quote_value
from semcorr.data.coco_fields import Corners
from semcorr.data.coco_file import Notes
from semcorr.inference.transfer.formats.fields import FOLDER_OPTION, ImageFolder, read_number, read_side
from semcorr.inference.transfer.formats.grouping import XY, MarkedBox, MarkedPoint, rotated_corners
from semcorr.inference.transfer.objects import TransferImage

FLAGS = {"0": False, "1": True, "false": False, "true": True}
TAG = "tag"  # is of an image, and no object in it
OTHER_SHAPES = ("polygon", "polyline", "mask", "ellipse", "cuboid", TAG)  # which hold no keypoint


class ImageShapes(NamedTuple):
    """An image of a CVAT file with its skeletons, points and boxes."""

    photo: TransferImage
    name: str  # as in the file
    location: str  # file and image, for messages
    skeletons: list[tuple[str, dict[str, XY], str | None]]  # label, annotated keypoints, group
    points: list[MarkedPoint]
    boxes: list[MarkedBox]
    is_annotated: bool  # by any shape, even one that is left out


def read_image_shapes(
    number: int,
    element: Element,
    path: Path,
    folder: ImageFolder,
    point_labels: dict[str, list[str]],
    notes: Notes,
) -> ImageShapes:
    """Read an image with its shapes.

    Args:
        number: Id that the image gets.
        element: The element `image`.
        path: The file, for messages.
        folder: Folder of the images.
        point_labels: Keypoints of each label of points without a skeleton; those of the image are added.
        notes: Notes on what is left out; those on the image are added.

    Raises:
        UserError: The image is not in the folder, or a shape is wrong.
    """
    name = str(element.get("name") or "")
    location = f"{path}, image {quote_value(name)}"
    find_inside(folder.folder, name, location, FOLDER_OPTION)  # refuses a name that leads out of the folder
    file = folder.find(name, location)
    size = (
        read_side(element.get("width"), "width", location),
        read_side(element.get("height"), "height", location),
    )
    photo = TransferImage(number, file, folder.folder / file, size)
    is_annotated = any(child.tag != TAG for child in element)
    shapes = ImageShapes(photo, name, location, [], [], [], is_annotated)
    for child in element:
        label, group = child.get("label"), child.get("group_id")
        if child.tag in OTHER_SHAPES:
            notes.setdefault("shapes are not points, skeletons or boxes, and are left out", []).append(
                f"{file}: {quote_value(label)}"
            )
            continue
        if child.tag not in ("skeleton", "points", "box") or not label:
            raise UserError(f"{location}: {quote_value(child.tag)} is not a shape with a `label`. Correct it.")
        where = f"{location}, {child.tag} {quote_value(label)}"
        if child.tag == "skeleton":
            shapes.skeletons.append((label, _read_skeleton(child, where), group))
        elif child.tag == "box":
            shapes.boxes.append(MarkedBox(label, _read_box(child, where), group))
        else:
            shapes.points.extend(_read_points(child, label, point_labels, where))
    return shapes


def _read_skeleton(skeleton: Element, location: str) -> dict[str, XY]:
    """Return the annotated keypoints of a skeleton."""
    points: dict[str, XY] = {}
    names: set[str] = set()
    for element in skeleton:
        if element.tag == "attribute":
            continue
        name = element.get("label")
        if element.tag != "points" or not name:
            raise UserError(f"{location}: {quote_value(element.tag)} is not `points` with a `label`. Correct it.")
        if name in names:
            raise UserError(f"{location} has the keypoint {quote_value(name)} twice. Drop one.")
        names.add(name)
        _read_flag(element, "occluded", location)
        if not _read_flag(element, "outside", location):
            pairs = _read_pairs(element, f"{location}, keypoint {quote_value(name)}")
            if len(pairs) != 1:
                raise UserError(f"{location}: the keypoint {quote_value(name)} has {len(pairs)} points, not one.")
            points[name] = pairs[0]
    return points


def _read_points(
    element: Element, label: str, point_labels: dict[str, list[str]], location: str
) -> Iterator[MarkedPoint]:
    """Yield the keypoints of `points` that stand by themselves."""
    pairs = _read_pairs(element, location)
    names = [label] if len(pairs) == 1 else [f"{label} {i}" for i in range(1, len(pairs) + 1)]
    if point_labels.setdefault(label, names) != names:
        raise UserError(
            f"{location} has {len(pairs)} points, and {len(point_labels[label])} before, so it is unclear which is "
            "which. Give each keypoint a label of its own."
        )
    if not _read_flag(element, "outside", location):
        group = element.get("group_id")
        yield from (MarkedPoint(name, pair, group) for name, pair in zip(names, pairs, strict=True))


def _read_pairs(element: Element, location: str) -> list[XY]:
    """Return the points of `x,y;x,y`."""
    pairs = [pair.split(",") for pair in (element.get("points") or "").split(";")]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(f"{location}: `points` is {quote_value(element.get('points'))}, and not x,y;x,y. Correct it.")
    return [(read_number(x, "points", location), read_number(y, "points", location)) for x, y in pairs]


def _read_flag(element: Element, name: str, location: str) -> bool:
    """Return an attribute that is 0 or 1; absent, it is 0."""
    value = element.get(name, "0")
    if value.lower() not in FLAGS:
        raise UserError(f"{location}: `{name}` is {quote_value(value)}; it must be 0 or 1. Correct it.")
    return FLAGS[value.lower()]


def _read_box(element: Element, location: str) -> Corners:
    """Return the corners of a box; of one that is turned about its centre, those of the upright one around it."""
    x1, y1, x2, y2 = (read_number(element.get(name), name, location) for name in ("xtl", "ytl", "xbr", "ybr"))
    if x2 <= x1 or y2 <= y1:
        raise UserError(f"{location}: {[x1, y1, x2, y2]} has no area. Drop or correct it.")
    rotation = read_number(element.get("rotation", "0"), "rotation", location)
    return rotated_corners((x1, y1, x2, y2), rotation, ((x1 + x2) / 2, (y1 + y2) / 2))


def read_labels(root: Element) -> tuple[dict[str, list[str]], dict[str, list[list[int]]]]:
    """Return the keypoints of each skeleton that the file declares, and its edges, counted from 1."""
    labels = [label for label in root.iter("label") if label.findtext("name")]
    parts: dict[str, list[str]] = {}  # names of labels, by that of their parent
    for label in labels:
        parts.setdefault(label.findtext("parent") or "", []).append(label.findtext("name") or "")
    keypoints: dict[str, list[str]] = {}
    edges: dict[str, list[list[int]]] = {}
    for label in labels:
        name = label.findtext("name") or ""
        if (label.findtext("type") or "").strip() == "skeleton" and name in parts:
            keypoints[name] = list(dict.fromkeys(parts[name]))
            edges[name] = _read_edges(label.findtext("svg") or "", keypoints[name])
    return keypoints, edges


def _read_edges(svg: str, names: list[str]) -> list[list[int]]:
    """Return the edges of a skeleton's drawing, which names its nodes by number; nodes without a name have no edge."""
    nodes: dict[str | None, str | None] = {}
    lines: list[tuple[str | None, str | None]] = []
    for tag, text in re.findall(r"<(circle|line)\b([^<>]{0,2000})", svg):
        fields = dict(re.findall(r'(data-[a-z-]+)="([^"]*)"', text))
        if tag == "circle":
            nodes[fields.get("data-node-id")] = unescape(fields.get("data-label-name", ""))
        else:
            lines.append((fields.get("data-node-from"), fields.get("data-node-to")))
    ends = [(nodes.get(start), nodes.get(end)) for start, end in lines]
    return [[names.index(start) + 1, names.index(end) + 1] for start, end in ends if start in names and end in names]
