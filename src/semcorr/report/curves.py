"""Curves of PCK over any number in which the runs differ: window, resolution, tuned blocks."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from semcorr.metrics.pck import SUBSETS
from semcorr.report.configurations import (
    ALPHA,
    BACKBONE_KEYS,
    Configuration,
    differing_keys,
    label_configurations,
    short_key,
)
from semcorr.report.document import ReportFigure, ReportSection, ReportTable, format_interval, format_spread
from semcorr.report.svg import (
    LETTER,
    LINE_SERIES,
    RAMP,
    WIDE,
    PlotFrame,
    draw_axes,
    draw_line_ends,
    draw_panel,
    draw_polyline,
    draw_whisker,
    ticks_up_to,
)

UNITS = {
    "backbone.size": "side of the input, pixels",
    "localise.window": "window, cells",
    "finetune.blocks": "tuned blocks",
    "finetune.rank": "rank",
}


class Curve(NamedTuple):
    """Configurations that differ in one number and in nothing else."""

    key: str
    name: str  # label of the settings that they share
    points: Mapping[float, Configuration]


def plot_curves(entries: Sequence[Configuration]) -> ReportSection | None:
    """Plot a figure per key; return None where no two configurations differ in just one number."""
    figures = []
    for key in sorted(differing_keys([entry.settings for entry in entries], lambda key: True)):
        curves = find_curve_groups(entries, key)
        if len(curves) > 1:
            figures.append(_build_joint_figure(key, curves))
        if curves:
            figures.append(_build_figure(key, curves))
    if not figures:
        return None
    text = (
        "Wherever runs of this report differ in one number of their configuration and in nothing else, their PCK is "
        "drawn over it. A small tolerance α asks for exact localisation, a large one for the right part of the object; "
        "they need not agree on the best value."
    )
    return ReportSection("One setting at a time", text, figures)


def find_curve_groups(entries: Sequence[Configuration], key: str) -> list[Curve]:
    """Find the groups of at least two configurations that are the same except for one number.

    Args:
        entries: The configurations.
        key: Dotted key of the number, such as `backbone.size`.
    """
    groups: dict[str, list[tuple[float, Configuration]]] = {}
    for entry in entries:
        value = entry.settings.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            follows = BACKBONE_KEYS if key.startswith("backbone.") else ()
            rest = {k: str(v) for k, v in entry.settings.items() if k != key and k not in follows}
            groups.setdefault(str(sorted(rest.items())), []).append((float(value), entry))
    varying = [group for group in groups.values() if len(group) > 1]
    shared = [{k: v for k, v in group[0][1].settings.items() if k != key} for group in varying]
    return [
        Curve(key, name, dict(sorted(group, key=lambda point: point[0])))
        for name, group in zip(label_configurations(shared), varying, strict=True)
    ]


def _build_joint_figure(key: str, curves: Sequence[Curve]) -> ReportFigure:
    """Draw the curves of one key together, each at one tolerance, over the cells of the maps if these differ."""
    cells = _read_cells(curves) if key == "backbone.size" else None
    best = sorted(curves, key=lambda curve: -max(_joint_values(curve).values(), default=0.0))
    places = {id(entry): cells[id(entry)] if cells else x for curve in curves for x, entry in curve.points.items()}
    names = _name_ends(best[: len(LINE_SERIES)])
    unit = "cells along a side of the feature map" if cells else UNITS.get(key, short_key(key))
    panel = _draw_joint(list(zip(names, best, strict=False)), places, unit)
    title = f"PCK over {'the size of the feature map' if cells else short_key(key)}, together"
    legend = "; ".join(f"{name}: {curve.name}" for name, curve in zip(names, best, strict=False) if name != curve.name)
    caption = (
        f"PCK per image at α = {ALPHA} of all keypoints over `{key}`{', by the cells it makes' if cells else ''}: a "
        "line for each group of configurations that differ in it alone. The next figure has each by itself, at every "
        "tolerance and with intervals."
        + (
            f" Drawn are the best {len(LINE_SERIES)} of {len(curves)} lines; the table has all."
            if curves[len(LINE_SERIES) :]
            else ""
        )
        + (f" Lines: {legend}." if legend else "")
    )
    rows = [
        [
            curve.name,
            *([f"{places[id(entry)]:g}"] if cells else []),
            f"{x:g}",
            format_spread(entry.value("all", ALPHA)),
        ]
        for curve in best
        for x, entry in curve.points.items()
    ]
    columns = ["shared", *(["cells"] if cells else []), short_key(key), f"α = {ALPHA}"]
    table = ReportTable(f"together_{key}", title, caption, columns, rows, words=len(columns) - 1)
    return ReportFigure(title, caption, [panel], table)


def _name_ends(curves: Sequence[Curve]) -> list[str]:
    """Name the ends of lines as the curves are named, or by numbers if half of a panel is too narrow for that."""
    names = [curve.name for curve in curves]
    return names if _margin(names) <= WIDE / 2 else [str(i) for i in range(1, len(names) + 1)]


def _margin(names: Sequence[str]) -> float:
    return 24 + LETTER * max(map(len, names), default=0)


def _draw_joint(named: Sequence[tuple[str, Curve]], places: Mapping[int, float], unit: str) -> str:
    """Draw a line for each curve with its name at its end; `places` has the x of each configuration's identity."""
    xs = sorted({places[id(entry)] for _, curve in named for entry in curve.points.values()})
    pad = (xs[-1] - xs[0]) * 0.04 or 1.0
    frame = PlotFrame(
        (xs[0] - pad, xs[-1] + pad),
        ticks_up_to([value for _, curve in named for value in _joint_values(curve).values()]),
        right=_margin([name for name, _ in named]),
        width=WIDE,
    )
    body, line_ends = draw_axes(frame, {x: f"{x:g}" for x in xs}, unit), []
    for (name, curve), css in zip(named, LINE_SERIES, strict=False):
        points = sorted((places[id(curve.points[x])], value) for x, value in _joint_values(curve).items())
        if points:
            body += draw_polyline(frame, points, css)
            line_ends.append((name, points[-1][1], css))
    return draw_panel(f"At α = {ALPHA}", [*body, *draw_line_ends(frame, line_ends)], width=WIDE)


