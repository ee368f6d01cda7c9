"""Processes that compute one run together: when one of them ends early, the others end within seconds.

Collectives wait for each other: a process whose sibling was killed, or has raised, may wait for half an hour. The
first process started the others and sees how they ended; they see whether it is still their parent.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from semcorr.core.errors import UserError

CHECK_SECONDS = 0.5  # between two checks
GRACE_SECONDS = 3.0  # that the main thread has, after another process is lost, to end by itself
OTHER_MACHINE = (
    "the connection to a process of this run on another machine may have been lost: then it has ended, and its output "
    "there says why, or the network has failed; the others were ended. PyTorch said"
)
# Numbers that torchrun or SLURM gives the processes that it starts; Lightning reads them, too.
LAUNCH_VARIABLES = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS"),
)
NUMBER = re.compile(r"[0-9]{1,9}")
EXIT_SECONDS = 30.0  # that the others have to end once all work is done


class LostProcessError(RuntimeError):
    """Error for another process of the run that has ended.

    Args:
        text: Which process, and how it ended; empty where it has reported that itself.
        code: Exit code of this process.
    """

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


class ProcessWatch(threading.Thread):
    """Watch over the processes of a run from one of them.

    Args:
        children: Processes that this one has started, in the order of their ranks, which begin with 1.
        end: Function that ends this process with a message and an exit code, whatever its main thread does.
        parent: Process that has started this one; None if the run does not depend on it.
    """

    def __init__(
        self,
        children: Sequence[subprocess.Popen[bytes]],
        end: Callable[[str, int], None],
        parent: int | None = None,
    ) -> None:
        super().__init__(name="ranks", daemon=True)
        self.children, self.parent, self._end = list(children), parent, end
        self._over = threading.Event()

    def run(self) -> None:
        """Check until the work is over or a process is lost; then end this process, unless it ends in time itself."""
        while not self._over.wait(CHECK_SECONDS):
            if (lost := self.find_lost()) is not None:
                if not self._over.wait(GRACE_SECONDS):
                    self._end(str(lost), lost.code)
                return

    def find_lost(self) -> LostProcessError | None:
        """Return the error for a process that ended early; None if all are running, or have done their work."""
        if self.parent is not None and os.getppid() != self.parent:
            return LostProcessError(_describe_lost_parent())
        codes = [(process.poll() or 0, rank, process.pid) for rank, process in enumerate(self.children, 1)]
        code, rank, pid = min(codes, key=lambda item: _exit_code_order(item[0]), default=(0, 0, 0))
        if code == 0:
            return None
        name = f"process {rank} of {len(codes) + 1} (pid {pid})"
        if code < 0:
            hint = " The machine may have run out of memory." if code == -signal.SIGKILL else ""
            return LostProcessError(f"{name} was killed ({signal.Signals(-code).name}); the others were ended.{hint}")
        if code == 2:  # it has printed its message
            return LostProcessError("", code)
        return LostProcessError(f"{name} failed with exit code {code}; the others were ended.", code)

    def explain(self, error: BaseException, seconds: float = 10.0) -> LostProcessError | None:
        """Return the lost process behind an error of a collective operation; None if there is none.

        Args:
            error: Error of any kind.
            seconds: Longest wait for the other process to end.
        """
        if not is_of_collective(error):
            return None
        deadline = time.monotonic() + seconds
        while (lost := self.find_lost()) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if lost is not None or not is_on_several_machines():
            return lost
        first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return LostProcessError(f"{OTHER_MACHINE}: {first_line}")

    def interrupt(self, number: int) -> None:
        """Send a signal on to the processes that this one has started, which then end as it does."""
        self._over.set()
        for process in self.children:
            with suppress(OSError):
                process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    def kill(self) -> None:
        """Kill the processes that this one has started and that still run, as after a failure of this one."""
        self._over.set()
        for process in self.children:
            with suppress(OSError):
                process.kill()
            process.wait()

    def close(self) -> None:
        """Stop watching, and wait for the processes that this one has started; kill those that take too long."""
        self._over.set()
        deadline = time.monotonic() + EXIT_SECONDS
        for process in self.children:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        self.kill()


def _exit_code_order(code: int) -> int:
    """Return the position of an exit code in the order of reporting: killed, a user's mistake, a defect, success."""
    return 0 if code < 0 else 1 if code == 2 else 2 if code else 3


def is_of_collective(error: BaseException) -> bool:
    """Tell whether an error may come from a connection to another process of the run that has been closed."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return any(word in text for word in ("gloo", "nccl", "connection", "broken pipe", "socket", "process group"))


def is_on_several_machines() -> bool:
    """Tell whether torchrun has started processes of this run on other machines, which nobody sees from here."""
    world = read_launch_number("WORLD_SIZE", 1)
    return world > read_launch_number("LOCAL_WORLD_SIZE", world)


def _describe_lost_parent() -> str:
    """Return the message for a lost parent in the one process that reports it."""
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    if read_launch_number("LOCAL_RANK") != (0 if launched else 1):
        return ""
    return f"{'torchrun' if launched else 'the first process of this run'} has gone; the others were ended."


def is_first_process() -> bool:
    """Tell whether this process prints and writes for all processes of a run."""
    rank = read_launch_number("RANK", read_launch_number("SLURM_PROCID", -1))
    return rank == 0 if rank >= 0 else read_launch_number("LOCAL_RANK") == read_launch_number("NODE_RANK") == 0


def check_launch_numbers() -> None:
    """Refuse variables of a launcher that hold no number; remove empty ones, which Lightning would read.

    Raises:
        UserError: A variable holds something else than a whole number.
    """
    for name in LAUNCH_VARIABLES:
        text = os.environ.get(name, "")
        if text and not NUMBER.fullmatch(text):
            raise UserError(
                f"the environment variable {name} must be a whole number, as torchrun and SLURM set it, got "
                f"{text!r:.60}. Unset it"
            )
        if not text:
            os.environ.pop(name, None)


def read_launch_number(name: str, otherwise: int = 0) -> int:
    """Read a number that a launcher gives; return `otherwise` where the variable is unset or holds no number."""
    text = os.environ.get(name, "")
    return int(text) if NUMBER.fullmatch(text) else otherwise
