"""Robustness: what corruptions of the images cost, by kind and severity, of runs that differ in `corrupt` alone."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from semcorr.data.corruptions.corruption import Corruption, name_corruption
from semcorr.report.configurations import ALPHA, Configuration, SeedStatistics, label_configurations, seed_statistics
from semcorr.report.document import NONE, ReportFigure, ReportSection, ReportTable, format_percent, format_spread
from semcorr.report.svg import HeatCell, draw_heat_matrix

TARGET, SEVERITY = "corrupt._target_", "corrupt.severity"
DRAWN_GROUPS = 4  # matrices drawn; the table lists all
ROW = 26  # pixels of a corruption
SIDE = 44.0  # pixels of a severity, at most
ALL = "all of them"


class RobustnessGroup(NamedTuple):
    """Configurations that are the same except for the corruption of their images."""

    label: str  # of the settings that they share
    clean: Configuration | None  # the one whose images are as they are
    corrupted: Mapping[tuple[str, int], Configuration]  # by corruption and severity

    @property
    def corruptions(self) -> list[str]:
        """The names of the corruptions, sorted."""
        return sorted({name for name, _ in self.corrupted})

    @property
    def severities(self) -> list[int]:
        """The severities that any corruption has, sorted."""
        return sorted({severity for _, severity in self.corrupted})


def is_corrupted(entry: Configuration) -> bool:
    """Tell whether the images of a configuration were corrupted."""
    return TARGET in entry.settings


def find_robustness_groups(entries: Sequence[Configuration]) -> list[RobustnessGroup]:
    """Group corrupted configurations by all other settings; the clean one of the same settings joins each group."""
    groups: dict[str, list[Configuration]] = {}
    for entry in filter(is_corrupted, entries):
        groups.setdefault(_describe_settings(entry, (TARGET, SEVERITY)), []).append(entry)
    clean = {_describe_settings(entry): entry for entry in entries if not is_corrupted(entry)}
    shared = [
        {key: value for key, value in group[0].settings.items() if key not in (TARGET, SEVERITY)}
        for group in groups.values()
    ]
    return [
        RobustnessGroup(
            label,
            clean.get(_describe_settings(group[0])),
            {(name_corruption(str(e.settings[TARGET])), _read_severity(e)): e for e in group},
        )
        for label, group in zip(label_configurations(shared), groups.values(), strict=True)
    ]


def plot_robustness(entries: Sequence[Configuration]) -> ReportSection | None:
    """Plot a matrix of corruptions and severities for each group; return None where nothing is corrupted."""
    groups = find_robustness_groups(entries)
    if not groups:
        return None
    severities = sorted({severity for group in groups for severity in group.severities})
    caption = (
        f"PCK at α = {ALPHA}, per image, in percent, by severity. Mean: over the severities; clean: on images as they "
        "are; drop: clean less the mean, in points; kept: the mean in percent of clean. All corruptions count alike."
        + (f" Drawn are {DRAWN_GROUPS} of {len(groups)} groups; the table has all." if groups[DRAWN_GROUPS:] else "")
    )
    title = "PCK by corruption and severity"
    columns = ["configuration", "corruption", *map(str, severities), "mean", "clean", "drop", "kept"]
    rows = [row for group in groups for row in _tabulate(group, severities)]
    table = ReportTable("robustness", title, caption, columns, rows, words=2)
    panels = [_draw_matrix(group) for group in groups[:DRAWN_GROUPS]]
    text = "What is lost when the images are noisy, blurred, foggy or compressed, with everything else as it was."
    return ReportSection("Robustness", text, [ReportFigure(title, caption, panels, table)])


def mean_over_severities(group: RobustnessGroup, corruption: str) -> float | None:
    """Return the mean PCK of a corruption over the severities that it was scored in; None without any number."""
    values = [_score(entry).mean for (name, _), entry in group.corrupted.items() if name == corruption]
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def mean_over_corruptions(group: RobustnessGroup) -> float | None:
    """Return the mean PCK over all corruptions, each by its mean over severities; None without any number."""
    means = [mean for name in group.corruptions if (mean := mean_over_severities(group, name)) is not None]
    return fmean(means) if means else None


def _describe_settings(entry: Configuration, excluded: Sequence[str] | None = None) -> str:
    """Describe the settings of a configuration, except those excluded; by default all of its corruption."""
    return str(
        sorted(
            (key, str(value))
            for key, value in entry.settings.items()
            if not (key.startswith("corrupt.") if excluded is None else key in excluded)
        )
    )


def _read_severity(entry: Configuration) -> int:
    """Return the severity; the default one, where the file of somebody's own corruption does not list it."""
    return int(str(entry.settings.get(SEVERITY, Corruption.severity)))


def _score(entry: Configuration) -> SeedStatistics:
    return entry.value("all", ALPHA)


def _tabulate(group: RobustnessGroup, severities: Sequence[int]) -> list[list[str]]:
    clean = None if group.clean is None else _score(group.clean).mean
    rows = []
    for name in group.corruptions:
        scores = [group.corrupted.get((name, severity)) for severity in severities]
        cells = [NONE if entry is None else format_spread(_score(entry)) for entry in scores]
        rows.append([group.label, name, *cells, *_compare(mean_over_severities(group, name), clean)])
    if len(group.corruptions) > 1:
        by_severity = [
            seed_statistics([_score(entry).mean for (_, s), entry in group.corrupted.items() if s == severity])
            for severity in severities
        ]
        cells = [format_percent(score.mean) if severity in group.severities else NONE
                 for severity, score in zip(severities, by_severity, strict=True)]  # fmt: skip
        rows.append([group.label, ALL, *cells, *_compare(mean_over_corruptions(group), clean)])
    return rows


def _compare(mean: float | None, clean: float | None) -> list[str]:
    """Format a mean, the clean PCK, the difference in points and the share."""
    drop = None if mean is None or clean is None else clean - mean
    share = None if mean is None or not clean else mean / clean
    return [format_percent(value) for value in (mean, clean, drop, share)]


def _draw_matrix(group: RobustnessGroup) -> str:
    cells = {}
    for (name, severity), entry in group.corrupted.items():
        value = _score(entry).mean
        cells[name, str(severity)] = HeatCell(value, format_percent(value), f"{name} {severity}")
    clean = "" if group.clean is None else f"; clean {format_percent(_score(group.clean).mean)}"
    severities = [str(severity) for severity in group.severities]
    return draw_heat_matrix(
        f"{group.label}{clean}", group.corruptions, severities, cells, row_height=ROW, max_width=SIDE
    )
