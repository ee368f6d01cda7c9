"""Entry point of `python -m semcorr.store`."""

from semcorr.cli.errors import report_user_errors
from semcorr.cli.verb_line import run_app


def main() -> None:
    """Run the command."""
    with report_user_errors("evaluate"):  # imports take seconds
        from semcorr.cli.store import app

        run_app(app, prog_name="semcorr store")


if __name__ == "__main__":
    main()
