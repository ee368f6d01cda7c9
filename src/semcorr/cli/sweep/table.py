"""How a sweep ends: one table, a row per configuration, seeds together; what failed, and the exit code."""

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

ALPHA = "0.1"
PAIRS, TRACKING = "pck", "tracking"  # what a metrics.json has one of
TRACKS = ("delta_avg", "OA", "AJ")
SEED = "seed"


class SweepRow(NamedTuple):
    """A configuration: what was typed for it, and its metrics.json, one per seed."""

    number: str
    typed: Mapping[str, str]
    metrics: Sequence[JsonMapping]


def print_summary(outcomes: Sequence[JobOutcome]) -> int:
    """Print the table and the failures; 0 if all is done, 2 if users alone are to blame, else 1."""
    failed = [outcome for outcome in outcomes if outcome.fault]
    if not is_first_process():
        return _code(failed)
    finished = [each for each in outcomes if not each.fault and is_done(each.job)]  # fast_dev_run leaves no scores
    if len(outcomes) > 1:
        for kind in (PAIRS, TRACKING):
            if scored := [each for each in finished if kind in read_job_metrics(each.job)]:
                Terminal().print(build_table(scored))
    for outcome in failed:
        name, typed = outcome.job.folder, " ".join(outcome.job.overrides)
        print(f"Error: job {name} failed ({typed}): {outcome.error.splitlines()[0]}", file=sys.stderr)
    if failed:
        again = f"the same line with run_dir={failed[0].job.folder.parent} does those alone"
        print(f"{len(failed)} of {len(outcomes)} jobs failed; {again}.", file=sys.stderr)
    return _code(failed)


def build_table(outcomes: Sequence[JobOutcome]) -> Table:
    """The overrides in which the jobs differ, what each trained, and its scores in percent: of pairs or of tracks."""
    found = group_seeds(
        (outcome.job.folder.name, outcome.job.overrides, read_job_metrics(outcome.job)) for outcome in outcomes
    )
    keys = [key for key in {key: 0 for row in found for key in row.typed} if _differs(found, key)]
    scores = [_scores(row.metrics[0]) for row in found]
    seeds = {len(row.metrics) for row in found}
    several = len(seeds) > 1  # counts of seeds, each then in its row
    count = "" if several else f"{max(seeds)} "
    over = "" if seeds == {1} else f"\nmean±standard deviation over {count}seeds"
    splits = ", ".join(sorted({each["split"] for row in found for each in row.metrics}))
    caption = f"PCK@{ALPHA} per image, in percent" if "all" in scores[0] else "in percent"
    made = Table(
        title=f"{len(outcomes)} jobs, scored on {splits}",
        caption=caption + over,
    )
    for header in ("", *keys, *(["seeds"] if several else []), "trained", *scores[0]):
        left = header in keys
        made.add_column(header, justify="left" if left else "right", overflow="fold", no_wrap=not left)
    for row in found:
        trained = row.metrics[0].get("trained_parameters")
        values = [format_mean_and_spread([_scores(each)[key] for each in row.metrics]) for key in scores[0]]
        told = [row.number, *(row.typed.get(key, "") for key in keys), *([str(len(row.metrics))] if several else [])]
        made.add_row(*told, "-" if trained is None else f"{trained:,}", *values)
    return made


def group_seeds(jobs: Iterable[tuple[str, Sequence[str], JsonMapping]]) -> list[SweepRow]:
    """Jobs that differ in nothing but their seed, together.

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
    """In percent: the mean, and of several the sample standard deviation.

    >>> format_mean_and_spread([0.5]), format_mean_and_spread([0.5, 0.52]), format_mean_and_spread([0.5, None])
    ('50.0', '51.0±1.4', '-')
    """
    known = [100 * value for value in values if value is not None]
    if len(known) < len(values):  # never over fewer than it says
        return "-"
    mean = f"{statistics.fmean(known):.1f}"
    return f"{mean}±{statistics.stdev(known):.1f}" if len(known) > 1 else mean


def _differs(found: Sequence[SweepRow], key: str) -> bool:
    return len({row.typed.get(key) for row in found}) > 1


def _code(failed: Sequence[JobOutcome]) -> int:
    return 0 if not failed else 2 if all(outcome.fault == 2 for outcome in failed) else 1


def _scores(metrics: JsonMapping) -> dict[str, float | None]:
    if PAIRS not in metrics:
        return {key: metrics[TRACKING][key] for key in TRACKS}
    return {subset: metrics[PAIRS][subset]["image"][ALPHA] for subset in SUBSETS}
