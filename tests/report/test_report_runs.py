"""Runs become configurations with their seeds; what cannot be compared or is no run is refused by name."""

import json
import shutil
from pathlib import Path
from statistics import mean, stdev

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tiny_runs import made, run_dir, typed, window

from semcorr.report.runs import find_runs

pytestmark = pytest.mark.integration


def test_numbers_are_those_of_metrics_json_and_seeds_are_aggregated(tmp_path):
    """Mean and sample deviation by hand; one seed has no spread."""
    runs = [window(tmp_path, 15, 9), window(tmp_path, 15, 12, seed=2), window(tmp_path, 5, 3)]
    values = [json.loads((run / "metrics.json").read_text())["pck"]["geo"]["image"]["0.1"] for run in runs]

    best, both = made(*runs)

    assert both.value("geo", "0.1").mean == pytest.approx(mean(values[:2]))
    assert both.value("geo", "0.1").spread == pytest.approx(stdev(values[:2]))
    assert best.value("geo", "0.1")[:2] == (values[2], None)
    assert (both.label, best.label) == ("tiny, window 15", "tiny, window 5")


def test_two_runs_of_one_seed_are_no_spread(tmp_path):
    runs = [window(tmp_path / "a", 5), window(tmp_path / "b", 5)]

    code, output = typed(*runs, "--out", tmp_path / "out")

    assert code == 2
    assert "same configuration with the same seed" in output


@pytest.mark.parametrize(
    ("metrics", "printed"),
    [
        ({"protocol": "dift"}, "differ in their protocol"),
        ({"split": "ap10k test"}, "differ in their benchmark"),
        ({"strict": True}, "differ in their comparison"),
        ({"pooling": "point"}, "differ in their pooling"),
    ],
)
def test_runs_that_cannot_be_compared_are_not_averaged(tmp_path, metrics, printed):
    """Not even where everything but the protocol is the same and they would pass for seeds."""
    runs = run_dir(tmp_path / "a"), run_dir(tmp_path / "b", config={"seed": 2}, **metrics)

    code, output = typed(*runs, "--out", tmp_path / "out")

    assert code == 2
    assert printed in output
    assert str(runs[1]) in output
    assert not (tmp_path / "out").exists()


def test_runs_on_other_pairs_are_refused(tmp_path):
    runs = run_dir(tmp_path / "a"), run_dir(tmp_path / "b", sizes=(40, 30))

    code, output = typed(*runs, "--out", tmp_path / "out")

    assert code == 2
    assert "scored 80 pairs" in output


def rename_category(run: Path) -> None:
    """As if a typo in the annotations had been corrected since."""
    rows, metrics = pq.read_table(run / "predictions.parquet"), run / "metrics.json"
    names = pc.replace_substring(rows["category"], "bus", "bun")
    pq.write_table(
        rows.set_column(rows.schema.get_field_index("category"), "category", names), run / "predictions.parquet"
    )
    metrics.write_text(metrics.read_text().replace("bus", "bun"))


def test_categories_of_other_names_are_refused(tmp_path):
    runs = run_dir(tmp_path / "a"), run_dir(tmp_path / "b", config={"seed": 2})
    rename_category(runs[1])

    code, output = typed(*runs, "--out", tmp_path / "out")

    assert code == 2
    assert "of the same names, but of other categories: another version of the benchmark?" in output


def test_domains_of_other_names_are_refused(tmp_path):
    scores = {"source": "photo", "target": "art", "pairs": 1, "image": {"0.1": 0.5}, "point": {"0.1": 0.5}}
    runs = [
        run_dir(tmp_path / name, config={"seed": i}, classes={"domains": {"unknown": 0, name: scores}})
        for i, name in enumerate(("photo to art", "photo to arts"))
    ]

    code, output = typed(*runs, "--out", tmp_path / "out")

    assert code == 2
    assert "name the domains of their images differently: only one has pairs of photo to art. Evaluate" in output


@pytest.mark.parametrize(
    ("spoil", "printed"),
    [
        (lambda run: shutil.rmtree(run), "is not a folder"),
        (lambda run: (run / "metrics.json").unlink(), "has not finished: no metrics.json"),
        (lambda run: (run / "predictions.parquet").unlink(), "has no predictions.parquet"),
        (lambda run: (run / "config.yaml").write_text("a: 1"), "is not of semcorr"),
        (lambda run: (run / "metrics.json").write_text('{"tracking": {"AJ": 0.5}}'), "holds no run on pairs"),
        (lambda run: (run / "metrics.json").write_text('{"protocol":"semcorr","localise":"argmax"}'), "has no `pck`"),
        (lambda run: (run / "metrics.csv").write_text("step,a\n0,b\n"), "is not a table of numbers"),
        (lambda run: [file.unlink() for file in run.iterdir()], "holds no run"),
    ],
)  # fmt: skip
def test_a_run_that_is_none_is_named(tmp_path, spoil, printed):
    good, bad = run_dir(tmp_path / "good"), run_dir(tmp_path / "bad", 3, config={"seed": 2})
    spoil(bad)

    code, output = typed(good, bad, "--out", tmp_path / "out")

    assert code == 2
    assert printed in output
    assert str(bad) in output
    assert not (tmp_path / "out").exists()


def test_every_unfinished_run_of_a_sweep_is_named_at_once(tmp_path):
    for i in range(3):
        run = window(tmp_path / "sweep", 5, seed=i)
        if i:
            (run / "metrics.json").unlink()

    code, output = typed(tmp_path / "sweep", "--out", tmp_path / "out")

    assert code == 2
    assert output.count("has not finished") == 2


def test_what_a_run_exported_is_no_run_of_the_sweep(tmp_path):
    run = window(tmp_path / "sweep", 5)
    (run / "export" / "hf").mkdir(parents=True)
    shutil.copy(run / "config.yaml", run / "export" / "hf")

    assert find_runs([tmp_path / "sweep"]) == [run]


def test_a_run_given_twice_is_refused(tmp_path):
    run = run_dir(tmp_path / "a")

    assert "given twice" in typed(run, run, "--out", tmp_path / "out")[1]


def test_an_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")

    code, _ = typed(run_dir(tmp_path / "a"), "--out", tmp_path / "out")

    assert code == 2
    assert (tmp_path / "out").read_text() == "mine"
