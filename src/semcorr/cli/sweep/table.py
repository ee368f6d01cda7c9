"""End of a sweep: a table with a row per configuration, seeds together; what failed, and the exit code."""

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rich.table import Table

from semcorr.cli.sweep.plan import JobOutcome, is_done, read_job_metrics
from semcorr.core.ranks import is_first_process
from semcorr.core.terminal import Terminal
from semcorr.core.text_files import JsonMapping
from semcorr.metrics.pck import SUBSETS
from semcorr.metrics.sections import HEADLINES, PAIRS

ALPHA = "0.1"
SEED = "seed"


class SweepRow(NamedTuple):
    """A configuration: its number, its overrides, and one metrics.json per seed."""

    number: str
    typed: Mapping[str, str]
    metrics: Sequence[JsonMapping]


def print_summary(outcomes: Sequence[JobOutcome]) -> int:
    """Print the table and the failures; return 0 if all is done, 2 if all failures are users' mistakes, else 1."""
    failed = [outcome for outcome in outcomes if outcome.fault]
    if not is_first_process():
        return _exit_code(failed)
    finished = [x for x in outcomes if not x.fault and is_done(x.job)]  # fast_dev_run leaves no scores
    if len(outcomes) > 1:
        for kind in (PAIRS, *HEADLINES):
            if scored := [outcome for outcome in finished if kind in read_job_metrics(outcome.job)]:
                Terminal().print_table(build_sweep_table(scored))
    for outcome in failed:
        name, overrides = outcome.job.folder, " ".join(outcome.job.overrides)
        print(f"Error: job {name} failed ({overrides}): {outcome.error.splitlines()[0]}", file=sys.stderr)
    if failed:
        remedy = f"the same line with run_dir={failed[0].job.folder.parent} does those alone"
        print(f"{len(failed)} of {len(outcomes)} jobs failed; {remedy}.", file=sys.stderr)
    return _exit_code(failed)


def build_sweep_table(outcomes: Sequence[JobOutcome]) -> Table:
    """Build a table of the overrides in which jobs differ, the trained parameters, and the scores in percent.

    Args:
        outcomes: Jobs that are done, all with the same section of scores.
    """
    rows = group_seeds(
        (outcome.job.folder.name, outcome.job.overrides, read_job_metrics(outcome.job)) for outcome in outcomes
    )
    keys = [key for key in {key: 0 for row in rows for key in row.typed} if _is_varied(rows, key)]
    score_names = list(_select_scores(rows[0].metrics[0]))
    seed_counts = {len(row.metrics) for row in rows}
    has_seed_column = len(seed_counts) > 1
    count = "" if has_seed_column else f"{max(seed_counts)} "
    over_seeds = "" if seed_counts == {1} else f"\nmean±standard deviation over {count}seeds"
    splits = ", ".join(sorted({metrics["split"] for row in rows for metrics in row.metrics}))
    caption = f"PCK@{ALPHA} per image, in percent" if "all" in score_names else "in percent"
    table = Table(
        title=f"{len(outcomes)} job{'s' if len(outcomes) > 1 else ''}, scored on {splits}", caption=caption + over_seeds
    )
    for header in ("", *keys, *(["seeds"] if has_seed_column else []), "trained", *score_names):
        is_key = header in keys
        table.add_column(header, justify="left" if is_key else "right", overflow="fold", no_wrap=not is_key)
    for row in rows:
        trained = row.metrics[0].get("trained_parameters")
        scores = [
            format_mean_and_spread([_select_scores(metrics)[name] for metrics in row.metrics]) for name in score_names
        ]
        seed_cells = [str(len(row.metrics))] if has_seed_column else []
        cells = [row.number, *(row.typed.get(key, "") for key in keys), *seed_cells]
        table.add_row(*cells, "-" if trained is None else f"{trained:,}", *scores)
    return table


def group_seeds(jobs: Iterable[tuple[str, Sequence[str], JsonMapping]]) -> list[SweepRow]:
    """Group jobs that differ only in their seed.

    Args:
        jobs: Number, overrides and metrics.json of each job.

    >>> jobs = [("0", ["seed=1"], {}), ("1", ["seed=2"], {}), ("2", ["seed=1", "a=b"], {})]
    >>> [row.number for row in group_seeds(jobs)]
    ['0, 1', '2']
    """
    groups: dict[tuple[tuple[str, str], ...], list[tuple[str, JsonMapping]]] = {}
    for number, overrides, metrics in jobs:
        typed = {key: value for key, _, value in (override.lstrip("+").partition("=") for override in overrides)}
        typed.pop(SEED, None)
        groups.setdefault(tuple(typed.items()), []).append((number, metrics))
    return [
        SweepRow(", ".join(number for number, _ in group), dict(typed), [metrics for _, metrics in group])
        for typed, group in groups.items()
    ]


def format_mean_and_spread(values: Sequence[float | None]) -> str:
    """Format the mean of values in percent, and of several values the sample standard deviation.

    >>> format_mean_and_spread([0.5]), format_mean_and_spread([0.5, 0.52]), format_mean_and_spread([0.5, None])
    ('50.0', '51.0±1.4', '-')
    """
    known = [100 * value for value in values if value is not None]
    if len(known) < len(values):  # a mean over fewer values than the table says would mislead
        return "-"
    mean = f"{statistics.fmean(known):.1f}"
    return f"{mean}±{statistics.stdev(known):.1f}" if len(known) > 1 else mean


def _is_varied(rows: Sequence[SweepRow], key: str) -> bool:
    """Tell whether rows differ in an override."""
    return len({row.typed.get(key) for row in rows}) > 1


def _exit_code(failed: Sequence[JobOutcome]) -> int:
    """Return 0 if no job failed, 2 if all failures are users' mistakes, else 1."""
    return 0 if not failed else 2 if all(outcome.fault == 2 for outcome in failed) else 1


def _select_scores(metrics: JsonMapping) -> dict[str, float | None]:
    """Select the scores of a metrics.json that the table shows."""
    if PAIRS not in metrics:
        section = next(name for name in HEADLINES if name in metrics)
        return {key: metrics[section][key] for key in HEADLINES[section]}
    return {subset: metrics[PAIRS][subset]["image"][ALPHA] for subset in SUBSETS}
