"""CVAT for images 1.1: skeletons, points and boxes, read from XML.

A coordinate is a distance from the left or upper edge of the image: the first pixel's centre is at 0.5.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from semcorr.core.errors import UserError
from semcorr.core.paths import find_inside, quote_value
from semcorr.core.xml_files import read_xml
from semcorr.data.coco_fields import Corners
from semcorr.data.coco_file import Notes, warn_notes
from semcorr.inference.transfer.formats.fields import FOLDER_OPTION, read_number, read_side
from semcorr.inference.transfer.formats.grouping import (
    XY,
    MarkedBox,
    MarkedObject,
    MarkedPoint,
    assign_boxes,
    group_points,
    rotated_corners,
    to_xywh,
)
from semcorr.inference.transfer.objects import AnnotationFile, TransferImage, build_categories, build_object

REMEDY = "Export the task from CVAT as `CVAT for images 1.1`, and give its annotations.xml."
GROUP = "Group what is of one object in CVAT (G), or annotate skeletons."
OBJECT = "object"  # category of points that are in no box
FLAGS = {"0": False, "1": True, "false": False, "true": True}
OTHER_SHAPES = ("polygon", "polyline", "mask", "ellipse", "cuboid", "tag")  # which hold no keypoint


class _Shapes(NamedTuple):
    """What an image has."""

    photo: TransferImage
    location: str
    skeletons: list[tuple[str, dict[str, XY], str | None]]  # label, annotated keypoints, group
    points: list[MarkedPoint]
    boxes: list[MarkedBox]


def read_cvat_objects(path: Path, folder: Path) -> AnnotationFile:
    """Read skeletons, points without a skeleton, and the boxes around them.

    A box belongs to the skeleton of its group, otherwise to the one that it contains. One around nothing is an object
    to be labelled, if elsewhere a box of its label is around a skeleton. Hidden (`occluded`) keypoints are annotated;
    those `outside` are not. Of `points` with several pairs, each is a keypoint, numbered from 1.

    Args:
        path: annotations.xml.
        folder: Folder of the images.

    Raises:
        UserError: The file is no such XML, or contradicts itself or the folder.
    """
    root = read_xml(path, REMEDY)
    if root.tag != "annotations":
        raise UserError(f"{path} is XML of {quote_value(root.tag)}, and not of `annotations`. {REMEDY}")
    if root.find("track") is not None:
        raise UserError(f"{path} has tracks: it is `CVAT for video`. {REMEDY}")
    notes: Notes = {}
    keypoints, edges = _read_labels(root)
    declared, plain = set(keypoints), dict[str, list[str]]()
    images = [_read_image(i, each, path, folder, plain, notes) for i, each in enumerate(root.iter("image"), 1)]
    for image in images:
        for label, points, _ in image.skeletons:
            _add_names(keypoints.setdefault(label, []), points, label in declared, f"{image.location}, {label}")
    boxed = [(image, *_with_boxes(image)) for image in images]
    box_labels = _pair_labels([pair for _, pairs, _ in boxed for pair in pairs], path)
    found = [(image.photo, label, marked) for image, pairs, _ in boxed for label, marked in pairs]
    for image, pairs, others in boxed:
        found += _free_boxes(image, [box for box in others if box.label in box_labels], pairs, box_labels)
        others = [box for box in others if box.label not in box_labels]
        if plain:
            found += _plain_objects(image, others, set(keypoints))
        elif others:
            names = [f"{image.photo.name}: {box.label}" for box in others]
            notes.setdefault("boxes are of labels that are around no keypoints, and are left out", []).extend(names)
    plain_names = [name for names in plain.values() for name in names]
    plain_labels = dict.fromkeys([label for _, label, _ in found if label not in keypoints])
    if OBJECT in plain_labels and len(plain_labels) > 1:
        raise UserError(f"{path}: some points are of objects in boxes, and some of images without one. {GROUP}")
    categories = build_categories(keypoints | dict.fromkeys(plain_labels, plain_names))
    ids = {str(entry["name"]): number for number, entry in categories.items()}
    objects = []
    for number, (photo, label, marked) in enumerate(found, 1):
        places = [marked.points.get(name) for name in categories[ids[label]]["keypoints"]]
        points = [None if place is None else (place[0] - 0.5, place[1] - 0.5) for place in places]
        objects.append(
            build_object(number, photo, ids[label], to_xywh(marked.box.corners) if marked.box else None, points)
        )
    warn_notes(path, notes)
    return AnnotationFile(
        {i: {**entry, "skeleton": edges.get(str(entry["name"]), [])} for i, entry in categories.items()},
        {image.photo.id: image.photo for image in images},
        objects,
        {item.photo.id for item in objects},
        {"plain points": dict.fromkeys(plain_labels, plain), "boxes": {v: k for k, v in box_labels.items()}},
    )


def _with_boxes(image: _Shapes) -> tuple[list[tuple[str, MarkedObject]], list[MarkedBox]]:
    """Return the skeletons of an image with their labels and boxes, and the boxes that are around none."""
    of_skeletons = [(points, group) for _, points, group in image.skeletons]
    marked = assign_boxes(of_skeletons, image.boxes if of_skeletons else [], image.location, GROUP)
    pairs = [(label, each) for (label, _, _), each in zip(image.skeletons, marked, strict=False)]
    used = [each.box for _, each in pairs]
    return pairs, [box for box in image.boxes if not any(box is each for each in used)]


def _pair_labels(pairs: Sequence[tuple[str, MarkedObject]], path: Path) -> dict[str, str]:
    """Return the skeleton's label that goes with the label of each box that is around one."""
    found: dict[str, str] = {}
    for label, marked in pairs:
        if marked.box and found.setdefault(marked.box.label, label) != label:
            raise UserError(
                f"{path}: boxes of the label {quote_value(marked.box.label)} are around {quote_value(label)} and "
                f"around {quote_value(found[marked.box.label])}. Give each a label of its own."
            )
    return found


