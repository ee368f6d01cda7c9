"""A COCO keypoint file with a few annotated images: what labels others, and what is to be labelled."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.data.coco_fields import LAYOUTS, Id, quote_json
from semcorr.data.coco_file import CocoAnnotation, CocoImage, read_coco
from semcorr.data.pictures import list_image_files
from semcorr.inference.transfer.crop import Box

log = logging.getLogger(__name__)


class TransferImage(NamedTuple):
    """An image of the file or of the folder."""

    id: Any
    name: str  # below the folder
    path: Path
    size: tuple[int, int] | None  # width and height, if the file says so


class AnnotatedObject(NamedTuple):
    """An object: annotated, if any of its keypoints is shown; to be labelled, if none is."""

    id: Any
    photo: TransferImage
    category: Any  # its id
    box: Box | None
    points: Float[Tensor, "k 2"]  # original pixels; (0, 0) where not shown
    shown: Bool[Tensor, " k"]


class CocoAnnotations(NamedTuple):
    """What is given."""

    categories: list[Mapping[str, Any]]  # as in the file
    sources: dict[Any, list[AnnotatedObject]]  # by the id of their category
    targets: list[AnnotatedObject]  # category by category


def read_annotations(path: Path, folder: Path, layout: str = "xywh", category: str | None = None) -> CocoAnnotations:
    """Sources and targets.

    An annotation without a keypoint (v is 0 everywhere, or there are none) is an object to be labelled. An image
    without annotation, of the file or of the folder alone, shows one object, as large as itself.

    Args:
        path: COCO: images, annotations, categories. AnimalPose's dialect is understood, too.
        folder: Where the images are, with those in its subfolders.
        layout: Of boxes: `xywh`, or `xyxy`.
        category: Name of the category of images without annotation; may be left out if there is but one.

    Raises:
        UserError: The file contradicts itself or the folder; nothing labels, or nothing is to be labelled.
    """
    kinds, things, bare = read_objects(path, folder, layout)
    sources: dict[Any, list[AnnotatedObject]] = {}
    for thing in things:
        if bool(thing.shown.any()):
            sources.setdefault(thing.category, []).append(thing)
    if not sources:
        raise UserError(f"{path} has no annotated keypoint (v > 0). Annotate one image of each category, at least")
    targets = [thing for thing in things if not bool(thing.shown.any())]
    targets += _whole(bare, kinds, sources, category, path)
    _check(targets, sources, kinds, path, folder)
    order = {kind: i for i, kind in enumerate(kinds)}
    return CocoAnnotations(list(kinds.values()), sources, sorted(targets, key=lambda thing: order[thing.category]))


def read_objects(
    path: Path, folder: Path, layout: str
) -> tuple[dict[Any, Any], list[AnnotatedObject], list[TransferImage]]:
    """Categories by their ids, objects, and images without annotation."""
    if layout not in LAYOUTS:
        raise UserError(f"--box must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder. Give the folder of the images that {path} names")
    content = read_coco(path, folder, "the folder of images", layout, "--box")
    photos = {key: _photo(image, path, folder) for key, image in content.images.items()}
    things = [_thing(one, photos[one.image.id], layout) for one in content.annotations]
    kinds = {one.id: one.entry for one in content.categories}
    return kinds, things, _bare(photos, content.named, folder)


def _photo(image: CocoImage, path: Path, folder: Path) -> TransferImage:
    if not image.path.is_file():
        raise UserError(
            f"{path} names the image {image.file_name}, which is not in {folder}. Restore it, or drop the entry"
        )
    return TransferImage(image.id, image.name, image.path, image.size)


def _bare(photos: Mapping[Id, TransferImage], named: Collection[Id], folder: Path) -> list[TransferImage]:
    """Images without annotation: of the file, and those of the folder that it does not name, with ids of their own."""
    known = {i: photo.path.resolve() for i, photo in photos.items()}
    annotated = {known[i] for i in named}  # an image may have two entries
    free = count(1 + max((int(i) for i in photos if re.fullmatch("[0-9]{1,20}", str(i))), default=0))
    everything = set(known.values())
    others = list_image_files(folder, below=True, besides=everything)
    return [photo for i, photo in photos.items() if known[i] not in annotated] + [
        TransferImage(next(free), file.relative_to(folder).as_posix(), file, None) for file in others
    ]


def _thing(one: CocoAnnotation, photo: TransferImage, layout: str) -> AnnotatedObject:
    if one.flat is not None and not one.annotated:
        raise UserError(
            f"{one.where}: `bbox` {quote_json(one.flat)} has no area. It is read as {layout}; --box says otherwise"
        )
    shown = torch.tensor([point is not None for point in one.points])
    points = torch.tensor([point or (0.0, 0.0) for point in one.points])
    return AnnotatedObject(one.id, photo, one.category.id, one.box.xywh if one.box else None, points, shown)


def _whole(
    photos: Sequence[TransferImage],
    kinds: Mapping[Any, Any],
    sources: Mapping[Any, Any],
    category: str | None,
    path: Path,
) -> list[AnnotatedObject]:
    """Images that nothing is said of."""
    if category is None and len(sources) > 1 and photos:
        raise UserError(
            f"{len(photos)} images, such as {photos[0].name}, have no annotation, and {path} has {len(sources)} "
            "annotated categories. Name theirs with --category, or give each an annotation with its category_id"
        )
    named = [i for i, kind in kinds.items() if kind.get("name") == category]
    if category is not None and not named:
        there = ", ".join(category_name(kind) for kind in kinds.values())
        raise UserError(f"--category: {path} has no category {category!r}; it has {there}")
    if category is not None and not photos:
        log.warning("--category %s has no effect: every image has an annotation", category)
    kind = named[0] if named else next(iter(sources))
    many = len(kinds[kind].get("keypoints") or [])
    return [AnnotatedObject(None, one, kind, None, torch.zeros(many, 2), torch.zeros(many).bool()) for one in photos]


def _check(
    targets: Sequence[AnnotatedObject], sources: Mapping[Any, Any], kinds: Mapping[Any, Any], path: Path, folder: Path
) -> None:
    if not targets:
        raise UserError(f"Every image of {folder} is annotated in {path}: there is none to be labelled. Add some")
    orphans = Counter(category_name(kinds[thing.category]) for thing in targets if thing.category not in sources)
    for name, many in orphans.items():
        raise UserError(f"{path} has no annotated image of {name}, which {many} are to be labelled as. Annotate one")


def list_objects(sheet: CocoAnnotations) -> list[AnnotatedObject]:
    """Sources and targets."""
    return [*sheet.targets, *(thing for things in sheet.sources.values() for thing in things)]


def category_name(kind: Mapping[str, Any]) -> str:
    """A category's name, or its id."""
    return str(kind.get("name", kind.get("id")))
