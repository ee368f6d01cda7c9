"""What an annotation file holds, whatever its format: images, categories, and objects with their keypoints."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.core.text_files import JsonMapping
from semcorr.data.coco_fields import Id
from semcorr.data.record import Point
from semcorr.inference.transfer.crop import Box


class TransferImage(NamedTuple):
    """An image of the annotation file or of the folder."""

    id: Id
    name: str  # path below the folder
    path: Path
    size: tuple[int, int] | None  # width and height, if the file has them


class CvatNames(NamedTuple):
    """What a file of CVAT calls images and boxes, and which labels are points without a skeleton."""

    images: Mapping[Id, str]
    boxes: Mapping[str, str]  # labels of the boxes around skeletons, by category
    points: Mapping[str, Mapping[str, Sequence[str]]]  # keypoints of each label of points, by category


class LabelStudioNames(NamedTuple):
    """The data of Label Studio's tasks by image, and what the labelling interface calls its controls."""

    data: Mapping[Id, JsonMapping]
    url: str | None = None  # key of the image's URL in the data
    image: str | None = None
    keypoints: str | None = None
    rectangles: str | None = None


class DeepLabCutNames(NamedTuple):
    """What a table of DeepLabCut calls images, and its individuals with their categories."""

    rows: Mapping[Id, str]
    individuals: Mapping[str, Id]


ToolNames = CvatNames | LabelStudioNames | DeepLabCutNames


class AnnotatedObject(NamedTuple):
    """An object: a source if any of its keypoints is annotated, otherwise a target to label."""

    id: Id | None  # None: an image without annotation
    photo: TransferImage
    category: Id  # id of the category
    box: Box | None
    points: Float[Tensor, "k 2"]  # original pixels; (0, 0) where not annotated
    keypoint_mask: Bool[Tensor, " k"]  # keypoints that are annotated
    individual: str | None = None  # its name, where a file says which objects of several images are the same


class AnnotationFile(NamedTuple):
    """The content of an annotation file."""

    categories: dict[Id, JsonMapping]  # as COCO has them: id, name, keypoints, skeleton
    images: dict[Id, TransferImage]
    objects: list[AnnotatedObject]
    annotated: set[Id]  # ids of images that have an annotation, even if only one that is left out
    tool: ToolNames | None = None  # names that the tool wants to see again


class Annotations(NamedTuple):
    """What is labelled by what: categories, sources and targets."""

    categories: list[JsonMapping]  # as in the file
    sources: dict[Id, list[AnnotatedObject]]  # by category id
    targets: list[AnnotatedObject]  # category by category
    tool: ToolNames | None = None  # names that the tool of the file wants to see again


def build_object(
    object_id: Id | None,
    photo: TransferImage,
    category: Id,
    box: Box | None,
    points: Iterable[Point],
    individual: str | None = None,
) -> AnnotatedObject:
    """Build an object of its keypoints.

    Args:
        object_id: Id of the annotation; None for an image without annotation.
        photo: The image.
        category: Id of the category.
        box: x, y, width and height in original pixels from the image's corner; None if there is none.
        points: (x, y) of each keypoint of the category in original pixels; None where it is not annotated.
        individual: Name of the object, where a file says which objects of several images are the same.
    """
    places = list(points)
    return AnnotatedObject(
        object_id,
        photo,
        category,
        box,
        torch.tensor([point or (0.0, 0.0) for point in places], dtype=torch.float32).reshape(-1, 2),
        torch.tensor([point is not None for point in places], dtype=torch.bool),
        individual,
    )


def list_objects(annotations: Annotations) -> list[AnnotatedObject]:
    """Return all objects, targets first."""
    return [*annotations.targets, *(source for sources in annotations.sources.values() for source in sources)]


def category_name(category: JsonMapping) -> str:
    """Return a category's name, or its id if it has none."""
    name = category.get("name")
    return str(category.get("id") if name is None else name)


def build_categories(keypoints: Mapping[str, Iterable[str]]) -> dict[Id, JsonMapping]:
    """Return categories with ids from 1, from their names and their keypoints' names."""
    return {
        number: {"id": number, "name": name, "keypoints": list(names), "skeleton": []}
        for number, (name, names) in enumerate(keypoints.items(), 1)
    }
