"""What was carried over, as COCO keypoints, and as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw
from torch import Tensor

from semcorr.data.pictures import Picture
from semcorr.inference.plots import bright_colour, displayed_size
from semcorr.inference.transfer.annotations import AnnotatedObject, CocoAnnotations, TransferImage, list_objects
from semcorr.inference.transfer.propagate import LabelledSource

FOUND = 2  # COCO's v: labelled and visible
ZOOM = 3  # drawn larger and reduced, for smooth lines


class KeypointLabel(NamedTuple):
    """A target's keypoints."""

    thing: AnnotatedObject
    size: tuple[int, int]  # of its image, in original pixels
    points: Float[Tensor, "k 2"]  # (x, y), original pixels
    scores: Float[Tensor, " k"]
    found: Bool[Tensor, " k"]
    sources: list[dict[str, Any]]


def contributing_sources(sources: Sequence[LabelledSource], weights: Float[Tensor, "s k"]) -> list[dict[str, Any]]:
    """The sources that had a say, those with most of it first: their share of all keypoints that were to be had."""
    shares = (weights.sum(1) / weights.sum().clamp_min(1e-12)).tolist()
    said = [
        {"annotation_id": one.name, "mirrored": one.mirrored, "weight": round(share, 4)}
        for one, share in zip(sources, shares, strict=True)
        if share > 0
    ]
    return sorted(said, key=lambda one: -one["weight"])


def labels_to_coco(
    sheet: CocoAnnotations, labels: Sequence[KeypointLabel], skipped: Sequence[Mapping[str, str]], said: str
) -> dict[str, Any]:
    """The file: labelled images, their annotations and all categories as they were given."""
    photos = {label.thing.photo.id: (label.thing.photo, label.size) for label in labels}
    taken = {str(thing.id) for thing in list_objects(sheet)}  # "7" is 7
    free = iter(i for i in range(1, 2 + len(taken) + len(labels)) if str(i) not in taken)
    return {
        "info": {
            "description": "Keypoints carried over from annotated images by python -m semcorr.transfer",
            "model": said,
            "points": "x, y in pixels, upright; pixel centres at integers",
        },
        "images": [_image(photo, size) for photo, size in photos.values()],
        "annotations": [
            _annotation(label, next(free) if label.thing.id is None else label.thing.id) for label in labels
        ],
        "categories": sheet.categories,
        "skipped": list(skipped),
    }


def _image(photo: TransferImage, size: tuple[int, int]) -> dict[str, Any]:
    return {"id": photo.id, "file_name": photo.name, "width": size[0], "height": size[1]}


def _annotation(label: KeypointLabel, name: Any) -> dict[str, Any]:
    rows = zip(label.points.tolist(), label.found.tolist(), strict=True)
    flat = [each for (x, y), found in rows for each in ((round(x, 2), round(y, 2), FOUND) if found else (0, 0, 0))]
    x, y, w, h = label.thing.box or _around(label)
    return {
        "id": name,
        "image_id": label.thing.photo.id,
        "category_id": label.thing.category,
        "bbox": [x, y, w, h],
        "area": w * h,
        "iscrowd": 0,
        "keypoints": flat,
        "num_keypoints": int(label.found.sum()),
        "scores": [round(score, 4) for score in label.scores.tolist()],
        "score": round(float(label.scores.mean()), 4),
        "sources": label.sources,
    }


def _around(label: KeypointLabel) -> tuple[float, ...]:
    """COCO wants a box: that of the keypoints found, or the image."""
    if int(label.found.sum()) < 2:
        return (0.0, 0.0, *map(float, label.size))
    low, high = (label.points[label.found].amin(0) + 0.5), (label.points[label.found].amax(0) + 0.5)
    return tuple(round(each, 2) for each in torch.cat((low, (high - low).clamp_min(1.0))).tolist())


def draw_label_picture(
    picture: Picture, points: Float[Tensor, "k 2"], label: KeypointLabel, skeleton: Sequence[Sequence[int]]
) -> Image.Image:
    """Bones between found keypoints; discs, the less sure the smaller.

    Args:
        picture: The target, or what is cut out of it.
        points: Its keypoints, in pixels of that.
        label: What else is known of them.
        skeleton: Pairs of keypoints, counted from 0.
    """
    width, height = displayed_size(picture.size)
    image = picture.image.resize((width * ZOOM, height * ZOOM))
    draw = ImageDraw.Draw(image)
    scale = torch.tensor([image.width / picture.size[0], image.height / picture.size[1]])
    places = ((points + 0.5) * scale).tolist()
    found, colours = label.found.tolist(), [bright_colour(i / len(places)) for i in range(len(places))]
    for i, j in skeleton:
        if found[i] and found[j]:
            draw.line((*places[i], *places[j]), fill=colours[i], width=2 * ZOOM)
    for (x, y), score, colour, there in zip(places, label.scores.tolist(), colours, found, strict=True):
        r = (4 + 6 * score**0.5) * ZOOM
        if there:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline="black", width=ZOOM)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def skeleton_edges(category: Mapping[str, Any]) -> list[tuple[int, int]]:
    """A category's skeleton from 0: COCO counts from 1, AnimalPose from 0, and some give names. Others are no bones.

    >>> skeleton_edges({"keypoints": ["a", "b", "c"], "skeleton": [[1, 2], [2, 3]]})
    [(0, 1), (1, 2)]
    """
    names = list(category.get("keypoints") or [])
    skeleton = category.get("skeleton") if isinstance(category.get("skeleton"), list) else []
    pairs = [pair for pair in skeleton or [] if isinstance(pair, list) and len(pair) == 2]
    numbers = [(i, j) for i, j in pairs if type(i) is int and type(j) is int]
    first = 0 if any(0 in pair for pair in numbers) else 1
    found = [(i - first, j - first) for i, j in numbers]
    found += [(names.index(i), names.index(j)) for i, j in pairs if i in names and j in names]
    return [(i, j) for i, j in found if min(i, j) >= 0 and max(i, j) < len(names)]
