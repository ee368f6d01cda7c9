"""The page: one file, no script, nothing to fetch; wide on a desk, narrow on a phone, light or dark as the reader's."""

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
    """The whole report as HTML."""
    style = (files("semcorr.report") / "page.css").read_text(encoding="utf-8")
    links = "\n".join(f'<a href="#{_anchor(section.title)}">{escape(section.title)}</a>' for section in sections)
    lines = [HEAD.format(title=escape(title), style=style), f"<h1>{escape(title)}</h1>"]
    lines += [_paragraph(text) for text in intro]
    lines += [f'<nav aria-label="Sections">\n{links}\n</nav>', *map(_section, sections)]
    whole = "\n".join([*lines, "</main>\n</body>\n</html>\n"])
    return "\n".join(map(escape_controls, whole.split("\n")))


def _section(section: ReportSection) -> str:
    parts = [_table(part) if isinstance(part, ReportTable) else _figure(part) for part in section.parts]
    head = f'<section id="{_anchor(section.title)}">\n<h2>{escape(section.title)}</h2>'
    return "\n".join([head, _paragraph(section.text), *parts, "</section>"])


def _figure(figure: ReportFigure) -> str:
    lines = [f"<figure>\n<h3>{escape(figure.title)}</h3>"]
    if figure.panels:
        shape = f"panels {figure.layout}".strip()
        lines += [f'<div class="{shape}">', *(f"<div>{panel}</div>" for panel in figure.panels), "</div>"]
    lines.append(f"<figcaption>{_inline(figure.caption)}</figcaption>")
    if figure.table is not None:
        numbers = _rows(figure.table)
        lines.append(_folded(numbers) if figure.panels else numbers)
    return "\n".join([*lines, "</figure>"])


def _table(table: ReportTable) -> str:
    caption = f"<figcaption>{_inline(table.caption)}</figcaption>"
    rows = _folded(_rows(table)) if table.folded else _rows(table)
    return f"<figure>\n<h3>{escape(table.title)}</h3>\n{rows}\n{caption}\n</figure>"


def _folded(numbers: str) -> str:
    return f"<details><summary>The numbers</summary>\n{numbers}\n</details>"


def _rows(table: ReportTable) -> str:
    """A table that scrolls by itself where it is too wide."""
    sides = ["words" if table.is_text(i) else "number" for i in range(len(table.columns))]
    head = "".join(
        f'<th scope="col" class="{side}">{escape(c)}</th>' for side, c in zip(sides, table.columns, strict=True)
    )
    lines = [
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">',
        f'<table data-key="{escape(table.key)}">', f"<thead><tr>{head}</tr></thead>", "<tbody>",
    ]  # fmt: skip
    for number, row in enumerate(table.rows):
        cells = "".join(f'<td class="{side}">{escape(cell)}</td>' for side, cell in zip(sides, row, strict=True))
        lines.append(f'<tr class="ours">{cells}</tr>' if number in table.ours else f"<tr>{cells}</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def _paragraph(text: str) -> str:
    return f"<p>{_inline(text)}</p>"


def _inline(text: str) -> str:
    """Code between backticks.

    >>> _inline("over `a<b>`")
    'over <code>a&lt;b&gt;</code>'
    """
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text, quote=False))


def _anchor(title: str) -> str:
    """A title as an address.

    >>> _anchor("One setting at a time")
    'one-setting-at-a-time'
    """
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
