"""The command python -m semcorr.compare RUN_A RUN_B: how much two runs on the same pairs differ, and a paired test."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from semcorr.cli.errors import report_user_errors
from semcorr.cli.verb_line import run_app
from semcorr.core.errors import UserError
from semcorr.core.ranges import Range, Seed
from semcorr.core.terminal import Terminal, print_line
from semcorr.core.text_files import JsonObject
from semcorr.engine.finished_run import EvaluatedRun, read_evaluated_run, require_same_pairs

if TYPE_CHECKING:  # this imports torch, which --help does not need
    from semcorr.metrics.confidence import McNemarResult


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def compare_runs(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", readable=False, help="run_dir of the first evaluation.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", readable=False, help="run_dir of the second evaluation.")],
    alphas: Annotated[str, typer.Option("--alphas", help="Tolerances of PCK, with commas between.")] = "0.01,0.05,0.1",
    draws: Annotated[
        int, Range(least=100, most=1_000_000), typer.Option("--draws", min=100, help="Number of bootstrap resamples.")
    ] = 2000,
    seed: Annotated[Seed, typer.Option("--seed", help="Seed of the bootstrap.")] = 0,
) -> None:
    """Compare RUN_B with RUN_A on the same pairs, with 95 % intervals over images and a paired test."""
    with report_user_errors("evaluate"):
        from semcorr.metrics.confidence import mcnemar, pck_differences

        print_line(f"Comparing {first} and {second}")
        from semcorr.metrics.pck import Tolerance
        from semcorr.metrics.predictions import is_correct

        tolerances = _parse_tolerances(alphas)
        if first.resolve() == second.resolve():
            raise UserError(f"{first} is both RUN_A and RUN_B. Give two runs.")
        runs = read_evaluated_run(first), read_evaluated_run(second)
        require_same_pairs(*runs)
        correct = [is_correct(run.rows, tolerances, Tolerance.of_metrics(run.metrics)) for run in runs]
        entries = pck_differences(runs[0].rows, correct[0], correct[1], tolerances, draws, seed)
        tests = [mcnemar(*correct_of_both) for correct_of_both in zip(*correct, strict=True)]
    print_comparison(entries, runs, dict(zip(tolerances, tests, strict=True)))


def print_comparison(
    entries: list[JsonObject], runs: tuple[EvaluatedRun, EvaluatedRun], tests: "Mapping[float, McNemarResult]"
) -> None:
    """Print a row per subset, pooling and alpha, and McNemar's test below.

    Args:
        entries: Differences of PCK, as `pck_differences` returns them.
        runs: The two runs, A and B.
        tests: McNemar's test of all keypoints, by alpha.
    """
    table = Table(title=f"B - A, PCK in percent; {len(runs[0].rows.pairs)} pairs of {len(runs[0].rows.images)} images")
    for header in ("", "", "alpha", "A", "B", "B - A", "95 % interval", "p"):
        table.add_column(header, justify="right" if header else "left")
    for entry in sorted(entries, key=lambda entry: entry["by"]):
        a, b, difference = (
            f"{100 * entry[key]:{sign}.2f}" for key, sign in (("first", ""), ("second", ""), ("difference", "+"))
        )
        interval = (
            "too few images"
            if entry["interval"] is None
            else "{:+.2f} to {:+.2f}".format(*(100 * x for x in entry["interval"]))
        )
        p = "-" if entry["p"] is None else f"{entry['p']:.3g}"
        table.add_row(f"per {entry['by']}", entry["subset"], f"{entry['alpha']:g}", a, b, difference, interval, p)
    console = Terminal()
    for letter, run in zip("AB", runs, strict=True):
        console.print(f"{letter}: {run.name} ({run.metrics['localise']}, protocol {run.metrics['protocol']})")
    console.print_table(table)
    for alpha, test in tests.items():
        console.print(
            f"McNemar at {alpha:g}: {test.only_first} keypoints right in A alone, {test.only_second} in B alone, "
            f"p = {test.p:.2g}"
        )
    console.print("McNemar takes keypoints for independent, which those of one image are not: believe the intervals.")


def _parse_tolerances(text: str) -> list[float]:
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


def main(words: Sequence[str]) -> int:
    """Run the command `semcorr compare`, and return its exit code."""
    return run_app(app, words, "semcorr compare")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
