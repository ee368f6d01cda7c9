"""What a change of viewpoint costs: scores by the change of azimuth, and the sensitivity of every category."""

from collections.abc import Mapping, Sequence

from semcorr.core.text_files import JsonMapping
from semcorr.data.record import PairRecord
from semcorr.metrics.breakdown import LABELS, pck_by_category_and_class, sensitivity
from semcorr.metrics.pck import Tolerance
from semcorr.metrics.predictions import is_correct
from semcorr.report.configurations import (
    ALPHA,
    DRAWN_CONFIGURATIONS,
    Configuration,
    SeedStatistics,
    seed_statistics,
)
from semcorr.report.document import NONE, ReportFigure, ReportTable, format_spread
from semcorr.report.runs import FinishedRun
from semcorr.report.svg import (
    SERIES,
    WIDE,
    PlotFrame,
    draw_axes,
    draw_dumbbells,
    draw_line_ends,
    draw_panel,
    draw_polyline,
    ticks_up_to,
)

ALPHAS = (0.05, 0.1, 0.2)  # of the sensitivity of categories
AZIMUTH = "azimuth_difference"
SUBSETS = ("geo", "std")
CategorySensitivity = Mapping[str, Mapping[str, Mapping[str, float | None]]]  # subset -> category -> alpha -> value


def plot_azimuth(entries: Sequence[Configuration]) -> ReportFigure | str:
    """Plot the scores by the change of azimuth, or return why there are none."""
    if any(AZIMUTH not in run.metrics["classes"] for entry in entries for run in entry.runs):
        return "The benchmark does not say from where its images are seen, so there is no azimuth to compare."
    classes, steps = entries[0].runs[0].metrics["classes"][AZIMUTH], LABELS[AZIMUTH]
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


def plot_sensitivity(entries: Sequence[Configuration], pairs: Mapping[str, PairRecord] | str) -> ReportFigure | str:
    """Plot the sensitivity to the azimuth of every category, geo and std ("Telling Left from Right", Fig. 5, 17).

    Args:
        entries: The configurations, the best first.
        pairs: The benchmark's pairs by name, or the reason why they are not available.
    """
    if isinstance(pairs, str):
        return f"The sensitivity of each category is left out: {pairs}."
    scores = [[_score_run(run, pairs) for run in entry.runs] for entry in entries]
    names = [
        name
        for name in entries[0].runs[0].evaluated.rows.categories
        if any(
            _collect(runs, subset, name, alpha).mean is not None
            for runs in scores
            for subset in SUBSETS
            for alpha in ALPHAS
        )
    ]
    if not names:
        return "No category has pairs of two azimuth classes, so that none has a sensitivity."
    drawn = scores[:DRAWN_CONFIGURATIONS]
    panels = [
        draw_dumbbells(
            f"At α = {alpha:g}",
            {
                name: [
                    (_collect(runs, "geo", name, alpha).mean, _collect(runs, "std", name, alpha).mean) for runs in drawn
                ]
                for name in names
            },
        )
        for alpha in ALPHAS
    ]
    rows = [
        [
            entry.label,
            name,
            *(format_spread(_collect(runs, subset, name, alpha)) for subset in SUBSETS for alpha in ALPHAS),
        ]
        for entry, runs in zip(entries, scores, strict=True)
        for name in names
    ]
    legend = "; ".join(f"{i}: {entry.label}" for i, entry in enumerate(entries[:DRAWN_CONFIGURATIONS], 1))
    caption = (
        "(best − worst) / best of the PCK per image over the azimuth classes of a category, in percent: the larger, "
        "the more a change of viewpoint costs. Geometry-aware keypoints (geo) a disc, the others (std) a ring; from "
        f"above, in each category: {legend}. Over the classes that have such keypoints; categories with one class have "
        "none."
    )
    title = "Sensitivity to the change of viewpoint"
    columns = ["configuration", "category", *(f"{subset}, α = {alpha:g}" for subset in SUBSETS for alpha in ALPHAS)]
    return ReportFigure(title, caption, panels, ReportTable("sensitivity", title, caption, columns, rows, words=2))


def _score_run(run: FinishedRun, pairs: Mapping[str, PairRecord]) -> CategorySensitivity:
    rows, names = run.evaluated.rows, LABELS[AZIMUTH]
    correct = is_correct(rows, ALPHAS, Tolerance.of_metrics(run.metrics))
    labels = {name: pairs[name].details.get(AZIMUTH) for name in rows.pairs}
    return {
        subset: {
            category: sensitivity(classes, names, least=2)
            for category, classes in pck_by_category_and_class(rows, labels, names, ALPHAS, correct, subset).items()
        }
        for subset in SUBSETS
    }


def _collect(runs: Sequence[CategorySensitivity], subset: str, category: str, alpha: float) -> SeedStatistics:
    """Collect a sensitivity over the seeds."""
    return seed_statistics([run[subset][category][f"{alpha:g}"] for run in runs])
