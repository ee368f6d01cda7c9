"""Transferred keypoints, their sources, and pictures of them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw
from torch import Tensor

from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.data.pictures import Picture
from semcorr.inference.displayed import displayed_size
from semcorr.inference.transfer.objects import AnnotatedObject, Annotations, list_objects
from semcorr.inference.transfer.propagate import LabelledSource
from semcorr.visualization.canvas import ZOOM, bright_colour, resize_enlarged


class KeypointLabel(NamedTuple):
    """The keypoints transferred to a target."""

    target: AnnotatedObject
    size: tuple[int, int]  # width and height of its image, in original pixels
    points: Float[Tensor, "k 2"]  # (x, y), original pixels
    scores: Float[Tensor, " k"]
    valid: Bool[Tensor, " k"]  # keypoints that count as found: by their score, and in a clip if they are visible
    sources: list[JsonObject]  # see `contributing_sources`

    @property
    def score(self) -> float:
        """Mean of the keypoints' scores."""
        return round(float(self.scores.mean()), 4)


def group_labels(labels: Sequence[KeypointLabel]) -> list[list[KeypointLabel]]:
    """Return the labels of each image, which may have several entries in a file."""
    groups: dict[str, list[KeypointLabel]] = {}
    for label in labels:
        groups.setdefault(label.target.photo.name, []).append(label)
    return list(groups.values())


def contributing_sources(sources: Sequence[LabelledSource], weights: Float[Tensor, "s k"]) -> list[JsonObject]:
    """List the sources with their share of the weight of all keypoints, largest first, without shares of 0."""
    shares = (weights.sum(1) / weights.sum().clamp_min(1e-12)).tolist()
    contributions = [
        {"annotation_id": source.name, "mirrored": source.mirrored, "weight": round(share, 4)}
        for source, share in zip(sources, shares, strict=True)
        if share > 0
    ]
    return sorted(contributions, key=lambda source: -source["weight"])


def free_ids(annotations: Annotations, number: int) -> Iterator[int]:
    """Return `number` ids that no object has, or more; "7" and 7 are the same."""
    used_ids = {str(item.id) for item in list_objects(annotations)}
    return iter([i for i in range(1, 1 + len(used_ids) + number) if str(i) not in used_ids])


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
    image = resize_enlarged(picture.image, displayed_size(picture.size))
    draw = ImageDraw.Draw(image)
    scale = torch.tensor([image.width / picture.size[0], image.height / picture.size[1]], dtype=torch.float32)
    positions = ((points + 0.5) * scale).tolist()
    valid_flags, colours = label.valid.tolist(), [bright_colour(i / len(positions)) for i in range(len(positions))]
    for i, j in skeleton:
        if valid_flags[i] and valid_flags[j]:
            draw.line((*positions[i], *positions[j]), fill=colours[i], width=2 * ZOOM)
    for (x, y), score, colour, is_valid in zip(positions, label.scores.tolist(), colours, valid_flags, strict=True):
        r = (4 + 6 * score**0.5) * ZOOM
        if is_valid:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline="black", width=ZOOM)
    return image.reduce(ZOOM)


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
