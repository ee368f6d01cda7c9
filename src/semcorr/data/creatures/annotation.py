"""Annotations of an image of a creature, and of a pair of them, in SPair-71k's terms.

`azimuth_id` k is the 45 degree bin centred on azimuth 45 k (`Camera.towards`): 0 faces the viewer,
2 faces the image's left edge, 4 is seen from behind, 6 faces right; as in SPair-71k, whose words
for these four `pose` takes, "Unspecified" for the rest.
"""

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
from numpy.random import Generator

from semcorr.core.text_files import JsonObject
from semcorr.data.creatures.photograph import Photo
from semcorr.data.creatures.styles import Style
from semcorr.data.keypoints import keypoint_names

POSES = {0: "Frontal", 2: "Left", 4: "Rear", 6: "Right"}
Annotation = JsonObject


def annotate_image(shot: Photo, category: str, stem: str, azimuth_id: int, domain: Style | None = None) -> Annotation:
    """Build the image's annotation: coordinates are 0-based, a pixel's centre at integers.

    Args:
        shot: The image and what is seen in it.
        category: Category of the creature.
        stem: Name of the image's file without its ending.
        azimuth_id: Bin of the azimuth, from 0 to 7.
        domain: Style of the image, where a benchmark has several; None leaves out the field, as SPair-71k does.
    """
    rows, columns = np.nonzero(shot.mask)
    ids = {str(i): name for i, name in keypoint_names("spair71k", category).items()}
    keypoints = {i: shot.keypoints[ids[i]] if i in ids else None for i in map(str, range(30))}
    return {
        "filename": f"{stem}.jpg",
        "src_database": "semcorr synthetic creatures",
        "src_annotation": "semcorr",
        "src_image": "rendered",
        "image_width": shot.image.width,
        "image_height": shot.image.height,
        "image_depth": 3,
        "category": category,
        "pose": POSES.get(azimuth_id, "Unspecified"),
        "truncated": int(shot.truncated),
        "occluded": int(shot.occluded),
        "difficult": 0,
        "bndbox": [int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())],
        "kps": {i: list(xy) if xy else None for i, xy in keypoints.items()},
        "azimuth_id": azimuth_id,
        **({"domain": domain} if domain else {}),
    }


def annotate_pair(source: Annotation, target: Annotation, pair_id: int) -> Annotation:
    """Build the pair's annotation.

    The variations' thresholds are ours: azimuths 0-1, 2, 3-4 bins apart; areas of the boxes less
    than 2, less than 4, 4 and more times apart. Truncation and occlusion: none, source, target,
    both.
    """
    shared = [i for i in source["kps"] if source["kps"][i] and target["kps"][i]]
    azimuth_steps = abs(source["azimuth_id"] - target["azimuth_id"])
    areas = sorted((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (source["bndbox"], target["bndbox"]))
    stems = [Path(side["filename"]).stem for side in (source, target)]
    return {
        "pair_id": pair_id,
        "filename": f"{pair_id:06d}-{stems[0]}-{stems[1]}:{source['category']}",
        "src_imname": source["filename"],
        "trg_imname": target["filename"],
        "src_imsize": [source["image_width"], source["image_height"], 3],
        "trg_imsize": [target["image_width"], target["image_height"], 3],
        "src_bndbox": source["bndbox"],
        "trg_bndbox": target["bndbox"],
        "category": source["category"],
        "src_pose": source["pose"],
        "trg_pose": target["pose"],
        "src_kps": [source["kps"][i] for i in shared],
        "trg_kps": [target["kps"][i] for i in shared],
        "kps_ids": shared,
        "mirror": 0,
        "viewpoint_variation": sum(min(azimuth_steps, 8 - azimuth_steps) >= bins for bins in (2, 3)),
        "scale_variation": sum(areas[1] >= times * areas[0] for times in (2, 4)),
        "truncation": source["truncated"] + 2 * target["truncated"],
        "occlusion": source["occluded"] + 2 * target["occluded"],
        **({"src_domain": source["domain"], "trg_domain": target["domain"]} if "domain" in source else {}),
    }


def choose_creature_pairs(
    annotations: Sequence[Annotation], max_pairs: int | None, rng: Generator
) -> list[tuple[int, int]]:
    """Choose ordered pairs that share at least three keypoints, or some of them at random, in the same order.

    Args:
        annotations: Annotations of the images of a category.
        max_pairs: Most pairs to choose; None: all.
        rng: Source of the choice.

    Returns:
        Indices of source and target among the annotations.
    """
    pairs = [
        (source, target)
        for source, target in permutations(range(len(annotations)), 2)
        if sum(bool(kps and annotations[target]["kps"][i]) for i, kps in annotations[source]["kps"].items()) >= 3
    ]
    if max_pairs is None or max_pairs >= len(pairs):
        return pairs
    return [pairs[i] for i in sorted(rng.choice(len(pairs), max_pairs, replace=False))]
