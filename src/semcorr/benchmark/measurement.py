"""Seconds, peak memory and the limits of this machine. Imports torch only in functions that need it."""

import multiprocessing
import platform
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from semcorr.core.errors import UserError
from semcorr.core.limits import SHARED_MEMORY
from semcorr.core.text_files import JsonObject

PAGES_EVERY = 0.2  # seconds between looks at the tables of pages of all processes
DEVICES = ("auto", "cpu", "cuda")
T = TypeVar("T")


@dataclass(frozen=True)
class Measurement(Generic[T]):
    """The result of a piece of work, and the peak memory of its process."""

    value: T
    memory: int  # bytes: resident, without loader processes
    gpu: int | None  # bytes allocated on the GPU; None without one

    @property
    def peak(self) -> dict[str, float | None]:
        """The peak memory in MB, as in benchmark.json."""
        return {"memory_mb": self.memory / 1e6, "gpu_mb": None if self.gpu is None else self.gpu / 1e6}

    @property
    def description(self) -> str:
        """The peak memory in MB, as in a table."""
        gpu = "" if self.gpu is None else f" + {self.gpu / 1e6:,.0f} on the GPU"
        return f"{self.memory / 1e6:,.0f}{gpu}"


class MemoryWatch(threading.Thread):
    """Watch over the memory of this process and its loader processes while a `with` block runs.

    Attributes:
        shared: Peak of the shared memory in use (/dev/shm) beyond what was in use at first, in bytes.
        memory: Peak of the proportional memory of the processes together, in bytes, as far as it lasts for a fifth of a
            second: shared pages count once.
    """

    def __init__(self) -> None:
        super().__init__(name="memory", daemon=True)
        self.shared, self.memory = 0, 0
        self._first, self._over = used_shared_bytes(), threading.Event()

    def run(self) -> None:
        """Look at shared memory every few milliseconds.

        Look at the processes' tables of pages, which takes longer, when it has grown and a few times in a second.
        """
        last_shared, due = -1, 0.0
        while not self._over.wait(0.005):
            self.shared = max(self.shared, used_shared_bytes() - self._first)
            if self.shared > last_shared or time.monotonic() > due:
                last_shared, self.memory = self.shared, max(self.memory, proportional_bytes())
                due = time.monotonic() + PAGES_EVERY

    def __enter__(self) -> "MemoryWatch":
        self.memory = proportional_bytes()
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()
        self.memory = max(self.memory, proportional_bytes())


def used_shared_bytes() -> int:
    """Return the bytes of shared memory in use; 0 where there is no such file system."""
    return shutil.disk_usage(SHARED_MEMORY).used if SHARED_MEMORY.is_dir() else 0


def proportional_bytes() -> int:
    """Return the memory of this process and its children in bytes; a page of several processes is shared out."""
    import psutil

    total = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.Error):  # it has just ended
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.uss)  # without pss elsewhere than on Linux
    return total


class Machine(NamedTuple):
    """The limits of the machine, measured in the same run."""

    device: str
    threads: int
    flops: float  # single precision operations per second, of a matrix product
    copied: float  # bytes read and bytes written per second, of a copy in memory

    def floor(self, operations: float, moved: float = 0.0) -> float:
        """Return the fewest seconds for so many operations and bytes read or written, both at the same time."""
        return max(operations / self.flops, moved / self.copied)

    def as_json(self) -> JsonObject:
        """Format the limits for benchmark.json."""
        return {"device": self.device, "threads": self.threads, "gflops": self.flops / 1e9, "gb_s": self.copied / 1e9}

    @property
    def description(self) -> str:
        """The limits, as in a table's caption."""
        return (
            f"{self.device}, {self.threads} threads: {self.flops / 1e9:,.0f} GFLOP/s in a matrix product, "
            f"{self.copied / 1e9:,.1f} GB/s read and written in a copy"
        )


