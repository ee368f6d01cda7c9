"""python -m semcorr.compare, as typed."""

import json
import shutil
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from random_tables import batches, table
from typer.testing import CliRunner

from semcorr.compare import app
from semcorr.evaluate import evaluate


def run_dir(root: Path, parts: list[dict], **metrics: str) -> Path:
    root.mkdir()
    pq.write_table(table(parts), root / "predictions.parquet")
    (root / "metrics.json").write_text(json.dumps({"protocol": "semcorr", "localise": "argmax"} | metrics))
    return root


def moved(parts: list[dict], by: float) -> list[dict]:
    return [one | {"predicted": one["predicted"] + by} for one in parts]


def typed(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_two_runs_are_compared_on_every_subset(tmp_path):
    parts = batches(40, 40)
    first, second = run_dir(tmp_path / "a", moved(parts, 12)), run_dir(tmp_path / "b", parts)

    code, output = typed(first, second, "--alphas", "0.1", "--draws", "300")

    assert code == 0
    lines = [line for line in output.splitlines() if "per image" in line or "per point" in line]
    assert [tuple(line.replace("│", " ").split()[1:3]) for line in lines] == [
        (by, subset) for by in ("image", "point") for subset in ("all", "geo", "std")
    ]
    assert all("+" in line for line in lines)  # B is better everywhere
    assert "McNemar at 0.1" in output
    assert "believe the intervals" in output


def test_the_other_way_round_the_sign_turns(tmp_path):
    parts = batches(40)
    first, second = run_dir(tmp_path / "a", moved(parts, 12)), run_dir(tmp_path / "b", parts)

    forth, back = (typed(*both, "--draws", "100")[1] for both in ((first, second), (second, first)))

    assert "-" in next(line for line in back.splitlines() if "per image" in line)
    assert forth != back


def test_runs_of_other_pairs_are_refused(tmp_path):
    first, second = run_dir(tmp_path / "a", batches(20)), run_dir(tmp_path / "b", batches(20, 5))

    code, output = typed(first, second)

    assert code == 2
    assert "scored 20 pairs" in output
    assert "25, 20 of them" in output


def test_runs_of_another_version_of_the_benchmark_are_refused(tmp_path):
    parts = batches(20)
    first, second = (
        run_dir(tmp_path / "a", parts),
        run_dir(tmp_path / "b", [p | {"target": p["target"] + 1} for p in parts]),
    )

    code, output = typed(first, second)

    assert code == 2
    assert "of other target" in output


def test_a_run_with_a_keypoint_less_is_refused(tmp_path):
    first, second = run_dir(tmp_path / "a", batches(20)), run_dir(tmp_path / "b", batches(20))
    rows = pq.read_table(second / "predictions.parquet")
    pq.write_table(rows.filter(pc.not_equal(rows["keypoint"], 6)), second / "predictions.parquet")

    code, output = typed(first, second)

    assert code == 2
    assert (
        "b scored pairs of the same names, but of other numbers of keypoints: another version of the benchmark?"
        in output
    )


def test_runs_under_other_protocols_are_refused(tmp_path):
    first, second = run_dir(tmp_path / "a", batches(20)), run_dir(tmp_path / "b", batches(20))
    rows = pq.read_table(second / "predictions.parquet")
    pq.write_table(rows.append_column("protocol", [["dift"] * rows.num_rows]), second / "predictions.parquet")
    (second / "metrics.json").write_text(json.dumps({"protocol": "dift", "localise": "argmax"}))

    code, output = typed(first, second)

    assert code == 2
    assert "under protocol semcorr" in output


@pytest.mark.parametrize(
    ("spoil", "printed"),
    [
        (lambda run: shutil.rmtree(run), "has no metrics.json and no predictions.parquet"),
        (lambda run: (run / "predictions.parquet").unlink(), "has no predictions.parquet"),
        (lambda run: (run / "metrics.json").write_text("{"), "holds no run on pairs"),
        (lambda run: (run / "metrics.json").write_text('{"tracking": {}}'), "holds no run on pairs"),
        (lambda run: (run / "metrics.json").write_text('{"protocol": "semcorr", "localise": "x"}'), "no rows of x"),
        (lambda run: (run / "predictions.parquet").write_text("not one"), "holds no run on pairs"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_run_is_refused(tmp_path, spoil, printed):
    first, second = run_dir(tmp_path / "a", batches(20)), run_dir(tmp_path / "b", batches(20))
    spoil(second)

    code, output = typed(first, second)

    assert code == 2
    assert printed in " ".join(output.split())


@pytest.mark.parametrize("alphas", ["", "x", "0.1,0", "-0.1"])
def test_tolerances_that_are_none_are_refused(tmp_path, alphas):
    first = run_dir(tmp_path / "a", batches(20))

    code, output = typed(first, first, f"--alphas={alphas}")

    assert code == 2
    assert "--alphas" in output


@pytest.mark.slow
def test_runs_at_other_sizes_of_the_images_can_be_compared(config, tiny, tmp_path):
    """The truth has been through views of other sizes, and is rounded otherwise."""
    for size in (40, 56):
        evaluate(config("evaluate", *tiny, f"backbone.size={size}", f"run_dir={tmp_path / str(size)}"))

    code, output = typed(tmp_path / "40", tmp_path / "56", "--draws", "100")

    assert code == 0, output


@pytest.mark.slow
def test_what_evaluate_leaves_can_be_compared(config, tiny, tmp_path):
    """And the printed table says the intervals in a line."""
    for name, readout in (("a", "argmax"), ("b", "soft_argmax")):
        evaluate(config("evaluate", *tiny, f"localise={readout}", f"run_dir={tmp_path / name}"))

    code, output = typed(tmp_path / "a", tmp_path / "b", "--draws", "100")

    assert code == 0
    assert "argmax" in output
