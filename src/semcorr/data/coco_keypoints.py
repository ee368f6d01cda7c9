"""A COCO-style keypoint file as a correspondence benchmark.

Images of a category are sorted, shuffled by a seed and cut into test, val and train; the pairs of a
split are all ordered pairs with enough shared keypoints, thinned by the same seed to a cap. Nothing
depends on the file system's order.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Unpack

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, Share, check_arguments
from semcorr.data.coco_fields import LAYOUTS, quote_json
from semcorr.data.coco_file import NO_BOX_NOTE, NO_POINT_NOTE, CocoImage, read_coco, warn_notes
from semcorr.data.datamodule import PairDataModule, PairOptions
from semcorr.data.image_names import name_images
from semcorr.data.keypoints import flip_from_names, groups_from_names
from semcorr.data.pictures import PictureSize, measure_picture, warn_about_frames, warn_stored_orientation
from semcorr.data.record import (
    ImageRecord,
    PairRecord,
    build_image_record,
    keypoint_bounding_box,
    log,
    longer_side,
    pad_keypoints,
    require_root,
)

NO_EXTENT_NOTE = "annotations have no `bbox`, and a single keypoint has no extent: they are left out"


class COCOKeypoints(PairDataModule):
    """Pairs made from `annotations`, a COCO keypoint file under `root`.

    Args:
        annotations: The JSON file, below `root`.
        images: The folder of its images, below `root`.
        box: `xywh` as COCO has it, or `xyxy` as some (AnimalPose) do.
        val: Share of each category's images kept for validation. The splits have no image in common.
        test: Share of each category's images kept for testing.
        min_shared: Keypoints a pair must share.
        pairs_per_category: Most pairs of a category in each split.
        pairs_seed: Seed of the splits and of the choice of pairs.
        **options: As for every benchmark.
    """

    name = "coco_keypoints"

    @check_arguments("data")
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
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__(**options)
        if box not in LAYOUTS:
            raise UserError(f"`data.box` must be one of {', '.join(LAYOUTS)}, got {box!r}")
        self.annotations, self.image_folder, self.box = annotations, images, box
        if val + test > 1:
            raise UserError(f"`data.val` and `data.test` must be at most 1 together, got {val:g} and {test:g}")
        self.shares = {"test": test, "val": val}
        self.min_shared, self.cap, self.pairs_seed = min_shared, pairs_per_category, pairs_seed
        self.content = cache(lambda: read_images(self.root, annotations, images, box))  # read once for all splits

    def records(self, split: str) -> Sequence[PairRecord]:
        """Return the pairs sorted by category, source, target.

        Raises:
            UserError: The file cannot be read, or no images of the split share enough keypoints.
        """
        images, names = self.content()
        split_of = split_of_images(images, self.shares, str(self.pairs_seed))
        pairs: list[PairRecord] = []
        without_pair: list[str] = []
        for category in sorted(images):
            split_images = sorted(
                (i for i in images[category] if split_of[i.name] == split), key=lambda image: image.name
            )
            chosen_pairs = choose_coco_pairs(
                split_images, self.min_shared, self.cap, f"{self.pairs_seed}/{category}/{split}"
            )
            if not chosen_pairs:
                without_pair.append(f"{category} ({len(split_images)} of {len(images[category])} images)")
            groups, flip = groups_from_names(names[category]), flip_from_names(names[category])
            pairs += [
                PairRecord(f"{a.name}-{b.name}:{category}", category, a, b, longer_side(b.box), groups, flip)
                for a, b in chosen_pairs
            ]
        path = self.root / self.annotations
        advice = f"data.test={self.shares['test']:g} and data.val={self.shares['val']:g} share images out"
        if without_pair and not pairs:
            raise UserError(
                f"{path}: data.split={split} has no pair of images that share data.min_shared={self.min_shared} "
                f"keypoints: {', '.join(without_pair[:5])}. {advice}: give other shares, or data.min_shared=1"
            )
        warn_notes(path, {f"categories have no pair in split {split}: {advice}": without_pair} if without_pair else {})
        return name_pairs(pad_keypoints(pairs))


def name_pairs(pairs: Sequence[PairRecord]) -> list[PairRecord]:
    """Give every pair a unique name: names of pairs of images with dashes in their names may coincide."""
    counts: Counter[str] = Counter()
    named = []
    for pair in pairs:
        counts[pair.name] += 1
        named.append(pair if counts[pair.name] == 1 else pair._replace(name=f"{pair.name} ({counts[pair.name]})"))
    return named


def read_images(
    root: Path, annotations: str, folder: str, box: str
) -> tuple[dict[str, list[ImageRecord]], dict[str, list[str]]]:
    """Return records and keypoint names per category; images with several objects of a category are left out.

    Args:
        root: The benchmark's folder.
        annotations: Name of the COCO file below the root.
        folder: Name of the folder of the images below the root.
        box: Layout of the boxes: `xywh` or `xyxy`.

    Returns:
        The images of each category, and the names of its keypoints in the order of their rows.

    Raises:
        UserError: The file contradicts itself or has no annotated keypoint, or an image is absent or of another size.
    """
    require_root(root, "The COCO keypoint set", "Give data.root=DIR.")
    path = root / annotations
    content = read_coco(path, root / folder, "data.root and data.images", box, "data.box")
    annotated = [annotation for annotation in content.annotations if annotation.annotated]
    if not annotated:
        raise UserError(f"{path} has no annotated keypoint (v > 0), so there is nothing to score. Annotate some.")
    names = name_images(root / folder, {annotation.image.name for annotation in annotated})
    notes: dict[str, list[str]] = {}
    if unannotated := [str(annotation.id) for annotation in content.annotations if not annotation.annotated]:
        notes[NO_POINT_NOTE] = unannotated
    with warn_about_frames(path):
        measured = {
            image.id: _measure(image, path)
            for image in {annotation.image.id: annotation.image for annotation in annotated}.values()
        }
    records: dict[str, list[ImageRecord]] = {}
    for annotation in annotated:
        image = annotation.image
        size, upright = measured[image.id]
        corners = annotation.box.corners if annotation.box else keypoint_bounding_box(annotation.points)
        if annotation.box is None:
            single = len({point for point in annotation.points if point is not None}) == 1
            notes.setdefault(NO_EXTENT_NOTE if single else NO_BOX_NOTE, []).append(str(annotation.id))
            if single:
                continue
        record = build_image_record(names[image.name], image.path, size, annotation.points, corners, path, upright)
        records.setdefault(annotation.category.name, []).append(record)
    warn_notes(path, notes)
    warn_stored_orientation(
        str(path), [content.images[key].name for key, picture_size in measured.items() if not picture_size.upright]
    )
    single_objects = {name: _keep_single_objects(images, f"{path} {name}") for name, images in records.items()}
    return single_objects, {
        category.name: list(category.keypoints)
        for category in content.categories
        if category.name in records and category.keypoints
    }


def _measure(image: CocoImage, path: Path) -> PictureSize:
    if not image.path.is_file():
        raise UserError(
            f"{path}, image {quote_json(image.id)}, names {quote_json(image.file_name)}, and {image.path} does not "
            "exist. Restore it, or drop the entry and its annotations."
        )
    return measure_picture(image.path, image.size)


def split_of_images(
    images: Mapping[str, Sequence[ImageRecord]], shares: Mapping[str, float], seed: str
) -> dict[str, str]:
    """Assign every image name to a split, in the same shares for every category.

    An image with a cat and a dog is assigned by its first category: splits share no image.

    Args:
        images: Images by category.
        shares: Shares of `test` and of `val`, from 0 to 1; the rest is `train`.
        seed: Text that the order of the images is drawn by.
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


def choose_coco_pairs(
    images: Sequence[ImageRecord], min_shared: int, cap: int, seed: str
) -> list[tuple[ImageRecord, ImageRecord]]:
    """Return all ordered pairs that share enough keypoints, or some of them by a seeded choice.

    Args:
        images: Images of one category and split.
        min_shared: Least number of keypoints that are visible in both images of a pair.
        cap: Most pairs that are returned.
        seed: Text that the choice is drawn by.
    """
    fit = [(a, b) for a, b in permutations(images, 2) if int((a.visible & b.visible).sum()) >= min_shared]
    if len(fit) <= cap:
        return fit
    sampled = sorted(random.Random(seed).sample(range(len(fit)), cap))
    return [fit[i] for i in sampled]


def _keep_single_objects(images: list[ImageRecord], what: str) -> list[ImageRecord]:
    """Keep images with one object of the category: two cats in one picture make "the same point" ill-defined."""
    names = Counter(image.name for image in images)
    single_objects = [image for image in images if names[image.name] == 1]
    if len(single_objects) < len(images):
        log.warning("%s: %d images hold several objects and are left out", what, len(names) - len(single_objects))
    return single_objects
