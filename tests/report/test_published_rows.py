"""Published figures are those of the papers: a sample typed from their tables, and what every row has to be."""

import json
from collections import Counter
from itertools import pairwise

import pytest
from repository import ROOT

from semcorr.report.published import CONFIGURATION, find_published

TABLES = json.loads((ROOT / "src/semcorr/report/published.json").read_text(encoding="utf-8"))["tables"]

# split, subset, pooling, method, supervision, words of the source -> figures by alpha, as read in the papers' texts
TYPED = [
    # Table II, supervised: its first, its last and others, on three benchmarks
    ("pf_pascal test", "all", "image", "SCNet", "keypoints", "Table II", {"0.05": 36.2, "0.1": 72.2, "0.15": 82.0}),
    ("spair test", "all", "image", "CATs", "keypoints", "Table II", {"0.05": 27.7, "0.1": 49.9, "0.15": 61.7}),
    ("pf_willow test", "all", "image", "CATs", "keypoints", "Table II", {"0.05": 40.7, "0.1": 69.0, "0.15": None}),
    ("spair test", "all", "image", "UFC", "keypoints", "Table II", {"0.05": 48.5, "0.1": 64.4, "0.15": 72.1}),
    ("pf_willow test", "all", "image", "SD4Match", "keypoints", "Tables II, XI", {"0.05": 52.1, "0.15": 91.2}),
    ("pf_pascal test", "all", "image", "GeoAware-SC", "keypoints", "Tables II, XI", {"0.05": 85.5, "0.1": 95.1}),
    # Table III, weakly supervised
    ("spair test", "all", "image", "GSF", "weak", "Table III", {"0.05": None, "0.1": 36.1}),
    ("pf_willow test", "all", "image", "PWarpC-NC-Net", "weak", "Table III", {"0.05": 43.6, "0.1": 74.6, "0.15": 86.9}),
    ("pf_pascal test", "all", "image", "SC-ImageNet", "weak", "Table III", {"0.05": 80.5, "0.1": 93.0, "0.15": 96.7}),
    # Tables IV and X, zero-shot
    ("spair test", "all", "image", "DINO+LiFT", "none", "Table IV", {"0.05": 14.7, "0.1": 28.7, "0.15": None}),
    ("pf_pascal test", "all", "image", "SCOT", "none", "Table IV", {"0.05": 63.1, "0.1": 85.4, "0.15": 92.7}),
    ("pf_willow test", "all", "image", "SD2-1+DINOv2 zero-shot", "none", "Table X", {"0.05": 46.6, "0.1": 72.8}),
    ("pf_pascal test", "all", "image", "SD2-1+DINOv2 zero-shot", "none", "Table X", {"0.1": 88.3, "0.15": 93.4}),
    # Tables V to VII
    ("spair test", "all", "image", "CLIP zero-shot 224", "none", "Table V", {"0.01": 0.5, "0.15": 33.2}),
    ("spair test", "all", "image", "iBOT zero-shot 512", "none", "Table V", {"0.01": 1.8, "0.1": 38.9}),
    ("spair test", "all", "image", "SD-CPM 960", "keypoints", "Table VI", {"0.01": 11.2, "0.05": 62.0, "0.1": 75.4}),
    ("spair test", "all", "image", "DINOv2 last 5 blocks", "keypoints", "Table VII", {"0.01": 16.7, "0.15": 86.3}),
    # Tables VIII, IX, A1, A2
    ("spair test", "all", "image", "DINOv2 frozen + Self-Attention 840", "keypoints", "VIII, A1", {"0.1": 76.5}),
    ("spair test", "all", "image", "DINOv2 last 1 block + CATs 448", "keypoints", "IX, A2", {"0.01": 3.2, "0.1": 71.4}),
    (
        "spair test", "all", "image", "DINOv2 last 1 block + Self+Cross Attention 224", "keypoints", "Table A1",
        {"0.01": 2.2, "0.05": 33.0, "0.1": 61.0, "0.15": 74.5},
    ),
    (
        "spair test", "all", "image", "DINOv2 last 1 block + NeighConsensus (Ori.) 224", "keypoints", "Table A2",
        {"0.01": 2.5, "0.05": 36.4, "0.1": 66.1, "0.15": 79.2},
    ),
    # Tables XI and XII
    (
        "pf_willow test", "all", "image", "Ours (DINOv2+NC)", "keypoints", "XI",
        {"0.05": 39.8, "0.1": 62.3, "0.15": 74.9},
    ),
    ("pf_pascal test", "all", "image", "DINOv2 last 2 blocks", "keypoints", "XI", {"0.05": 87.6, "0.15": 98.2}),
    ("spair test", "all", "image", "SD-DINO", "keypoints", "Table XI", {"0.05": None, "0.1": 74.6}),
    ("ap10k test", "all", "image", "Ours (DINOv2+ResNet)", "keypoints", "Table XII", {"0.01": 24.0, "0.15": 92.3}),
    # "Telling Left from Right": where its versions differ, each by its name
    ("spair test", "all", "image", "GeoAware zero-shot argmax", "none", "(preprint)", {"0.01": 8.9, "0.1": 64.2}),
    (
        "spair test", "all", "image", "GeoAware zero-shot window 11", "none", "(slides)",
        {"0.01": 9.9, "0.05": 49.1, "0.1": 65.4},
    ),
    (
        "spair test", "geo", "image", "GeoAware zero-shot window 11", "none", "(slides)",
        {"0.01": 6.9, "0.05": 39.5, "0.1": 56.8},
    ),
    ("spair test", "geo", "image", "GeoAware zero-shot argmax", "none", "(preprint)", {"0.01": 6.3, "0.1": 55.0}),
    ("ap10k test", "all", "image", "GeoAware zero-shot", "none", "(slides)", {"0.01": 11.3, "0.05": 49.8, "0.1": 68.7}),
    (
        "ap10k test", "all", "image", "GeoAware zero-shot", "none", "(preprint)",
        {"0.01": 8.1, "0.05": 47.4, "0.1": 66.7},
    ),
    ("ap10k test_cross_family", "all", "image", "GeoAware zero-shot", "none", "(slides)", {"0.01": 7.4, "0.1": 52.7}),
    ("spair test", "all", "point", "GeoAware zero-shot", "none", "(slides)", {"0.1": 69.6}),
    ("spair test", "all", "point", "GeoAware zero-shot", "none", "(preprint)", {"0.1": 68.5}),
    ("pf_pascal test", "all", "image", "SD+DINO", "none", "(slides)", {"0.05": 71.5, "0.1": 85.8, "0.15": 90.6}),
    ("pf_pascal test", "all", "image", "SD+DINO", "none", "(preprint)", {"0.05": 72.7, "0.1": 82.7, "0.15": 91.6}),
    (
        "pf_pascal test", "all", "image", "GeoAware zero-shot", "none", "(slides)",
        {"0.05": 74.0, "0.1": 86.2, "0.15": 90.7},
    ),
    (
        "spair test", "geo", "image", "GeoAware (S, adapt pose)", "keypoints", "preprint and slides",
        {"0.01": 18.3, "0.1": 78.0},
    ),
    (
        "ap10k test", "geo", "image", "GeoAware (S, adapt pose)", "keypoints", "preprint and slides",
        {"0.05": 65.0, "0.1": 83.2},
    ),
    (
        "pf_pascal test", "all", "image", "GeoAware (S, AP-10K pretrain)", "keypoints", "preprint and slides",
        {"0.15": 98.0},
    ),
    (
        "ap10k test", "all", "image", "GeoAware (S) trained on SPair-71k", "keypoints", "Table 11",
        {"0.01": 16.5, "0.1": 70.2},
    ),
    ("spair test", "all", "image", "CATs++ trained on PF-PASCAL", "keypoints", "Table 10", {"0.01": 2.1, "0.1": 32.0}),
]  # fmt: skip
PARTS = {  # a method's configuration, as its table has it
    ("spair test", "TransforMatcher"): {"backbone": "ResNet-101", "supervision": "keypoints", "resolution": "240"},
    ("spair test", "SAM-Net"): None,  # nothing published on this benchmark
    ("pf_pascal test", "SAM-Net"): {"backbone": "VGG-19", "supervision": "weak"},
    ("spair test", "SCOT"): {"backbone": "ResNet-101", "supervision": "none", "resolution": "Max 300"},
    ("spair test", "Ours (DINOv2+NC)"): {
        "backbone": "DINOv2", "supervision": "keypoints", "head": "NeighConsensus", "resolution": "840",
    },
    ("spair test", "DHF trained on PF-PASCAL"): {"supervision": "keypoints", "data": "PF-PASCAL"},
}  # fmt: skip


