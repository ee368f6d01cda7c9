"""Runs that are the same but for their seed, together; what one configuration differs from the next by."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any, NamedTuple

from semcorr.core.errors import UserError
from semcorr.report.runs import FinishedRun
from semcorr.report.settings import Setting, run_settings

FOLLOWS = ("head.channels", "head.maps", "head.grid")  # from the backbone, unless it is the same one


class SeedStatistics(NamedTuple):
    """A PCK over the seeds of a configuration."""

    mean: float | None
    spread: float | None  # standard deviation over seeds; None for one
    interval: tuple[float, float] | None  # 95 % over images; the mean of the seeds' ends


class Configuration(NamedTuple):
    """A configuration and its runs, one per seed."""

    label: str
    settings: Mapping[str, Setting]
    runs: Sequence[FinishedRun]

    def value(self, subset: str, alpha: str, by: str = "image", category: str | None = None) -> SeedStatistics:
        """PCK of a subset, over the seeds; None where a run has none."""
        every = [run.metrics for run in self.runs]
        scores = [one["pck"] if category is None else one["category"][category] for one in every]
        ends = [None if category else _at(one, "intervals", subset, by, alpha) for one in every]
        return seed_statistics([_at(score, subset, by, alpha) for score in scores], ends)

    def headline(self, alpha: str) -> SeedStatistics:
        """As the protocol pools it; with an interval where that is per image or per point."""
        by = self.runs[0].metrics["pooling"]
        ends = [_at(run.metrics, "intervals", "all", by, alpha) for run in self.runs]
        return seed_statistics([run.metrics["headline"].get(alpha) for run in self.runs], ends)

    @property
    def name(self) -> str:
        """Of the backbone."""
        return str(self.settings["backbone"])


def seed_statistics(values: Sequence[float | None], ends: Sequence[Sequence[float] | None] = (None,)) -> SeedStatistics:
    """Mean and spread; of nothing less than all.

    >>> seed_statistics([0.25, 0.75])
    Value(mean=0.5, spread=0.3535533905932738, interval=None)
    >>> seed_statistics([0.25, None])
    Value(mean=None, spread=None, interval=None)
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return SeedStatistics(None, None, None)
    both = [tuple(end) for end in ends if end is not None]
    interval = (fmean(low for low, _ in both), fmean(high for _, high in both)) if len(both) == len(values) else None
    return SeedStatistics(fmean(known), stdev(known) if len(known) > 1 else None, interval)


def build_configurations(runs: Sequence[FinishedRun]) -> list[Configuration]:
    """Best first; in the same order whatever the order of the runs."""
    groups: dict[tuple[tuple[str, str], ...], list[FinishedRun]] = {}
    for run in runs:
        key = tuple(sorted((k, str(v)) for k, v in run_settings(run.cfg).items()))
        groups.setdefault(key, []).append(run)
    for same in groups.values():
        same.sort(key=lambda run: (_seed(run), str(run.folder)))
        for one, two in pairwise(same):
            if _seed(one) == _seed(two):
                raise UserError(
                    f"{one.folder} and {two.folder} are the same configuration with the same seed: the spread over "
                    "seeds would be too small. Give one of them"
                )
    each = [run_settings(same[0].cfg) for same in groups.values()]
    made = [
        Configuration(label, own, same)
        for label, own, same in zip(label_configurations(each), each, groups.values(), strict=True)
    ]
    return sorted(made, key=lambda entry: (-(entry.headline("0.1").mean or 0.0), entry.label))


def label_configurations(each: Sequence[Mapping[str, Setting]]) -> list[str]:
    """The backbone, and whatever tells a configuration from the others.

    >>> windows = [{"backbone": "a", "localise.window": size} for size in (5, 9)]
    >>> label_configurations([*windows, {"backbone": "b"}])
    ['a, window 5', 'a, window 9', 'b']
    """
    told = []
    for one in each:
        kin = [other for other in each if other["backbone"] == one["backbone"]]
        keys = differing_keys(
            each, lambda key: key not in ("weights", *FOLLOWS) and not key.startswith("backbone")
        ) | differing_keys(kin, lambda key: True)
        shown = [f"{short_key(key, keys)} {format_value(key, one[key])}" for key in sorted(keys) if key in one]
        told.append(", ".join([str(one["backbone"]), *shown]))
    return told


def differing_keys(each: Sequence[Mapping[str, Setting]], wanted: Any) -> set[str]:
    """Keys that several of them have, and not with one value."""
    keys = {key for one in each for key in one if wanted(key)}
    return {key for key in keys if len({str(one[key]) for one in each if key in one}) > 1}


def short_key(key: str, among: Sequence[str] | set[str] = ()) -> str:
    """The last word of a key, where no other key ends in it.

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
    """A value to be read: of what is called, its own name."""
    return str(value).rsplit(".", 1)[-1] if key.endswith("_target_") else str(value)


def _seed(run: FinishedRun) -> str:
    return str(run.cfg.get("seed"))


def _at(node: Any, *keys: str) -> Any:
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return None if isinstance(node, float) and math.isnan(node) else node
