"""Ending a command from outside: with a sentence, the signal's exit code, and no process of it left running.

Only commands come here, by `semcorr.cli.hydra_app`: a library leaves the signals to whoever uses it. A signal raises
`Interrupted` in the main thread, which unwinds as any error does. A thread of its own sees to it that this takes
seconds: one matrix product, a wait for another process, or somebody's bare `except` may hold the main thread up.
"""

import atexit
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from semcorr.core.files import WRITTEN
from semcorr.core.ranks import LostProcessError, ProcessWatch, is_speaker
from semcorr.core.terminal import escape_controls

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
UNWINDING = 4.0  # seconds the main thread has to come back from what it computes
LEAVING = 10.0  # seconds more for what goes with the process: workers, temporary folders
TWICE = 0.5  # seconds within which a second Ctrl-C is the first, sent again by a program between
PLACES = ("in ", "while ")  # how advice begins that says where the command was


class Interrupted(BaseException):
    """Stop by a signal. No `Exception`, which a job of a sweep survives; no `KeyboardInterrupt`, which others catch.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Guard:
    """Handling of the signals of this process while a command runs.

    Attributes:
        number: Of the signal that came; None before.
        advice: What was saved and how to go on, by each part of the command that knows; the outermost says it.
        ranks: The watch over the other processes of a run; None where there are none.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.advice: list[Callable[[], str]] = []
        self.ranks: ProcessWatch | None = None
        self._begun, self._raised, self._said, self._closed = False, False, False, False
        self._unwound = threading.Event()
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._repeats = 0  # of the signal by ourselves, that are still to come

    def install(self) -> None:
        """Take the signals that are not ignored, as those of `nohup` are, and begin to watch."""
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self.handle)
        self._hook, sys.unraisablehook = sys.unraisablehook, self.handle_swallowed
        self._thread = threading.Thread(target=self._watch, name="interrupt", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Raise for signals from now on, also for one that came while this was being installed."""
        self._begun = True
        if self.number is not None:
            self.handle(self.number, None)

    def remove(self) -> None:
        """Put everything back; after a signal, only say that the main thread is on its way out."""
        self._unwound.set()
        if self.ranks is not None:
            self.ranks.close()
        if self.number is not None:
            return
        self._begun, self._closed = False, True  # the command has ended: what comes now is too late
        os.write(self._writing, b"\0")
        self._thread.join()
        for number, before in self._before.items():
            signal.signal(number, before)
        sys.unraisablehook = self._hook
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._reading)
        os.close(self._writing)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise at the first signal; whatever comes while the command unwinds must not disturb that."""
        self.number = self.number or number
        if self._begun and not self._raised:
            self._raised = True
            raise Interrupted(self.number)

    def handle_swallowed(self, swallowed: "sys.UnraisableHookArgs") -> None:
        """Raise a little later where the signal came while Python removed an object, which lets no error through."""
        if not isinstance(swallowed.exc_value, Interrupted):
            self._hook(swallowed)
            return
        later = threading.Timer(0.01, self._repeat)
        later.daemon = True
        later.start()

    def _repeat(self) -> None:
        number, main = self.number, threading.main_thread().ident
        if number is not None and main is not None and not self._unwound.is_set():
            self._raised, self._repeats = False, self._repeats + 1
            signal.pthread_kill(main, number)

    def watch(self, ranks: ProcessWatch) -> None:
        """Look after the other processes of a run from now on."""
        self.ranks = ranks
        ranks.start()

    def forked(self) -> None:
        """Leave signals to the parent, in a process that was forked from this one, as a loader's are."""
        signal.set_wakeup_fd(-1)
        for number in self._before:
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)

    def say(self) -> int:
        """Print what was interrupted, once; return the exit code."""
        number = self.number or signal.SIGINT
        if not self._said and is_speaker():
            self._said = True
            name = f" ({signal.Signals(number).name})" if self.number else ""
            advice = self.advise() or default_advice()
            _print(f"Interrupted{name}{' ' if advice.startswith(PLACES) else '. '}{advice}")
        return 128 + number

    def end(self, text: str, code: int) -> None:
        """End this process because of another one, with a sentence if there is one."""
        if text and not self._said:
            _print(f"Error: {self.complete(text)}")
        self.force(code)

    def complete(self, text: str) -> str:
        """Add to a sentence on what ended the command how it goes on."""
        advice = self.advise()
        return f"{text} {'It was ' if advice.startswith(PLACES) else ''}{advice}".rstrip()

    def force(self, code: int) -> None:
        """End this process and those it started, whatever the main thread does."""
        if self._unwound.is_set():
            end_children(patience=0.0)
        else:
            end_children(patience=1.0)
            leaving = threading.Thread(target=atexit._run_exitfuncs, daemon=True)  # temporary folders, above all
            leaving.start()
            leaving.join(2.0)
        os._exit(code)

    def advise(self) -> str:
        """Say what was saved and how to go on; nothing where nobody knows."""
        with suppress(Exception):
            return self.advice[0]() if self.advice else ""
        return "Run the same line again"

    def _watch(self) -> None:
        """Wait for a signal, then for the main thread. Numbers come by a pipe, whatever that thread is doing."""
        number = self._received(None)
        if number is None:
            return
        self.number = number
        began = time.monotonic()
        if self.ranks is not None:
            self.ranks.interrupt(number)
        for seconds in (UNWINDING, LEAVING):
            until = time.monotonic() + seconds
            while (again := self._received(until)) is not None:
                if self._repeats:
                    self._repeats -= 1
                elif again == signal.SIGINT and time.monotonic() > began + TWICE:
                    self._unwound.set()
                    self.force(self.say())
            if not self._unwound.is_set():
                break
        self.force(self.say())

    def _received(self, until: float | None) -> int | None:
        """Return the number of the next signal; None if the time is over, or the guard has been removed."""
        while True:
            wait = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([self._reading], [], [], wait)[0]:
                return None
            number = os.read(self._reading, 1)[0]
            if self._closed:
                return None
            if number in self._before:
                return number


