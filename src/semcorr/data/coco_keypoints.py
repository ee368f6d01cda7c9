"""Any COCO-style keypoint file as a correspondence benchmark.

Images of a category are sorted, shuffled by a seed and cut into test, val and train; the pairs of a
split are all ordered pairs with enough shared keypoints, thinned by the same seed to a cap. Nothing
depends on the file system's order.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from semcorr.core.paths import resolve_inside, shorten
from semcorr.core.ranges import Count, Share, ranged
from semcorr.data.datamodule import PairDataModule
from semcorr.data.groups import flip_from_names, groups_from_names
from semcorr.data.record import (
    ImageRecord,
    PairRecord,
    Point,
    image_record,
    image_size,
    is_number,
    log,
    longer_side,
    need,
    read_annotation,
    require_root,
)  # fmt: skip
from semcorr.errors import UserError

BOXES = ("xywh", "xyxy")


class COCOKeypoints(PairDataModule):
    """Pairs made from `annotations`, a COCO keypoint file under `root`.

    Args:
        annotations: The JSON file, below `root`.
        images: The folder of its images, below `root`.
        box: `xywh` as COCO has it, or `xyxy` as some (AnimalPose) do.
        val: Share of each category's images kept for validation,
        test: and for testing. The splits have no image in common.
        min_shared: Keypoints a pair must share.
        pairs_per_category: Cap per split.
        pairs_seed: Of the splits and of the cap.
        **options: As for every benchmark.
    """

    name = "coco_keypoints"

    @ranged("data")
    def __init__(
        self,
        *,
        annotations: str = "keypoints.json",
        images: str = "images",
        box: str = "xywh",
        val: Share = 0.1,
        test: Share = 0.1,
        min_shared: Count = 3,
        pairs_per_category: Count = 2000,
        pairs_seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if box not in BOXES:
            raise UserError(f"`data.box` must be one of {', '.join(BOXES)}, got {box!r}")
        self.annotations, self.image_folder, self.box = annotations, images, box
        self.shares = {"test": test, "val": val}
        self.min_shared, self.cap, self.pairs_seed = min_shared, pairs_per_category, pairs_seed

    def records(self, split: str) -> Sequence[PairRecord]:
        """Sorted by category, source, target."""
        images, names = read_images(self.root, self.annotations, self.image_folder, self.box)
        split_of = split_of_images(images, self.shares, str(self.pairs_seed))
        pairs: list[PairRecord] = []
        for category in sorted(images):
            mine = sorted((i for i in images[category] if split_of[i.name] == split), key=lambda image: image.name)
            chosen = choose_pairs(mine, self.min_shared, self.cap, f"{self.pairs_seed}/{category}/{split}")
            groups, flip = groups_from_names(names[category]), flip_from_names(names[category])
            pairs += [
                PairRecord(f"{a.name}-{b.name}:{category}", category, a, b, longer_side(b.box), groups, flip)
                for a, b in chosen
            ]
        return pairs


def read_images(
    root: Path, annotations: str, folder: str, box: str
) -> tuple[dict[str, list[ImageRecord]], dict[str, list[str]]]:
    """Records and keypoint names per category; images with several objects of a category stay out."""
    require_root(root, "The COCO keypoint set", "Give data.root=DIR.")
    path = root / annotations
    content = read_annotation(path)
    files = _files(need(content, "images", path), path)
    categories = {need(c, "id", path): c for c in need(content, "categories", path)}
    records: dict[str, list[ImageRecord]] = {}
    for entry in need(content, "annotations", path):
        category = categories.get(need(entry, "category_id", path))
        file = files.get(str(need(entry, "image_id", path)))
        if category is None or file is None:
            missing = f"category_id {entry['category_id']}" if category is None else f"image_id {entry['image_id']}"
            raise UserError(f"{path}: an annotation names {missing}, which the file does not define. Drop it.")
        where = f"{path}, image {shorten(entry['image_id'])}, field `file_name`,"
        picture = resolve_inside(root / folder, file, where, "data.root and data.images")
        points = _keypoints(entry, len(need(category, "keypoints", path)), path)
        corners = _corners(need(entry, "bbox", path), box)
        if any(point is not None for point in points):
            name = Path(file).with_suffix("").as_posix()
            record = image_record(name, picture, image_size(picture), points, corners, path)
            records.setdefault(need(category, "name", path), []).append(record)
    names = {c["name"]: c["keypoints"] for c in categories.values() if c.get("name") in records}
    return {name: _alone(images, f"{path} {name}") for name, images in records.items()}, names


def split_of_images(
    images: Mapping[str, Sequence[ImageRecord]], shares: Mapping[str, float], seed: str
) -> dict[str, str]:
    """Image name to split, in the same shares for every category.

    A picture with a cat and a dog goes where its first category puts it: splits share no image.
    """
    split_of: dict[str, str] = {}
    for category in sorted(images):
        names = sorted({image.name for image in images[category]} - split_of.keys())
        random.Random(f"{seed}/{category}").shuffle(names)
        stops = {
            "test": round(shares["test"] * len(names)),
            "val": round((shares["test"] + shares["val"]) * len(names)),
        }
        for i, name in enumerate(names):
            split_of[name] = next((split for split, stop in stops.items() if i < stop), "train")
    return split_of


def choose_pairs(
    images: Sequence[ImageRecord], min_shared: int, cap: int, seed: str
) -> list[tuple[ImageRecord, ImageRecord]]:
    """All ordered pairs that share enough keypoints, or `cap` of them by a seeded choice."""
    fit = [(a, b) for a, b in permutations(images, 2) if int((a.visible & b.visible).sum()) >= min_shared]
    if len(fit) <= cap:
        return fit
    kept = sorted(random.Random(seed).sample(range(len(fit)), cap))
    return [fit[i] for i in kept]


def _files(images: Any, path: Path) -> dict[str, Any]:
    """Image id to file name: COCO's list of objects, or AnimalPose's plain map."""
    if isinstance(images, Mapping):
        return {str(i): name for i, name in images.items()}
    return {str(need(image, "id", path)): need(image, "file_name", path) for image in images}


def _keypoints(entry: Mapping[str, Any], count: int, path: Path) -> list[Point]:
    """COCO's flat x y v list, or rows of [x, y, v]; v = 0 is not annotated."""
    values = need(entry, "keypoints", path)
    where = f"{path}: field `keypoints` of image {shorten(entry['image_id'])}"
    nested = isinstance(values, list) and all(isinstance(row, list) for row in values)
    flat = [value for row in values for value in row] if nested else values
    if not isinstance(flat, list) or (odd := next((value for value in flat if not is_number(value)), None)) is not None:
        odd = odd if isinstance(flat, list) else flat
        raise UserError(f"{where} holds {shorten(odd)}, which is no number. Correct it.")
    rows = values if nested else [flat[i : i + 3] for i in range(0, len(flat), 3)]
    if len(rows) != count or any(len(row) != 3 for row in rows):
        raise UserError(f"{where} has {len(rows)} points, its category {count}. Correct it.")
    if not all(math.isfinite(v) for _, _, v in rows):
        raise UserError(f"{where}: v is not finite; it is 0 where a keypoint is not annotated. Correct it.")
    return [(float(x), float(y)) if v > 0 else None for x, y, v in rows]


def _corners(box: Any, layout: str) -> Any:
    if layout == "xyxy" or not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        return box  # what is none is refused by image_record
    x, y, width, height = map(float, box)
    return [x, y, x + width, y + height]


def _alone(images: list[ImageRecord], what: str) -> list[ImageRecord]:
    """Two cats in one picture make "the same point" ill-defined."""
    names = Counter(image.name for image in images)
    alone = [image for image in images if names[image.name] == 1]
    if len(alone) < len(images):
        log.warning("%s: %d images hold several objects and are left out", what, len(names) - len(alone))
    return alone