def _free_boxes(
    image: _Shapes, boxes: Sequence[MarkedBox], pairs: Sequence[tuple[str, MarkedObject]], labels: Mapping[str, str]
) -> list[tuple[TransferImage, str, MarkedObject]]:
    """Return the objects that have only a box; refuse them beside a skeleton that has none and may be in it."""
    for box in boxes:
        if any(label == labels[box.label] and marked.box is None for label, marked in pairs):
            raise UserError(
                f"{image.location}: a box of {quote_value(box.label)} contains no skeleton, and a skeleton of "
                f"{quote_value(labels[box.label])} is in no box. {GROUP}"
            )
    return [(image.photo, labels[box.label], MarkedObject(box, {})) for box in boxes]


def _plain_objects(
    image: _Shapes, boxes: Sequence[MarkedBox], skeleton_labels: Collection[str]
) -> Iterator[tuple[TransferImage, str, MarkedObject]]:
    """Yield the objects of points that are in no skeleton, with their labels: those of their boxes."""
    for marked in group_points(image.points, boxes, image.location, GROUP):
        label = marked.box.label if marked.box else OBJECT
        if label in skeleton_labels:
            raise UserError(f"{image.location}: {quote_value(label)} is a skeleton, and has points beside it. {GROUP}")
        yield image.photo, label, marked


def _add_names(names: list[str], points: Mapping[str, XY], declared: bool, location: str) -> None:
    """Add a skeleton's keypoints to those of its label, or refuse them if the file says which it has."""
    for name in points:
        if name not in names:
            if declared:
                raise UserError(
                    f"{location}: the labels of the file give this skeleton no keypoint {quote_value(name)}. "
                    "Correct one of them."
                )
            names.append(name)


