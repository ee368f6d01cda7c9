"""PCK by what the benchmark says of its pairs."""

import pytest
from random_tables import batches, hand_made, table
from tiny_benchmarks import edit, write_spair

from semcorr.data.spair import SPair
from semcorr.metrics.breakdown import LABELS, pck_by_class, pck_from_predictions, sensitivity
from semcorr.metrics.predictions import load_predictions

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


def test_sensitivity_says_nothing_where_a_class_is_empty_or_nothing_is_right():
    def five(*values: float | None) -> dict:
        return {str(i): {"image": {"0.1": value}} for i, value in enumerate(values)}

    assert sensitivity(five(0.5, 0.25, 0.5, 0.5, 0.5), FIVE) == {"0.1": 0.5}
    assert sensitivity(five(0.5, None, 0.5, 0.5, 0.5), FIVE) == {"0.1": None}
    assert sensitivity(five(0.0, 0.0, 0.0, 0.0, 0.0), FIVE) == {"0.1": None}
