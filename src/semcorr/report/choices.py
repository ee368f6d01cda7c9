"""Bars over named choices: runs that differ in one part, as the head or the backbone, and in nothing else."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from semcorr.engine.checkpoints import TEACHER
from semcorr.report.configurations import (
    ALPHA,
    BACKBONE_KEYS,
    Configuration,
    differing_keys,
    format_value,
    label_configurations,
    short_key,
)
from semcorr.report.document import (
    ReportFigure,
    ReportSection,
    ReportTable,
    format_interval,
    format_percent,
    format_spread,
)
from semcorr.report.runs import Setting
from semcorr.report.svg import WIDE, WIDTH, draw_bar_axis, draw_panel, draw_text, place_bar_names, ticks_up_to

PARTS = ("backbone", "finetune", "head", "loss", "pairs", "augment", "localise", "pose", "corrupt")
# A run in which nothing was trained does not depend on these, and may have none of them.
OF_TRAINING = (
    "augment",
    "pairs",
    "loss",
    "optimizer",
    "scheduler",
    "start_from",
    "trainer",
    "keep_from",
    "monitor",
    "feature_dropout",
    "data",
)
PANELS = 6  # groups drawn; the table has all
ROW = 24  # pixels of a choice's bar


class ChoiceGroup(NamedTuple):
    """Configurations that differ in one part and in nothing else, the best first."""

    part: str
    name: str  # label of the settings that they share
    choices: Mapping[str, Configuration]


def plot_choices(entries: Sequence[Configuration]) -> ReportSection | None:
    """Plot a figure per part; return None where no two configurations differ in just one part."""
    figures = []
    for part in PARTS:
        groups = find_choice_groups(entries, part)
        if groups:
            figures.append(_build_figure(part, groups))
    if not figures:
        return None
    text = (
        "Wherever runs of this report differ in one part and in nothing else, their PCK stand below each other. A part "
        "is what a name on the command line chooses, with all of its options: a head, a backbone, a loss."
    )
    return ReportSection("One part at a time", text, figures)


def find_choice_groups(entries: Sequence[Configuration], part: str) -> list[ChoiceGroup]:
    """Find the groups of at least two configurations that are the same except for a part.

    A configuration in which nothing was trained joins every group from which it does not differ otherwise in what it
    depends on. Where a group differs in numbers of one kind of part alone, it is a curve, and no group.

    Args:
        entries: The configurations.
        part: One of `PARTS`.
    """
    trained: dict[str, list[Configuration]] = {}
    untrained: dict[str, list[Configuration]] = {}
    for entry in entries:
        if entry.runs[0].metrics["trained_parameters"]:
            trained.setdefault(_describe_rest(entry, part), []).append(entry)
        else:
            untrained.setdefault(_describe_rest(entry, part, OF_TRAINING), []).append(entry)
    groups = [[*group, *untrained.get(_describe_rest(group[0], part, OF_TRAINING), [])] for group in trained.values()]
    groups += [group for group in untrained.values() if not any(set(map(id, group)) <= set(map(id, g)) for g in groups)]
    mixed = [group for group in groups if len({_kind_of(entry, part) for entry in group}) > 1]
    shared = [{k: v for k, v in group[0].settings.items() if not _is_of(k, part) or k == "backbone"} for group in mixed]
    if part == "backbone":
        shared = [settings | {"backbone": "any backbone"} for settings in shared]
    return [
        ChoiceGroup(part, name, dict(zip(_name_choices(group, part), group, strict=True)))
        for name, group in zip(label_configurations(shared), map(_sort, mixed), strict=True)
    ]


def _sort(group: Sequence[Configuration]) -> list[Configuration]:
    return sorted(group, key=lambda entry: (-(entry.value("all", ALPHA).mean or 0.0), entry.label))


def _is_of(key: str, part: str) -> bool:
    follows = (*BACKBONE_KEYS, "weights") if part == "backbone" else ()
    return key == part or key.startswith(_prefixes(part)) or key in follows


def _prefixes(part: str) -> tuple[str, ...]:
    """Return what the keys of a part begin with; a loss brings the teacher that it learns from."""
    return (f"{part}.", TEACHER) if part == "loss" else (f"{part}.",)


def _describe_rest(entry: Configuration, part: str, without: Sequence[str] = ()) -> str:
    """Describe the settings beside a part, and beside what the configuration does not depend on."""
    ignored = (*without, "test", "checkpoint") if without else ()
    rest = {
        key: str(value)
        for key, value in entry.settings.items()
        if not _is_of(key, part) and not any(_is_of(key, other) for other in ignored)
    }
    return str(sorted(rest.items()))


def _kind_of(entry: Configuration, part: str) -> str:
    """Name the kind of a part: its class, or the backbone's name; last_blocks is another kind without any block."""
    if part == "backbone":
        return entry.name
    kind = format_value("_target_", entry.settings.get(f"{part}._target_", "none"))
    if kind != "last_blocks":
        return kind
    blocks = entry.settings.get("finetune.blocks")
    return f"last {blocks} block{'s'[: blocks != 1]}" if blocks else "frozen"


