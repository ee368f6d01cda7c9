"""Scores across domains: from photographs to paintings, drawings or cartoons, and back."""

from collections.abc import Sequence

from semcorr.core.text_files import JsonMapping
from semcorr.report.configurations import (
    ALPHA,
    DRAWN_CONFIGURATIONS,
    POOLING_NAMES,
    Configuration,
    SeedStatistics,
    describe_omitted,
    seed_statistics,
)
from semcorr.report.document import ReportFigure, ReportSection, ReportTable, format_percent, format_spread
from semcorr.report.runs import FinishedRun
from semcorr.report.svg import HeatCell, draw_heat_matrix

ROW = 30  # pixels of a domain


def plot_domains(entries: Sequence[Configuration]) -> ReportSection | None:
    """Plot a matrix of the source's and the target's domain, where the benchmark names the domains of its images."""
    if any(not _read_classes(run) for entry in entries for run in entry.runs):
        return None
    classes = _read_classes(entries[0].runs[0])
    sides = {side: sorted({entry[side] for entry in classes.values()}) for side in ("source", "target")}
    rows = [
        [
            entry.label,
            scores["source"],
            scores["target"],
            f"{scores['pairs']:,}",
            *(format_spread(_collect(entry, name, by)) for by in POOLING_NAMES),
        ]
        for entry in entries
        for name, scores in classes.items()
    ]
    unknown = entries[0].runs[0].metrics["classes"]["domains"]["unknown"]
    caption = (
        f"PCK at α = {ALPHA}, per image, in percent. Rows: what the source is; columns: what the target is."
        + (f" Pairs with an image of no known domain, {unknown:,}, are in no cell." if unknown else "")
        + describe_omitted(len(entries), "configurations")
    )
    title = "PCK from domain to domain"
    columns = ["configuration", "source", "target", "pairs", *POOLING_NAMES.values()]
    table = ReportTable("domains", title, caption, columns, rows, words=3)
    panels = [_draw_matrix(entry, sides["source"], sides["target"]) for entry in entries[:DRAWN_CONFIGURATIONS]]
    text = "A part looks different in a photograph and in a drawing; each row shows what that costs."
    return ReportSection("Across domains", text, [ReportFigure(title, caption, panels, table)])


def _read_classes(run: FinishedRun) -> dict[str, JsonMapping]:
    """Return the scores of each two domains by their name; empty where no image's domain is known."""
    domains = run.metrics.get("classes", {}).get("domains", {})
    return {name: scores for name, scores in domains.items() if name != "unknown"}


def _collect(entry: Configuration, name: str, by: str) -> SeedStatistics:
    return seed_statistics([_read_classes(run)[name][by][ALPHA] for run in entry.runs])


def _draw_matrix(entry: Configuration, sources: Sequence[str], targets: Sequence[str]) -> str:
    cells = {}
    for name, scores in _read_classes(entry.runs[0]).items():
        value = _collect(entry, name, "image").mean
        cells[scores["source"], scores["target"]] = HeatCell(value, format_percent(value), name)
    return draw_heat_matrix(entry.label, sources, targets, cells, row_height=ROW, max_width=84.0)
