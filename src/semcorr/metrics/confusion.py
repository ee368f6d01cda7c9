"""Confusion of keypoints with their mirror twins and with any other visible keypoint, and PCK-dagger."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from semcorr.core.shapes import check_shapes
from semcorr.core.text_files import JsonObject
from semcorr.metrics.predictions import Predictions

Landmarks = Float[np.ndarray, "p n 2"]  # of every pair's target in its original pixels, by id; NaN where not visible


def shared_landmarks(rows: Predictions) -> Landmarks:
    """Return the target's keypoints that are visible in both images: those that have a row."""
    points = np.full((len(rows.pairs), int(rows.keypoint.max(initial=-1)) + 1, 2), np.nan)
    points[rows.pair, rows.keypoint] = rows.target
    return points


def landmark_distances(rows: Predictions, landmarks: Landmarks) -> Float[np.ndarray, "m n"]:
    """Compute the distance of every prediction to every keypoint of its target; infinite where there is none."""
    distance = np.linalg.norm(rows.predicted[:, None] - landmarks[rows.pair], axis=-1)
    return np.where(np.isnan(distance), np.inf, distance)


def is_own_nearest(rows: Predictions) -> Bool[np.ndarray, " m"]:
    """Tell whether no other keypoint visible in both images is nearer to the prediction than its own.

    It is the criterion of "Demystifying" (Aygun and Mac Aodha 2022), as of Jamais Vu's PCKD. Distances are in original
    target pixels. Published code takes an argmin; a keypoint that lies exactly where another does is no confusion, so a
    tie counts as nearest here.

    >>> import pyarrow as pa
    >>> from semcorr.metrics.predictions import is_correct, load_predictions
    >>> rows = [dict(pair="p", source="a", target="b", category="cat", keypoint=k, target_x=10.0 * k, target_y=0.0,
    ...              predicted_x=x, predicted_y=0.0, extent=100.0, ambiguous=False) for k, x in ((0, 4.0), (1, 4.0))]
    >>> predictions = load_predictions(pa.Table.from_pylist(rows))  # keypoints at 0 and 10, predicted at 4
    >>> is_correct(predictions, [0.1]), is_own_nearest(predictions)
    (array([[ True,  True]]), array([ True, False]))
    """
    distance = landmark_distances(rows, shared_landmarks(rows))
    true_distance = distance[np.arange(len(distance)), rows.keypoint]
    return true_distance <= distance.min(axis=1, initial=np.inf)


Flips = Mapping[str, Sequence[int]]  # category to its left-right permutation of ids


@runtime_checkable
class AnnotatedImage(Protocol):
    """An image with keypoints."""

    @property
    def keypoints(self) -> Tensor:
        """Coordinates in pixels, (n, 2)."""

    @property
    def visible(self) -> Tensor:
        """Which of them are visible, (n)."""


@runtime_checkable
class AnnotatedPair(Protocol):
    """A pair of images, of which the target's keypoints matter."""

    @property
    def name(self) -> str:
        """Name of the pair."""

    @property
    def target(self) -> AnnotatedImage:
        """The target image."""


def target_landmarks(rows: Predictions, pairs: Sequence[AnnotatedPair]) -> Landmarks:
    """Return all keypoints visible in the targets, whether or not the source shows them.

    Args:
        rows: Predictions, whose pairs are looked up.
        pairs: Records of the benchmark, which may have more pairs.
    """
    records = {pair.name: pair.target for pair in pairs}
    targets = [records[name] for name in rows.pairs]
    points = np.full((len(targets), max((len(target.visible) for target in targets), default=0), 2), np.nan)
    for coordinates, target in zip(points, targets, strict=True):
        visible = np.asarray(target.visible, bool)
        coordinates[: len(visible)][visible] = np.asarray(target.keypoints, float)[visible]
    return points


@check_shapes
def left_right_confusion(rows: Predictions, landmarks: Landmarks, flips: Flips) -> JsonObject:
    """Compute how often a keypoint whose twin the target shows is predicted nearer to the twin than to itself.

    The distance does not matter otherwise: a prediction far from both still falls to one of them.

    Args:
        rows: Predictions of one readout and protocol.
        landmarks: Keypoints that the targets show, see `target_landmarks`.
        flips: Left-right permutation of each category; one without is left out.

    Returns:
        The share `confused` of the keypoints that have such a twin, None where there are none, and their number
        `asked`: of all, and under `category` of each category.
    """
    n = max([landmarks.shape[1], *map(len, flips.values())])
    twins = np.tile(np.arange(n), (len(rows.categories), 1))
    for category_twins, name in zip(twins, rows.categories, strict=True):
        flip = flips.get(name, ())
        category_twins[: len(flip)] = flip
    category = rows.category[rows.pair]
    twin = twins[category, rows.keypoint]
    padding = ((0, 0), (0, n - landmarks.shape[1]))
    distance, row = (
        np.pad(landmark_distances(rows, landmarks), padding, constant_values=np.inf),
        np.arange(len(rows.pair)),
    )
    has_twin = (twin != rows.keypoint) & np.isfinite(distance[row, twin])
    wrong = has_twin & (distance[row, twin] < distance[row, rows.keypoint])
    by_category = {
        name: _share(wrong[category == c], has_twin[category == c]) for c, name in enumerate(rows.categories)
    }
    return {**_share(wrong, has_twin), "category": by_category}


@check_shapes
def keypoint_confusion(
    rows: Predictions, landmarks: Landmarks, alpha: float = 0.1
) -> dict[str, Int[np.ndarray, "n k"]]:
    """Count per category: true id by the id of the target's keypoint nearest to the prediction.

    The last column is "none": no visible keypoint lies within `alpha` times the extent, in original target pixels.
    Of equally near keypoints the true one is taken, else the first.

    Args:
        rows: Predictions of one readout and protocol.
        landmarks: Keypoints that the targets show, see `target_landmarks`.
        alpha: Largest distance from a keypoint, as a fraction of the extent.
    """
    n = landmarks.shape[1]
    distance, row = landmark_distances(rows, landmarks), np.arange(len(rows.pair))
    nearest = distance.argmin(axis=1)
    is_true = distance[row, rows.keypoint] <= distance[row, nearest]
    nearest = np.where(is_true, rows.keypoint, nearest)
    nearest = np.where(distance[row, nearest] / rows.extent <= alpha, nearest, n)
    matrices = np.zeros((len(rows.categories), n, n + 1), int)
    np.add.at(matrices, (rows.category[rows.pair], rows.keypoint, nearest), 1)
    return dict(zip(rows.categories, matrices, strict=True))


def _share(wrong: Bool[np.ndarray, " m"], has_twin: Bool[np.ndarray, " m"]) -> JsonObject:
    """Compute the share of confused keypoints and their number."""
    count = int(has_twin.sum())
    return {"confused": int(wrong.sum()) / count if count else None, "asked": count}
