"""Scores by how hard pairs are (viewpoint, scale, truncation, occlusion), in each category, and by keypoint."""

from collections.abc import Mapping, Sequence

from semcorr.core.text_files import JsonMapping
from semcorr.data.record import PairRecord
from semcorr.metrics.breakdown import LABELS, pck_by_category_and_class, pck_by_class, pck_by_keypoint
from semcorr.metrics.pck import Tolerance
from semcorr.metrics.predictions import is_correct
from semcorr.report.configurations import (
    DRAWN_CONFIGURATIONS,
    POOLING_NAMES,
    Configuration,
    SeedStatistics,
    describe_omitted,
    seed_statistics,
)
from semcorr.report.confusion import keypoint_names_of
from semcorr.report.document import ReportFigure, ReportSection, ReportTable, format_percent, format_spread
from semcorr.report.runs import FinishedRun
from semcorr.report.svg import WIDTH, draw_bar_axis, draw_panel, draw_text, place_bar_names, ticks_up_to

ALPHAS = (0.05, 0.1, 0.2)
SHADES = ("a1", "a3", "a5")  # of the tolerances, from fine to coarse
KINDS = {
    "viewpoint_variation": "viewpoint",
    "scale_variation": "scale",
    "truncation": "truncation",
    "occlusion": "occlusion",
}
ROW = 15  # pixels of a bar and its gap
ALL = "all"  # the row of all categories

Bar = tuple[str, Sequence[SeedStatistics]]  # its label, and its value at each alpha
DifficultyScores = Mapping[str, Mapping[str, JsonMapping]]  # of a run: category (or `all`) -> kind -> class -> scores


def plot_difficulty(entries: Sequence[Configuration], pairs: Mapping[str, PairRecord] | str) -> ReportSection:
    """Plot the scores by difficulty where the benchmark's annotations are available, and tabulate every keypoint.

    Args:
        entries: The configurations, the best first.
        pairs: The benchmark's pairs by name, or the reason why they are not available.
    """
    text = "A pair is hard where the view or the size changes, or where a part is cut off or covered."
    keypoints = _build_keypoint_table(entries)
    title = "Difficulty and keypoints"
    if isinstance(pairs, str):
        return ReportSection(title, f"{text} Scores by difficulty are left out: {pairs}.", [keypoints])
    kinds = [kind for kind in KINDS if any(pair.details.get(kind) is not None for pair in pairs.values())]
    if not kinds:
        text = "The benchmark does not say how hard its pairs are; only the scores of each keypoint are shown."
        return ReportSection(title, text, [keypoints])
    scores = [[_score_run(run, kinds, pairs) for run in entry.runs] for entry in entries]
    return ReportSection(
        title,
        text,
        [_plot_overall(entries, scores, kinds), _plot_by_category(entries, scores, kinds), keypoints],
    )


def _score_run(run: FinishedRun, kinds: Sequence[str], pairs: Mapping[str, PairRecord]) -> DifficultyScores:
    rows = run.evaluated.rows
    correct = is_correct(rows, ALPHAS, Tolerance.of_metrics(run.metrics))
    scores: dict[str, dict[str, JsonMapping]] = {name: {} for name in (*rows.categories, ALL)}
    for kind in kinds:
        labels = {name: pairs[name].details.get(kind) for name in rows.pairs}
        scores[ALL][kind] = pck_by_class(rows, labels, LABELS[kind], ALPHAS, correct)
        by_category = pck_by_category_and_class(rows, labels, LABELS[kind], ALPHAS, correct)
        for name, classes in by_category.items():
            scores[name][kind] = classes
    return scores


def _collect(runs: Sequence[DifficultyScores], category: str, kind: str, name: str, by: str) -> list[SeedStatistics]:
    """Collect the values of a class at each alpha, over the seeds."""
    classes = [run[category][kind][name][by] for run in runs]
    return [seed_statistics([scores[f"{alpha:g}"] for scores in classes]) for alpha in ALPHAS]


def _build_rows(
    entries: Sequence[Configuration],
    scores: Sequence[Sequence[DifficultyScores]],
    kinds: Sequence[str],
    categories: Sequence[str],
) -> list[list[str]]:
    """Build a row for each class that has pairs, of every configuration."""
    return [
        [
            entry.label,
            category,
            KINDS[kind],
            name,
            f"{runs[0][category][kind][name]['pairs']:,}",
            *(format_spread(value) for by in POOLING_NAMES for value in _collect(runs, category, kind, name, by)),
        ]
        for entry, runs in zip(entries, scores, strict=True)
        for category in categories
        for kind in kinds
        for name in LABELS[kind]
        if runs[0][category][kind][name]["pairs"]
    ]


COLUMNS = (
    *("configuration", "category", "difficulty", "class", "pairs"),
    *(f"{pooling}, α = {alpha:g}" for pooling in POOLING_NAMES.values() for alpha in ALPHAS),
)
BARS = (
    f"Each bar has three ends, PCK at α = {' / '.join(f'{alpha:g}' for alpha in ALPHAS)}. Viewpoint and scale: how "
    "much they change between the two images; truncation and occlusion: whose object is cut off or covered."
)


