"""The number of a job by which a search chooses the next jobs: the option `objective`, a name in metrics.json."""

import difflib
import math

from omegaconf import DictConfig

from semcorr.cli.sweep.plan import JobOutcome, is_done, read_job_metrics
from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonMapping
from semcorr.data.tapvid import TapVid
from semcorr.engine.build import benchmark_name
from semcorr.engine.run_dir import flatten_config
from semcorr.metrics.pck import ALPHAS, SUBSETS
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
LATER = ("category.", "classes.", "protocols.", "read_outs.", "kap.", "pose.")  # names below depend on the benchmark
LATER_OF_TRACKS = ("video.",)


def check_objective(name: str) -> None:
    """Refuse the name of a number that no metrics.json has.

    Raises:
        UserError: There is no such number, of pairs or of tracks.

    >>> check_objective("pck.all.image.0.1")
    >>> check_objective("pck.all.images.0.1")
    Traceback (most recent call last):
    semcorr.core.errors.UserError: `objective`: metrics.json has no number pck.all.images.0.1. Did you mean \
pck.all.image.0.1 or pck.all.image.0.15?
    """
    if not (is_name_of(name, tracks=False) or is_name_of(name, tracks=True)):
        raise UserError(describe_absence(name, tuple(dict.fromkeys((*OF_PAIRS, *OF_TRACKS)))))


def require_objective(cfg: DictConfig) -> None:
    """Refuse an `objective` that a job of a search will not have, before the first is run."""
    tracks = benchmark_name(cfg.get("test") or cfg.data) == TapVid.name
    if not is_name_of(cfg.objective, tracks):
        raise UserError(describe_absence(cfg.objective, OF_TRACKS if tracks else OF_PAIRS))


def is_name_of(name: str, tracks: bool) -> bool:
    """Tell whether a number of this name may be among the scores of pairs, or of tracks."""
    return name in (OF_TRACKS if tracks else OF_PAIRS) or name.startswith(LATER_OF_TRACKS if tracks else LATER)


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
