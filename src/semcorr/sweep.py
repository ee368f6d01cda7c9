"""What a sweep prints when its jobs are done: one table, a row per job."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from semcorr.metrics.pck import SUBSETS

ALPHA = "0.1"
TRACKS = ("delta_avg", "OA", "AJ")


class Job(NamedTuple):
    """A job of a sweep: what was typed for it, and its metrics.json."""

    overrides: Sequence[str]  # "key=value"
    metrics: Mapping[str, Any]


def summary(jobs: Sequence[Job]) -> Table:
    """The overrides in which the jobs differ, what each trained, and its scores in percent."""
    typed = [dict(override.lstrip("+").split("=", 1) for override in job.overrides) for job in jobs]
    keys = [key for key in {key: 0 for each in typed for key in each} if len({each.get(key) for each in typed}) > 1]
    scores = [_scores(job.metrics) for job in jobs]
    splits = ", ".join(sorted({job.metrics["split"] for job in jobs}))
    caption = f"PCK@{ALPHA} per image, in percent" if "all" in scores[0] else "in percent"
    table = Table(title=f"{len(jobs)} jobs, scored on {splits}", caption=caption)
    for header in ("", *keys, "trained", *scores[0]):
        table.add_column(header, justify="left" if header in keys else "right", overflow="fold")
    for number, (each, job, found) in enumerate(zip(typed, jobs, scores, strict=True)):
        trained = job.metrics.get("trained_parameters")
        values = ["-" if value is None else f"{100 * value:.1f}" for value in found.values()]
        table.add_row(
            str(number), *(each.get(key, "") for key in keys), "-" if trained is None else f"{trained:,}", *values
        )
    return table


def _scores(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    if "pck" not in metrics:
        return {key: metrics["tracking"][key] for key in TRACKS}
    return {subset: metrics["pck"][subset]["image"][ALPHA] for subset in SUBSETS}