def resolve_device_name(device: str) -> str:
    """Return `cpu` or `cuda` for one of `DEVICES`; `auto` is the GPU if there is one.

    Raises:
        UserError: There is no such device.
    """
    import torch

    if device not in DEVICES:
        raise UserError(f"--device must be one of {', '.join(DEVICES)}, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here. Give --device cpu, or auto")
    return device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")


def measure_machine(device: str, side: int = 1024, size: int = 2**26) -> Machine:
    """Measure a few matrix products and copies, and keep the best of each.

    Args:
        device: `cpu` or `cuda`.
        side: Rows and columns of the matrices.
        size: Bytes of a copy.
    """
    import torch

    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    flops = 2 * side**3 / best_time(lambda: a @ b, device, 5)
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    copied = 2 * size / best_time(lambda: target.copy_(source), device, 5)
    name = torch.cuda.get_device_name() if device == "cuda" else _processor_name()
    return Machine(name, torch.get_num_threads(), flops, copied)


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def synchronised_time(device: str = "cpu") -> float:
    """Return the time in seconds after the device has finished its work."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def best_time(work: Callable[[], object], device: str = "cpu", times: int = 3) -> float:
    """Return the seconds of the fastest of some runs, after one that does not count."""
    work()
    seconds = []
    for _ in range(times):
        start = synchronised_time(device)
        work()
        seconds.append(synchronised_time(device) - start)
    return min(seconds)


def measure(work: Callable[..., T], *args: object, isolated: bool = True) -> Measurement[T]:
    """Run `work(*args)`, by default in a fresh process, so that its peak memory is its own.

    Work, arguments and result must be picklable, and the result should be small.

    Args:
        work: Function whose process is measured.
        *args: Its arguments.
        isolated: Whether it runs in a process of its own; otherwise the peak is that of this process so far.
    """
    if not isolated:
        return Measurement(work(*args), *_peak_memory())
    return measure_together(work, [args])[0]


def measure_together(work: Callable[..., T], arguments: Sequence[tuple[object, ...]]) -> list[Measurement[T]]:
    """Run `work` once for each tuple of arguments, side by side in fresh processes, which may wait for each other.

    All must be picklable, and the results should be small.
    """
    context = multiprocessing.get_context("spawn")
    method, processes, receivers = multiprocessing.get_start_method(), [], []
    measurements: dict[Connection, Measurement[T]] = {}
    for args in arguments:
        receiver, sender = context.Pipe(duplex=False)
        processes.append(context.Process(target=_send_result, args=(sender, work, args, method)))
        processes[-1].start()
        sender.close()
        receivers.append(receiver)
    running = dict(zip(receivers, processes, strict=True))
    try:
        while running:
            ended = wait(list(running))  # whoever ends first: a failure is not waited for
            for receiver in [each for each in receivers if each in ended]:
                measurements[receiver] = _receive_result(receiver, running.pop(receiver))
    except BaseException:
        for process in processes:  # those that wait for one that has ended
            process.terminate()
        raise
    finally:
        for process in processes:
            process.join()
    return [measurements[receiver] for receiver in receivers]


def _receive_result(receiver: Connection, process: SpawnProcess) -> Measurement:
    try:
        message = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the process that measures ended with exit code {process.exitcode}") from None
    if isinstance(message, BaseException):
        raise message
    return Measurement(*message)


def _send_result(sender: Connection, work: Callable[..., object], args: tuple[object, ...], method: str) -> None:
    multiprocessing.set_start_method(method, force=True)  # for loaders: a spawned process would spawn its own
    try:
        sender.send((work(*args), *_peak_memory()))
    except UserError as error:  # any other error prints its traceback in this process
        sender.send(error)


def _peak_memory() -> tuple[int, int | None]:
    torch = sys.modules.get("torch")
    gpu = torch.cuda.max_memory_allocated() if torch and torch.cuda.is_available() else None
    return peak_resident_bytes(), gpu


def peak_resident_bytes() -> int:
    """Return the peak memory of this program in bytes.

    Linux's ru_maxrss includes the peak of the process that started this program, from before it was replaced.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
