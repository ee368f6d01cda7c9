"""A synthetic benchmark of SPair-71k's exact shape and layout: 1,800 images, 53,340 / 5,384 / 12,234 pairs.

A pair shares about 8 keypoints. Pictures are noise, and all of them differ.
"""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import Progress

from semcorr.benchmark.spair_shape import (
    SPLITS,
    SplitCounts,
    SyntheticImage,
    make_pair_lists,
    official_counts,
    shrink_counts,
)
from semcorr.core.errors import UserError
from semcorr.core.files import require_writable, temporary_folder
from semcorr.core.text_files import JsonObject
from semcorr.data.creatures.annotation import Annotation, annotate_pair
from semcorr.data.keypoints import benchmark_metadata, keypoint_names

MANIFEST, FORMAT = "spair_scale.json", 1
SHARED = 8  # approximate number of keypoints that a pair shares
ALWAYS = 3  # keypoints that every image shows, so that no pair is without any
SIZES = ((500, 375), (375, 500), (500, 333))


def default_folder() -> Path:
    """Return the default folder of the tree."""
    return Path(tempfile.gettempdir()) / "semcorr-spair-scale"


def write_spair_scale(root: Path, part: float = 1.0) -> Path:
    """Write the tree unless `root` is it already, and return `root`. It appears whole or not at all.

    Args:
        root: The folder of the tree.
        part: The share of the images of every category and split that is written; see `shrink_counts`.
    """
    if not 0 < part <= 1:
        raise UserError(f"a part of SPair-71k's images is more than 0 and at most 1, got {part}")
    manifest = {"format": FORMAT, "part": part}
    if _is_written(root, manifest):
        return root
    require_writable(root, "--folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(root.parent, root.name) as staging:
        _write_tree(staging, official_counts() if part == 1 else shrink_counts(official_counts(), part))
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
    probability = math.sqrt((SHARED - ALWAYS) / max(len(keypoint_ids) - ALWAYS, SHARED - ALWAYS))
    visible = keypoint_ids[:ALWAYS] + [i for i in keypoint_ids[ALWAYS:] if rng.random() < probability]
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
    with Progress(transient=True) as bar:
        annotations = {}
        for image in bar.track(images, description="Writing images of SPair-71k's shape"):
            annotations[image] = make_annotation(image)
            stem = f"{image.category}/{image.stem}"
            (root / f"ImageAnnotation/{stem}.json").write_text(json.dumps(annotations[image]))
            make_picture(image).save(root / f"JPEGImages/{stem}.jpg", quality=85)
        for split, pairs in lists.items():
            tracked = bar.track(pairs, description=f"Writing {split} pairs")
            _write_pairs(
                root,
                split,
                [
                    annotate_pair(annotations[source], annotations[target], i)
                    for i, (source, target) in enumerate(tracked, 1)
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
