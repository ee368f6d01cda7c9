"""Run semcorr VERB ...: the same as python -m semcorr.VERB ..."""

import importlib
import sys

from semcorr import __version__
from semcorr.cli.errors import report_user_errors
from semcorr.cli.verb_line import suggest_near
from semcorr.core.errors import UserError

VERBS = [
    "train",
    "evaluate",
    "prepare",
    "export",
    "store",
    "benchmark",
    "audit",
    "compare",
    "report",
    "match",
    "transfer",
    "app",
]


def main() -> None:
    """Run the command that the first word names."""
    typed = sys.argv[1] if len(sys.argv) > 1 else ""
    if typed == "--version":
        print(f"semcorr {__version__}")
        return
    if typed in ("-h", "--help"):
        print(f"Usage: semcorr VERB ...   with VERB one of {', '.join(VERBS)}; semcorr VERB --help says more.")
        print("       semcorr --version")
        return
    with report_user_errors("evaluate"):
        if not typed:
            raise UserError(f"no command is given. Give semcorr VERB, with VERB one of {', '.join(VERBS)}.")
        if typed not in VERBS:
            raise UserError(f"there is no command `{typed}`. {suggest_near(typed, VERBS)}")
        del sys.argv[1]
        package = importlib.import_module(f"semcorr.{typed}")
        verb = package if hasattr(package, "main") else importlib.import_module(f"semcorr.{typed}.__main__")
        verb.main()


if __name__ == "__main__":
    main()