def _joint_values(curve: Curve) -> dict[float, float]:
    values = {x: entry.value("all", ALPHA).mean for x, entry in curve.points.items()}
    return {x: value for x, value in values.items() if value is not None}


def _read_cells(curves: Sequence[Curve]) -> dict[int, float] | None:
    """Read the cells along a side, by the configuration's identity; None unless all runs say it."""
    cells = {id(entry): entry.runs[0].metrics.get("cells") for curve in curves for entry in curve.points.values()}
    return {key: float(value[0]) for key, value in cells.items() if value} if all(cells.values()) else None


def _build_figure(key: str, curves: Sequence[Curve]) -> ReportFigure:
    unit = UNITS.get(key, short_key(key))
    alphas = list(curves[0].points[min(curves[0].points)].runs[0].metrics["pck"]["all"]["image"])
    panels = [panel for curve in curves for panel in (_draw_alphas(curve, unit, alphas), _draw_subsets(curve, unit))]
    caption = (
        f"PCK per image over `{key}`, all other settings equal. Left of each two: all keypoints at every tolerance α; "
        f"right: all, geometry-aware (geo) and remaining (std) keypoints at α = {ALPHA}. Whiskers are 95 % "
        f"intervals over images, which metrics.json holds for α = {ALPHA}; where they are wide, the images are few. "
        "Points of one curve share their images, so they move together: `semcorr.compare` tests a difference."
    )
    rows = [
        [
            curve.name,
            f"{value:g}",
            subset,
            *(format_spread(entry.value(subset, alpha)) for alpha in alphas),
            format_interval(entry.value(subset, ALPHA).interval),
        ]
        for curve in curves
        for value, entry in curve.points.items()
        for subset in SUBSETS
    ]
    columns = ["shared", short_key(key), "subset", *(f"α = {alpha}" for alpha in alphas), f"95 % at {ALPHA}"]
    title = f"PCK over {short_key(key)}"
    return ReportFigure(title, caption, panels, ReportTable(f"over_{key}", title, caption, columns, rows, words=3))


def _draw_alphas(curve: Curve, unit: str, alphas: Sequence[str]) -> str:
    frame = _build_frame(curve)
    body = draw_axes(frame, {x: f"{x:g}" for x in curve.points}, unit)
    line_ends = []
    for alpha, css in zip(alphas, _choose_shades(len(alphas)), strict=True):
        values = {x: entry.value("all", alpha) for x, entry in curve.points.items()}
        points = [(x, value.mean) for x, value in values.items() if value.mean is not None]
        if alpha == ALPHA:
            body += [
                part
                for x, score in values.items()
                if score.interval
                for part in draw_whisker(frame, x, score.interval, css)
            ]
        if points:
            body += draw_polyline(frame, points, css)
            line_ends.append((f"α = {alpha}", points[-1][1], css))
    return draw_panel(curve.name, [*body, *draw_line_ends(frame, line_ends)])


def _draw_subsets(curve: Curve, unit: str) -> str:
    frame = _build_frame(curve)
    body, line_ends = draw_axes(frame, {x: f"{x:g}" for x in curve.points}, unit), []
    for i, subset in enumerate(SUBSETS):
        values = {x: entry.value(subset, ALPHA) for x, entry in curve.points.items()}
        points = [(x, value.mean) for x, value in values.items() if value.mean is not None]
        if points:
            shift = (i - 1) * (frame.x[1] - frame.x[0]) * 0.012  # whiskers beside each other
            body += [
                part
                for x, score in values.items()
                if score.interval
                for part in draw_whisker(frame, x + shift, score.interval, subset)
            ]
            body += draw_polyline(frame, [(x + shift, y) for x, y in points], subset)
            line_ends.append((subset, points[-1][1], subset))
    return draw_panel(f"{curve.name}: at α = {ALPHA}", [*body, *draw_line_ends(frame, line_ends)])


def _build_frame(curve: Curve) -> PlotFrame:
    tops = []
    for entry in curve.points.values():
        alphas = entry.runs[0].metrics["pck"]["all"]["image"]
        scores = [entry.value("all", alpha) for alpha in alphas] + [entry.value(subset, ALPHA) for subset in SUBSETS]
        tops += [score.mean for score in scores if score.mean]
        tops += [value.interval[1] for subset in SUBSETS if (value := entry.value(subset, ALPHA)).interval]
    pad = (max(curve.points) - min(curve.points)) * 0.04
    right = 78  # for a tolerance in bold letters of a wide font, moved away from its line
    return PlotFrame((min(curve.points) - pad, max(curve.points) + pad), ticks_up_to(tops), right)


def _choose_shades(count: int) -> list[str]:
    return [RAMP[round(i * (len(RAMP) - 1) / max(1, count - 1))] for i in range(count)]
