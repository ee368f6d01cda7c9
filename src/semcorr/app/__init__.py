"""The page to click on: one picture left, one right, and the matches of the points that are clicked.

session: what a click does ─> inference: matches of the points ─> render: pictures and tables ─> layout: the page
"""

from collections.abc import Sequence

__all__ = ["main"]


def main(words: Sequence[str]) -> int:
    """Run the command `semcorr app`, and return its exit code."""
    from semcorr.cli.verb_line import run_lazy_app

    return run_lazy_app("semcorr.app.command", words, "semcorr app")
