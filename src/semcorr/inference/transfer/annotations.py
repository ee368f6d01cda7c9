"""Reading a file with a few annotated images, of any tool: the sources of labels, and the objects to label."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path

import torch

from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonMapping
from semcorr.data.coco_fields import LAYOUTS, Id
from semcorr.data.pictures import list_image_files
from semcorr.inference.transfer.formats.coco import read_coco_objects
from semcorr.inference.transfer.formats.cvat import read_cvat_objects
from semcorr.inference.transfer.formats.deeplabcut import read_deeplabcut_objects
from semcorr.inference.transfer.formats.kinds import detect_format
from semcorr.inference.transfer.formats.label_studio import read_label_studio_objects
from semcorr.inference.transfer.objects import (
    AnnotatedObject,
    AnnotationFile,
    Annotations,
    TransferImage,
    category_name,
)

log = logging.getLogger(__name__)


def read_annotations(path: Path, folder: Path, layout: str = "xywh", category: str | None = None) -> Annotations:
    """Read the sources and targets of an annotation file and a folder of images.

    An annotation without a keypoint (v is 0 everywhere, or there are none) is an object to be labelled. An image
    without annotation, of the file or of the folder alone, shows one object, as large as itself.

    Args:
        path: COCO keypoints (AnimalPose's dialect, too), CVAT for images 1.1, a JSON export of Label Studio, or
            DeepLabCut's CollectedData; which of them it is, its content says.
        folder: Folder of the images, including its subfolders.
        layout: Layout of COCO's boxes: `xywh` or `xyxy`.
        category: Name of the category of images without annotation; may be left out if there is only one.

    Raises:
        UserError: The file contradicts itself or the folder, or there is no source or no target.
    """
    content = read_objects(path, folder, layout)
    categories, objects = content.categories, content.objects
    sources = group_sources(objects, path)
    targets = [item for item in objects if not bool(item.keypoint_mask.any())]
    unannotated = _unannotated_images(content.images, content.annotated, folder)
    targets += _whole_image_objects(unannotated, categories, sources, category, path)
    _check_targets(targets, sources, categories, path, folder)
    order = {category_id: i for i, category_id in enumerate(categories)}
    targets.sort(key=lambda item: order[item.category])
    return Annotations(list(categories.values()), sources, targets, content.tool)


def group_sources(objects: Iterable[AnnotatedObject], path: Path) -> dict[Id, list[AnnotatedObject]]:
    """Return the annotated objects by category; refuse a file that has none.

    Args:
        objects: Objects of the file.
        path: The file, for errors.
    """
    sources: dict[Id, list[AnnotatedObject]] = {}
    for item in objects:
        if bool(item.keypoint_mask.any()):
            sources.setdefault(item.category, []).append(item)
    if not sources:
        raise UserError(f"{path} has no annotated keypoint. Annotate one image of each category, at least")
    return sources


def read_objects(path: Path, folder: Path, layout: str = "xywh") -> AnnotationFile:
    """Read categories, images and objects of an annotation file; its content says which format it is.

    Args:
        path: The file, as for `read_annotations`.
        folder: Folder of the images, including its subfolders.
        layout: Layout of COCO's boxes: `xywh` or `xyxy`.

    Raises:
        UserError: The file is none of these, contradicts itself or the folder, or has no boxes for a layout other
            than `xywh`.
    """
    if layout not in LAYOUTS:
        raise UserError(f"--box must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Give the folder of the images that {path} names")
    kind = detect_format(path)
    if kind == "coco":
        content = read_coco_objects(path, folder, layout)
        if layout != "xywh" and all(item.box is None for item in content.objects):
            raise UserError(f"--box {layout} has no effect: no object of {path} has a box (`bbox`). Leave it out")
        return content
    if layout != "xywh":
        raise UserError(f"--box is of COCO's boxes, and {path} is not a COCO file. Leave it out")
    readers = {
        "cvat": read_cvat_objects,
        "label-studio": read_label_studio_objects,
        "deeplabcut": read_deeplabcut_objects,
    }
    return readers[kind](path, folder)


def _unannotated_images(
    images: Mapping[Id, TransferImage], annotated_ids: Collection[Id], folder: Path
) -> list[TransferImage]:
    """Return images without annotation: of the file, and those of the folder that it does not name, with new ids."""
    paths = {i: image.path.resolve() for i, image in images.items()}
    annotated = {paths[i] for i in annotated_ids}  # an image may have two entries, so paths are compared
    new_ids = count(1 + max((int(i) for i in images if re.fullmatch("[0-9]{1,20}", str(i))), default=0))
    known_paths = set(paths.values())
    unnamed = list_image_files(folder, recursive=True, known=known_paths)
    return [image for i, image in images.items() if paths[i] not in annotated] + [
        TransferImage(next(new_ids), file.relative_to(folder).as_posix(), file, None) for file in unnamed
    ]


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
            "annotated categories. Name theirs with --category, or give each an annotation of its category"
        )
    category_ids = [i for i, entry in categories.items() if category_name(entry) == category]
    if category is not None and not category_ids:
        available = ", ".join(category_name(entry) for entry in categories.values())
        raise UserError(f"--category: {path} has no category {category!r}; it has {available}")
    if category is not None and not images:
        log.warning("--category %s has no effect: every image has an annotation", category)
    category_id = category_ids[0] if category_ids else next(iter(sources))
    number = len(categories[category_id].get("keypoints") or [])
    return [
        AnnotatedObject(
            None, image, category_id, None, torch.zeros(number, 2, dtype=torch.float32), torch.zeros(number).bool()
        )
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
