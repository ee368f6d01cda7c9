"""The page to click on: one picture left, one right, and the matches of the points that are clicked.

session: what a click does ─> inference: matches of the points ─> render: pictures and tables ─> layout: the page
"""

__all__ = ["main"]


def main() -> None:
    """Run the command."""
    from semcorr.cli.errors import report_user_errors
    from semcorr.cli.verb_line import run_app

    with report_user_errors("evaluate"):  # imports take seconds
        from semcorr.app.command import app

        run_app(app, prog_name="semcorr app")
