"""The number of a job by which a search chooses the next jobs: the option `objective`, a name in metrics.json."""

import difflib
import math
from itertools import chain

from omegaconf import DictConfig

from semcorr.cli.sweep.plan import JobOutcome, is_done, read_job_metrics
from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonMapping
from semcorr.engine.run_config import find_benchmark
from semcorr.engine.run_dir import flatten_config
from semcorr.metrics.pck import ALPHAS, SUBSETS
from semcorr.metrics.sections import PAIRS
from semcorr.metrics.tracking import THRESHOLDS

PCK_SECTIONS = ("pck", "category_mean", "dagger", "ceiling")
PCK = tuple(f"{subset}.{by}.{alpha:g}" for subset in SUBSETS for by in ("image", "point") for alpha in ALPHAS)
PCK_WORDS = (
    f"pck.SUBSET.POOLING.ALPHA ({', '.join(SUBSETS)}; image, point; {', '.join(f'{alpha:g}' for alpha in ALPHAS)})"
)
OF_PAIRS = (
    *(f"{section}.{name}" for section in PCK_SECTIONS for name in PCK),
    *(f"headline.{alpha:g}" for alpha in ALPHAS),
    *("pairs", "keypoints", "images", "trained_parameters", "left_right.confused", "left_right.asked"),
    *("geometry_aware.pairs", "geometry_aware.keypoints", "seconds.encode", "seconds.match"),
)
OF_TRACKS = (
    *("tracking.delta_avg", "tracking.OA", "tracking.AJ", "queries", "frames", "videos"),
    *(f"tracking.{name}.{pixels}" for name in ("delta", "jaccard") for pixels in THRESHOLDS),
    *("seconds.encode", "seconds.match"),
)
OF_MASKS = (
    *(f"segmentation.{name}" for name in ("JF", "J", "J_recall", "J_decay", "F", "F_recall", "F_decay")),
    *("objects", "frames", "videos", "seconds.encode", "seconds.propagate", "seconds.score"),
)
OF_DENSE = ("pairs", "seconds.encode", "seconds.match")
NAMES = {  # by the section of the scores
    PAIRS: OF_PAIRS,
    "tracking": OF_TRACKS,
    "segmentation": OF_MASKS,
    "flow": ("flow.PCK", *OF_DENSE),
    "labels": ("labels.LT_ACC", "labels.IoU", *OF_DENSE),
}
LATER = {  # beginnings of names that depend on the benchmark
    PAIRS: ("category.", "classes.", "protocols.", "read_outs.", "kap.", "pose."),
    "tracking": ("video.",),
    "segmentation": ("video.",),
    "flow": ("category.",),
    "labels": ("category.",),
}


def check_objective(name: str) -> None:
    """Refuse the name of a number that no metrics.json has.

    Raises:
        UserError: There is no such number, whatever the benchmark.

    >>> check_objective("pck.all.image.0.1")
    >>> check_objective("pck.all.images.0.1")
    Traceback (most recent call last):
    semcorr.core.errors.UserError: `objective`: metrics.json has no number pck.all.images.0.1. Did you mean \
pck.all.image.0.1 or pck.all.image.0.15?
    """
    if not any(is_name_of(name, section) for section in NAMES):
        raise UserError(describe_absence(name, tuple(dict.fromkeys(chain(*NAMES.values())))))


def require_objective(cfg: DictConfig) -> None:
    """Refuse an `objective` that a job of a search will not have, before the first is run.

    Args:
        cfg: Configuration of a job.

    Raises:
        UserError: The scores of its benchmark have no such number.
    """
    section = getattr(find_benchmark(cfg.get("test") or cfg.data), "section", PAIRS)
    if not is_name_of(cfg.objective, section):
        raise UserError(describe_absence(cfg.objective, NAMES[section]))


def is_name_of(name: str, section: str) -> bool:
    """Tell whether a metrics.json with this section of scores may have a number of this name."""
    return name in NAMES[section] or name.startswith(LATER[section])


def describe_absence(name: str, names: tuple[str, ...]) -> str:
    """Say that there is no such number, and which are near, or which there are."""
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.8)
    others = [entry for entry in names if not entry.startswith(tuple(f"{section}." for section in PCK_SECTIONS))]
    families = [PCK_WORDS, f"the same of {', '.join(PCK_SECTIONS[1:])}"] if len(others) < len(names) else []
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join([*families, *others])}."
    return f"`objective`: metrics.json has no number {name}. {hint}"


def select_number(metrics: JsonMapping, name: str) -> float | None:
    """Select a number by its dotted name, in which a threshold has a dot of its own; None where it is null.

    Raises:
        UserError: There is no such number.

    >>> select_number({"pck": {"all": {"image": {"0.1": 0.5, "0.15": 0.75}}}}, "pck.all.image.0.1")
    0.5
    """
    numbers = {
        key: value
        for key, value in flatten_config(metrics).items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }
    if name not in numbers:
        raise UserError(describe_absence(name, tuple(numbers)))
    value = numbers[name]
    return None if value is None else float(value)


def read_objective(outcome: JobOutcome) -> float | None:
    """Read the number of a job that a search is by; None of a job that failed, or has no such keypoints.

    Raises:
        UserError: The scores of the job have no such number.
    """
    if outcome.fault or not is_done(outcome.job):
        return None
    value = select_number(read_job_metrics(outcome.job), outcome.job.cfg.objective)
    return value if value is not None and math.isfinite(value) else None
