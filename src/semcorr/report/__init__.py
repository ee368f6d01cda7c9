"""The report on finished runs: one page, and the same tables as Markdown, CSV and LaTeX.

runs ─┬─> configurations (seeds of a configuration together) ─> sections: tables, figures ─┬─> report.html
      └─> the benchmark's files, where they are still there ─> confusion, examples   └─> report.md, .csv, .tex
"""

__all__ = ["main"]


def main() -> None:
    """Run the command `semcorr report`."""
    from semcorr.cli.errors import report_user_errors
    from semcorr.cli.verb_line import run_app

    with report_user_errors("evaluate"):  # imports take seconds
        from semcorr.report.command import app

        run_app(app, prog_name="semcorr report")
