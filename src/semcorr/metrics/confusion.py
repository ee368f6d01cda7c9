"""What a keypoint is taken for: its mirror twin, or any other of the target's visible keypoints."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from semcorr.metrics.pck_dagger import Landmarks, landmark_distances
from semcorr.metrics.predictions import Predictions

Flips = Mapping[str, Sequence[int]]  # category to its left-right permutation of ids


def target_landmarks(rows: Predictions, pairs: Sequence[Any]) -> Landmarks:
    """All keypoints visible in the targets, whether or not the source shows them.

    Args:
        rows: Whose pairs are asked for.
        pairs: The benchmark's records, among them these.
    """
    records = {pair.name: pair.target for pair in pairs}
    targets = [records[name] for name in rows.pairs]
    points = np.full((len(targets), max((len(target.visible) for target in targets), default=0), 2), np.nan)
    for place, target in zip(points, targets, strict=True):
        visible = np.asarray(target.visible, bool)
        place[: len(visible)][visible] = np.asarray(target.keypoints, float)[visible]
    return points


def left_right_confusion(rows: Predictions, landmarks: Landmarks, flips: Flips) -> dict[str, Any]:
    """How often a keypoint whose mirror twin the target shows is found nearer to the twin than to itself.

    Every category counts its `asked` keypoints; None where there are none. The distance does not matter otherwise:
    a prediction far from both still falls to one of them.
    """
    n = max([landmarks.shape[1], *map(len, flips.values())])
    twins = np.tile(np.arange(n), (len(rows.categories), 1))
    for mine, name in zip(twins, rows.categories, strict=True):
        flip = flips.get(name, ())
        mine[: len(flip)] = flip
    category = rows.category[rows.pair]
    twin = twins[category, rows.keypoint]
    more = ((0, 0), (0, n - landmarks.shape[1]))
    away, row = np.pad(landmark_distances(rows, landmarks), more, constant_values=np.inf), np.arange(len(rows.pair))
    asked = (twin != rows.keypoint) & np.isfinite(away[row, twin])
    wrong = asked & (away[row, twin] < away[row, rows.keypoint])
    each = {name: _share(wrong[category == c], asked[category == c]) for c, name in enumerate(rows.categories)}
    return {**_share(wrong, asked), "category": each}


def keypoint_confusion(
    rows: Predictions, landmarks: Landmarks, alpha: float = 0.1
) -> dict[str, Int[np.ndarray, "n k"]]:
    """Per category: true id by the id of the target's keypoint nearest to the prediction, counted.

    The last column is "none": no visible keypoint lies within `alpha` times the extent, in original target pixels.
    Of two equally near the true one is taken, then the first.
    """
    n = landmarks.shape[1]
    away, row = landmark_distances(rows, landmarks), np.arange(len(rows.pair))
    nearest = away.argmin(axis=1)
    own = away[row, rows.keypoint] <= away[row, nearest]
    nearest = np.where(own, rows.keypoint, nearest)
    nearest = np.where(away[row, nearest] / rows.extent <= alpha, nearest, n)
    matrices = np.zeros((len(rows.categories), n, n + 1), int)
    np.add.at(matrices, (rows.category[rows.pair], rows.keypoint, nearest), 1)
    return dict(zip(rows.categories, matrices, strict=True))


def _share(wrong: Any, asked: Any) -> dict[str, Any]:
    count = int(asked.sum())
    return {"confused": int(wrong.sum()) / count if count else None, "asked": count}