@pytest.mark.parametrize("typed", TYPED, ids=lambda typed: "-".join(typed[:4]))
def test_typed_figures_are_there_once(typed):
    split, subset, pooling, method, supervision, words, figures = typed
    rows = [
        row
        for row in find_published(split, subset, pooling)
        if (row.method, row.configuration.get("supervision")) == (method, supervision) and words in row.source
    ]

    assert len(rows) == 1
    assert {alpha: rows[0].values.get(alpha) for alpha in figures} == {
        alpha: value and pytest.approx(value / 100) for alpha, value in figures.items()
    }


@pytest.mark.parametrize(("place", "parts"), PARTS.items())
def test_configurations_are_those_of_the_tables(place, parts):
    rows = [row for row in find_published(place[0], "all", "image") if row.method == place[1]]

    assert [row.configuration for row in rows] == ([] if parts is None else [parts])


def test_every_row_of_the_literature_is_there():
    """Tables II, III and IV have 32, 19 and 6 rows; all have a figure on at least one benchmark."""
    printed = {pair for table in TABLES for row in table["rows"] for pair in row.get("printed", {}).items()}
    counts = Counter(key for key, _ in printed)

    assert [counts[f"unified {number}"] for number in ("II", "III", "IV")] == [32, 19, 6]
    assert [counts[f"unified {number}"] for number in ("VIII", "IX", "X", "XI", "XII")] == [8, 14, 5, 9, 4]
    assert [counts[f"unified {number}"] for number in ("A1", "A2")] == [24, 24]


