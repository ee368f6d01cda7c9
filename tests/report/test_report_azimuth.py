"""Sensitivity of categories against loops over pairs; categories at every tolerance against metrics.json."""

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import made, run_dir

from semcorr.data.record import ImageRecord, PairRecord
from semcorr.report.azimuth import ALPHAS, AZIMUTH, plot_azimuth, plot_sensitivity
from semcorr.report.categories import plot_categories
from semcorr.report.document import NONE


def annotated(rows, classes: int = 3) -> dict[str, PairRecord]:
    """The pairs of a run, the azimuths of which differ by 0, 1, 2 ... steps in turn."""
    image = ImageRecord("a", Path("a"), (8, 8), torch.zeros(1, 2), torch.ones(1, dtype=torch.bool), (0, 0, 4, 4))
    return {
        name: PairRecord(
            name, rows.categories[rows.category[p]], image, image, 1.0, details={"azimuth_difference": p % classes}
        )
        for p, name in enumerate(rows.pairs)
    }


def test_the_sensitivity_of_a_category_is_that_of_a_loop_over_its_pairs(tmp_path):
    entries = made(run_dir(tmp_path / "a"), run_dir(tmp_path / "b", off=4.0, config={"localise": {"window": 9}}))
    pairs = annotated(entries[0].runs[0].evaluated.rows)

    table = plot_sensitivity(entries, pairs).table

    assert len(table.rows) == 2 * len(entries[0].runs[0].evaluated.rows.categories)
    for row in table.rows:
        rows = next(entry for entry in entries if entry.label == row[0]).runs[0].evaluated.rows
        wanted = []
        for geo in (True, False):
            for alpha in ALPHAS:
                means = []
                for step in range(5):
                    shares = []
                    for p, name in enumerate(rows.pairs):
                        selected = (rows.pair == p) & (rows.ambiguous == geo)
                        if rows.categories[rows.category[p]] == row[1] and p % 3 == step and selected.any():
                            shares.append((rows.error[selected] <= alpha).mean())
                        assert pairs[name].details["azimuth_difference"] == p % 3
                    means += [sum(shares) / len(shares)] if shares else []
                wanted.append(100 * (max(means) - min(means)) / max(means))
        assert [float(cell) for cell in row[2:]] == pytest.approx(wanted, abs=0.0501)


def test_where_all_pairs_have_one_azimuth_class_there_is_no_sensitivity(tmp_path):
    entries = made(run_dir(tmp_path / "a"))

    assert "two azimuth classes" in plot_sensitivity(entries, annotated(entries[0].runs[0].evaluated.rows, 1))
    assert "left out: its files are gone" in plot_sensitivity(entries, "its files are gone")


def test_categories_have_geo_and_std_of_metrics_json_at_every_tolerance(tmp_path):
    folders = [run_dir(tmp_path / "a"), run_dir(tmp_path / "b", off=4.0, config={"localise": {"window": 9}})]
    entries = made(*folders)

    figure = plot_categories(entries, "gone").parts[1]

    alphas = ["0.01", "0.05", "0.1", "0.15", "0.2"]
    assert [panel.split('aria-label="')[1].split('"')[0] for panel in figure.panels] == [
        f"At \N{GREEK SMALL LETTER ALPHA} = {alpha}" for alpha in alphas
    ]
    assert figure.table.columns[2:] == [
        f"{subset}, \N{GREEK SMALL LETTER ALPHA} = {alpha}" for subset in ("geo", "std") for alpha in alphas
    ]
    for entry in entries:
        category = json.loads((entry.runs[0].folder / "metrics.json").read_text())["category"]
        for name, scores in category.items():
            (row,) = [row for row in figure.table.rows if row[:2] == [entry.label, name]]
            values = [scores[subset]["image"][alpha] for subset in ("geo", "std") for alpha in alphas]
            assert row[2:] == [NONE if value is None else f"{100 * value:.1f}" for value in values]
    rings, discs = (sum(panel.count(f'class="{kind} ') for panel in figure.panels) for kind in ("ring", "dot"))
    cells = [cell for row in figure.table.rows for cell in row[2:] if cell != NONE]
    assert rings + discs == len(cells)


def test_runs_of_which_one_has_no_azimuths_have_no_such_plot(tmp_path):
    classes = {AZIMUTH: {"unknown": 0} | {str(i): {"pairs": 1, "image": {"0.1": 0.5}} for i in range(5)}}
    runs = run_dir(tmp_path / "a", classes=classes), run_dir(tmp_path / "b", config={"seed": 2})

    assert "no azimuth to compare" in str(plot_azimuth(made(*runs)))
