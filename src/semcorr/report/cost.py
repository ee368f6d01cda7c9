"""The cost of accuracy in trained parameters, seconds and memory, and the course of the training."""

import math
from collections.abc import Mapping, Sequence

from semcorr.report.configurations import ALPHA, Configuration, seed_statistics
from semcorr.report.document import NONE, ReportFigure, ReportSection, ReportTable, format_spread
from semcorr.report.svg import (
    SERIES,
    WIDE,
    WIDTH,
    PlotFrame,
    draw_axes,
    draw_label,
    draw_line_ends,
    draw_panel,
    draw_polyline,
    spread_labels,
    ticks_up_to,
)

Dot = tuple[float, float, str]  # x and y in the drawing, the configuration's number
CURVE = f"val/all/pck@{ALPHA}"


def plot_cost(entries: Sequence[Configuration], seconds: bool = True) -> ReportSection:
    """Plot accuracy against cost, configurations numbered as in the leaderboard, and validation over steps.

    Args:
        entries: The configurations, the best first.
        seconds: Whether seconds and memory are shown.
    """
    trained = [float(entry.runs[0].metrics["trained_parameters"]) for entry in entries]
    durations = [
        seed_statistics([sum(run.metrics["seconds"].values()) for run in entry.runs]).mean or 0.0 for entry in entries
    ]
    axes = [(trained, "parameters trained")] if len(set(trained)) > 1 else []
    axes += [(durations, "seconds to encode and match")] if seconds and len(entries) > 1 else []
    panels = [_draw_scatter(entries, *axis, WIDE if len(axes) == 1 else WIDTH) for axis in axes]
    memory_keys = sorted(
        {
            key
            for entry in entries
            for run in entry.runs
            for row in run.history
            for key in row
            if seconds and "memory" in key
        }
    )
    rows = []
    for number, (entry, count, duration) in enumerate(zip(entries, trained, durations, strict=True), 1):
        peaks = [_format_maximum(entry, key) for key in memory_keys]
        times = [f"{duration:.1f}"] if seconds else []
        rows.append([str(number), entry.label, f"{count:,.0f}", *times, *peaks, format_spread(entry.headline(ALPHA))])
    caption = (
        f"PCK at α = {ALPHA}, as the protocol pools it, against what it costs. Numbers in the figure are those of the "
        "first column."
        + ("" if any(trained) else " Nothing was trained in any of these runs.")
        + (
            " Seconds are those of encoding every image once and matching all pairs, the mean over seeds, on whatever "
            "machine the run had: compare only runs of one machine. A run that found its features in the "
            "store did not encode again and took less."
            if seconds
            else ""
        )
        + ("" if memory_keys or not seconds else " Memory was not logged by these runs.")
    )
    columns = [
        "place",
        "configuration",
        "parameters trained",
        *(["seconds"] if seconds else []),
        *memory_keys,
        f"PCK@{ALPHA}",
    ]
    figures = [
        ReportFigure(
            "Accuracy against cost", caption, panels, ReportTable("cost", "Cost", caption, columns, rows, words=2)
        )
    ]
    training = _plot_history(entries)
    text = "Frozen features cost nothing to train; tuning moves a number of parameters that is stated here."
    return ReportSection("Cost", text, [*figures, *([training] if training else [])])


def _draw_scatter(entries: Sequence[Configuration], values: Sequence[float], unit: str, width: float) -> str:
    """Draw a scatter plot with a logarithmic x axis; zero lies half a decade left of the least positive value."""
    least = min((v for v in values if v > 0), default=1.0)
    positions = [math.log10(v) if v > 0 else math.log10(least) - 0.5 for v in values]
    low, high = min(positions), max(positions)
    pad = 0.08 * (high - low) or 0.3
    scores = [entry.headline(ALPHA) for entry in entries]
    frame = PlotFrame((low - pad, high + pad), ticks_up_to([s.mean or 0.0 for s in scores]), right=34, width=width)
    ticks = {x: _format_count(v) for x, v in sorted(zip(positions, values, strict=True))}
    body = draw_axes(frame, ticks, unit)
    dots = [
        (frame.px(x), frame.py(score.mean), str(number))
        for number, (x, score) in enumerate(zip(positions, scores, strict=True), 1)
        if score.mean is not None
    ]
    for column in _group_columns(dots):
        label_heights = spread_labels([y for _, y, _ in column], 12)
        for (x, y, label), label_y in zip(column, label_heights, strict=True):
            body.append(f'<circle cx="{x:g}" cy="{y:g}" r="4" class="dot std"/>')
            body += draw_label(x, y, label_y, label, "end")
    return draw_panel(f"PCK@{ALPHA} against {unit}", body, width=width)


def _group_columns(dots: Sequence[Dot]) -> list[list[Dot]]:
    """Group the dots that are so near to each other in x that their labels could touch."""
    columns: list[list[Dot]] = []
    for dot in sorted(dots):
        if columns and dot[0] - columns[-1][-1][0] < 24:
            columns[-1].append(dot)
        else:
            columns.append([dot])
    return columns


def _format_count(value: float) -> str:
    """Format a number for a tick.

    >>> _format_count(0), _format_count(3.04), _format_count(34567), _format_count(2_400_000)
    ('0', '3', '35k', '2.4M')
    """
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.2g}{letter}" if value < 100 * size else f"{value / size:.0f}{letter}"
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def _format_maximum(entry: Configuration, key: str) -> str:
    values = [row[key] for run in entry.runs for row in run.history if key in row]
    return f"{max(values):.3g}" if values else NONE


def _plot_history(entries: Sequence[Configuration]) -> ReportFigure | None:
    """Plot validation scores over steps, a line per run of the best configurations that were trained."""
    trained = [entry for entry in entries if any(len(_get_curve(run.history)) > 1 for run in entry.runs)][: len(SERIES)]
    if not trained:
        return None
    lines = [(i, _get_curve(run.history)) for i, entry in enumerate(trained) for run in entry.runs]
    last_step = max(x for _, points in lines for x, _ in points)
    frame = PlotFrame(
        (0, last_step * 1.02), ticks_up_to([y for _, points in lines for _, y in points]), right=30, width=WIDE
    )
    body = draw_axes(frame, {x: f"{x:g}" for _, points in lines for x, _ in points}, "training steps")
    line_ends = {i: points[-1][1] for i, points in lines if points}
    for i, points in lines:
        body += draw_polyline(frame, points, SERIES[i])
    numbers = {i: entries.index(entry) + 1 for i, entry in enumerate(trained)}
    legend = "; ".join(f"{numbers[i]}: {entry.label}" for i, entry in enumerate(trained))
    caption = (
        f"PCK at α = {ALPHA} of all keypoints, per image, on the validation split at each validation; a line per seed. "
        f"Validation pairs are not those of the leaderboard. {legend}."
    )
    panel = draw_panel(
        "Validation",
        [*body, *draw_line_ends(frame, [(str(numbers[i]), y, SERIES[i]) for i, y in line_ends.items()])],
        width=WIDE,
    )
    rows = [
        [entry.label, str(run.cfg.get("seed")), f"{x:g}", f"{100 * y:.1f}"]
        for entry in trained
        for run in entry.runs
        for x, y in _get_curve(run.history)
    ]
    table = ReportTable(
        "validation", "Validation", caption, ["configuration", "seed", "step", f"PCK@{ALPHA}"], rows, words=3
    )
    return ReportFigure("How training went", caption, [panel], table)


def _get_curve(history: Sequence[Mapping[str, float]]) -> list[tuple[float, float]]:
    return [(row["step"], row[CURVE]) for row in history if CURVE in row]