def _plot_overall(
    entries: Sequence[Configuration], scores: Sequence[Sequence[DifficultyScores]], kinds: Sequence[str]
) -> ReportFigure:
    drawn = list(zip(entries, scores, strict=True))[:DRAWN_CONFIGURATIONS]
    legend = "; ".join(f"{i}: {entry.label}" for i, (entry, _) in enumerate(drawn, 1))
    unknown = ", ".join(f"{KINDS[kind]} {scores[0][0][ALL][kind]['unknown']:,}" for kind in kinds)
    caption = (
        f"PCK of all categories by difficulty. {BARS} Configurations: {legend}. Pairs without a class: {unknown}."
        + describe_omitted(len(entries))
    )
    panels = []
    for kind in kinds:
        names = [name for name in LABELS[kind] if scores[0][0][ALL][kind][name]["pairs"]]
        for by, pooling in POOLING_NAMES.items():
            bars = [
                [(f"{name} {i}", _collect(runs, ALL, kind, name, by)) for i, (_, runs) in enumerate(drawn, 1)]
                for name in names
            ]
            panels.append(_draw_bars(f"{KINDS[kind]}, {pooling}", bars))
    title = "PCK by difficulty"
    rows = _build_rows(entries, scores, kinds, [ALL])
    table = ReportTable("difficulty", title, caption, COLUMNS, rows, words=4)
    return ReportFigure(title, caption, panels, table)


def _plot_by_category(
    entries: Sequence[Configuration], scores: Sequence[Sequence[DifficultyScores]], kinds: Sequence[str]
) -> ReportFigure:
    categories = [name for name in scores[0][0] if name != ALL]
    caption = (
        f"PCK of each category by difficulty. {BARS} Drawn is {entries[0].label}"
        + (f", the best of {len(entries)} configurations; the table has all." if entries[1:] else ".")
        + " Classes without pairs have no bar; where they have few pairs, it says little."
    )
    panels = []
    for kind in kinds:
        for by, pooling in POOLING_NAMES.items():
            bars = [
                [
                    (f"{category} {name}", _collect(scores[0], category, kind, name, by))
                    for name in LABELS[kind]
                    if scores[0][0][category][kind][name]["pairs"]
                ]
                for category in categories
            ]
            panels.append(_draw_bars(f"{KINDS[kind]}, {pooling}", bars))
    title = "PCK by category and difficulty"
    rows = _build_rows(entries, scores, kinds, categories)
    table = ReportTable("category_difficulty", title, caption, COLUMNS, rows, words=4)
    return ReportFigure(title, caption, panels, table)


def _draw_bars(title: str, groups: Sequence[Sequence[Bar]]) -> str:
    """Draw groups of bars, the fine tolerances over the coarse ones: a finer tolerance never has more."""
    labels = [label for group in groups for label, _ in group]
    names, right, top = place_bar_names(labels, WIDTH), 118, 46
    left, y = names.left, float(top)
    full = WIDTH - left - right
    scale = ticks_up_to([value.mean or 0.0 for group in groups for _, values in group for value in values])[1]
    body: list[str] = []
    for group in groups:
        for label, values in group:
            written, y = names.draw(label, y, 10)
            body += written
            lengths = [round(full * (value.mean or 0.0) / scale, 1) for value in values]
            body += [
                f'<rect x="{left:g}" y="{y:g}" width="{length:g}" height="{ROW - 3}" class="bar {shade}"/>'
                for length, shade in reversed(list(zip(lengths, SHADES, strict=True)))
            ]
            text = " / ".join(format_percent(value.mean) for value in values)
            body.append(draw_text(round(left + max(lengths), 1) + 4, y + 10, text, "axis"))
            y += ROW
        y += 5 if group else 0
    return draw_panel(title, [*draw_bar_axis(left, full, top, y, scale), *body], y + 24)


def _build_keypoint_table(entries: Sequence[Configuration]) -> ReportTable:
    benchmark = entries[0].runs[0].metrics["split"].partition(" ")[0]
    rows = []
    for entry in entries:
        scores = [
            pck_by_keypoint(
                run.evaluated.rows, is_correct(run.evaluated.rows, ALPHAS, Tolerance.of_metrics(run.metrics))
            )
            for run in entry.runs
        ]
        for category, keypoints in scores[0].items():
            names = keypoint_names_of(benchmark, category)
            for i, (count, _) in keypoints.items():
                values = [
                    seed_statistics([float(run[category][i][1][a]) for run in scores]) for a in range(len(ALPHAS))
                ]
                rows.append(
                    [entry.label, category, names.get(i, str(i)), f"{count:,}", *(format_spread(v) for v in values)]
                )
    caption = (
        "Of each keypoint's queries the share that is found, in percent. A keypoint without a name is listed by its id "
        "in the annotation."
    )
    columns = ["configuration", "category", "keypoint", "queries", *(f"α = {alpha:g}" for alpha in ALPHAS)]
    return ReportTable("keypoints", "PCK of every keypoint", caption, columns, rows, words=3, folded=True)
