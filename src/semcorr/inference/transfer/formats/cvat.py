"""CVAT for images 1.1: skeletons, points and boxes, read from XML.

A coordinate is a distance from the left or upper edge of the image: the first pixel's centre is at 0.5.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value
from semcorr.core.xml_files import read_xml
from semcorr.data.coco_file import Notes, warn_notes
from semcorr.inference.transfer.formats.cvat_shapes import ImageShapes, read_image_shapes, read_labels
from semcorr.inference.transfer.formats.fields import ImageFolder
from semcorr.inference.transfer.formats.grouping import (
    XY,
    MarkedBox,
    MarkedObject,
    assign_boxes,
    group_points,
    label_objects,
    note_boxes,
    to_objects,
)
from semcorr.inference.transfer.objects import AnnotationFile, CvatNames, TransferImage, build_categories

REMEDY = "Export the task from CVAT as `CVAT for images 1.1`, and give its annotations.xml."
GROUP = "Group what is of one object in CVAT (G), or annotate skeletons."


class BoxedImage(NamedTuple):
    """An image with its skeletons in their boxes."""

    shapes: ImageShapes
    skeletons: list[tuple[str, MarkedObject]]  # with their labels
    free: list[MarkedBox]  # boxes that are around no skeleton


def read_cvat_objects(path: Path, folder: Path) -> AnnotationFile:
    """Read skeletons, points without a skeleton, and the boxes around them.

    A box belongs to the skeleton of its group, otherwise to the one that it contains. One around nothing is an object
    to be labelled, if elsewhere a box of its label is around a skeleton. Hidden (`occluded`) keypoints are annotated;
    those `outside` are not. Of `points` with several pairs, each is a keypoint, numbered from 1.

    Args:
        path: annotations.xml.
        folder: Folder of the images.

    Raises:
        UserError: The file is not such an XML file, or contradicts itself or the folder.
    """
    root, notes = _read_root(path), Notes()
    finder = ImageFolder(folder, notes)
    keypoints, edges = read_labels(root)
    point_labels: dict[str, list[str]] = {}  # labels of points without a skeleton, and their names
    images = [
        read_image_shapes(i, element, path, finder, point_labels, notes)
        for i, element in enumerate(root.iter("image"), 1)
    ]
    _refuse_repeated(images)
    _add_keypoints(images, keypoints)
    boxed_images = [BoxedImage(image, *_pair_with_boxes(image)) for image in images]
    box_labels = _pair_labels([pair for image in boxed_images for pair in image.skeletons], path)
    objects, point_objects = _list_objects(boxed_images, box_labels, bool(point_labels), notes)
    labelled = label_objects(point_objects, path, GROUP, notes)
    point_categories = dict.fromkeys(label for _, label, _ in labelled)
    if clash := next((label for label in point_categories if label in keypoints), None):
        raise UserError(f"{path}: {quote_value(clash)} is a skeleton, and has points beside it. {GROUP}")
    point_names = [name for part_names in point_labels.values() for name in part_names]
    categories = build_categories(keypoints | dict.fromkeys(point_categories, point_names))
    warn_notes(path, notes)
    return AnnotationFile(
        {i: {**entry, "skeleton": edges.get(str(entry["name"]), [])} for i, entry in categories.items()},
        {image.photo.id: image.photo for image in images},
        to_objects(objects + labelled, categories),
        {image.photo.id for image in images if image.is_annotated},
        CvatNames(
            {image.photo.id: image.name for image in images},
            {category: label for label, category in box_labels.items()},
            dict.fromkeys(point_categories, point_labels),
        ),
    )


def _read_root(path: Path) -> Element:
    """Read the file's root, or refuse another kind of XML."""
    root = read_xml(path, REMEDY)
    if root.tag != "annotations":
        raise UserError(f"{path} is XML of {quote_value(root.tag)}, and not of `annotations`. {REMEDY}")
    if root.find("track") is not None:
        raise UserError(f"{path} has tracks: it is `CVAT for video`. {REMEDY}")
    return root


