"""Interruption of a command by a signal: with a message, the signal's exit code, and no process left running.

Only commands use this, through `semcorr.cli.hydra_app`: a library leaves the signals to its users. A signal raises
`Interrupted` in the main thread, which unwinds as any error does. A separate thread ensures that this takes
seconds: a matrix product, a wait for another process, or a bare `except` may hold the main thread up.
"""

import atexit
import inspect
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import cast

from semcorr.core.early_signals import SIGNALS, find_replaced
from semcorr.core.ranks import LostProcessError, ProcessWatch, is_first_process
from semcorr.core.terminal import escape_controls

UNWIND_SECONDS = 4.0  # that the main thread has to return from what it computes
CLEANUP_SECONDS = 10.0  # that it has after these to remove what belongs to the process: workers, temporary folders
REPEAT_SECONDS = 0.5  # within which a second Ctrl-C is the first one, repeated by another program
PLACES = ("in ", "while ")  # beginnings of advice that says where the command was


class Interrupted(BaseException):
    """A stop by a signal; no `Exception`, which a sweep's job survives, and no `KeyboardInterrupt`, which others catch.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Guard:
    """Handling of the signals of this process while a command runs.

    Attributes:
        number: Number of the signal that came; None before.
        advice: Functions that return what was saved and how to go on, the outermost first, which is used.
        ranks: Watch over the other processes of a run; None where there are none.
        words: Words of the command's line, for messages.
        written: Files that the command has written, in any of its threads.
    """

    def __init__(self, deferring: Collection[CodeType] = (), words: Sequence[str] = ()) -> None:
        """Create a guard that is not installed yet.

        Args:
            deferring: Code in which a signal is not raised, but a moment later: the error would pass by the block
                that is to report it.
            words: Words of the command's line.
        """
        self.words = words
        self.deferring = frozenset(deferring)
        self.number: int | None = None
        self.advice: list[Callable[[], str]] = []
        self.ranks: ProcessWatch | None = None
        self.written: list[Path] = []
        self._begun, self._raised, self._said, self._closed = False, False, False, False
        self._held, self._pending = False, False
        self._unwound = threading.Event()
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._repeats = 0  # signals sent again by this process, not yet received

    def install(self) -> None:
        """Handle the signals that are not ignored, as SIGHUP is by `nohup`, and begin to watch."""
        for number in SIGNALS:  # Ctrl-C first: until then Python raises KeyboardInterrupt, and nothing is to be undone
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = find_replaced(number, signal.signal(number, self.handle))
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._hook, sys.unraisablehook = sys.unraisablehook, self.handle_swallowed
        self._thread = threading.Thread(target=self._watch, name="interrupt", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Raise for signals from now on, also for one that came while this was being installed."""
        self._begun = True
        if self.number is not None:
            self.handle(self.number, None)

    def remove(self) -> None:
        """Restore the earlier handling of signals; after a signal, only record that the main thread has unwound."""
        self._unwound.set()
        if self.ranks is not None:
            self.ranks.close()
        if self.number is not None:
            return
        self._begun, self._closed = False, True  # the command has ended: later signals are ignored
        os.write(self._writing, b"\0")
        self._thread.join()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._hook
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._reading)
        os.close(self._writing)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise at the first signal; later ones must not disturb the command while it unwinds."""
        self.number = self.number or number
        if not self._begun or self._raised or self._held:
            return
        if frame is not None and frame.f_code in self.deferring:
            self._raise_later()
            return
        self._raised, self._pending = True, False
        raise Interrupted(self.number)

    def raise_swallowed(self) -> None:
        """Raise for a signal that came, if it is not raised yet or somebody has swallowed the error."""
        if self.number is not None:
            self._raised, self._pending = True, False
            raise Interrupted(self.number)

    def hold(self) -> None:
        """Only record signals from now on: the end of the command is being reported."""
        self._held = True

    def release(self) -> None:
        """Raise for signals again, also for one that came in between."""
        self._held = False
        if self.number is not None:
            self.handle(self.number, None)

    def handle_swallowed(self, swallowed: object) -> None:
        """Raise a little later where the signal came while Python removed an object, which lets no error through."""
        if not isinstance(getattr(swallowed, "exc_value", None), Interrupted):
            self._hook(cast("sys.UnraisableHookArgs", swallowed))  # a type that exists for type checkers alone
            return
        self._raise_later()

    def _raise_later(self) -> None:
        """Send the signal again in a moment."""
        self._pending = True
        timer = threading.Timer(0.01, self._send_again)
        timer.daemon = True
        timer.start()

    def _send_again(self) -> None:
        number, main_thread = self.number, threading.main_thread().ident
        if self._pending and number is not None and main_thread is not None and not self._unwound.is_set():
            self._raised, self._repeats = False, self._repeats + 1
            signal.pthread_kill(main_thread, number)

    def watch(self, ranks: ProcessWatch) -> None:
        """Watch the other processes of a run from now on."""
        self.ranks = ranks
        ranks.start()

    def leave_signals(self) -> None:
        """Leave signals to the parent, in a process that was forked from this one, such as a loader's."""
        signal.set_wakeup_fd(-1)
        for number in self._before:
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)

    def say(self) -> int:
        """Print once that the command was interrupted, and return the exit code."""
        number = self.number or signal.SIGINT
        if not self._said and is_first_process():
            self._said = True
            name = f" ({signal.Signals(number).name})" if self.number else ""
            advice = self.advise() or self.describe_written_files()
            _print(f"Interrupted{name}{' ' if advice.startswith(PLACES) else '. '}{advice}")
        return 128 + number

    def end(self, text: str, code: int) -> None:
        """End this process because of another one, with a message unless it is empty."""
        if text and not self._said:
            _print(f"Error: {self.complete(text)}")
        self.force(code)

    def complete(self, text: str) -> str:
        """Return a message on what ended the command, extended by how to go on."""
        advice = self.advise()
        return f"{text} {'It was ' if advice.startswith(PLACES) else ''}{advice}".rstrip()

    def force(self, code: int) -> None:
        """End this process and those it started, whatever the main thread does."""
        if self._unwound.is_set():
            end_children(patience=0.0)
        else:
            end_children(patience=1.0)
            cleanup = threading.Thread(target=atexit._run_exitfuncs, daemon=True)  # mainly to remove temporary folders
            cleanup.start()
            cleanup.join(2.0)
        os._exit(code)

    def advise(self) -> str:
        """Return what was saved and how to go on; empty where no part of the command knows."""
        with suppress(Exception):
            return self.advice[0]() if self.advice else ""
        return "Run the same line again"

    def describe_written_files(self) -> str:
        """Return which files the command has written, and how to go on, where nothing more specific is known."""
        existing = [path for path in dict.fromkeys(self.written) if path.exists()]
        if not existing:
            return "Nothing was written. Run the same line again"
        others = f" and {len(existing) - 1} other files are" if len(existing) > 1 else " is"
        return f"{escape_controls(str(existing[-1]))}{others} written. Run the same line again for what is not"

    def _watch(self) -> None:
        """Wait for a signal, then for the main thread; numbers come by a pipe, whatever that thread is doing."""
        number = self._next_signal(None)
        if number is None:
            return
        self.number = number
        start = time.monotonic()
        if self.ranks is not None:
            self.ranks.interrupt(number)
        for seconds in (UNWIND_SECONDS, CLEANUP_SECONDS):
            deadline = time.monotonic() + seconds
            while (repeated := self._next_signal(deadline)) is not None:
                if self._repeats:
                    self._repeats -= 1
                elif repeated == signal.SIGINT and time.monotonic() > start + REPEAT_SECONDS:
                    self._unwound.set()
                    self.force(self.say())
            if not self._unwound.is_set():
                break
        self.force(self.say())

    def _next_signal(self, deadline: float | None) -> int | None:
        """Return the number of the next signal; None after the deadline, or once the guard has been removed."""
        while True:
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._reading], [], [], wait)[0]:
                return None
            number = os.read(self._reading, 1)[0]
            if self._closed:
                return None
            if number in self._before:
                return number


