"""A report as Markdown, CSV and LaTeX, with the same cells as on the page.

Names of runs, splits and categories come from files of other people. They are escaped, so that no format takes any of
them for markup, a link, a formula or a command.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence

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
