"""Scores by category, geometry-aware against the rest, and what a change of viewpoint costs."""

from collections.abc import Sequence

from semcorr.core.text_files import JsonMapping
from semcorr.metrics.breakdown import LABELS
from semcorr.report.configurations import ALPHA, Configuration, SeedStatistics, seed_statistics
from semcorr.report.document import NONE, ReportFigure, ReportSection, ReportTable, format_percent, format_spread
from semcorr.report.svg import (
    SERIES,
    WIDE,
    WIDTH,
    PlotFrame,
    draw_axes,
    draw_line,
    draw_line_ends,
    draw_panel,
    draw_polyline,
    draw_text,
    place_bar_names,
    ticks_up_to,
)

DRAWN_CONFIGURATIONS = 4  # configurations drawn; the table lists all
AZIMUTH = "azimuth_difference"
ROW = 34  # pixels of a category's two bars


def plot_categories(entries: Sequence[Configuration]) -> ReportSection:
    """Plot bars per category, geo against std, and the scores by the change of azimuth."""
    names = sorted(entries[0].runs[0].metrics["category"])
    drawn_entries = entries[:DRAWN_CONFIGURATIONS]
    caption = (
        f"PCK at α = {ALPHA} per image and category. Keypoints of the geometry-aware subset (geo) have a twin in the "
        "target image that could be taken for them, as a left and a right eye; the others (std) have none. A long std "
        "bar over a short geo bar: the part is recognised, its side is not. "
        + (
            f"Drawn are the best {DRAWN_CONFIGURATIONS} of {len(entries)} configurations; the table has all."
            if entries[DRAWN_CONFIGURATIONS:]
            else ""
        )
    )
    rows = [
        [entry.label, name, *(format_spread(entry.value(s, ALPHA, category=name)) for s in ("all", "geo", "std"))]
        for entry in entries
        for name in names
    ]
    title = "Categories, geometry-aware against the rest"
    table = ReportTable(
        "categories", title, caption.strip(), ["configuration", "category", "all", "geo", "std"], rows, 2
    )
    width = WIDE if len(drawn_entries) == 1 else WIDTH
    panels = [_draw_bars(entry, names, width) for entry in drawn_entries]
    figure = ReportFigure(title, caption.strip(), panels, table)
    text = "Averages hide which objects are hard, and why."
    azimuth = _plot_azimuth(entries)
    if isinstance(azimuth, str):
        text += " " + azimuth
        return ReportSection("Categories and viewpoints", text, [figure])
    return ReportSection("Categories and viewpoints", text, [figure, azimuth])


def _draw_bars(entry: Configuration, names: Sequence[str], panel_width: float) -> str:
    places, right, top = place_bar_names(names, panel_width), 62, 42
    left, y = places.left, float(top)
    full = panel_width - left - right
    body: list[str] = []
    for i, name in enumerate(names):
        written, y = places.draw(name, y, 16)
        body += written
        for row, subset in enumerate(("geo", "std")):
            mean = entry.value(subset, ALPHA, category=name).mean
            bar_top, width = y + row * 13, full * (mean or 0.0)
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


def _plot_azimuth(entries: Sequence[Configuration]) -> ReportFigure | str:
    classes = entries[0].runs[0].metrics.get("classes", {}).get(AZIMUTH)
    if classes is None:
        return "The benchmark does not say from where its images are seen, so there is no azimuth to compare."
    steps = LABELS[AZIMUTH]
    annotated = [step for step in steps if classes[step]["pairs"]]
    if len(annotated) < 2:
        return f"Fewer than two azimuth classes have pairs ({classes['unknown']:,} pairs are not annotated)."
    statistics = [{step: _azimuth_statistics(entry, step) for step in steps} for entry in entries]
    frame = PlotFrame(
        (-0.15, 4.15),
        ticks_up_to(
            [v.mean for by_step in statistics[:DRAWN_CONFIGURATIONS] for v in by_step.values() if v.mean is not None]
        ),
        30,
        width=WIDE,
    )
    body = draw_axes(frame, {i: f"{45 * i}°" for i in range(len(steps))}, "between the two views")
    line_ends = []
    for number, (by_step, css) in enumerate(zip(statistics, SERIES, strict=False), 1):
        points = [(float(s), v.mean) for s, v in by_step.items() if v.mean is not None]
        body += draw_polyline(frame, points, css)
        line_ends.append((f"{number}", points[-1][1], css))
    legend = "; ".join(f"{i}: {entry.label}" for i, entry in enumerate(entries[:DRAWN_CONFIGURATIONS], 1))
    counts = ", ".join(f"{45 * int(s)}°: {classes[s]['pairs']:,}" for s in steps)
    caption = (
        f"PCK at α = {ALPHA} per image, by how far apart the azimuths of the two views are. Pairs: {counts}; not "
        f"annotated: {classes['unknown']:,}. Sensitivity is (best − worst) / best over the five classes, as in "
        f'"Telling Left from Right"; none where a class has no pairs. Lines: {legend}.'
    )
    rows = [
        [entry.label, *(format_spread(by_step[s]) for s in steps), _format_sensitivity(entry)]
        for entry, by_step in zip(entries, statistics, strict=True)
    ]
    columns = ["configuration", *(f"{45 * int(s)}°" for s in steps), "sensitivity, %"]
    title = "PCK by the change of viewpoint"
    return ReportFigure(
        title,
        caption,
        [draw_panel(f"At α = {ALPHA}", [*body, *draw_line_ends(frame, line_ends)], width=WIDE)],
        ReportTable("azimuth", title, caption, columns, rows),
    )


def _azimuth_statistics(entry: Configuration, step: str) -> SeedStatistics:
    return seed_statistics([_read_classes(run.metrics)[AZIMUTH][step]["image"][ALPHA] for run in entry.runs])


def _format_sensitivity(entry: Configuration) -> str:
    values = [_read_classes(run.metrics).get("azimuth_sensitivity", {}).get(ALPHA) for run in entry.runs]
    return NONE if None in values else format_spread(seed_statistics(values))


def _read_classes(metrics: JsonMapping) -> JsonMapping:
    classes: JsonMapping = metrics["classes"]
    return classes
