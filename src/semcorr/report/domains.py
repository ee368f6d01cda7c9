"""Scores across domains: from photographs to paintings, drawings or cartoons, and back."""

from collections.abc import Sequence
from html import escape

from semcorr.core.text_files import JsonMapping
from semcorr.report.configurations import Configuration, SeedStatistics, seed_statistics
from semcorr.report.document import ReportFigure, ReportSection, ReportTable, format_percent, format_spread
from semcorr.report.runs import FinishedRun
from semcorr.report.svg import LETTER, WIDTH, draw_panel, draw_text

ALPHA = "0.1"
DRAWN_CONFIGURATIONS = 4  # configurations drawn; the table lists all
WAYS = {"image": "per image", "point": "per keypoint"}
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
            *(format_spread(_collect(entry, name, by)) for by in WAYS),
        ]
        for entry in entries
        for name, scores in classes.items()
    ]
    unknown = entries[0].runs[0].metrics["classes"]["domains"]["unknown"]
    caption = (
        f"PCK at α = {ALPHA}, per image, in percent. Rows: what the source is; columns: what the target is."
        + (f" Pairs with an image of no known domain, {unknown:,}, are in no cell." if unknown else "")
        + (
            f" Drawn are the best {DRAWN_CONFIGURATIONS} of {len(entries)} configurations; the table has all."
            if entries[DRAWN_CONFIGURATIONS:]
            else ""
        )
    )
    title = "PCK from domain to domain"
    columns = ["configuration", "source", "target", "pairs", *WAYS.values()]
    table = ReportTable("domains", title, caption, columns, rows, words=3)
    panels = [_draw_matrix(entry, sides["source"], sides["target"]) for entry in entries[:DRAWN_CONFIGURATIONS]]
    text = "A part looks otherwise in a photograph and in a drawing of it; what that costs is read along a row."
    return ReportSection("Across domains", text, [ReportFigure(title, caption, panels, table)])


def _read_classes(run: FinishedRun) -> dict[str, JsonMapping]:
    """Return the scores of each two domains by their name; empty where no image's domain is known."""
    domains = run.metrics.get("classes", {}).get("domains", {})
    return {name: scores for name, scores in domains.items() if name != "unknown"}


def _collect(entry: Configuration, name: str, by: str) -> SeedStatistics:
    return seed_statistics([_read_classes(run)[name][by][ALPHA] for run in entry.runs])


def _draw_matrix(entry: Configuration, sources: Sequence[str], targets: Sequence[str]) -> str:
    names = {(scores["source"], scores["target"]): name for name, scores in _read_classes(entry.runs[0]).items()}
    left, top = 12 + LETTER * max(map(len, sources)), 66
    side = min(84.0, (WIDTH - left) / len(targets))
    letters = max(2, int(side / LETTER))
    body = [
        draw_text(left + j * side + side / 2, top - 8, t[:letters], "axis", "middle") for j, t in enumerate(targets)
    ]
    for i, source in enumerate(sources):
        body.append(draw_text(left - 6, top + i * ROW + 19, source, "axis", "end"))
        for j, target in enumerate(targets):
            if (source, target) not in names:
                continue
            value = _collect(entry, names[source, target], "image").mean
            x, y = left + j * side, top + i * ROW
            tooltip = f"{names[source, target]}: {format_percent(value)}"
            body.append(
                f'<rect x="{x:g}" y="{y:g}" width="{side - 2:g}" height="{ROW - 2}" class="heat" '
                f'fill-opacity="{0.06 + 0.9 * (value or 0.0):.2f}"><title>{escape(tooltip)}</title></rect>'
            )
            css = "end over" if (value or 0.0) > 0.6 else "end"
            body.append(draw_text(x + side / 2 - 1, y + 19, format_percent(value), css, "middle"))
    return draw_panel(entry.label, body, top + len(sources) * ROW + 6)
