"""A COCO keypoint file with a few annotated images: what labels others, and what is to be labelled."""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.core.paths import resolve_inside, shorten
from semcorr.core.text_files import read_json
from semcorr.data.coco_keypoints import BOXES
from semcorr.data.pictures import image_files
from semcorr.errors import UserError
from semcorr.transfer.cut import Box


class Photo(NamedTuple):
    """An image of the file or of the folder."""

    id: Any
    name: str  # below the folder
    path: Path
    size: tuple[int, int] | None  # width and height, if the file says so


class Thing(NamedTuple):
    """An object: annotated, if any of its keypoints is shown; to be labelled, if none is."""

    id: Any
    photo: Photo
    category: Any  # its id
    box: Box | None
    points: Float[Tensor, "k 2"]  # original pixels; (0, 0) where not shown
    shown: Bool[Tensor, " k"]


class Sheet(NamedTuple):
    """What is given."""

    categories: list[Mapping[str, Any]]  # as in the file
    sources: dict[Any, list[Thing]]  # by the id of their category
    targets: list[Thing]  # category by category


def read_sheet(path: Path, folder: Path, layout: str = "xywh", category: str | None = None) -> Sheet:
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
    kinds, things, bare = read_things(path, folder, layout)
    sources: dict[Any, list[Thing]] = {}
    for thing in things:
        if bool(thing.shown.any()):
            sources.setdefault(thing.category, []).append(thing)
    if not sources:
        raise UserError(f"{path} has no annotated keypoint (v > 0). Annotate one image of each category, at least")
    targets = [thing for thing in things if not bool(thing.shown.any())]
    targets += _whole(bare, kinds, sources, category, path)
    _check(targets, sources, kinds, path, folder)
    order = {kind: i for i, kind in enumerate(kinds)}
    return Sheet(list(kinds.values()), sources, sorted(targets, key=lambda thing: order[thing.category]))


def read_things(path: Path, folder: Path, layout: str) -> tuple[dict[Any, Any], list[Thing], list[Photo]]:
    """Categories by their ids, objects, and images without annotation."""
    if layout not in BOXES:
        raise UserError(f"--box must be one of {', '.join(BOXES)}, got {layout!r}")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder. Give the folder of the images that {path} names")
    content = read_json(path, "Give a COCO keypoint file")
    for key in ("images", "categories", "annotations"):
        if not isinstance(_need(content, key, path), list | dict):
            raise UserError(f"{path}: `{key}` must be a list. Give a COCO keypoint file")
    photos = _photos(_need(content, "images", path), folder, path)
    kinds = {_need(kind, "id", path): kind for kind in _need(content, "categories", path)}
    entries = list(enumerate(_need(content, "annotations", path)))
    things = [
        _thing(entry, i, photos, kinds, layout, path)
        for i, entry in entries
        if not (isinstance(entry, Mapping) and entry.get("iscrowd"))  # a crowd is no object
    ]
    return kinds, things, _bare(photos, {_need(entry, "image_id", path) for _, entry in entries}, folder)


def _photos(images: Any, folder: Path, path: Path) -> dict[Any, Photo]:
    """By id."""
    if isinstance(images, Mapping):  # AnimalPose's: id to name
        images = [
            {"id": int(i) if re.fullmatch("[0-9]{1,20}", i) else i, "file_name": name} for i, name in images.items()
        ]
    found: dict[Any, Photo] = {}
    for image in images:
        i, name = _need(image, "id", path), _need(image, "file_name", path)
        file = resolve_inside(folder, name, f"{path}, image {shorten(i)}, field `file_name`,", "the folder of images")
        size = (image["width"], image["height"]) if image.get("width") and image.get("height") else None
        if i in found:
            raise UserError(f"{path}: two images have the id {i}. Give each its own")
        if not file.is_file():
            raise UserError(f"{path} names the image {name}, which is not in {folder}. Restore it, or drop the entry")
        found[i] = Photo(i, name, file, size)
    return found


def _bare(photos: Mapping[Any, Photo], seen: Collection[Any], folder: Path) -> list[Photo]:
    """Images without annotation: of the file, and those of the folder that it does not name, with ids of their own."""
    known = {photo.path.resolve() for photo in photos.values()}
    free = count(1 + max((i for i in photos if isinstance(i, int)), default=0))
    others = image_files(folder, below=True, besides=known)
    return [photo for i, photo in photos.items() if i not in seen] + [
        Photo(next(free), file.relative_to(folder).as_posix(), file, None) for file in others
    ]


