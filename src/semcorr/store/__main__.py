"""Entry point of `python -m semcorr.store`."""

import sys
from collections.abc import Sequence

from semcorr.cli.errors import run_and_report
from semcorr.cli.verb_line import run_app


def main(words: Sequence[str]) -> int:
    """Run the command `semcorr store`, and return its exit code."""

    def run() -> int:
        from semcorr.cli.store import app  # takes seconds

        return run_app(app, words, "semcorr store")

    return run_and_report(run, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
