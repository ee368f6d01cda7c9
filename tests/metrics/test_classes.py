"""PCK by what the benchmark says of its pairs."""

import pytest
from random_tables import batches, hand_made, table
from tiny_benchmarks import edit, write_spair

from semcorr.data.spair import SPair
from semcorr.metrics.breakdown import (
    LABELS,
    pck_by_category_and_class,
    pck_by_class,
    pck_by_domains,
    pck_by_keypoint,
    pck_from_predictions,
    sensitivity,
)
from semcorr.metrics.predictions import is_correct, load_predictions

FIVE = LABELS["azimuth_difference"]


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [(0, 0, 0), (0, 4, 4), (7, 0, 1), (0, 7, 1), (1, 6, 3), (2, 5, 3), (None, 3, None)],
)
def test_the_azimuth_difference_goes_the_shorter_way_round(tmp_path, source, target, expected):
    write_spair(tmp_path)
    for stem, azimuth in (("one", source), ("two", target)):
        edit(tmp_path / f"ImageAnnotation/cat/{stem}.json", lambda entry, a=azimuth: entry.update(azimuth_id=a))

    first = SPair(root=str(tmp_path), size=32).pairs("test")[0]

    assert (first.source.azimuth, first.target.azimuth) == (source, target)
    assert first.details["azimuth_difference"] == expected


def test_annotations_without_an_azimuth_are_read_all_the_same(tmp_path):
    assert SPair(root=str(write_spair(tmp_path)), size=32).pairs("test")[0].details["azimuth_difference"] is None


def test_a_class_is_scored_as_if_its_pairs_were_all_there_is():
    parts = batches(4, 6, 5)
    labels = {name: label for label, one in enumerate(parts) for name in one["pair"]}

    classes = pck_by_class(load_predictions(table(parts)), labels, FIVE, [0.1])

    for label, one in enumerate(parts):
        alone = pck_from_predictions(load_predictions(table([one])), [0.1])["pck"]["all"]
        assert classes[str(label)] == {"pairs": len(one["pair"]), **alone}
    assert classes["3"] == {"pairs": 0, "image": {"0.1": None}, "point": {"0.1": None}}
    assert classes["unknown"] == 0


def test_pairs_of_no_known_class_are_counted_and_not_averaged():
    rows = load_predictions(
        hand_made([{"pair": "p"}, {"pair": "q", "predicted_x": 50.0}, {"pair": "r", "predicted_x": 50.0}])
    )

    classes = pck_by_class(rows, {"p": 1, "q": None}, FIVE, [0.1])

    assert classes["unknown"] == 2
    assert classes["1"] == {"pairs": 1, "image": {"0.1": 1.0}, "point": {"0.1": 1.0}}


def test_two_domains_are_scored_as_if_their_pairs_were_all_there_is():
    parts = batches(4, 6, 5)
    ways = [("photo", "drawing"), ("drawing", "photo"), ("photo", None)]
    domains = {name: way for way, one in zip(ways, parts, strict=True) for name in one["pair"]}

    classes = pck_by_domains(load_predictions(table(parts)), domains, [0.1])

    assert set(classes) == {"unknown", "photo to drawing", "drawing to photo"}
    assert classes["unknown"] == 5
    for (source, target), one in zip(ways[:2], parts[:2], strict=True):
        alone = pck_from_predictions(load_predictions(table([one])), [0.1])["pck"]["all"]
        wanted = {"pairs": len(one["pair"]), **alone, "source": source, "target": target}
        assert classes[f"{source} to {target}"] == wanted


def test_without_domains_all_pairs_are_unknown():
    rows = load_predictions(hand_made([{"pair": "p"}, {"pair": "q"}]))
    assert pck_by_domains(rows, {"p": (None, None)}, [0.1]) == {"unknown": 2}


def test_sensitivity_says_nothing_where_a_class_is_empty_or_nothing_is_right():
    def five(*values: float | None) -> dict:
        return {str(i): {"image": {"0.1": value}} for i, value in enumerate(values)}

    assert sensitivity(five(0.5, 0.25, 0.5, 0.5, 0.5), FIVE) == {"0.1": 0.5}
    assert sensitivity(five(0.5, None, 0.5, 0.5, 0.5), FIVE) == {"0.1": None}
    assert sensitivity(five(0.0, 0.0, 0.0, 0.0, 0.0), FIVE) == {"0.1": None}


def test_a_class_of_a_category_is_scored_as_if_its_pairs_were_all_there_is():
    """The slow twin: the pairs of one category and class by themselves, with a loop over their keypoints."""
    parts = batches(40, 40)
    rows = load_predictions(table(parts))
    labels = {name: None if i % 5 == 4 else i % 3 for i, name in enumerate(rows.pairs)}
    alphas = [0.05, 0.2]

    scores = pck_by_category_and_class(rows, labels, ("easy", "medium", "hard"), alphas)

    assert set(scores) == set(rows.categories)
    for c, category in enumerate(rows.categories):
        for label, name in enumerate(("easy", "medium", "hard")):
            pairs = [p for p, pair in enumerate(rows.pairs) if rows.category[p] == c and labels[pair] == label]
            assert scores[category][name]["pairs"] == len(pairs) > 0
            for alpha in alphas:
                right = [[error <= alpha for error in rows.error[rows.pair == p]] for p in pairs]
                found = scores[category][name]
                assert found["image"][f"{alpha:g}"] == pytest.approx(sum(sum(r) / len(r) for r in right) / len(right))
                assert found["point"][f"{alpha:g}"] == pytest.approx(sum(map(sum, right)) / sum(map(len, right)))


def test_one_category_has_the_classes_of_all():
    rows = load_predictions(hand_made([{"pair": "p"}, {"pair": "q", "predicted_x": 50.0}, {"pair": "r"}]))
    labels = {"p": 1, "q": 1, "r": None}

    by_class = pck_by_class(rows, labels, FIVE, [0.1])
    assert pck_by_category_and_class(rows, labels, FIVE, [0.1]) == {"cat": {name: by_class[name] for name in FIVE}}
    assert by_class["1"] == {"pairs": 2, "image": {"0.1": 0.5}, "point": {"0.1": 0.5}}


def test_keypoints_are_counted_one_by_one():
    rows = load_predictions(table(batches(40)))
    alphas = [0.05, 0.1]

    scores = pck_by_keypoint(rows, is_correct(rows, alphas))

    counted = 0
    for c, category in enumerate(rows.categories):
        for i in range(7):
            errors = [
                error
                for pair, keypoint, error in zip(rows.pair, rows.keypoint, rows.error, strict=True)
                if rows.category[pair] == c and keypoint == i
            ]
            count, shares = scores[category].get(i, (0, None))
            assert count == len(errors)
            counted += count
            if count:
                assert shares.tolist() == [sum(error <= alpha for error in errors) / count for alpha in alphas]
    assert counted == len(rows.pair)


def test_ids_that_no_pair_has_are_left_out():
    rows = load_predictions(hand_made([{"keypoint": 2}, {"keypoint": 9, "predicted_x": 50.0}]))

    scores = pck_by_keypoint(rows, is_correct(rows, [0.1]))

    assert {i: (count, shares.tolist()) for i, (count, shares) in scores["cat"].items()} == {
        2: (1, [1.0]),
        9: (1, [0.0]),
    }
