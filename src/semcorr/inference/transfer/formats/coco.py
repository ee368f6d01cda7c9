"""COCO keypoints: annotations read, labels written."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value
from semcorr.core.text_files import JsonObject
from semcorr.data.coco_fields import Id, quote_json
from semcorr.data.coco_file import CocoAnnotation, CocoImage, read_coco
from semcorr.inference.transfer.formats.fields import FOLDER_OPTION, require_json_value
from semcorr.inference.transfer.labels import KeypointLabel, free_ids
from semcorr.inference.transfer.objects import (
    AnnotatedObject,
    AnnotationFile,
    Annotations,
    TransferImage,
    build_object,
)

VISIBLE = 2  # COCO's v: labelled and visible


def read_coco_objects(path: Path, folder: Path, layout: str) -> AnnotationFile:
    """Read a COCO file, whose pixel centres are at integers; boxes are of `layout`, `xywh` or `xyxy`."""
    content = read_coco(path, folder, FOLDER_OPTION, layout, "--box")
    for category in content.categories:
        require_json_value(category.entry, f"{path}, category {quote_value(category.id)}")  # it is written as it is
    images = {key: _to_transfer_image(image, path, folder) for key, image in content.images.items()}
    return AnnotationFile(
        {category.id: category.entry for category in content.categories},
        images,
        [_to_object(annotation, images[annotation.image.id], layout) for annotation in content.annotations],
        content.referenced_images,
    )


def _to_transfer_image(image: CocoImage, path: Path, folder: Path) -> TransferImage:
    """Return an image of the annotation file, which must exist in the folder."""
    if not image.path.is_file():
        raise UserError(
            f"{path} names the image {image.file_name}, which is not in {folder}. Restore it, or drop the entry"
        )
    return TransferImage(image.id, image.name, image.path, image.size)


def _to_object(annotation: CocoAnnotation, image: TransferImage, layout: str) -> AnnotatedObject:
    """Return an object of the annotation file; a box without area is refused if it has no keypoint either."""
    if annotation.flat is not None and not annotation.annotated:
        raise UserError(
            f"{annotation.location}: `bbox` {quote_json(annotation.flat)} has no area. It is read as {layout}; "
            "--box says otherwise"
        )
    box = annotation.box.xywh if annotation.box else None
    return build_object(annotation.id, image, annotation.category.id, box, annotation.points)


def labels_to_coco(
    annotations: Annotations,
    labels: Sequence[KeypointLabel],
    skipped_images: Sequence[Mapping[str, str]],
    config_line: str,
) -> JsonObject:
    """Return the content of a COCO file: labelled images, their annotations, and all categories as in the input.

    Args:
        annotations: Content of the file that was read.
        labels: Labels of its targets.
        skipped_images: Images that were left out, each with `file_name` and `reason`.
        config_line: The model, for the record.
    """
    photos = {label.target.photo.id: (label.target.photo, label.size) for label in labels}
    ids = free_ids(annotations, len(labels))
    return {
        "info": {
            "description": "Keypoints carried over from annotated images by python -m semcorr.transfer",
            "model": config_line,
            "points": "x, y in pixels, upright; pixel centres at integers",
        },
        "images": [_image_entry(photo, size) for photo, size in photos.values()],
        "annotations": [
            _annotation_entry(label, next(ids) if label.target.id is None else label.target.id) for label in labels
        ],
        "categories": annotations.categories,
        "skipped": list(skipped_images),
    }


def _image_entry(photo: TransferImage, size: tuple[int, int]) -> JsonObject:
    """Return an image's entry of the COCO file."""
    return {"id": photo.id, "file_name": photo.name, "width": size[0], "height": size[1]}


def _annotation_entry(label: KeypointLabel, annotation_id: Id) -> JsonObject:
    """Return a label's entry of the COCO file."""
    rows = zip(label.points.tolist(), label.valid.tolist(), strict=True)
    flat = [
        value for (x, y), is_valid in rows for value in ((round(x, 2), round(y, 2), VISIBLE) if is_valid else (0, 0, 0))
    ]
    x, y, w, h = label.target.box or _enclosing_box(label)
    return {
        "id": annotation_id,
        "image_id": label.target.photo.id,
        "category_id": label.target.category,
        "bbox": [x, y, w, h],
        "area": w * h,
        "iscrowd": 0,
        "keypoints": flat,
        "num_keypoints": int(label.valid.sum()),
        "scores": [round(score, 4) for score in label.scores.tolist()],
        "score": label.score,
        "sources": label.sources,
    }


def _enclosing_box(label: KeypointLabel) -> tuple[float, ...]:
    """Return the box of the keypoints that were found, or the whole image: COCO requires a box."""
    if int(label.valid.sum()) < 2:
        return (0.0, 0.0, *map(float, label.size))
    low, high = (label.points[label.valid].amin(0) + 0.5), (label.points[label.valid].amax(0) + 0.5)
    return tuple(round(value, 2) for value in torch.cat((low, (high - low).clamp_min(1.0))).tolist())
