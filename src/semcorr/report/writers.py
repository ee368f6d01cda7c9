"""A report as Markdown, CSV and LaTeX, with the same cells as on the page.

Names of runs, splits and categories come from files of other people. They are escaped, so that no format takes any of
them for markup, a link, a formula or a command.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files

from semcorr.core.terminal import escape_controls
from semcorr.report.document import ReportFigure, ReportSection, ReportTable

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "α": r"$\alpha$", "±": r"$\pm$", "→": r"$\to$",
    "≠": r"$\neq$", "≤": r"$\leq$", "≥": r"$\geq$",
    "<": r"\textless{}", ">": r"\textgreater{}", "–": "--", "−": "$-$", "×": r"$\times$",
    "°": r"$^\circ$", "'": "'", '"': "''", "|": r"\textbar{}",
    "[": "{[}", "]": "{]}", "*": "{*}",  # after the end of a row they would be its options
}  # fmt: skip
CODE = re.compile(r"(`[^`]*`)")  # as on the page
PLAIN = re.compile(r"`[\w .,:;/=+%-]+`")  # stays code: no character in it has a meaning in Markdown
MARKS = re.compile(r"([\\`*\[\]|~$]|(?<!\w)_|_(?!\w))")
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
NUMBER = re.compile(r"[+-]?[\d.,]+(?:[eE][+-]?\d+)?(?: (?:±|to) [+-]?[\d.,]+)?(?: ?%)?")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last are full-width


def render_markdown(title: str, intro: Sequence[str], sections: Sequence[ReportSection]) -> str:
    """Render headings, captions and tables; a figure is rendered as its caption and its numbers."""
    lines = [f"# {escape_markdown(title)}", ""]
    for paragraph in intro:
        lines += [escape_markdown(paragraph), ""]
    for section in sections:
        lines += [f"## {escape_markdown(section.title)}", "", escape_markdown(section.text), ""]
        for part in section.parts:
            lines += [f"### {escape_markdown(part.title)}", "", escape_markdown(part.caption), ""]
            table = part if isinstance(part, ReportTable) else part.table
            if table is not None and isinstance(part, ReportFigure):
                lines += [escape_markdown(table.caption), ""] if table.caption != part.caption else []
            lines += _render_pipe_table(table) if table else ["(A picture: see report.html.)", ""]
    return "\n".join(lines).rstrip() + "\n"


def render_csv(sections: Sequence[ReportSection]) -> str:
    """Render CSV with a line per number: table, row, what the number describes, column, value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "row", "of", "column", "value"])
    for table in list_tables(sections):
        for number, row in enumerate(table.rows, 1):
            labels = " | ".join(row[: table.words])
            for column, cell in zip(table.columns[table.words :], row[table.words :], strict=True):
                writer.writerow([table.key, number, *map(escape_spreadsheet_cell, (labels, column, cell))])
    return out.getvalue()


def render_latex(title: str, sections: Sequence[ReportSection]) -> str:
    r"""Render a document that compiles as it is; its tables can be copied, given `\usepackage{booktabs,longtable}`."""
    lines = [
        "% Compile it twice: longtable aligns its columns the second time.",
        r"\documentclass{article}",
        r"\usepackage[margin=2cm]{geometry}",
        r"\usepackage{booktabs,longtable}",
    ]
    lines += [
        r"\setlength{\tabcolsep}{3pt}",
        r"\begin{document}",
        r"\setlength{\LTcapwidth}{\linewidth}",
        rf"\section*{{{escape_latex(title)}}}",
    ]
    for table in list_tables(sections):
        lines += ["", *_render_longtable(table)]
    return "\n".join([*lines, r"\end{document}", ""])


def list_tables(sections: Sequence[ReportSection]) -> Iterator[ReportTable]:
    """Yield the tables of a report, those of figures included."""
    for section in sections:
        for part in section.parts:
            table = part if isinstance(part, ReportTable) else part.table
            if table is not None:
                yield table


def escape_latex(text: str) -> str:
    r"""Escape text for LaTeX.

    >>> escape_latex("50 % at α = 0.1, last_blocks")
    '50 \\% at $\\alpha$ = 0.1, last\\_blocks'
    """
    return re.sub(
        ".", lambda m: LATEX.get(m[0], m[0] if ord(m[0]) < 256 else "?"), escape_controls(text.replace("`", ""))
    )


def escape_markdown(text: str) -> str:
    r"""Escape text for Markdown, in one line; plain code between backticks stays code.

    >>> escape_markdown("`spair test` of [a](javascript:b) <script>")
    '`spair test` of \\[a\\](javascript:b) &lt;script&gt;'
    """
    parts = CODE.split(escape_controls(text).strip())
    return "".join(part if PLAIN.fullmatch(part) else _escape_marks(part) for part in parts)


def escape_spreadsheet_cell(text: str) -> str:
    """Escape text for a spreadsheet: an apostrophe precedes what it would take for a formula.

    >>> escape_spreadsheet_cell("=1+1"), escape_spreadsheet_cell("-1.5"), escape_spreadsheet_cell("50.0 ± 1.2")
    ("'=1+1", '-1.5', '50.0 ± 1.2')
    """
    is_formula = text.lstrip(" ").startswith(FORMULA) and NUMBER.fullmatch(text) is None
    return ("'" if is_formula else "") + escape_controls(text)


def _escape_marks(text: str) -> str:
    return MARKS.sub(r"\\\1", re.sub("[&<>]", lambda match: ENTITIES[match[0]], text))


def _render_pipe_table(table: ReportTable) -> list[str]:
    alignments = ["---" if table.is_text(i) else "---:" for i in range(len(table.columns))]
    head, *body = [[escape_markdown(cell) for cell in row] for row in (table.columns, *table.rows)]
    return [*("| " + " | ".join(row) + " |" for row in (head, alignments, *body)), ""]


def _render_longtable(table: ReportTable) -> list[str]:
    """Render a table as a longtable, which may span pages, with wrapped columns where cells are sentences."""
    widths = [max(map(len, column)) for column in zip(table.columns, *table.rows, strict=True)]
    share = 0.3 if len(widths) < 9 else 0.2
    columns = [
        f"p{{{share}\\linewidth}}" if width > 30 else "l" if table.is_text(i) else "r" for i, width in enumerate(widths)
    ]
    size = "footnotesize" if len(widths) < 9 else "scriptsize" if len(widths) < 11 else "tiny"
    head = [" & ".join(map(escape_latex, table.columns)) + r" \\", r"\midrule"]
    body = [" & ".join(map(escape_latex, row)) + r" \\" for row in table.rows]
    return [
        rf"{{\{size}",
        rf"\begin{{longtable}}{{@{{}}{''.join(columns)}@{{}}}}",
        rf"\caption{{{escape_latex(f'{table.title}. {table.caption}')}\label{{tab:{table.key}}}}}\\",
        r"\toprule",
        *head,
        r"\endfirsthead",
        r"\toprule",
        *head,
        r"\endhead",
        *body,
        r"\bottomrule",
        r"\end{longtable}}",
    ]


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
