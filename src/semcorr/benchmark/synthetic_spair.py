"""A synthetic benchmark of SPair-71k's exact shape: as many images and pairs of each category.

A pair shares about 8 keypoints. Pictures are noise, and all of them differ.
"""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from semcorr.core.errors import UserError
from semcorr.core.files import require_writable, temporary_folder
from semcorr.core.terminal import Stage
from semcorr.core.text_files import JsonObject
from semcorr.data.creatures.annotation import Annotation, annotate_pair
from semcorr.data.keypoints import benchmark_metadata, keypoint_names

SPLITS = {"trn": "train", "val": "val", "test": "test"}  # the layout's names of the splits, and ours
IMAGES_PER_CATEGORY, VALIDATION_IMAGES = 100, 18  # images


class SplitCounts(NamedTuple):
    """The numbers of images and pairs of a category, by split."""

    images: Mapping[str, int]
    pairs: Mapping[str, int]


class SyntheticImage(NamedTuple):
    """An image, identified by category, split and number."""

    category: str
    split: str
    number: int

    @property
    def stem(self) -> str:
        """The name of its file, without suffix."""
        return f"{self.split}_{self.number:06d}"


def official_counts() -> dict[str, SplitCounts]:
    """Return the counts of SPair-71k by category."""
    official = benchmark_metadata("spair71k")["official"]
    test = official["pairs_per_category"]["test"]
    images = {category: _images_per_split(_fewest_images(pairs)) for category, pairs in test.items()}
    capacity = {
        split: {name: counts[split] * (counts[split] - 1) for name, counts in images.items()}
        for split in ("trn", "val")
    }
    shares = {split: _distribute(official["pairs"][SPLITS[split]], capacity[split]) for split in capacity}
    return {
        name: SplitCounts(
            images[name], {split_name: shares[split_name][name] for split_name in shares} | {"test": test[name]}
        )
        for name in test
    }


def shrink_counts(counts: Mapping[str, SplitCounts], part: float) -> dict[str, SplitCounts]:
    """Reduce the images to a part, and the pairs in proportion; at least two of each per category and split.

    >>> shrink_counts({"cat": SplitCounts({"trn": 50, "test": 25}, {"trn": 2400, "test": 600})}, 0.1)
    {'cat': SplitCounts(images={'trn': 5, 'test': 2}, pairs={'trn': 20, 'test': 2})}
    """
    reduced = {}
    for category, (images, pairs) in counts.items():
        fewer_images = {split: max(2, round(count * part)) for split, count in images.items()}
        share = {
            name: pairs[name] / (count * (count - 1)) * fewer_images[name] * (fewer_images[name] - 1)
            for name, count in images.items()
        }
        reduced[category] = SplitCounts(fewer_images, {split: max(2, round(count)) for split, count in share.items()})
    return reduced