def _thing(
    entry: Any, index: int, photos: Mapping[Any, Photo], kinds: Mapping[Any, Any], layout: str, path: Path
) -> Thing:
    of, kind = _need(entry, "image_id", path), _need(entry, "category_id", path)
    for what, key, known in (("image_id", of, photos), ("category_id", kind, kinds)):
        if key not in known:
            raise UserError(f"{path}: an annotation names {what} {key}, which the file does not define. Drop it")
    where = f"{path}: the annotation {entry.get('id', index)} of {photos[of].name}"
    names = kinds[kind].get("keypoints")
    if not names:
        raise UserError(f"{where} is of {called(kinds[kind])}, which has no `keypoints`, their names. Add them")
    rows = torch.tensor(_rows(entry.get("keypoints") or [0.0] * 3 * len(names), len(names), where))
    shown = rows[:, 2] > 0
    points = rows[:, :2] * shown[:, None]
    return Thing(entry.get("id", index), photos[of], kind, _box(entry.get("bbox"), layout, where), points, shown)


def _rows(values: Any, many: int, where: str) -> list[list[float]]:
    """X y v of each keypoint: COCO's flat list, or rows."""
    rows = isinstance(values, list) and all(isinstance(row, list) for row in values)
    flat = [each for row in values for each in row] if rows else values
    if not isinstance(flat, list) or not all(isinstance(each, int | float) and math.isfinite(each) for each in flat):
        raise UserError(f"{where}: `keypoints` must be finite numbers. Correct them")
    if len(flat) != 3 * many:
        raise UserError(
            f"{where} has {len(flat)} numbers in `keypoints`; its category has {many} keypoints, of x, y and v each, "
            f"which are {3 * many} numbers. Correct it"
        )
    return [[float(each) for each in flat[i : i + 3]] for i in range(0, len(flat), 3)]


def _box(box: Any, layout: str, where: str) -> Box | None:
    """To x y width height."""
    if not box:
        return None
    known = isinstance(box, list) and len(box) == 4
    if not known or not all(isinstance(each, int | float) and math.isfinite(each) for each in box):
        raise UserError(f"{where}: `bbox` must be four finite numbers, got {box}. Correct it")
    x, y, w, h = map(float, box)
    if layout == "xyxy":
        w, h = w - x, h - y
    if w <= 0 or h <= 0:
        raise UserError(f"{where}: `bbox` {box} has no area. It is read as {layout}; --box says otherwise")
    return x, y, w, h


def _whole(
    photos: Sequence[Photo], kinds: Mapping[Any, Any], sources: Mapping[Any, Any], category: str | None, path: Path
) -> list[Thing]:
    """Images that nothing is said of."""
    if category is None and len(sources) > 1 and photos:
        raise UserError(
            f"{len(photos)} images, such as {photos[0].name}, have no annotation, and {path} has {len(sources)} "
            "annotated categories. Name theirs with --category, or give each an annotation with its category_id"
        )
    named = [i for i, kind in kinds.items() if kind.get("name") == category]
    if category is not None and not named:
        there = ", ".join(called(kind) for kind in kinds.values())
        raise UserError(f"--category: {path} has no category {category!r}; it has {there}")
    kind = named[0] if named else next(iter(sources))
    many = len(kinds[kind].get("keypoints") or [])
    return [Thing(None, one, kind, None, torch.zeros(many, 2), torch.zeros(many).bool()) for one in photos]


def _check(
    targets: Sequence[Thing], sources: Mapping[Any, Any], kinds: Mapping[Any, Any], path: Path, folder: Path
) -> None:
    if not targets:
        raise UserError(f"Every image of {folder} is annotated in {path}: there is none to be labelled. Add some")
    orphans = Counter(called(kinds[thing.category]) for thing in targets if thing.category not in sources)
    for name, many in orphans.items():
        raise UserError(f"{path} has no annotated image of {name}, which {many} are to be labelled as. Annotate one")


def things_of(sheet: Sheet) -> list[Thing]:
    """Sources and targets."""
    return [*sheet.targets, *(thing for things in sheet.sources.values() for thing in things)]


def called(kind: Mapping[str, Any]) -> str:
    """A category's name, or its id."""
    return str(kind.get("name", kind.get("id")))


def _need(entry: Any, key: str, path: Path) -> Any:
    if not isinstance(entry, Mapping) or key not in entry:
        raise UserError(f"{path}: no field `{key}`. Give a COCO keypoint file: images, annotations, categories")
    return entry[key]
