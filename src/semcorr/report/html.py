"""The page: one file without scripts or external resources, for wide and narrow screens, light and dark."""

import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from semcorr.core.terminal import escape_controls
from semcorr.report.document import ReportFigure, ReportSection, ReportTable

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<main>
"""


def render_html(title: str, intro: Sequence[str], sections: Sequence[ReportSection]) -> str:
    """Render the whole report as HTML."""
    style = (files("semcorr.report") / "page.css").read_text(encoding="utf-8")
    links = "\n".join(f'<a href="#{_make_anchor(section.title)}">{escape(section.title)}</a>' for section in sections)
    lines = [HEAD.format(title=escape(title), style=style), f"<h1>{escape(title)}</h1>"]
    lines += [_render_paragraph(text) for text in intro]
    lines += [f'<nav aria-label="Sections">\n{links}\n</nav>', *map(_render_section, sections)]
    page = "\n".join([*lines, "</main>\n</body>\n</html>\n"])
    return "\n".join(map(escape_controls, page.split("\n")))


def _render_section(section: ReportSection) -> str:
    parts = [_render_table(part) if isinstance(part, ReportTable) else _render_figure(part) for part in section.parts]
    head = f'<section id="{_make_anchor(section.title)}">\n<h2>{escape(section.title)}</h2>'
    return "\n".join([head, _render_paragraph(section.text), *parts, "</section>"])


def _render_figure(figure: ReportFigure) -> str:
    lines = [f"<figure>\n<h3>{escape(figure.title)}</h3>"]
    if figure.panels:
        classes = f"panels {figure.layout}".strip()
        lines += [f'<div class="{classes}">', *(f"<div>{panel}</div>" for panel in figure.panels), "</div>"]
    lines.append(f"<figcaption>{_render_inline(figure.caption)}</figcaption>")
    if figure.table is not None:
        numbers = _render_rows(figure.table)
        lines.append(_fold_table(numbers) if figure.panels else numbers)
    return "\n".join([*lines, "</figure>"])


def _render_table(table: ReportTable) -> str:
    caption = f"<figcaption>{_render_inline(table.caption)}</figcaption>"
    rows = _fold_table(_render_rows(table)) if table.folded else _render_rows(table)
    return f"<figure>\n<h3>{escape(table.title)}</h3>\n{rows}\n{caption}\n</figure>"


def _fold_table(numbers: str) -> str:
    return f"<details><summary>The numbers</summary>\n{numbers}\n</details>"


def _render_rows(table: ReportTable) -> str:
    """Render a table that scrolls by itself where it is too wide."""
    classes = ["words" if table.is_text(i) else "number" for i in range(len(table.columns))]
    head = "".join(
        f'<th scope="col" class="{css}">{escape(c)}</th>' for css, c in zip(classes, table.columns, strict=True)
    )
    lines = [
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">',
        f'<table data-key="{escape(table.key)}">',
        f"<thead><tr>{head}</tr></thead>",
        "<tbody>",
    ]
    for number, row in enumerate(table.rows):
        cells = "".join(f'<td class="{css}">{escape(cell)}</td>' for css, cell in zip(classes, row, strict=True))
        lines.append(f'<tr class="ours">{cells}</tr>' if number in table.ours else f"<tr>{cells}</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def _render_paragraph(text: str) -> str:
    return f"<p>{_render_inline(text)}</p>"


def _render_inline(text: str) -> str:
    """Render text with code between backticks.

    >>> _render_inline("over `a<b>`")
    'over <code>a&lt;b&gt;</code>'
    """
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text, quote=False))


def _make_anchor(title: str) -> str:
    """Convert a title to the name of a link's target.

    >>> _make_anchor("One setting at a time")
    'one-setting-at-a-time'
    """
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