def _refuse_repeated(images: Sequence[ImageShapes]) -> None:
    """Refuse an image that is there twice."""
    names: set[str] = set()
    for image in images:
        if image.name in names:
            raise UserError(f"{image.location} is there twice, as of two tasks. Give a file for each, or drop one.")
        names.add(image.name)


def _add_keypoints(images: Sequence[ImageShapes], keypoints: dict[str, list[str]]) -> None:
    """Add the keypoints of skeletons to those of their labels, unless the file declares the label."""
    declared = set(keypoints)
    for image in images:
        for label, points, _ in image.skeletons:
            location = f"{image.location}, {quote_value(label)}"
            _add_names(keypoints.setdefault(label, []), points, label in declared, location)


def _list_objects(
    images: Sequence[BoxedImage], box_labels: Mapping[str, str], has_points: bool, notes: Notes
) -> tuple[list[tuple[TransferImage, str, MarkedObject]], list[tuple[TransferImage, MarkedObject]]]:
    """List the objects whose label is known, and the groups of points whose label is not.

    Args:
        images: The images.
        box_labels: The skeleton's label that goes with the label of a box.
        has_points: Whether the file has points without a skeleton, which other boxes may group.
        notes: What is left out is added to them.
    """
    objects = [(image.photo, label, marked) for image, pairs, _ in images for label, marked in pairs]
    point_objects: list[tuple[TransferImage, MarkedObject]] = []
    for image, pairs, free in images:
        objects += _free_boxes(image, [box for box in free if box.label in box_labels], pairs, box_labels)
        boxes = [box for box in free if box.label not in box_labels]
        if has_points:
            groups = group_points(image.points, boxes, image.location, GROUP)
            point_objects += [(image.photo, marked) for marked in groups]
        elif boxes:
            note_boxes(image.photo, boxes, notes)
    return objects, point_objects


def _pair_with_boxes(image: ImageShapes) -> tuple[list[tuple[str, MarkedObject]], list[MarkedBox]]:
    """Return the skeletons of an image with their labels and boxes, and the boxes that are around none."""
    of_skeletons = [(points, group) for _, points, group in image.skeletons]
    marked = assign_boxes(of_skeletons, image.boxes if of_skeletons else [], image.location, GROUP)
    pairs = [(label, skeleton) for (label, _, _), skeleton in zip(image.skeletons, marked, strict=False)]
    return pairs, [box for box in image.boxes if not any(box is skeleton.box for _, skeleton in pairs)]


def _pair_labels(pairs: Sequence[tuple[str, MarkedObject]], path: Path) -> dict[str, str]:
    """Return the skeleton's label that goes with the label of each box that is around one."""
    labels: dict[str, str] = {}
    for label, marked in pairs:
        if marked.box and labels.setdefault(marked.box.label, label) != label:
            raise UserError(
                f"{path}: boxes of the label {quote_value(marked.box.label)} are around {quote_value(label)} and "
                f"around {quote_value(labels[marked.box.label])}. Give each a label of its own."
            )
    return labels


def _free_boxes(
    image: ImageShapes, boxes: Sequence[MarkedBox], pairs: Sequence[tuple[str, MarkedObject]], labels: Mapping[str, str]
) -> list[tuple[TransferImage, str, MarkedObject]]:
    """Return the objects that have only a box; refuse them beside a skeleton that has none and may be in it."""
    for box in boxes:
        if any(label == labels[box.label] and marked.box is None for label, marked in pairs):
            raise UserError(
                f"{image.location}: a box of {quote_value(box.label)} contains no skeleton, and a skeleton of "
                f"{quote_value(labels[box.label])} is in no box. {GROUP}"
            )
    return [(image.photo, labels[box.label], MarkedObject(box, {})) for box in boxes]


def _add_names(names: list[str], points: Mapping[str, XY], is_complete: bool, location: str) -> None:
    """Add a skeleton's keypoints to those of its label, or refuse them if the file says which it has."""
    for name in points:
        if name not in names:
            if is_complete:
                raise UserError(
                    f"{location}: the labels of the file give this skeleton no keypoint {quote_value(name)}. "
                    "Correct one of them."
                )
            names.append(name)
