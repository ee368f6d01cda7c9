"""Signals while a command is still being imported: a sentence and the signal's exit code, before there is a guard.

Python would print a traceback of whatever module it is at. Only a program that was started as one of the commands is
handled so, and only until `core.interrupt` takes over; a library leaves the signals to its users. This module imports
nothing but what the interpreter has already loaded.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import PurePath
from types import FrameType

PACKAGE = "semcorr"
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
Handler = Callable[[int, FrameType | None], object] | int | None
_REPLACED: dict[int, Handler] = {}  # handlers of the signals before ours


def guard_imports() -> None:
    """Handle signals from now on, if this program was started as a command: `python -m semcorr.VERB` or `semcorr`."""
    if not is_command(sys.argv, sys.orig_argv):
        return
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as SIGHUP is by `nohup`
            _REPLACED[number] = signal.signal(number, leave_program)


def is_command(argv: list[str], typed: list[str]) -> bool:
    """Tell whether a program is one of the commands, while its package is imported for the first time.

    Args:
        argv: `sys.argv`, which begins with -m until Python has found the module that is to be run.
        typed: `sys.orig_argv`, the line of the interpreter.

    >>> is_command(["-m", "seed=1"], ["python", "-m", "semcorr.train", "seed=1"])
    True
    >>> is_command(["/bin/semcorr", "train"], ["/bin/python", "/bin/semcorr", "train"])
    True
    >>> is_command(["-m"], ["python", "-m", "other"]), is_command(["own.py"], ["python", "own.py"]), is_command([], [])
    (False, False, False)
    """
    program = argv[0] if argv else ""
    if program != "-m":
        return PurePath(program).stem == PACKAGE and program in typed  # a worker process has only the former
    words = zip(typed, [*typed[1:], ""], strict=True)
    modules = (word.removeprefix("-m") or after for word, after in words if word.startswith("-m"))
    return next(modules, "").partition(".")[0] == PACKAGE


def leave_program(number: int, frame: FrameType | None) -> None:
    """End this process, in which nothing has begun: say so on the first process of a run, and exit by the signal."""
    rank = next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if os.environ.get(name)), "0")
    if rank == "0":
        text = f"Interrupted ({signal.Signals(number).name}). Nothing was written. Run the same line again\n"
        with suppress(OSError):  # nobody reads it
            os.write(2, text.encode())
    os._exit(128 + number)


def find_replaced(number: int, handler: Handler) -> Handler:
    """Return the handler to restore after a command: what `leave_program` had replaced, or the handler itself.

    Args:
        number: Number of the signal.
        handler: Handler that the command has found.
    """
    return _REPLACED.get(number, handler) if handler is leave_program else handler
