"""Programs that are started, watched until something can be seen of them, sent a signal, and waited for."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 600.0  # seconds: machines may be busy


class Program:
    """A Python program in a session of its own, and what it has printed so far.

    Args:
        arguments: Of Python.
        environment: On top of this process's.
    """

    def __init__(self, *arguments: object, cwd: Path | None = None, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *map(str, arguments)], cwd=cwd, stdout=-1, stderr=-1, text=True, start_new_session=True,
            env=os.environ | environment, preexec_fn=take_signals,
        )  # fmt: skip
        self.printed: dict[str, str] = {"out": "", "err": ""}
        streams = {"out": self.process.stdout, "err": self.process.stderr}
        self._threads = [threading.Thread(target=self._read, args=each, daemon=True) for each in streams.items()]
        for thread in self._threads:
            thread.start()

    def wait_for(self, seen: str | Callable[[], object]) -> None:
        """Until it has printed a text, or until a function finds something."""
        until = time.monotonic() + PATIENCE
        while not ((seen in self.printed["out"] + self.printed["err"]) if isinstance(seen, str) else seen()):
            if self.process.poll() is not None or time.monotonic() > until:
                self._kill()
                raise AssertionError(f"not seen: {seen}; exit code {self.process.returncode}; {self.printed}")
            time.sleep(0.02)

    def send(self, number: int, group: bool = False) -> None:
        """Send a signal to it; with `group` to all in its session, as a terminal does."""
        (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self) -> int:
        """Its exit code; afterwards nothing of its session runs."""
        try:
            code = self.process.wait(PATIENCE)
            for thread in self._threads:
                thread.join(PATIENCE)  # whoever keeps the streams open still runs
        finally:
            left = self._kill()
        assert not left, f"still running: {left}"
        return code

    def _kill(self) -> list[int]:
        left = _session(self.process.pid)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        return left

    def _read(self, name: str, stream) -> None:
        with stream:
            for line in stream:
                self.printed[name] += line


def take_signals() -> None:
    """Whoever started the tests may ignore Ctrl-C, as a shell does for what runs in the background."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _session(number: int) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # gone meanwhile
            continue
        if int(fields[3]) == number and fields[0] != "Z":
            found.append(int(place.name))
    return found
