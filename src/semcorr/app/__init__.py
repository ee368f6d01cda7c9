"""The page to click on: one picture left, one right, and where the points of the one lie in the other.

session: what a click does ─> answers: what the model says ─> pictures: what is shown ─> page: where it is shown
"""

__all__ = ["main"]


def main() -> None:
    """The command."""
    from semcorr.cli.errors import report_user_errors
    from semcorr.cli.verb_line import run_app

    with report_user_errors("evaluate"):  # imports take seconds
        from semcorr.app.command import app

        run_app(app, prog_name="semcorr app")