def default_advice() -> str:
    """Say what a command has left, where nothing more specific is known: no file, or complete files."""
    existing = [path for path in dict.fromkeys(WRITTEN) if path.exists()]
    if not existing:
        return "Nothing was written. Run the same line again"
    others = f" and {len(existing) - 1} other files are" if len(existing) > 1 else " is"
    return f"{escape_controls(str(existing[-1]))}{others} written. Run the same line again for what is not"


_GUARDS: list[Guard] = []  # at most one: signals belong to the process


def _forked() -> None:
    for guard in _GUARDS:
        guard.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def current_guard() -> Guard | None:
    """Return the guard of the command that runs, if one does."""
    return _GUARDS[0] if _GUARDS else None


@contextmanager
def guard_signals() -> Iterator[Guard | None]:
    """Yield a guard, which raises `Interrupted` for signals from its `begin` until the block ends.

    Inside another block it is that one's; in another thread there is none.
    """
    if _GUARDS or threading.current_thread() is not threading.main_thread():
        yield current_guard()
        return
    guard = Guard()
    WRITTEN.clear()  # what a command before this one wrote, as in a notebook
    _GUARDS.append(guard)
    try:
        guard.install()
        yield guard
    finally:
        guard.remove()
        _GUARDS.clear()


@contextmanager
def advise_on_interrupt(advice: Callable[[], str]) -> Iterator[None]:
    """Say `advice()` if the block is interrupted: what was saved, and how to go on. The outermost is said."""
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
    """End the process in a while if the interpreter cannot: connections to processes that have gone may hang it."""
    leaving = threading.Timer(UNWINDING, os._exit, [code])
    leaving.daemon = True
    leaving.start()


def end_children(patience: float = 2.0) -> None:
    """End every process that this one has started, and their children: terminated first, then killed.

    Args:
        patience: Seconds that processes have to end before they are killed.
    """
    import psutil

    def cleans(process: psutil.Process) -> bool:  # shared memory, once this process has gone; then it ends by itself
        with suppress(psutil.Error):
            return "resource_tracker" in " ".join(process.cmdline())
        return False

    children = [child for child in psutil.Process().children(recursive=True) if not cleans(child)]
    for process in children:
        with suppress(psutil.Error):
            process.terminate() if patience else process.kill()
    _, left = psutil.wait_procs(children, timeout=patience)
    for process in left:
        with suppress(psutil.Error):
            process.kill()


def _print(text: str) -> None:
    """Print to the terminal itself: the main thread may hold the stream. A progress bar has hidden its cursor."""
    show_cursor = "\x1b[?25h" if sys.stderr is not None and sys.stderr.isatty() else ""
    with suppress(OSError, ValueError):
        os.write(2, f"{show_cursor}{text}\n".encode())