def _read_image(
    number: int,
    element: Element,
    path: Path,
    folder: Path,
    plain: dict[str, list[str]],
    notes: Notes,
) -> _Shapes:
    """Read an image; note in `plain` the keypoints of labels of plain points, and in `notes` what is left out."""
    given = element.get("name")
    location = f"{path}, image {quote_value(given)}"
    name = find_inside(folder, given, location, FOLDER_OPTION)
    if not (folder / name).is_file():
        raise UserError(f"{path} names the image {given}, which is not in {folder}. Restore it, or drop the entry")
    if name != given:
        notes.setdefault("names of images are read as their files are called", []).append(f"{given} as {name}")
    size = (
        read_side(element.get("width"), "width", location),
        read_side(element.get("height"), "height", location),
    )
    entry = {"id": element.get("id"), "name": given}
    shapes = _Shapes(TransferImage(number, name, folder / name, size, entry), location, [], [], [])
    for child in element:
        label, group = child.get("label"), child.get("group_id")
        if child.tag in OTHER_SHAPES:
            notes.setdefault("shapes are no points, skeletons or boxes, and are left out", []).append(
                f"{name}: {label}"
            )
            continue
        if child.tag not in ("skeleton", "points", "box") or not label:
            raise UserError(f"{location}: {quote_value(child.tag)} is no shape with a `label`. Correct it.")
        where = f"{location}, {child.tag} {quote_value(label)}"
        if child.tag == "skeleton":
            shapes.skeletons.append((label, _read_skeleton(child, where), group))
        elif child.tag == "box":
            shapes.boxes.append(MarkedBox(label, _read_box(child, where), group))
        else:
            shapes.points.extend(_read_points(child, label, plain, where))
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
            raise UserError(f"{location}: {quote_value(element.tag)} is no `points` with a `label`. Correct it.")
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


def _read_points(element: Element, label: str, plain: dict[str, list[str]], location: str) -> Iterator[MarkedPoint]:
    """Yield the keypoints of `points` that stand by themselves."""
    pairs = _read_pairs(element, location)
    names = [label] if len(pairs) == 1 else [f"{label} {i}" for i in range(1, len(pairs) + 1)]
    if plain.setdefault(label, names) != names:
        raise UserError(
            f"{location} has {len(pairs)} points, and {len(plain[label])} before, so it cannot be told which is which. "
            "Give each keypoint a label of its own."
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


def _read_labels(root: Element) -> tuple[dict[str, list[str]], dict[str, list[list[int]]]]:
    """Return the keypoints of each skeleton that the file declares, and its edges, counted from 1."""
    labels = [label for label in root.iter("label") if label.findtext("name")]
    keypoints: dict[str, list[str]] = {}
    edges: dict[str, list[list[int]]] = {}
    for label in labels:
        name = label.findtext("name") or ""
        parts = [each.findtext("name") or "" for each in labels if each.findtext("parent") == name]
        if (label.findtext("type") or "").strip() == "skeleton" and parts:
            keypoints[name] = list(dict.fromkeys(parts))
            edges[name] = _read_edges(label.findtext("svg") or "", keypoints[name])
    return keypoints, edges


def _read_edges(svg: str, names: list[str]) -> list[list[int]]:
    """Return the edges of a skeleton's drawing, which names its nodes by number; what is not told is no edge."""
    nodes: dict[str | None, str | None] = {}
    lines: list[tuple[str | None, str | None]] = []
    for tag, text in re.findall(r"<(circle|line)\b([^<>]{0,2000})", svg):
        fields = dict(re.findall(r'(data-[a-z-]+)="([^"]*)"', text))
        if tag == "circle":
            nodes[fields.get("data-node-id")] = fields.get("data-label-name")
        else:
            lines.append((fields.get("data-node-from"), fields.get("data-node-to")))
    ends = [(nodes.get(start), nodes.get(end)) for start, end in lines]
    return [[names.index(start) + 1, names.index(end) + 1] for start, end in ends if start in names and end in names]
