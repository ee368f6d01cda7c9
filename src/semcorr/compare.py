"""python -m semcorr.compare RUN_A RUN_B: by how much two runs on the same pairs differ, and whether that is chance."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.table import Table

from semcorr.cli.hydra_app import report_user_errors, run_app
from semcorr.core.errors import UserError
from semcorr.core.ranges import Range, Seed
from semcorr.core.terminal import Terminal
from semcorr.core.text_files import read_mapping

if TYPE_CHECKING:  # they bring torch, which --help can do without
    from semcorr.metrics.confidence import McNemarResult
    from semcorr.metrics.predictions import Predictions

SAME = ("keypoint", "target", "extent", "ambiguous", "source_image", "target_image")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class ComparedRun(NamedTuple):
    """A finished evaluation: what it reports and the rows that follow from."""

    name: str
    metrics: Mapping[str, Any]
    rows: "Predictions"


def read_compared_run(folder: Path) -> ComparedRun:
    """The rows of the read-out and protocol that metrics.json reports.

    Raises:
        UserError: The folder is not that of a finished run on pairs.
    """
    from semcorr.metrics import predictions_table as table
    from semcorr.metrics.predictions import load_predictions, split_by_spec

    absent = [name for name in ("metrics.json", "predictions.parquet") if not (folder / name).is_file()]
    if absent:
        raise UserError(f"{folder} has no {' and no '.join(absent)}. Give the run_dir of a finished evaluation")
    try:
        metrics = read_mapping(folder / "metrics.json", "Evaluate again")
        found = split_by_spec(table.read_predictions(folder / "predictions.parquet"))
        wanted = (metrics["protocol"], metrics["localise"])
    except UserError as error:
        raise UserError(f"{folder} holds no run on pairs: {error}") from None
    except KeyError as error:
        raise UserError(f"{folder} holds no run on pairs: metrics.json has no {error}. Evaluate again") from None
    if not all(isinstance(word, str) for word in wanted) or wanted not in found:
        raise UserError(f"{folder}: predictions.parquet has no rows of {wanted[1]} under protocol {wanted[0]}")
    return ComparedRun(str(folder), metrics, load_predictions(found[wanted]))


def require_same_pairs(first: ComparedRun, second: ComparedRun) -> None:
    """Differences are of something only where everything but the predictions is the same."""
    protocols = [run.metrics["protocol"] for run in (first, second)]
    if protocols[0] != protocols[1]:
        raise UserError(
            f"{first.name} is under protocol {protocols[0]}, {second.name} under {protocols[1]}. "
            "Give runs under the same protocol"
        )
    mine, theirs = set(first.rows.pairs), set(second.rows.pairs)
    if mine != theirs:
        raise UserError(
            f"{first.name} scored {len(mine)} pairs and {second.name} {len(theirs)}, {len(mine & theirs)} of them the "
            "same. Give runs on the same pairs"
        )
    values = [{name: getattr(run.rows, name) for name in ("pair", *SAME)} for run in (first, second)]
    odd = [name for name, value in values[0].items() if not _alike(value, values[1][name])]
    if odd or first.rows.images != second.rows.images:
        raise UserError(
            f"{first.name} and {second.name} scored pairs of the same names, but of other {(odd or ['images'])[0]}: "
            "another version of the benchmark? Give runs on the same pairs"
        )


def _alike(mine: Any, theirs: Any) -> bool:
    """Equal; points, in pixels, but for the rounding of views of other sizes, which they have been through."""
    import numpy as np

    return mine.shape == theirs.shape and np.allclose(mine, theirs, rtol=1e-5, atol=0.01)


@app.command()
def compare_runs(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", readable=False, help="The run_dir of an evaluation,")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", readable=False, help="and of another.")],
    alphas: Annotated[str, typer.Option("--alphas", help="Tolerances.")] = "0.01,0.05,0.1",
    draws: Annotated[
        int, Range(least=100, most=1_000_000), typer.Option("--draws", min=100, help="Resamples of the images.")
    ] = 2000,
    seed: Annotated[Seed, typer.Option("--seed", help="Of the resamples.")] = 0,
) -> None:
    """RUN_B minus RUN_A on the same pairs, with 95 % intervals over images and a paired test."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with report_user_errors("evaluate"):
        from semcorr.metrics.confidence import mcnemar, pck_differences
        from semcorr.metrics.predictions import is_correct

        tolerances = _tolerances(alphas)
        if first.resolve() == second.resolve():
            raise UserError(f"{first} is both RUN_A and RUN_B. Give two runs.")
        runs = read_compared_run(first), read_compared_run(second)
        require_same_pairs(*runs)
        hits = [is_correct(run.rows, tolerances, bool(run.metrics.get("strict"))) for run in runs]
        entries = pck_differences(runs[0].rows, hits[0], hits[1], tolerances, draws, seed)
        tests = [mcnemar(*both) for both in zip(*hits, strict=True)]
    print_comparison(entries, runs, dict(zip(tolerances, tests, strict=True)))


def print_comparison(
    entries: list[dict[str, Any]], runs: tuple[ComparedRun, ComparedRun], tests: "Mapping[float, McNemarResult]"
) -> None:
    """A row per subset, way and alpha; McNemar below."""
    shown = Table(title=f"B - A, PCK in percent; {len(runs[0].rows.pairs)} pairs of {len(runs[0].rows.images)} images")
    for header in ("", "", "alpha", "A", "B", "B - A", "95 % interval", "p"):
        shown.add_column(header, justify="right" if header else "left")
    for entry in sorted(entries, key=lambda entry: entry["by"]):
        a, b, apart = (
            f"{100 * entry[key]:{sign}.2f}" for key, sign in (("first", ""), ("second", ""), ("difference", "+"))
        )
        low_high = (
            "too few images"
            if entry["interval"] is None
            else "{:+.2f} to {:+.2f}".format(*(100 * x for x in entry["interval"]))
        )
        p = "-" if entry["p"] is None else f"{entry['p']:.3g}"
        shown.add_row(f"per {entry['by']}", entry["subset"], f"{entry['alpha']:g}", a, b, apart, low_high, p)
    console = Terminal()
    for letter, run in zip("AB", runs, strict=True):
        console.print(f"{letter}: {run.name} ({run.metrics['localise']}, protocol {run.metrics['protocol']})")
    console.print(shown)
    for alpha, test in tests.items():
        console.print(
            f"McNemar at {alpha:g}: {test.only_first} keypoints right in A alone, {test.only_second} in B alone, "
            f"p = {test.p:.2g}"
        )
    console.print("McNemar takes keypoints for independent, which those of one image are not: believe the intervals.")


def _tolerances(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value <= 1 for value in values):
        raise UserError(
            f"--alphas must be numbers, more than 0 and at most 1, with commas between, as 0.05,0.1; got {text!r:.60}"
        )
    if len({*values}) < len(values):
        raise UserError(f"--alphas has a number twice: {text}. Give each once.")
    return values


def main() -> None:
    """The command."""
    run_app(app)


if __name__ == "__main__":
    main()
