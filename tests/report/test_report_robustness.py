"""The table of corruptions has the digits of the runs, and is there only where images were corrupted."""

import re

import pytest
from tiny_runs import made, run_dir, typed

from semcorr.report.document import NONE
from semcorr.report.robustness import ALL, plot_robustness

PATH = "semcorr.data.corruptions"
OPTIONS = {"images": "both", "seed": 0}


def corrupted(root, target: str, severity: int, off: float, **config):
    corrupt = {"_target_": f"{PATH}.{target}", "severity": severity, **OPTIONS} | config
    return run_dir(root / f"{target}_{severity}_{off}", off, config={"corrupt": corrupt})


def percent(run) -> float:
    (entry,) = made(run)
    return 100 * entry.value("all", "0.1").mean


def test_rows_are_corruptions_and_columns_severities_with_the_drop(tmp_path):
    clean = run_dir(tmp_path / "clean", config={"corrupt": {"_target_": f"{PATH}.corruption.Uncorrupted"}})
    fog = [corrupted(tmp_path, "weather.Fog", severity, off) for severity, off in ((1, 1.0), (5, 4.0))]
    noise = corrupted(tmp_path, "noise.GaussianNoise", 1, 2.0)
    (figure,) = plot_robustness(made(clean, *fog, noise)).parts

    scores, whole = [percent(run) for run in fog], percent(clean)
    assert figure.table.columns[2:] == ["1", "5", "mean", "clean", "drop", "kept"]
    rows = {row[1]: row[2:] for row in figure.table.rows}
    mean = sum(scores) / 2
    values = (*scores, mean, whole, whole - mean, 100 * mean / whole)
    assert rows["fog"] == [f"{value:.1f}" for value in values]
    one = percent(noise)
    values = (one, whole, whole - one, 100 * one / whole)
    assert rows["gaussian noise"] == [f"{one:.1f}", NONE, *(f"{value:.1f}" for value in values)]
    both = (mean + one) / 2  # each corruption by its own mean
    assert rows[ALL][2:5] == [f"{value:.1f}" for value in (both, whole, whole - both)]

    (panel,) = figure.panels
    drawn = re.findall(r"<title>([\w ]+) (\d): ([\d.]+)</title>", panel)
    assert drawn == [("fog", "1", rows["fog"][0]), ("fog", "5", rows["fog"][1]), ("gaussian noise", "1", f"{one:.1f}")]


def test_runs_whose_target_alone_is_corrupted_are_a_group_of_their_own(tmp_path):
    runs = [corrupted(tmp_path, "weather.Fog", 1, 1.0), corrupted(tmp_path, "weather.Fog", 1, 2.0, images="target")]
    (figure,) = plot_robustness(made(*runs)).parts
    assert len(figure.table.rows) == 2
    assert len({row[0] for row in figure.table.rows}) == len(figure.panels) == 2


def test_without_a_clean_run_there_is_no_drop(tmp_path):
    (figure,) = plot_robustness(made(corrupted(tmp_path, "weather.Fog", 2, 1.0))).parts
    assert figure.table.rows[0][-3:] == [NONE] * 3


def test_a_corruption_whose_file_lists_no_severity_has_the_default_one(tmp_path):
    run = run_dir(tmp_path / "own", config={"corrupt": {"_target_": f"{PATH}.weather.Fog"}})
    (figure,) = plot_robustness(made(run)).parts
    assert figure.table.columns[2] == "3"


def test_clean_runs_have_no_such_section(tmp_path):
    assert plot_robustness(made(run_dir(tmp_path / "a"))) is None


@pytest.mark.integration
def test_corrupted_runs_do_not_stand_among_published_figures(tmp_path):
    code, output = typed(corrupted(tmp_path, "weather.Snow", 3, 1.0), "--out", tmp_path / "out", "--no-maps")
    assert code == 0, output
    text = (tmp_path / "out/report.md").read_text()
    assert "All images were corrupted" in text
    assert "## Robustness" in text