def test_rows_are_well_formed():
    for table in TABLES:
        assert table["alphas"] == sorted(table["alphas"])
        for row in table["rows"]:
            figures = [value for value in row["values"] if value is not None]
            assert len(row["values"]) == len(table["alphas"])
            assert figures
            assert all(0 < value < 100 for value in figures)
            assert all(a <= b for a, b in pairwise(figures)), row  # a larger tolerance cannot lose keypoints
            assert row["source"]
            assert row["method"]
            assert row.get("supervision", "none") in ("keypoints", "weak", "none")
            assert set(row) <= {"method", "values", "protocol", "source", "printed", *CONFIGURATION}


def test_no_row_is_there_twice():
    """A method has several rows of one definition only where tables or versions of a paper differ."""
    for table in TABLES:
        keys = Counter((row["method"], row["source"]) for row in table["rows"])
        assert max(keys.values()) == 1
        cells = Counter((key, name) for row in table["rows"] for key, name in row.get("printed", {}).items())
        assert max(cells.values(), default=1) == 1
    definitions = [tuple(table.get(key) for key in ("split", "subset", "pooling", "extent")) for table in TABLES]
    assert len(set(definitions)) == len(definitions)


def test_figures_by_another_box_are_not_put_beside_ours():
    """Tables II to IV have two groups of columns for PF-WILLOW; the first is of a box that the text does not name."""
    willow = {row.method: row for row in find_published("pf_willow test", "all", "image")}

    assert "SCNet" not in willow  # 38.6 / 70.4 / 85.3 are in the first group alone
    assert willow["CHM"].values == {"0.1": pytest.approx(0.696)}  # and not 52.7 / 79.4 / 87.5
