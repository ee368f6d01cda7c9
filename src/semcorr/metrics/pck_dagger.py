"""PCK-dagger: a correct keypoint must also be nearer to its own point than to any other of the pair."""

import numpy as np
from jaxtyping import Bool, Float

from semcorr.metrics.predictions import Predictions

Landmarks = Float[np.ndarray, "p n 2"]  # of every pair's target in its original pixels, by id; NaN where not visible


def shared_landmarks(rows: Predictions) -> Landmarks:
    """Return the keypoints visible in both images: those that have a row."""
    points = np.full((len(rows.pairs), int(rows.keypoint.max(initial=-1)) + 1, 2), np.nan)
    points[rows.pair, rows.keypoint] = rows.target
    return points


def landmark_distances(rows: Predictions, landmarks: Landmarks) -> Float[np.ndarray, "m n"]:
    """Compute the distance of every prediction to every keypoint of its target; infinite where there is none."""
    distance = np.linalg.norm(rows.predicted[:, None] - landmarks[rows.pair], axis=-1)
    return np.where(np.isnan(distance), np.inf, distance)


def own_is_nearest(rows: Predictions) -> Bool[np.ndarray, " m"]:
    """Tell whether no other keypoint visible in both images is nearer to the prediction than its own.

    "Demystifying" (Aygun and Mac Aodha 2022), as Jamais Vu's PCKD. In original target pixels. Published code takes an
    argmin; a keypoint that lies exactly where another does is no confusion, so a tie is right here.

    >>> import pyarrow as pa
    >>> from semcorr.metrics.predictions import is_correct, load_predictions
    >>> rows = [dict(pair="p", source="a", target="b", category="cat", keypoint=k, target_x=10.0 * k, target_y=0.0,
    ...              predicted_x=x, predicted_y=0.0, extent=100.0, ambiguous=False) for k, x in ((0, 4.0), (1, 4.0))]
    >>> predictions = load_predictions(pa.Table.from_pylist(rows))  # keypoints at 0 and 10, predicted at 4
    >>> is_correct(predictions, [0.1]), own_is_nearest(predictions)
    (array([[ True,  True]]), array([ True, False]))
    """
    distance = landmark_distances(rows, shared_landmarks(rows))
    true_distance = distance[np.arange(len(distance)), rows.keypoint]
    return true_distance <= distance.min(axis=1, initial=np.inf)
