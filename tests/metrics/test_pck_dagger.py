"""PCK-dagger and confusions: what a prediction is nearest to."""

import math

import numpy as np
import pytest
import torch
from random_tables import CATEGORIES, batches, hand_made, table

from semcorr.data.record import ImageRecord, PairRecord
from semcorr.metrics.breakdown import pck_from_predictions
from semcorr.metrics.confusion import (
    is_own_nearest,
    keypoint_confusion,
    left_right_confusion,
    shared_landmarks,
    target_landmarks,
)
from semcorr.metrics.pck import ALPHAS
from semcorr.metrics.predictions import is_correct, load_predictions


def record(name: str, points: dict[int, tuple[float, float]], slots: int = 6, category: str = "cat") -> PairRecord:
    """A pair whose target shows `points`."""
    keypoints, visible = torch.zeros(slots, 2), torch.zeros(slots, dtype=torch.bool)
    for i, point in points.items():
        keypoints[i], visible[i] = torch.tensor(point), True
    image = ImageRecord("b", None, (100, 100), keypoints, visible, (0.0, 0.0, 100.0, 100.0))  # type: ignore[arg-type]
    return PairRecord(name, category, image, image, 100.0)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_pck_dagger_agrees_with_a_loop_over_pairs_and_keypoints(alpha):
    rows = table(batches(7, 3, 12)).to_pylist()
    per_pair: dict[str, list[bool]] = {}
    for row in rows:
        end = (row["predicted_x"], row["predicted_y"])
        away = {
            other["keypoint"]: math.dist(end, (other["target_x"], other["target_y"]))
            for other in rows
            if other["pair"] == row["pair"]
        }
        own = away.pop(row["keypoint"])
        hit = own / row["extent"] <= alpha and all(own <= other for other in away.values())
        per_pair.setdefault(row["pair"], []).append(hit)

    found = load_predictions(table(batches(7, 3, 12)))
    scores = pck_from_predictions(found, [alpha], is_correct(found, [alpha]) & is_own_nearest(found))["pck"]["all"]

    means = [sum(hits) / len(hits) for hits in per_pair.values()]
    assert scores["image"][f"{alpha:g}"] == pytest.approx(sum(means) / len(means), abs=1e-12)
    assert scores["point"][f"{alpha:g}"] == sum(map(sum, per_pair.values())) / len(rows)
    assert (
        scores["point"][f"{alpha:g}"] < pck_from_predictions(found, [alpha])["pck"]["all"]["point"][f"{alpha:g}"]
        or alpha < 0.1
    )


def test_only_the_points_of_its_own_pair_compete():
    rows = [{"keypoint": 0, "predicted_x": 4.0}, {"pair": "q", "keypoint": 1, "target_x": 5.0}]

    assert is_own_nearest(load_predictions(hand_made(rows))).tolist() == [True, True]


def test_a_point_that_the_source_does_not_show_does_not_compete():
    """The published rule is over keypoints visible in both images; the table has those alone."""
    landmarks = shared_landmarks(load_predictions(hand_made([{"keypoint": 3, "target_x": 7.0}])))

    assert np.isnan(landmarks[0, :3]).all()
    assert landmarks[0, 3].tolist() == [7.0, 0.0]


def test_two_points_at_one_place_are_no_confusion():
    rows = [{"keypoint": 0, "predicted_x": 4.0}, {"keypoint": 1, "predicted_x": 4.0}]  # both truly at (0, 0)

    assert is_own_nearest(load_predictions(hand_made(rows))).tolist() == [True, True]


def test_left_and_right_are_confused_where_the_twin_is_nearer():
    """Ear tips 2 and 3 lie 20 px apart; 2 is found 12 px towards 3, 3 stays. 4 has a twin that is not visible."""
    rows = [{"keypoint": 2, "predicted_x": 12.0}, {"keypoint": 3, "target_x": 20.0}, {"keypoint": 4}, {"keypoint": 0}]
    found = load_predictions(hand_made(rows))
    landmarks = target_landmarks(found, [record("p", {0: (90, 90), 2: (0, 0), 3: (20, 0), 4: (0, 0)})])

    result = left_right_confusion(found, landmarks, {"cat": (0, 1, 3, 2, 5, 4)})

    assert result == {"confused": 0.5, "asked": 2, "category": {"cat": {"confused": 0.5, "asked": 2}}}


def test_a_twin_that_only_the_target_shows_can_be_mistaken():
    found = load_predictions(hand_made([{"keypoint": 2, "predicted_x": 12.0}]))
    landmarks = target_landmarks(found, [record("p", {2: (0, 0), 3: (20, 0)})])

    assert left_right_confusion(found, landmarks, {"cat": (0, 1, 3, 2, 5, 4)})["confused"] == 1.0
    assert left_right_confusion(found, shared_landmarks(found), {"cat": (0, 1, 3, 2, 5, 4)})["asked"] == 0


def test_without_flips_no_keypoint_is_counted():
    found = load_predictions(hand_made([{"keypoint": 2}]))

    assert left_right_confusion(found, shared_landmarks(found), {})["confused"] is None


def test_confusions_agree_with_a_loop():
    found = load_predictions(table(batches(20)))
    landmarks = shared_landmarks(found)

    matrices = keypoint_confusion(found, landmarks, 0.1)

    expected = {name: np.zeros((7, 8), int) for name in CATEGORIES}
    for i in range(len(found.pair)):
        category = found.categories[found.category[found.pair[i]]]
        best, nearest = math.inf, 7
        order = [found.keypoint[i], *range(7)]  # of two as near the true one is taken
        for k in order:
            away = math.dist(found.predicted[i], landmarks[found.pair[i], k])
            if away < best:
                best, nearest = away, k
        nearest = nearest if best / found.extent[i] <= 0.1 else 7
        expected[category][found.keypoint[i], nearest] += 1
    assert all((matrices[name] == expected[name]).all() for name in CATEGORIES)
    assert sum(matrix.sum() for matrix in matrices.values()) == len(found.pair)


def test_a_prediction_near_nothing_is_taken_for_none():
    found = load_predictions(hand_made([{"keypoint": 1, "predicted_x": 10.5}, {"keypoint": 0, "target_x": 40.0}]))

    assert keypoint_confusion(found, shared_landmarks(found))["cat"].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert keypoint_confusion(found, shared_landmarks(found), 0.2)["cat"].tolist() == [[1, 0, 0], [0, 1, 0]]
