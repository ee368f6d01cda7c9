"""Transferred keypoints as COCO annotations and as pictures."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw
from torch import Tensor

from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.data.coco_fields import Id
from semcorr.data.pictures import Picture
from semcorr.inference.displayed import displayed_size
from semcorr.inference.transfer.annotations import AnnotatedObject, CocoAnnotations, TransferImage, list_objects
from semcorr.inference.transfer.propagate import LabelledSource
from semcorr.visualization.canvas import ZOOM, Colour

FOUND = 2  # COCO's v: labelled and visible


class KeypointLabel(NamedTuple):
    """The keypoints transferred to a target."""

    target: AnnotatedObject
    size: tuple[int, int]  # width and height of its image, in original pixels
    points: Float[Tensor, "k 2"]  # (x, y), original pixels
    scores: Float[Tensor, " k"]
    valid: Bool[Tensor, " k"]  # keypoints with a sufficient score
    sources: list[JsonObject]


def contributing_sources(sources: Sequence[LabelledSource], weights: Float[Tensor, "s k"]) -> list[JsonObject]:
    """List the sources with their share of the weight of all keypoints, largest first, without shares of 0."""
    shares = (weights.sum(1) / weights.sum().clamp_min(1e-12)).tolist()
    contributions = [
        {"annotation_id": source.name, "mirrored": source.mirrored, "weight": round(share, 4)}
        for source, share in zip(sources, shares, strict=True)
        if share > 0
    ]
    return sorted(contributions, key=lambda source: -source["weight"])


def labels_to_coco(
    annotations: CocoAnnotations,
    labels: Sequence[KeypointLabel],
    skipped_images: Sequence[Mapping[str, str]],
    config_line: str,
) -> JsonObject:
    """Return the content of a COCO file: labelled images, their annotations, and all categories as in the input."""
    photos = {label.target.photo.id: (label.target.photo, label.size) for label in labels}
    used_ids = {str(item.id) for item in list_objects(annotations)}  # "7" and 7 are the same
    free_ids = iter(i for i in range(1, 2 + len(used_ids) + len(labels)) if str(i) not in used_ids)
    return {
        "info": {
            "description": "Keypoints carried over from annotated images by python -m semcorr.transfer",
            "model": config_line,
            "points": "x, y in pixels, upright; pixel centres at integers",
        },
        "images": [_image_entry(photo, size) for photo, size in photos.values()],
        "annotations": [
            _annotation_entry(label, next(free_ids) if label.target.id is None else label.target.id) for label in labels
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
        value for (x, y), is_valid in rows for value in ((round(x, 2), round(y, 2), FOUND) if is_valid else (0, 0, 0))
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
        "score": round(float(label.scores.mean()), 4),
        "sources": label.sources,
    }


def _enclosing_box(label: KeypointLabel) -> tuple[float, ...]:
    """Return the box of the keypoints that were found, or the whole image: COCO requires a box."""
    if int(label.valid.sum()) < 2:
        return (0.0, 0.0, *map(float, label.size))
    low, high = (label.points[label.valid].amin(0) + 0.5), (label.points[label.valid].amax(0) + 0.5)
    return tuple(round(value, 2) for value in torch.cat((low, (high - low).clamp_min(1.0))).tolist())


def draw_label_picture(
    picture: Picture, points: Float[Tensor, "k 2"], label: KeypointLabel, skeleton: Sequence[Sequence[int]]
) -> Image.Image:
    """Draw lines of the skeleton between found keypoints, and discs that grow with their scores.

    Args:
        picture: The target's picture, or a crop of it.
        points: Keypoints of the target, in pixels of `picture`.
        label: The target's label, for scores and found keypoints.
        skeleton: Pairs of keypoints, counted from 0.
    """
    width, height = displayed_size(picture.size)
    image = picture.image.resize((width * ZOOM, height * ZOOM))
    draw = ImageDraw.Draw(image)
    scale = torch.tensor([image.width / picture.size[0], image.height / picture.size[1]])
    positions = ((points + 0.5) * scale).tolist()
    valid_flags, colours = label.valid.tolist(), [bright_colour(i / len(positions)) for i in range(len(positions))]
    for i, j in skeleton:
        if valid_flags[i] and valid_flags[j]:
            draw.line((*positions[i], *positions[j]), fill=colours[i], width=2 * ZOOM)
    for (x, y), score, colour, is_valid in zip(positions, label.scores.tolist(), colours, valid_flags, strict=True):
        r = (4 + 6 * score**0.5) * ZOOM
        if is_valid:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline="black", width=ZOOM)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def bright_colour(share: float) -> Colour:
    """Return a bright colour by its share of the colour circle."""
    red, green, blue = colorsys.hsv_to_rgb(share, 0.65, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def skeleton_edges(category: JsonMapping) -> list[tuple[int, int]]:
    """Return a category's skeleton counted from 0: COCO counts from 1, AnimalPose from 0, and some files use names.

    Other entries are ignored.

    >>> skeleton_edges({"keypoints": ["a", "b", "c"], "skeleton": [[1, 2], [2, 3]]})
    [(0, 1), (1, 2)]
    """
    names = list(category.get("keypoints") or [])
    skeleton = category.get("skeleton") if isinstance(category.get("skeleton"), list) else []
    pairs = [pair for pair in skeleton or [] if isinstance(pair, list) and len(pair) == 2]
    numbers = [(i, j) for i, j in pairs if type(i) is int and type(j) is int]
    first = 0 if any(0 in pair for pair in numbers) else 1
    edges = [(i - first, j - first) for i, j in numbers]
    edges += [(names.index(i), names.index(j)) for i, j in pairs if i in names and j in names]
    return [(i, j) for i, j in edges if min(i, j) >= 0 and max(i, j) < len(names)]
