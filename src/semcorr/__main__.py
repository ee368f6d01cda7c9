"""The command semcorr VERB ...: the same as python -m semcorr.VERB ..."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from semcorr import __version__
from semcorr.cli.errors import run_and_report
from semcorr.cli.verb_line import suggest_near
from semcorr.core.errors import UserError

VERBS = {
    "train": "Train a backbone or a head on a benchmark, and score the best weights.",
    "evaluate": "Score a frozen backbone, or a training run's checkpoint, on a benchmark.",
    "prepare": "Download, unpack and check a benchmark.",
    "match": "Find where points of A lie in B: a picture with numbers, and matches.json.",
    "transfer": "Label the images of a folder, or the frames of a video, by those that are annotated.",
    "report": "Write one page about finished runs, and report.md, report.csv and report.tex with the same digits.",
    "compare": "Compare RUN_B with RUN_A on the same pairs, with 95 % intervals over images and a paired test.",
    "search": "Search what no training decides, by the scores of validation pairs: the layers of a backbone.",
    "backbones": "List every backbone: patch, widths and parameters, licence of its weights, whether they are gated.",
    "audit": "Measure how far the scores move from one published convention to the next, and which axis moves them.",
    "export": "Write the backbone that a training run tuned.",
    "store": "Manage features that were computed once and are kept on disk.",
    "benchmark": "Measure speed and memory, in one run with what others do and with what the machine allows.",
    "app": "Show a page to click on: points in the left picture, their matches in the right one.",
}
HYDRA_VERBS = ("train", "evaluate")  # whose words are settings
APPS = {"app": "semcorr.app.command", "benchmark": "semcorr.benchmark.command", "report": "semcorr.report.command"}
APPS |= {"store": "semcorr.cli.store"}  # where Typer's applications are, if not in semcorr.VERB
ROOT_FLAGS = ("-h", "--help", "--version", "--install-completion", "--show-completion")
COMPLETING = "_SEMCORR_COMPLETE"  # set by the shells that complete a line


def build_root(verb: str | None = None) -> typer.Typer:
    """Build the application of all commands, for help and completion; `main` runs a command by itself.

    Args:
        verb: Command whose flags are completed: only its module is imported, as that takes a second.
    """
    root = typer.Typer(pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})
    root.callback(invoke_without_command=True)(show_version)
    for name, summary in VERBS.items():
        app = _load_app(name) if name == verb and name not in HYDRA_VERBS else None
        if app is not None and (len(app.registered_commands) > 1 or app.registered_callback is not None):
            root.add_typer(app, name=name, help=summary)
        elif app is not None and app.registered_commands[0].callback is not None:
            root.command(name, help=summary)(app.registered_commands[0].callback)
        else:
            root.command(name, help=summary)(_take_settings(name))
    return root


def show_version(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Semantic correspondence: given a point on an object, find the same point on another of its kind.

    semcorr VERB --help says more of a command.
    """
    if version:
        print(f"semcorr {__version__}")


def _load_app(verb: str) -> typer.Typer:
    app: typer.Typer = importlib.import_module(APPS.get(verb, f"semcorr.{verb}")).app
    return app


def _take_settings(verb: str) -> Callable[[list[str]], None]:
    """Return a command for completion alone, whose words are settings of Hydra."""

    def complete(context: typer.Context, args: list[str], incomplete: str) -> list[str]:
        from semcorr.cli.hydra_help import complete_override

        return complete_override(verb, [*(context.params.get("settings") or []), *args], incomplete)

    def run(settings: Annotated[list[str] | None, typer.Argument(autocompletion=complete)] = None) -> None:
        raise AssertionError("main runs commands")

    return run


def run_root(words: Sequence[str]) -> int:
    """Print help, the version or the completion script, and return the exit code.

    Raises:
        UserError: Another word stands beside the flag.
    """
    if words[1:]:
        raise UserError(f"`{words[1]}` has no effect beside {words[0]}. Give one of them.")
    command = typer.main.get_command(build_root())
    return command.main([*words], prog_name="semcorr", standalone_mode=False) or 0


def run_verb(words: Sequence[str]) -> int:
    """Run the command that the first word names, and return its exit code.

    Raises:
        UserError: There is no such command.
    """
    verb = words[0] if words else ""
    if verb in ROOT_FLAGS:
        return run_root(words)
    if not verb:
        run_root(["--help"])
        raise UserError(f"no command is given. Give semcorr VERB, with VERB one of {', '.join(VERBS)}.")
    if verb not in VERBS:
        raise UserError(f"there is no command `{verb}`. {suggest_near(verb, VERBS)}")
    package = importlib.import_module(f"semcorr.{verb}")
    module = package if hasattr(package, "main") else importlib.import_module(f"semcorr.{verb}.__main__")
    code: int = module.main(words[1:])
    return code


def main() -> int:
    """Run the line of this process, or complete the one that a shell hands over; return the exit code."""
    if COMPLETING in os.environ:
        words = (os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")).split()
        build_root(words[1] if len(words) > 1 else None)(prog_name="semcorr")
        return 0
    return run_and_report(lambda: run_verb(sys.argv[1:]), sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