def make_pair_lists(counts: Mapping[str, SplitCounts]) -> dict[str, list[tuple[SyntheticImage, SyntheticImage]]]:
    """Return the ordered pairs by split; the pairs that are left out are spread evenly."""
    lists: dict[str, list[tuple[SyntheticImage, SyntheticImage]]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for category, (images, pairs) in sorted(counts.items()):
            ordered_pairs = list(permutations([SyntheticImage(category, split, i) for i in range(images[split])], 2))
            lists[split] += [ordered_pairs[i * len(ordered_pairs) // pairs[split]] for i in range(pairs[split])]
    return lists


def _fewest_images(pairs: int) -> int:
    """Return the fewest images that make so many ordered pairs."""
    return math.ceil((1 + math.sqrt(1 + 4 * pairs)) / 2)


def _images_per_split(test: int) -> dict[str, int]:
    return {"trn": IMAGES_PER_CATEGORY - VALIDATION_IMAGES - test, "val": VALIDATION_IMAGES, "test": test}


def _distribute(total: int, capacity: Mapping[str, int]) -> dict[str, int]:
    """Distribute `total` over the categories in proportion to their capacity."""
    shares = {key: total * largest // sum(capacity.values()) for key, largest in capacity.items()}
    for key in sorted(shares)[: total - sum(shares.values())]:
        shares[key] += 1
    return shares


MANIFEST, FORMAT = "spair_scale.json", 1
SHARED = 8  # approximate number of keypoints that a pair shares
COMMON_KEYPOINTS = 3  # keypoints that every image shows, so that no pair is without any
SIZES = ((500, 375), (375, 500), (500, 333))


def default_folder() -> Path:
    """Return the default folder of the tree."""
    return Path(tempfile.gettempdir()) / "semcorr-spair-scale"


def write_spair_scale(root: Path, part: float = 1.0) -> Path:
    """Write the tree unless `root` is it already, and return `root`. It appears whole or not at all.

    Args:
        root: The folder of the tree.
        part: The share of the images of every category and split that is written, more than 0; see `shrink_counts`.

    Raises:
        UserError: `part` is out of range, or `root` is another folder or cannot be written.
    """
    if not 0 < part <= 1:
        raise UserError(f"a part of SPair-71k's images is more than 0 and at most 1, got {part}")
    counts = official_counts() if part == 1 else shrink_counts(official_counts(), part)
    return _write_tree_once(root, counts, {"format": FORMAT, "part": part})


def write_spair_counts(root: Path, test_images: int, per_image: int) -> Path:
    """Write a tree with the same images and pairs in every category, unless `root` is it already, and return `root`.

    Args:
        root: The folder of the tree.
        test_images: Images of a category's test split; training and validation have four and two.
        per_image: Test pairs of a category for each of its test images.

    Raises:
        UserError: `root` is another folder, or cannot be written.
    """
    images = {"trn": 4, "val": 2, "test": test_images}
    counts = SplitCounts(images, {"trn": 12, "val": 2, "test": test_images * per_image})
    manifest = {"format": FORMAT, "test_images": test_images, "per_image": per_image}
    return _write_tree_once(root, dict.fromkeys(official_counts(), counts), manifest)


def _write_tree_once(root: Path, counts: Mapping[str, SplitCounts], manifest: JsonObject) -> Path:
    """Write a tree unless `root` is it already, and return `root`. It appears whole or not at all."""
    if _is_written(root, manifest):
        return root
    require_writable(root, "--folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(root.parent, root.name) as staging:
        _write_tree(staging, counts)
        (staging / MANIFEST).write_text(json.dumps(manifest) + "\n")
        try:
            staging.rename(root)
        except OSError:  # another writer was faster
            if not _is_written(root, manifest):
                raise
    return root


def make_annotation(image: SyntheticImage) -> Annotation:
    """Make the ImageAnnotation of an image, which follows from its category, split and number alone."""
    rng = _image_rng(image)
    width, height = SIZES[image.number % len(SIZES)]
    keypoint_ids = sorted(keypoint_names("spair71k", image.category))
    # A keypoint of a pair must be seen in both images, which happens with the square of this probability.
    probability = math.sqrt(
        (SHARED - COMMON_KEYPOINTS) / max(len(keypoint_ids) - COMMON_KEYPOINTS, SHARED - COMMON_KEYPOINTS)
    )
    visible = keypoint_ids[:COMMON_KEYPOINTS] + [
        i for i in keypoint_ids[COMMON_KEYPOINTS:] if rng.random() < probability
    ]
    box = [width // 8, height // 8, width - width // 8, height - height // 8]
    points = {i: [int(rng.integers(box[0], box[2] + 1)), int(rng.integers(box[1], box[3] + 1))] for i in visible}
    return {
        "filename": f"{image.stem}.jpg",
        "image_width": width,
        "image_height": height,
        "image_depth": 3,
        "category": image.category,
        "pose": "Unspecified",
        "truncated": 0,
        "occluded": 0,
        "difficult": 0,
        "bndbox": box,
        "azimuth_id": image.number % 8,
        "kps": {str(i): points.get(i) for i in range(30)},
    }


def make_picture(image: SyntheticImage) -> Image.Image:
    """Make a picture of coloured noise, coarse enough for a file of a photograph's size."""
    width, height = SIZES[image.number % len(SIZES)]
    coarse = _image_rng(image).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def _write_tree(root: Path, counts: Mapping[str, SplitCounts]) -> None:
    lists = make_pair_lists(counts)
    images = [
        SyntheticImage(category, split, number)
        for category, category_counts in sorted(counts.items())
        for split, count in category_counts.images.items()
        for number in range(count)
    ]
    for folder in ("ImageAnnotation", "JPEGImages"):
        for category in counts:
            (root / folder / category).mkdir(parents=True)
    with Stage(f"Writing {len(images):,} images of SPair-71k's shape to {root}", len(images)) as stage:
        annotations = {}
        for image in stage.track(images):
            annotations[image] = make_annotation(image)
            stem = f"{image.category}/{image.stem}"
            (root / f"ImageAnnotation/{stem}.json").write_text(json.dumps(annotations[image]))
            make_picture(image).save(root / f"JPEGImages/{stem}.jpg", quality=85)
    for split, pairs in lists.items():
        with Stage(f"Writing {len(pairs):,} pairs of {split}", len(pairs)) as stage:
            _write_pairs(
                root,
                split,
                [
                    annotate_pair(annotations[source], annotations[target], i)
                    for i, (source, target) in enumerate(stage.track(pairs), 1)
                ],
            )


def _write_pairs(root: Path, split: str, pairs: Sequence[Annotation]) -> None:
    folder, layout = root / "PairAnnotation" / split, root / "Layout" / "large" / f"{split}.txt"
    folder.mkdir(parents=True)
    layout.parent.mkdir(parents=True, exist_ok=True)
    for pair in pairs:
        (folder / f"{pair['filename']}.json").write_text(json.dumps(pair))
    layout.write_text("".join(f"{pair['filename']}\n" for pair in pairs))


def _is_written(root: Path, manifest: JsonObject) -> bool:
    """Tell whether `root` is this tree (True) or does not exist (False); raise `UserError` for anything else."""
    if not root.exists():
        return False
    try:
        existing = json.loads((root / MANIFEST).read_text())
    except (OSError, ValueError):
        existing = None
    if existing != manifest:
        raise UserError(f"--folder: {root} exists and is not what would be written there. Delete it or choose another")
    return True


def _image_rng(image: SyntheticImage) -> np.random.Generator:
    category = benchmark_metadata("spair71k")["categories"][image.category]["index"]
    return np.random.default_rng([category, list(SPLITS).index(image.split), image.number])
