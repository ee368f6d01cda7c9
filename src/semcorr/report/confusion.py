"""Confusion of keypoints: matrices of the best configuration, left against right in all."""

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from jaxtyping import Int

from semcorr.core.text_files import JsonMapping
from semcorr.data.keypoints import benchmark_metadata
from semcorr.data.record import PairRecord
from semcorr.metrics.confusion import keypoint_confusion, target_landmarks
from semcorr.report.configurations import Configuration, seed_statistics
from semcorr.report.document import NONE, ReportFigure, ReportSection, ReportTable, format_percent, format_spread
from semcorr.report.svg import LETTER, draw_panel, draw_text

ALPHA = 0.1
DRAWN_CATEGORIES = 4  # the hardest; the table lists all
NOWHERE = "none"  # label of the column of what is near no keypoint
SLANT = 50  # degrees by which a column's label rises
TABLES = {"spair": "spair71k", "synthetic": "spair71k", "ap10k": "ap10k"}  # benchmarks whose keypoints have names


def plot_confusion(entries: Sequence[Configuration], pairs: Mapping[str, PairRecord] | str) -> ReportSection:
    """Plot confusion matrices where the benchmark's annotations are available, and tabulate left against right.

    Args:
        entries: The configurations, the best first.
        pairs: The benchmark's pairs by name, or the reason why they are not available.
    """
    text = (
        "A prediction far from its keypoint may still be near another: an ear for an ear-tip means that features are "
        "too coarse, a left foot for a right one that they do not tell the sides apart."
    )
    sides = _build_left_right_table(entries)
    if isinstance(pairs, str):
        return ReportSection("Confusion", f"{text} The matrices are left out: {pairs}.", [sides])
    return ReportSection("Confusion", text, [_plot_matrices(entries[0], pairs), sides])


def _build_left_right_table(entries: Sequence[Configuration]) -> ReportTable:
    rows = []
    for entry in entries:
        counts = [run.metrics.get("left_right", {}) for run in entry.runs]
        query_count = counts[0].get("asked")
        rows.append(
            [
                entry.label,
                format_spread(seed_statistics([run_counts.get("confused") for run_counts in counts])),
                f"{query_count:,}" if query_count else NONE,
            ]
        )
    caption = (
        "Of the keypoints whose mirror twin is visible in the target: the share found nearer to the twin than to where "
        "they belong, in percent, whatever the distance. Guessing between the two gives 50."
    )
    return ReportTable(
        "left_right", "Left taken for right", caption, ["configuration", "confused, %", "keypoints"], rows
    )


def _plot_matrices(entry: Configuration, pairs: Mapping[str, PairRecord]) -> ReportFigure:
    run = entry.runs[0]
    rows = run.evaluated.rows
    matrices = keypoint_confusion(rows, target_landmarks(rows, [pairs[name] for name in rows.pairs]), ALPHA)
    note = f" Drawn are the {DRAWN_CATEGORIES} hardest of {len(matrices)} categories; the numbers are of all."
    hardest = sorted(matrices, key=lambda name: (_correct_share(matrices[name]), name))
    benchmark = run.metrics["split"].partition(" ")[0]
    panels = [
        _draw_matrix(name, matrices[name], keypoint_names_of(benchmark, name)) for name in hardest[:DRAWN_CATEGORIES]
    ]
    caption = (
        f"{entry.label}{f', seed {run.cfg.seed}' if len(entry.runs) > 1 else ''}. A row per true keypoint, a column "
        f"per keypoint of the target nearest to the prediction, in percent of the row; the "
        f"diagonal is right, the last column (none) is further than {ALPHA} times the extent "
        f"from every visible keypoint.{note if len(matrices) > DRAWN_CATEGORIES else ''}"
    )
    lines = [
        line
        for name in sorted(matrices)
        for line in _build_rows(name, matrices[name], keypoint_names_of(benchmark, name))
    ]
    columns = ["category", "keypoint", "queries", "correct, %", "taken for", "%", "none, %"]
    table = ReportTable("confusion", "What each keypoint is taken for", caption, columns, lines, words=2)
    return ReportFigure("What each keypoint is taken for", caption, panels, table, layout="wide")


