"""Scores by category, geometry-aware against the rest, at every tolerance; and what a change of viewpoint costs."""

from collections.abc import Mapping, Sequence

from semcorr.data.record import PairRecord
from semcorr.report.azimuth import plot_azimuth, plot_sensitivity
from semcorr.report.configurations import ALPHA, DRAWN_CONFIGURATIONS, Configuration, describe_omitted
from semcorr.report.document import ReportFigure, ReportSection, ReportTable, format_percent, format_spread
from semcorr.report.svg import (
    WIDE,
    WIDTH,
    draw_dumbbells,
    draw_line,
    draw_panel,
    draw_text,
    place_bar_names,
    ticks_up_to,
)

ROW = 34  # pixels of a category's two bars


def plot_categories(entries: Sequence[Configuration], pairs: Mapping[str, PairRecord] | str) -> ReportSection:
    """Plot bars per category, geo against std, and the scores by the change of azimuth.

    Args:
        entries: The configurations, the best first.
        pairs: The benchmark's pairs by name, or the reason why they are not available.
    """
    names = sorted(entries[0].runs[0].metrics["category"])
    drawn_entries = entries[:DRAWN_CONFIGURATIONS]
    caption = (
        f"PCK at α = {ALPHA} per image and category. Keypoints of the geometry-aware subset (geo) have a twin in the "
        "target image that could be taken for them, as a left and a right eye; the others (std) have none. A long std "
        "bar over a short geo bar: the part is recognised, its side is not."
        + describe_omitted(len(entries), "configurations")
    )
    rows = [
        [entry.label, name, *(format_spread(entry.value(s, ALPHA, category=name)) for s in ("all", "geo", "std"))]
        for entry in entries
        for name in names
    ]
    title = "Categories, geometry-aware against the rest"
    table = ReportTable("categories", title, caption, ["configuration", "category", "all", "geo", "std"], rows, 2)
    width = WIDE if len(drawn_entries) == 1 else WIDTH
    scale = ticks_up_to(
        [
            entry.value(s, ALPHA, category=n).mean or 0.0
            for entry in drawn_entries
            for n in names
            for s in ("geo", "std")
        ]
    )[1]
    panels = [_draw_bars(entry, names, width, scale) for entry in drawn_entries]
    figure = ReportFigure(title, caption, panels, table)
    text = "Averages hide which objects are hard, and why."
    azimuth = plot_azimuth(entries)
    if isinstance(azimuth, str):
        text += " " + azimuth
        return ReportSection("Categories and viewpoints", text, [figure, _plot_tolerances(entries, names)])
    parts = [figure, _plot_tolerances(entries, names), azimuth]
    sensitivity = plot_sensitivity(entries, pairs)
    if isinstance(sensitivity, str):
        text += " " + sensitivity
    else:
        parts.append(sensitivity)
    return ReportSection("Categories and viewpoints", text, parts)


def _plot_tolerances(entries: Sequence[Configuration], names: Sequence[str]) -> ReportFigure:
    """Plot geo and std of every category and run at every tolerance ("Telling Left from Right", Fig. 4 and 16)."""
    alphas = list(entries[0].runs[0].metrics["pck"]["all"]["image"])
    drawn = entries[:DRAWN_CONFIGURATIONS]
    panels = [
        draw_dumbbells(
            f"At α = {alpha}",
            {
                name: [
                    (entry.value("geo", alpha, category=name).mean, entry.value("std", alpha, category=name).mean)
                    for entry in drawn
                ]
                for name in names
            },
        )
        for alpha in alphas
    ]
    rows = [
        [
            entry.label,
            name,
            *(
                format_spread(entry.value(subset, alpha, category=name))
                for subset in ("geo", "std")
                for alpha in alphas
            ),
        ]
        for entry in entries
        for name in names
    ]
    legend = "; ".join(f"{i}: {entry.label}" for i, entry in enumerate(drawn, 1))
    caption = (
        "PCK per image of each category at every tolerance: a disc for the geometry-aware keypoints (geo), a ring for "
        f"the others (std); from above, in each category: {legend}." + describe_omitted(len(entries))
    )
    title = "Categories at every tolerance"
    columns = [
        "configuration",
        "category",
        *(f"{subset}, α = {alpha}" for subset in ("geo", "std") for alpha in alphas),
    ]
    return ReportFigure(title, caption, panels, ReportTable("tolerances", title, caption, columns, rows, words=2))


def _draw_bars(entry: Configuration, names: Sequence[str], panel_width: float, scale: float) -> str:
    """Draw two bars of each category, as long as the panel is wide where they have the value `scale`."""
    places, right, top = place_bar_names(names, panel_width), 62, 42
    left, y = places.left, float(top)
    full = panel_width - left - right
    body: list[str] = []
    for i, name in enumerate(names):
        written, y = places.draw(name, y, 16)
        body += written
        for row, subset in enumerate(("geo", "std")):
            mean = entry.value(subset, ALPHA, category=name).mean
            bar_top, width = y + row * 13, full * (mean or 0.0) / scale
            body.append(f'<rect x="{left:g}" y="{bar_top:g}" width="{width:.1f}" height="12" class="bar {subset}"/>')
            body.append(
                draw_text(
                    left + width + 4,
                    bar_top + 10,
                    f"{subset} {format_percent(mean)}" if not i else format_percent(mean),
                    "axis",
                )
            )
        y += ROW
    body.append(draw_line(left, top - 4, left, y - 4, "rule"))
    return draw_panel(entry.label, body, y, panel_width)
