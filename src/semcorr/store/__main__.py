"""Entry point of `python -m semcorr.store`."""

import sys
from collections.abc import Sequence

from semcorr.cli.verb_line import run_lazy_app


def main(words: Sequence[str]) -> int:
    """Run the command `semcorr store`, and return its exit code."""
    return run_lazy_app("semcorr.cli.store", words, "semcorr store")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
