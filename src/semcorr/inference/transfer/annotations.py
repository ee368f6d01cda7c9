"""Reading a COCO keypoint file with a few annotated images: the sources of labels, and the objects to label."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonMapping
from semcorr.data.coco_fields import LAYOUTS, Id, quote_json
from semcorr.data.coco_file import CocoAnnotation, CocoImage, read_coco
from semcorr.data.pictures import list_image_files
from semcorr.inference.transfer.crop import Box

log = logging.getLogger(__name__)


class TransferImage(NamedTuple):
    """An image of the annotation file or of the folder."""

    id: Id
    name: str  # path below the folder
    path: Path
    size: tuple[int, int] | None  # width and height, if the file has them


class AnnotatedObject(NamedTuple):
    """An object: a source if any of its keypoints is annotated, otherwise a target to label."""

    id: Id | None  # None: an image without annotation
    photo: TransferImage
    category: Id  # id of the category
    box: Box | None
    points: Float[Tensor, "k 2"]  # original pixels; (0, 0) where not annotated
    keypoint_mask: Bool[Tensor, " k"]  # keypoints that are annotated


class CocoAnnotations(NamedTuple):
    """The content of an annotation file: categories, sources and targets."""

    categories: list[JsonMapping]  # as in the file
    sources: dict[Id, list[AnnotatedObject]]  # by category id
    targets: list[AnnotatedObject]  # category by category


def read_annotations(path: Path, folder: Path, layout: str = "xywh", category: str | None = None) -> CocoAnnotations:
    """Read the sources and targets of an annotation file and a folder of images.

    An annotation without a keypoint (v is 0 everywhere, or there are none) is an object to be labelled. An image
    without annotation, of the file or of the folder alone, shows one object, as large as itself.

    Args:
        path: COCO file with images, annotations and categories. AnimalPose's dialect is understood, too.
        folder: Folder of the images, including its subfolders.
        layout: Layout of boxes: `xywh` or `xyxy`.
        category: Name of the category of images without annotation; may be left out if there is only one.

    Raises:
        UserError: The file contradicts itself or the folder, or there is no source or no target.
    """
    categories, objects, unannotated = read_objects(path, folder, layout)
    sources: dict[Id, list[AnnotatedObject]] = {}
    for item in objects:
        if bool(item.keypoint_mask.any()):
            sources.setdefault(item.category, []).append(item)
    if not sources:
        raise UserError(f"{path} has no annotated keypoint (v > 0). Annotate one image of each category, at least")
    targets = [item for item in objects if not bool(item.keypoint_mask.any())]
    targets += _whole_image_objects(unannotated, categories, sources, category, path)
    _check_targets(targets, sources, categories, path, folder)
    order = {category_id: i for i, category_id in enumerate(categories)}
    return CocoAnnotations(list(categories.values()), sources, sorted(targets, key=lambda item: order[item.category]))


def read_objects(
    path: Path, folder: Path, layout: str
) -> tuple[dict[Id, JsonMapping], list[AnnotatedObject], list[TransferImage]]:
    """Read categories by their ids, objects, and images without annotation."""
    if layout not in LAYOUTS:
        raise UserError(f"--box must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder. Give the folder of the images that {path} names")
    content = read_coco(path, folder, "the folder of images", layout, "--box")
    images = {key: _to_transfer_image(image, path, folder) for key, image in content.images.items()}
    objects = [_to_object(annotation, images[annotation.image.id], layout) for annotation in content.annotations]
    categories = {category.id: category.entry for category in content.categories}
    return categories, objects, _unannotated_images(images, content.referenced_images, folder)


def _to_transfer_image(image: CocoImage, path: Path, folder: Path) -> TransferImage:
    """Return an image of the annotation file, which must exist in the folder."""
    if not image.path.is_file():
        raise UserError(
            f"{path} names the image {image.file_name}, which is not in {folder}. Restore it, or drop the entry"
        )
    return TransferImage(image.id, image.name, image.path, image.size)


def _unannotated_images(
    images: Mapping[Id, TransferImage], annotated_ids: Collection[Id], folder: Path
) -> list[TransferImage]:
    """Return images without annotation: of the file, and those of the folder that it does not name, with new ids."""
    paths = {i: image.path.resolve() for i, image in images.items()}
    annotated = {paths[i] for i in annotated_ids}  # an image may have two entries, so paths are compared
    free_ids = count(1 + max((int(i) for i in images if re.fullmatch("[0-9]{1,20}", str(i))), default=0))
    known_paths = set(paths.values())
    unnamed = list_image_files(folder, recursive=True, known=known_paths)
    return [image for i, image in images.items() if paths[i] not in annotated] + [
        TransferImage(next(free_ids), file.relative_to(folder).as_posix(), file, None) for file in unnamed
    ]


def _to_object(annotation: CocoAnnotation, image: TransferImage, layout: str) -> AnnotatedObject:
    """Return an object of the annotation file; a box without area is refused if it has no keypoint either."""
    if annotation.flat is not None and not annotation.annotated:
        raise UserError(
            f"{annotation.location}: `bbox` {quote_json(annotation.flat)} has no area. It is read as {layout}; "
            "--box says otherwise"
        )
    keypoint_mask = torch.tensor([point is not None for point in annotation.points])
    points = torch.tensor([point or (0.0, 0.0) for point in annotation.points])
    return AnnotatedObject(
        annotation.id,
        image,
        annotation.category.id,
        annotation.box.xywh if annotation.box else None,
        points,
        keypoint_mask,
    )


def _whole_image_objects(
    images: Sequence[TransferImage],
    categories: Mapping[Id, JsonMapping],
    sources: Mapping[Id, Sequence[AnnotatedObject]],
    category: str | None,
    path: Path,
) -> list[AnnotatedObject]:
    """Return one object for each image without annotation, as large as the image."""
    if category is None and len(sources) > 1 and images:
        raise UserError(
            f"{len(images)} images, such as {images[0].name}, have no annotation, and {path} has {len(sources)} "
            "annotated categories. Name theirs with --category, or give each an annotation with its category_id"
        )
    category_ids = [i for i, entry in categories.items() if entry.get("name") == category]
    if category is not None and not category_ids:
        available = ", ".join(category_name(entry) for entry in categories.values())
        raise UserError(f"--category: {path} has no category {category!r}; it has {available}")
    if category is not None and not images:
        log.warning("--category %s has no effect: every image has an annotation", category)
    category_id = category_ids[0] if category_ids else next(iter(sources))
    number = len(categories[category_id].get("keypoints") or [])
    return [
        AnnotatedObject(None, image, category_id, None, torch.zeros(number, 2), torch.zeros(number).bool())
        for image in images
    ]


def _check_targets(
    targets: Sequence[AnnotatedObject],
    sources: Mapping[Id, Sequence[AnnotatedObject]],
    categories: Mapping[Id, JsonMapping],
    path: Path,
    folder: Path,
) -> None:
    """Refuse a folder without targets, and targets of a category without sources."""
    if not targets:
        raise UserError(f"Every image of {folder} is annotated in {path}: there is none to be labelled. Add some")
    unsourced = Counter(
        category_name(categories[target.category]) for target in targets if target.category not in sources
    )
    for name, number in unsourced.items():
        raise UserError(f"{path} has no annotated image of {name}, which {number} are to be labelled as. Annotate one")


def list_objects(annotations: CocoAnnotations) -> list[AnnotatedObject]:
    """Return all objects, targets first."""
    return [*annotations.targets, *(source for sources in annotations.sources.values() for source in sources)]


def category_name(category: JsonMapping) -> str:
    """Return a category's name, or its id if it has none."""
    return str(category.get("name", category.get("id")))
