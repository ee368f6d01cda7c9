"""Runs that differ in their seed only, grouped, and the settings in which these groups differ."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, stdev
from typing import NamedTuple

from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonMapping
from semcorr.report.runs import FinishedRun, Setting, run_settings

DRAWN_CONFIGURATIONS = 4  # in a figure; its table lists all
POOLING_NAMES = {"image": "per image", "point": "per keypoint"}
ALPHA = "0.1"  # the tolerance that configurations are sorted by, and whose intervals metrics.json holds
# These follow from the backbone: they tell apart only configurations of the same backbone.
BACKBONE_KEYS = ("head.channels", "head.maps", "head.grid")


class SeedStatistics(NamedTuple):
    """Statistics of a PCK over the seeds of a configuration."""

    mean: float | None
    spread: float | None  # standard deviation over seeds; None if there is one seed
    interval: tuple[float, float] | None  # 95 % over images; each end is the mean over seeds


class Configuration(NamedTuple):
    """A configuration and its runs, one per seed."""

    label: str
    settings: Mapping[str, Setting]
    runs: Sequence[FinishedRun]

    def value(self, subset: str, alpha: str, by: str = "image", category: str | None = None) -> SeedStatistics:
        """Return the PCK of a subset over the seeds, as a fraction; its values are None where a run has none.

        Args:
            subset: Keypoints: `all`, `geo` or `std`.
            alpha: Tolerance, as a key of metrics.json: `0.1`.
            by: Pooling: `image` or `point`.
            category: A category, which has no interval; None, all of them.
        """
        metrics = [run.metrics for run in self.runs]
        scores = [
            run_metrics["pck"] if category is None else run_metrics["category"][category] for run_metrics in metrics
        ]
        ends = [None if category else _get_interval(run_metrics, subset, by, alpha) for run_metrics in metrics]
        return seed_statistics([_get_score(score, subset, by, alpha) for score in scores], ends)

    def headline(self, alpha: str) -> SeedStatistics:
        """Return the PCK as the protocol pools it; with an interval where that is per image or per point."""
        by = self.runs[0].metrics["pooling"]
        ends = [_get_interval(run.metrics, "all", by, alpha) for run in self.runs]
        return seed_statistics([run.metrics["headline"].get(alpha) for run in self.runs], ends)

    @property
    def name(self) -> str:
        """The name of the backbone."""
        return str(self.settings["backbone"])


def seed_statistics(values: Sequence[float | None], ends: Sequence[Sequence[float] | None] = (None,)) -> SeedStatistics:
    """Compute mean and spread over seeds; all are None if one value is missing.

    Args:
        values: A value for each seed.
        ends: Ends of the interval of each seed; without one for every seed there is no interval.

    >>> seed_statistics([0.25, 0.75])
    SeedStatistics(mean=0.5, spread=0.3535533905932738, interval=None)
    >>> seed_statistics([0.25, None])
    SeedStatistics(mean=None, spread=None, interval=None)
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return SeedStatistics(None, None, None)
    intervals = [tuple(end) for end in ends if end is not None]
    interval = (
        (fmean(low for low, _ in intervals), fmean(high for _, high in intervals))
        if len(intervals) == len(values)
        else None
    )
    return SeedStatistics(fmean(known), stdev(known) if len(known) > 1 else None, interval)


def build_configurations(runs: Sequence[FinishedRun]) -> list[Configuration]:
    """Group the runs by configuration, the best first, in an order that does not depend on that of the runs.

    Raises:
        UserError: Two runs have the same configuration and the same seed.
    """
    groups: dict[tuple[tuple[str, str], ...], list[FinishedRun]] = {}
    for run in runs:
        key = tuple(sorted((k, str(v)) for k, v in run_settings(run.cfg).items()))
        groups.setdefault(key, []).append(run)
    for seed_runs in groups.values():
        seed_runs.sort(key=lambda run: (_seed(run), str(run.folder)))
        for first, second in pairwise(seed_runs):
            if _seed(first) == _seed(second):
                raise UserError(
                    f"{first.folder} and {second.folder} are the same configuration with the same seed: the spread "
                    "over seeds would be too small. Give one of them"
                )
    all_settings = [run_settings(seed_runs[0].cfg) for seed_runs in groups.values()]
    configurations = [
        Configuration(label, settings, seed_runs)
        for label, settings, seed_runs in zip(
            label_configurations(all_settings), all_settings, groups.values(), strict=True
        )
    ]
    return sorted(configurations, key=lambda entry: (-(entry.headline(ALPHA).mean or 0.0), entry.label))