def _correct_share(matrix: Int[np.ndarray, "n k"]) -> float:
    return float(np.trace(matrix) / max(1, matrix.sum()))


def _build_rows(category: str, matrix: Int[np.ndarray, "n k"], names: Mapping[int, str]) -> list[list[str]]:
    lines = []
    for i in np.flatnonzero(matrix.sum(axis=1)):
        row = matrix[i] / matrix[i].sum()
        others = row[:-1].copy()
        others[i] = 0.0
        worst = int(others.argmax())
        taken_for = names.get(worst, str(worst)) if others[worst] else NONE
        lines.append(
            [
                category,
                names.get(int(i), str(i)),
                f"{matrix[i].sum():,}",
                format_percent(float(row[i])),
                taken_for,
                format_percent(float(others[worst])),
                format_percent(float(row[-1])),
            ]
        )
    return lines


def _draw_matrix(category: str, matrix: Int[np.ndarray, "n k"], names: Mapping[int, str]) -> str:
    ids = [int(i) for i in np.flatnonzero(matrix.sum(axis=1) + matrix[:, :-1].sum(axis=0))]
    side, labels = 19, {i: f"{names.get(i, '')} {i}".strip() for i in ids}
    longest = max(map(len, [*labels.values(), NOWHERE]))
    left, top = 12 + LETTER * longest, 44 + LETTER * longest * math.sin(math.radians(SLANT))
    columns = [*ids, matrix.shape[1] - 1]
    body = []
    for row, i in enumerate(ids):
        total = matrix[i].sum()
        body.append(draw_text(left - 5, top + row * side + 13, labels[i], "axis", "end"))
        for column, other in enumerate(columns):
            share = matrix[i, other] / total if total else 0.0
            gap = 5 if other == columns[-1] else 0
            x, y = left + column * side + gap, top + row * side
            tooltip = (
                f"{names.get(i, i)} taken for {names.get(other, other) if not gap else 'none'}: {100 * share:.0f} %"
            )
            body.append(
                f'<rect x="{x:g}" y="{y:g}" width="{side - 1}" height="{side - 1}" class="heat" '
                f'fill-opacity="{0.04 + 0.96 * share:.2f}"><title>{escape(tooltip)}</title></rect>'
            )
            if share >= 0.095:
                css = "cell over" if share > 0.65 else "cell"
                body.append(draw_text(x + side / 2 - 0.5, y + 12.5, f"{100 * share:.0f}", css, "middle"))
    for column, label in enumerate([*labels.values(), NOWHERE]):
        gap = 5 if column == len(ids) else 0
        body.append(draw_text(left + column * side + side / 2 + 3 + gap, top - 5, label, "axis", angle=-SLANT))
    overhang = LETTER * longest * math.cos(math.radians(SLANT))  # of the last column's label
    height, width = top + len(ids) * side + 6, max(left + len(columns) * side + 5 + overhang, 330)
    panel = draw_panel(f"{category}: rows true keypoints, columns where they are found, %", body, height, width)
    return panel.replace("<svg ", f'<svg style="max-width:{round(1.4 * width)}px" ', 1)


def keypoint_names_of(benchmark: str, category: str) -> Mapping[int, str]:
    """Return the names of a category's keypoints by id; empty for a benchmark whose ids have no names."""
    if benchmark not in TABLES:
        return {}
    categories: JsonMapping = benchmark_metadata(TABLES[benchmark])["categories"]
    entry: JsonMapping = next((categories[key] for key in (category, "*") if key in categories), {})
    names = entry.get("names", {})
    items = names.items() if isinstance(names, Mapping) else enumerate(names)
    return {int(i): str(name).replace("_", " ") for i, name in items}
