"""The report on finished runs: one page, and the same tables as Markdown, CSV and LaTeX.

runs ─┬─> configurations (seeds of a configuration together) ─> sections: tables, figures ─┬─> report.html
      └─> the benchmark's files, where they are still there ─> confusion, examples   └─> report.md, .csv, .tex
"""

from collections.abc import Sequence

__all__ = ["main"]


def main(words: Sequence[str]) -> int:
    """Run the command `semcorr report`, and return its exit code."""
    from semcorr.cli.verb_line import run_lazy_app

    return run_lazy_app("semcorr.report.command", words, "semcorr report")