def _name_choices(group: Sequence[Configuration], part: str) -> list[str]:
    """Name each choice by its kind, and by the options in which others of its kind differ."""
    names = []
    for entry in group:
        kind = _kind_of(entry, part)
        peers = [_options_of(other, part) for other in group if _kind_of(other, part) == kind]
        keys = sorted(differing_keys(peers, lambda key: True))
        own = _options_of(entry, part)
        names.append(", ".join([kind, *(f"{short_key(k, keys)} {format_value(k, own[k])}" for k in keys if k in own)]))
    return [f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _options_of(entry: Configuration, part: str) -> dict[str, Setting]:
    return {key: value for key, value in entry.settings.items() if key.startswith(_prefixes(part))}


def _build_figure(part: str, groups: Sequence[ChoiceGroup]) -> ReportFigure:
    alphas = list(next(iter(groups[0].choices.values())).runs[0].metrics["pck"]["all"]["image"])
    drawn = groups[:PANELS]
    scale = ticks_up_to(
        [
            max(value.mean or 0.0, value.interval[1] if value.interval else 0.0)
            for group in drawn
            for entry in group.choices.values()
            if (value := entry.value("all", ALPHA))
        ]
    )[1]
    width = WIDE if len(drawn) == 1 else WIDTH
    caption = (
        f"PCK per image at α = {ALPHA} of all keypoints over the choices of `{part}`, all other settings equal; all "
        "panels have the same scale. Whiskers are 95 % intervals over images. Choices of one panel share their images, "
        "so they move together: `semcorr.compare` tests a difference. Where nothing was trained, the settings of the "
        "training do not count."
        + (f" Drawn are {PANELS} of {len(groups)} groups; the table has all." if groups[PANELS:] else "")
    )
    rows = [
        [
            group.name,
            name,
            f"{entry.runs[0].metrics['trained_parameters']:,}",
            *(format_spread(entry.value("all", alpha)) for alpha in alphas),
            format_interval(entry.value("all", ALPHA).interval),
        ]
        for group in groups
        for name, entry in group.choices.items()
    ]
    columns = ["shared", part, "parameters trained", *(f"α = {alpha}" for alpha in alphas), f"95 % at {ALPHA}"]
    title = f"PCK over choices of {part}"
    panels = [_draw_choices(group, scale, width) for group in drawn]
    return ReportFigure(title, caption, panels, ReportTable(f"choices_{part}", title, caption, columns, rows, words=2))


def _draw_choices(group: ChoiceGroup, scale: float, width: float) -> str:
    names, right, top = place_bar_names(list(group.choices), width), 42, 46
    left, y = names.left, float(top)
    full = width - left - right
    body: list[str] = []
    for name, entry in group.choices.items():
        value = entry.value("all", ALPHA)
        length = full * (value.mean or 0.0) / scale
        written, y = names.draw(name, y, 13)
        body += written
        body.append(f'<rect x="{left:g}" y="{y:g}" width="{length:.1f}" height="16" class="bar std"/>')
        if value.interval:
            low, high = (round(left + full * end / scale, 1) for end in value.interval)
            body.append(
                f'<path d="M{low:g} {y + 4:g}v8M{low:g} {y + 8:g}H{high:g}M{high:g} {y + 4:g}v8" class="range"/>'
            )
            length = max(length, high - left)
        body.append(draw_text(round(left + length, 1) + 4, y + 13, format_percent(value.mean), "axis"))
        y += ROW
    return draw_panel(group.name, [*draw_bar_axis(left, full, top, y, scale), *body], y + 24, width)