def label_configurations(settings_list: Sequence[Mapping[str, Setting]]) -> list[str]:
    """Label each configuration by its backbone and by whatever distinguishes it from the others.

    >>> windows = [{"backbone": "a", "localise.window": size} for size in (5, 9)]
    >>> label_configurations([*windows, {"backbone": "b"}])
    ['a, window 5', 'a, window 9', 'b']
    """
    labels = []
    for settings in settings_list:
        same_backbone = [other for other in settings_list if other["backbone"] == settings["backbone"]]
        keys = differing_keys(
            settings_list, lambda key: key not in ("weights", *BACKBONE_KEYS) and not key.startswith("backbone")
        ) | differing_keys(same_backbone, lambda key: True)
        labels.append(_format_label(settings, keys))
    return [
        _distinguish(
            label, settings, [other for other, same in zip(settings_list, labels, strict=True) if same == label]
        )
        for label, settings in zip(labels, settings_list, strict=True)
    ]


def _format_label(settings: Mapping[str, Setting], keys: set[str]) -> str:
    parts = [f"{short_key(key, keys)} {format_value(key, settings[key])}" for key in sorted(keys) if key in settings]
    return ", ".join([str(settings["backbone"]), *parts])


def _distinguish(label: str, settings: Mapping[str, Setting], same: Sequence[Mapping[str, Setting]]) -> str:
    """Add to a label what these settings have and not all of the others with the same label."""
    added = {key for key in settings if any(key not in other for other in same)}
    return ", ".join([label, *_format_label(settings, added).split(", ")[1:]])


def differing_keys(settings_list: Sequence[Mapping[str, Setting]], is_wanted: Callable[[str], bool]) -> set[str]:
    """Return the keys that have more than one value among several configurations.

    Args:
        settings_list: Settings of each configuration; a key that only some have is compared among those.
        is_wanted: Function that tells whether a key is considered.
    """
    keys = {key for settings in settings_list for key in settings if is_wanted(key)}
    return {key for key in keys if len({str(settings[key]) for settings in settings_list if key in settings}) > 1}


def short_key(key: str, among: Sequence[str] | set[str] = ()) -> str:
    """Return the last word of a key, or the whole key where another one ends in the same word.

    >>> short_key("localise.window"), short_key("finetune._target_")
    ('window', 'finetune')
    >>> short_key("head.rank", {"head.rank", "finetune.rank"})
    'head.rank'
    """
    if key.endswith("._target_"):
        return key.removesuffix("._target_")
    last = key.rsplit(".", 1)[-1]
    return key if sum(other.rsplit(".", 1)[-1] == last for other in among) > 1 else last


def format_value(key: str, value: Setting) -> str:
    """Format a value as it is typed, a target by the last part of its path."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).rsplit(".", 1)[-1] if key.endswith("_target_") else str(value)


def describe_omitted(total: int, noun: str = "") -> str:
    """Return the sentence of a caption on the configurations that are not drawn, after a space; "" if all are drawn.

    Args:
        total: Number of configurations.
        noun: What they are called after the number; empty where the caption has named them.

    >>> describe_omitted(5, "configurations")
    ' Drawn are the best 4 of 5 configurations; the table has all.'
    """
    if total <= DRAWN_CONFIGURATIONS:
        return ""
    return f" Drawn are the best {DRAWN_CONFIGURATIONS} of {f'{total} {noun}'.rstrip()}; the table has all."


def _seed(run: FinishedRun) -> str:
    return str(run.cfg.get("seed"))


def _get_score(scores: JsonMapping, *keys: str) -> float | None:
    """Return a score; None where there is none, and where it is not a number."""
    score = _get_nested(scores, *keys)
    return score if isinstance(score, int | float) and not math.isnan(score) else None


def _get_interval(metrics: JsonMapping, *keys: str) -> Sequence[float] | None:
    """Return the two ends of an interval; None where there is none."""
    ends = _get_nested(metrics, "intervals", *keys)
    return ends if isinstance(ends, list | tuple) else None


def _get_nested(node: object, *keys: str) -> object:
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node
