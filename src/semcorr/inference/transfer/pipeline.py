"""The pipeline of label transfer: targets are opened, cropped, encoded, and labelled by sources of their category."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.files import unique_names
from semcorr.core.terminal import Stage
from semcorr.core.text_files import JsonMapping
from semcorr.data.keypoints import flip_from_names
from semcorr.data.pictures import Picture, read_annotated, warn_stored_orientation
from semcorr.inference import Matcher
from semcorr.inference.transfer.crop import crop_picture, enlarge_box
from semcorr.inference.transfer.labels import KeypointLabel, contributing_sources, draw_label_picture, skeleton_edges
from semcorr.inference.transfer.objects import AnnotatedObject, Annotations, category_name
from semcorr.inference.transfer.propagate import PRIOR_WEIGHT, LabelledSource, check_readout, encode_source, propagate
from semcorr.store.encode import split_into_chunks
from semcorr.visualization.predictions import save_plot

UNFIT = re.compile(r'[/\\:*?"<>|\x00-\x1f]')  # characters that file names must not contain on some system


def label_folder(
    matcher: Matcher,
    annotations: Annotations,
    use: str = "vote",
    flip: bool = True,
    min_score: float = 0.0,
    prior_weight: float = PRIOR_WEIGHT,
    skipped_images: list[dict[str, str]] | None = None,
    folder: Path | None = None,
) -> Iterator[KeypointLabel]:
    """Label the targets one after the other, with the sources of one category in memory at a time.

    Args:
        matcher: Matcher that finds the keypoints.
        annotations: Sources and targets.
        use: `vote` for all sources or `best` for the best-fitting one.
        flip: Whether sources are also used mirrored, if keypoints are named left and right.
        min_score: Score above which a keypoint counts as found.
        prior_weight: Weight of the location prior in units of similarity, for targets with a box.
        skipped_images: List to which broken images are added, while a source remains; None refuses them.
        folder: Folder for pictures of the labels; None draws none.

    Raises:
        UserError: The readout needs four queries per point, keypoints lie outside an image, or an image is broken and
            `skipped_images` is None.
    """
    check_readout(matcher)
    unrotated_images: list[str] = []
    categories = {category["id"]: category for category in annotations.categories}
    named_targets = list(zip(annotations.targets, label_picture_names(annotations.targets), strict=True))
    count = len(annotations.targets)
    with Stage(f"Labelling {count:,} object{'s'[: count != 1]} on {matcher.device}", count) as stage:
        for category_id, objects in annotations.sources.items():
            targets = [(target, name) for target, name in named_targets if target.category == category_id]
            if not targets:
                continue
            sources = _encode_sources(matcher, objects, categories[category_id], flip, skipped_images, unrotated_images)
            for chunk in split_into_chunks(targets, matcher.batch):
                yield from _label_chunk(
                    matcher,
                    sources,
                    chunk,
                    categories[category_id],
                    (use, min_score, prior_weight),
                    skipped_images,
                    unrotated_images,
                    folder,
                )
                stage.advance(len(chunk))
    warn_stored_orientation("transfer", list(dict.fromkeys(unrotated_images)))


def label_picture_names(targets: Sequence[AnnotatedObject]) -> list[str]:
    """Return a unique file name for the picture of each label, from the names of image and object."""
    preferred = [item.photo.name if item.id is None else f"{item.photo.name}.{item.id}" for item in targets]
    return [f"{name}.png" for name in unique_names([UNFIT.sub("_", name)] for name in preferred)]


def _encode_sources(
    matcher: Matcher,
    objects: Sequence[AnnotatedObject],
    category: JsonMapping,
    flip: bool,
    skipped_images: list[dict[str, str]] | None,
    unrotated_images: list[str],
) -> list[LabelledSource]:
    """Encode all sources whose images can be read."""
    sources: list[LabelledSource] = []
    for item in objects:
        if (picture := open_or_skip(item, skipped_images, unrotated_images)) is not None:
            sources += open_source(matcher, item, category, flip, picture)
    require_sources(sources, category)
    return sources


def open_source(
    matcher: Matcher, item: AnnotatedObject, category: JsonMapping, flip: bool, picture: Picture | None = None
) -> list[LabelledSource]:
    """Encode an annotated object, and with `flip` its mirror image; the crop contains every keypoint.

    Args:
        matcher: Matcher that encodes both.
        item: The annotated object.
        category: Category of the object.
        flip: Whether to encode the mirror image too, if keypoints are named left and right.
        picture: Image of the object, if it is open already.
    """
    picture = picture or open_object_image(item)
    points = limit_points(item, picture.size)
    crop = crop_picture(picture, None if item.box is None else enlarge_box(item.box, points[item.keypoint_mask]))
    order = flip_from_names(category["keypoints"])
    mirror_order = order if flip and order != tuple(range(len(points))) else None  # no sides, no mirror image
    return encode_source(matcher, crop, points, item.keypoint_mask, item.id, mirror_order, has_box=item.box is not None)


def limit_points(item: AnnotatedObject, size: tuple[int, int]) -> Float[Tensor, "k 2"]:
    """Return an object's keypoints, moved into its image by a pixel at most; refuse those further outside.

    Args:
        item: The annotated object.
        size: Width and height of its image.
    """
    width, height = size
    limit = torch.tensor([width, height], dtype=torch.float32) - 0.5
    # A pixel of tolerance: conventions of the origin differ.
    outside = ((item.points < -1.5) | (item.points > limit + 1)).any(-1) & item.keypoint_mask
    if numbers := outside.nonzero().flatten().tolist():
        x, y = item.points[numbers[0]].tolist()
        raise UserError(
            f"The annotation {item.id} of {item.photo.name} has keypoints outside the image, which is "
            f"{width} x {height} pixels: keypoint {numbers[0] + 1} of its category is at ({x:g}, {y:g}). Correct them"
        )
    return item.points.clamp(min=-0.5).minimum(limit)


def _label_chunk(
    matcher: Matcher,
    sources: Sequence[LabelledSource],
    targets: Sequence[tuple[AnnotatedObject, str]],
    category: JsonMapping,
    options: tuple[str, float, float],
    skipped_images: list[dict[str, str]] | None,
    unrotated_images: list[str],
    folder: Path | None,
) -> Iterator[KeypointLabel]:
    """Label the targets that are encoded at once."""
    use, min_score, prior_weight = options
    items = [
        (item, name, picture)
        for item, name in targets
        if (picture := open_or_skip(item, skipped_images, unrotated_images)) is not None
    ]
    crops = [crop_picture(picture, item.box) for item, _, picture in items]
    for (item, name, picture), crop, target in zip(
        items, crops, matcher.encode_all([crop.picture for crop in crops]), strict=True
    ):
        keypoints = propagate(matcher, sources, target, use, 0.0 if item.box is None else prior_weight)
        points, scores = crop.from_crop(keypoints.points), keypoints.scores.round(decimals=4)  # rounded as in the file
        contributions = contributing_sources(sources, keypoints.weights)
        label = KeypointLabel(item, picture.size, points, scores, scores > min_score, contributions)
        if folder is not None:
            save_plot(
                draw_label_picture(crop.picture, keypoints.points, label, skeleton_edges(category)), folder / name
            )
        yield label


def open_object_image(item: AnnotatedObject, unrotated_images: list[str] | None = None) -> Picture:
    """Open the image of an object, in the orientation of its annotations, judged by the size that they give.

    Args:
        item: The object.
        unrotated_images: List to which the image's name is added if its annotations are in the stored orientation.
    """
    picture, upright = read_annotated(item.photo.path, item.photo.size)
    if unrotated_images is not None and not upright:
        unrotated_images.append(item.photo.name)
    return picture


def open_or_skip(
    item: AnnotatedObject, skipped_images: list[dict[str, str]] | None, unrotated_images: list[str]
) -> Picture | None:
    """Open the image of an object; note a broken one and return None.

    Args:
        item: The object.
        skipped_images: List to which a broken image is added; None refuses it.
        unrotated_images: List to which the image's name is added if its annotations are in the stored orientation.
    """
    try:
        return open_object_image(item, unrotated_images)
    except UserError as error:
        note_broken(item.photo.name, error, skipped_images)
        return None


def note_broken(name: str, error: UserError, skipped_images: list[dict[str, str]] | None) -> None:
    """Note a broken image, once, or refuse it if there is no list for it.

    Args:
        name: Name of the image.
        error: Why it cannot be read.
        skipped_images: List to which `file_name` and `reason` are added; None raises the error.
    """
    if skipped_images is None:
        raise UserError(f"{error}. With --skip-broken it is left out") from None
    if (note := {"file_name": name, "reason": str(error)}) not in skipped_images:  # another object may have added it
        skipped_images.append(note)


def require_sources(sources: Sequence[LabelledSource], category: JsonMapping) -> None:
    """Refuse a category none of whose annotated images can be read."""
    if not sources:
        raise UserError(
            f"None of the annotated images of {category_name(category)} can be read. Restore one of them, at least"
        )
