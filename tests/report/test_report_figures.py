"""Curves are drawn where their axes say; pictures and maps are of the right pairs."""

import json
import re

import numpy as np
import pytest
from random_tables import batches, table
from tiny_runs import made, run_dir, typed, window

from semcorr.evaluate import evaluate
from semcorr.metrics.pck import ALPHAS
from semcorr.metrics.predictions import load_predictions
from semcorr.report.curves import find_curve_groups, plot_curves
from semcorr.report.examples import distinct_target_pairs, pair_scores
from semcorr.visualization.similarity import choose_queries

pytestmark = pytest.mark.integration


def test_a_curve_joins_configurations_that_differ_in_one_number(tmp_path):
    """Window 9 at another size is no point of the curve."""
    runs = [window(tmp_path, 5, 3), window(tmp_path, 15, 6)]
    odd = run_dir(tmp_path / "odd", 9, config={"localise": {"window": 9}, "backbone": {"size": 128}})

    found = find_curve_groups(made(*runs, odd), "localise.window")

    assert [list(curve.points) for curve in found] == [[5.0, 15.0]]
    assert find_curve_groups(made(*runs, odd), "backbone.size") == []


def test_a_curve_is_drawn_at_every_tolerance_and_where_its_axis_says(tmp_path):
    """Heights are read back with the help of the rules and their ticks alone."""
    runs = [window(tmp_path, 5, 3), window(tmp_path, 15, 6)]
    pck = [json.loads((run / "metrics.json").read_text())["pck"] for run in runs]

    left, right = plot_curves(made(*runs)).parts[0].panels

    for panel, wanted in (
        (left, [[one["all"]["image"][f"{alpha:g}"] for one in pck] for alpha in ALPHAS]),
        (right, [[one[subset]["image"]["0.1"] for one in pck] for subset in ("all", "geo", "std")]),
    ):
        rules = [float(y) for y in re.findall(r'y1="([\d.]+)" x2="[\d.]+" y2="\1" class="rule"', panel)]
        ticks = [float(tick) for tick in re.findall(r'text-anchor="end">(\d+)<', panel)]
        scale = (ticks[-1] - ticks[0]) / (rules[-1] - rules[0]) / 100
        lines = [re.findall(r",([\d.]+)", line) for line in re.findall(r'<polyline points="([^"]+)"', panel)]
        assert len(rules) == len(ticks)
        assert [[(float(y) - rules[0]) * scale for y in line] for line in lines] == [
            pytest.approx(values, abs=0.002) for values in wanted
        ]
    assert left.count('class="whisker') == 2 * 3  # a stem and two ends
    assert right.count('class="whisker') == 2 * 3 * 3


def test_the_mean_of_seeds_is_within_the_axis_whichever_run_is_the_first(tmp_path):
    """The first seed scores next to nothing, the others all."""
    runs = [window(tmp_path, size, off, seed) for size in (5, 15) for seed, off in enumerate((60, 0, 0))]

    for panel in plot_curves(made(*runs)).parts[0].panels:
        highest = min(float(y) for y in re.findall(r'y1="([\d.]+)" x2="[\d.]+" y2="\1" class="rule"', panel))
        assert all(float(y) >= highest for y in re.findall(r'cy="([\d.-]+)" r="3"', panel))


def test_pictures_do_not_show_a_target_twice():
    rows = load_predictions(table(batches(60)))
    order = rows.pair[::-1].copy()

    chosen = distinct_target_pairs(rows, order, 5)

    assert chosen[0] == order[0]
    assert len({rows.target_image[p] for p in chosen}) == len(chosen) == 5


def test_maps_are_of_the_farthest_ambiguous_and_the_nearest_other_keypoints():
    rows = load_predictions(table(batches(60)))

    chosen = choose_queries(rows)

    assert rows.error[chosen[0][0]] == rows.error[rows.ambiguous].max()
    assert rows.error[chosen[2][0]] <= rows.error[~rows.ambiguous].min() + 0.05
    assert [kind for _, kind in chosen] == ["far off", "far off", "found", "found"]
    assert len({rows.target_image[rows.pair[row]] for row, _ in chosen}) == 4


def test_what_evaluate_leaves_becomes_a_report_with_pictures(config, tiny, tmp_path):
    for name, readout in (("a", "argmax"), ("b", "soft_argmax")):
        evaluate(config("evaluate", *tiny, f"localise={readout}", f"run_dir={tmp_path / name}"))

    code, output = typed(tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")

    assert code == 0, output
    text = (tmp_path / "out/report.html").read_text()
    for title in ("The worst pairs", "What changes most", "Similarity maps", "What each keypoint is taken for"):
        assert f"<h3>{title}</h3>" in text
    assert text.count("data:image/jpeg;base64,") > 10
    assert "left out" not in text


def test_pictures_count_right_as_the_protocol_does(tmp_path, monkeypatch):
    """An error of exactly the tolerance is right by `<=` and wrong by `<`."""
    exact, strict = (made(run_dir(tmp_path / str(one), strict=one))[0].runs[0] for one in (False, True))
    rows = exact.evaluated.rows
    monkeypatch.setattr("semcorr.report.examples.ALPHA", float(rows.error[7]))

    (more, count), (less, _) = pair_scores(exact), pair_scores(strict)

    on_the_edge = np.bincount(rows.pair[rows.error == rows.error[7]], minlength=len(count))
    assert on_the_edge.sum() > 0
    np.testing.assert_allclose(count * (more - less), on_the_edge, atol=1e-6)