_GUARDS: list[Guard] = []  # at most one: signals belong to the process


def _leave_signals_to_parent() -> None:
    for guard in _GUARDS:
        guard.leave_signals()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_signals_to_parent)


def current_guard() -> Guard | None:
    """Return the guard of the command that runs, if one does."""
    return _GUARDS[0] if _GUARDS else None


def record_written_file(path: Path) -> None:
    """Record a file for the message of the command that runs, if it is interrupted; no command runs: do nothing."""
    if guard := current_guard():
        guard.written.append(path.absolute())


@contextmanager
def guard_signals(deferring: Collection[CodeType] = (), words: Sequence[str] = ()) -> Iterator[Guard | None]:
    """Yield a guard, which raises `Interrupted` for signals from its `begin` until the block ends.

    Inside another block it is that block's guard; outside the main thread it is None.

    Args:
        deferring: Code in which signals are not raised, but a moment later, beside that of entering and leaving blocks.
        words: Words of the command's line.
    """
    if _GUARDS or threading.current_thread() is not threading.main_thread():
        yield current_guard()
        return
    manager, own = type(guard_signals()), inspect.unwrap(guard_signals)  # the class of all such blocks
    entering_and_leaving = [getattr(manager, name).__code__ for name in ("__enter__", "__exit__")]
    guard = Guard([*deferring, *entering_and_leaving, own.__code__, Guard.remove.__code__], words)
    guard.install()
    _GUARDS.append(guard)
    try:
        yield guard
    finally:
        guard.remove()
        _GUARDS.clear()


@contextmanager
def advise_on_interrupt(advice: Callable[[], str]) -> Iterator[None]:
    """Print `advice()`, what was saved and how to go on, if the block is interrupted; of nested ones the outermost."""
    guard = current_guard()
    if guard is None:
        yield
        return
    guard.advice.append(advice)
    try:
        yield
    finally:
        if guard.number is None and not isinstance(sys.exc_info()[1], KeyboardInterrupt | LostProcessError):
            guard.advice.remove(advice)


def leave_within_seconds(code: int) -> None:
    """End the process after a few seconds if the interpreter cannot: connections to lost processes may hang it."""
    timer = threading.Timer(UNWIND_SECONDS, os._exit, [code])
    timer.daemon = True
    timer.start()


def end_children(patience: float = 2.0) -> None:
    """End every process that this one has started, and their children: terminated first, then killed.

    Args:
        patience: Seconds that processes have to end before they are killed.
    """
    import psutil

    def is_resource_tracker(process: psutil.Process) -> bool:  # it removes shared memory after this process, then ends
        with suppress(psutil.Error):
            return "resource_tracker" in " ".join(process.cmdline())
        return False

    children = [child for child in psutil.Process().children(recursive=True) if not is_resource_tracker(child)]
    for process in children:
        with suppress(psutil.Error):
            process.terminate() if patience else process.kill()
    _, remaining = psutil.wait_procs(children, timeout=patience)
    for process in remaining:
        with suppress(psutil.Error):
            process.kill()


def _print(text: str) -> None:
    """Print to the terminal itself: the main thread may hold the stream. A progress bar has hidden its cursor."""
    show_cursor = "\x1b[?25h" if sys.stderr is not None and sys.stderr.isatty() else ""
    with suppress(OSError, ValueError):
        os.write(2, f"{show_cursor}{text}\n".encode())
