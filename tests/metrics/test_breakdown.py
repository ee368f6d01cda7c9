"""Every pooling of a table of predictions, against the metric and against loops."""

import math
from itertools import permutations

import numpy as np
import pyarrow as pa
import pytest
from random_tables import CATEGORIES, batches, hand_made, table, tensors

from semcorr.core.errors import UserError
from semcorr.metrics.breakdown import category_mean, pck_from_predictions, subset_proportions
from semcorr.metrics.pck import ALPHAS, PCK, Tolerance
from semcorr.metrics.predictions import is_correct, load_predictions, split_by_spec

SIZES = (7, 3, 12, 1, 30)


def metric(parts: list[dict]) -> dict:
    """The torchmetrics path; `headline` is one of its numbers once more."""
    pck = PCK(CATEGORIES, keypoints=7)
    for one in parts:
        pck.update(**tensors(one))
    found = pck.compute()
    assert found.pop("headline") == found["pck"]["all"]["image"]
    return found


def test_the_pck_of_a_table_is_the_metrics_to_the_last_digit():
    parts = batches(*SIZES)

    assert pck_from_predictions(load_predictions(table(parts))) == metric(parts)


def test_any_grouping_and_any_order_give_the_same_digits():
    parts = batches(*SIZES)
    shuffled = table(parts).take(np.random.default_rng(3).permutation(table(parts).num_rows))

    found = [metric([*order]) for order in permutations(parts[:4])]
    assert all(one == found[0] for one in found)
    assert pck_from_predictions(load_predictions(shuffled)) == pck_from_predictions(load_predictions(table(parts)))
    assert pck_from_predictions(load_predictions(table(parts[::-1]))) == metric(parts)


def test_more_keypoint_rows_than_any_pair_has_change_no_digit():
    wide = PCK(CATEGORIES, keypoints=50)
    for one in batches(*SIZES):
        wide.update(**tensors(one))

    found = wide.compute()
    assert (found["pck"], found["category"]) == tuple(metric(batches(*SIZES)).values())


def test_a_table_with_errors_is_scored_by_them():
    """The rule of another protocol; and of ours the same number as from coordinates."""
    plain = table(batches(5))
    errors = load_predictions(plain).error

    assert pck_from_predictions(
        load_predictions(plain.append_column("error", pa.array(errors)))
    ) == pck_from_predictions(load_predictions(plain))
    assert (
        pck_from_predictions(load_predictions(plain.append_column("error", pa.array(errors * 0))))["pck"]["all"][
            "point"
        ]["0.01"]
        == 1.0
    )


def test_on_the_boundary_is_right_unless_the_protocol_is_strict():
    rows = load_predictions(hand_made([{"predicted_x": 6.0, "predicted_y": 8.0}]))  # 10 of 100 pixels

    assert is_correct(rows, [0.05, 0.1, 0.15]).tolist() == [[False], [True], [True]]
    assert is_correct(rows, [0.05, 0.1, 0.15], Tolerance(strict=True)).tolist() == [[False], [False], [True]]


def test_rows_of_two_readouts_are_not_mixed():
    both = hand_made([{"localise": "argmax"}, {"localise": "other", "predicted_x": 50.0}])

    with pytest.raises(UserError, match="several readouts"):
        load_predictions(both)
    apart = split_by_spec(both)
    assert [*apart] == [("semcorr", "argmax"), ("semcorr", "other")]
    assert [pck_from_predictions(load_predictions(rows))["pck"]["all"]["point"]["0.1"] for rows in apart.values()] == [
        1.0,
        0.0,
    ]


def test_the_mean_over_categories_counts_each_alike():
    """probe3d's macro recall: 3 of 4 cats and 0 of 1 dog right."""
    rows = [{"keypoint": k, "predicted_x": 50.0 * (k == 3)} for k in range(4)]
    rows.append({"pair": "q", "category": "dog", "predicted_x": 50.0})

    scores = pck_from_predictions(load_predictions(hand_made(rows)))

    assert scores["pck"]["all"]["point"]["0.1"] == 0.6
    assert category_mean(scores["category"])["all"]["point"]["0.1"] == 0.375
    assert category_mean(scores["category"])["geo"] == {
        "image": dict.fromkeys(map(str, ALPHAS)), "point": dict.fromkeys(map(str, ALPHAS)), "categories": 0,
    }  # fmt: skip


def test_sd_dino_weighs_per_point_pck_of_categories_by_pairs_and_we_pool_keypoints():
    """A regression test: 2 pairs of 1 keypoint, both right; 1 pair of 6 keypoints, none right."""
    rows = [{"pair": name, "category": "cat"} for name in "ab"]
    rows += [{"pair": "c", "category": "dog", "keypoint": k, "predicted_x": 50.0} for k in range(6)]

    scores = pck_from_predictions(load_predictions(hand_made(rows)))

    released = (2 * 1.0 + 1 * 0.0) / 3  # categories weighted by their pairs: neither per image nor per point
    assert scores["pck"]["all"]["point"]["0.1"] == 2 / 8 != released
    assert scores["category"]["cat"]["all"]["point"]["0.1"] == 1.0
    assert category_mean(scores["category"])["all"]["point"]["0.1"] == 0.5 != released


def test_proportions_of_pairs_of_keypoints_and_of_pairs_category_by_category():
    """One of three cats' pairs and the one dog's pair have an ambiguous keypoint; 2 of 5 keypoints are."""
    rows = [{"pair": "a", "ambiguous": True}, {"pair": "a", "keypoint": 1}, {"pair": "b"}, {"pair": "c"}]
    rows.append({"pair": "d", "category": "dog", "ambiguous": True})

    assert subset_proportions(load_predictions(hand_made(rows))) == {
        "pairs": 0.5,
        "keypoints": 0.4,
        "category_pairs": (1 / 3 + 1) / 2,
    }


def test_errors_are_the_textbook_ones():
    rows = load_predictions(table(batches(20)))

    for i, (p, q) in enumerate(zip(rows.predicted.tolist(), rows.target.tolist(), strict=True)):
        assert rows.error[i] == pytest.approx(math.dist(p, q) / rows.extent[i], rel=1e-15)
