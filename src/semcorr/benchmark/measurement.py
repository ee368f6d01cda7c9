"""Seconds, peak memory, and what this machine could do at best. Needs torch only where it is asked about it."""

import multiprocessing
import platform
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from semcorr.core.errors import UserError

DEVICES = ("auto", "cpu", "cuda")


class Measurement(NamedTuple):
    """What a piece of work returned, and the most memory its process had."""

    value: Any
    memory: int  # bytes: resident, loader processes apart
    gpu: int | None  # bytes allocated on the GPU; None without one

    @property
    def peak(self) -> dict[str, float | None]:
        """For benchmark.json."""
        return {"memory_mb": self.memory / 1e6, "gpu_mb": None if self.gpu is None else self.gpu / 1e6}

    @property
    def description(self) -> str:
        """For a table."""
        gpu = "" if self.gpu is None else f" + {self.gpu / 1e6:,.0f} on the GPU"
        return f"{self.memory / 1e6:,.0f}{gpu}"


class Machine(NamedTuple):
    """Its limits, measured in the same run."""

    device: str
    threads: int
    flops: float  # single precision operations per second, of a matrix product
    copied: float  # bytes read and bytes written per second, of a copy in memory

    def floor(self, operations: float, moved: float = 0.0) -> float:
        """Seconds that so many operations and so many bytes read or written take at least, one beside the other."""
        return max(operations / self.flops, moved / self.copied)

    def as_json(self) -> dict[str, Any]:
        """For benchmark.json."""
        return {"device": self.device, "threads": self.threads, "gflops": self.flops / 1e9, "gb_s": self.copied / 1e9}

    @property
    def description(self) -> str:
        """For a table's caption."""
        return (
            f"{self.device}, {self.threads} threads: {self.flops / 1e9:,.0f} GFLOP/s in a matrix product, "
            f"{self.copied / 1e9:,.1f} GB/s read and written in a copy"
        )


def resolve_device_name(device: str) -> str:
    """`cpu` or `cuda`."""
    import torch

    if device not in DEVICES:
        raise UserError(f"--device must be one of {', '.join(DEVICES)}, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here. Give --device cpu, or auto")
    return device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")


def measure_machine(device: str, side: int = 1024, size: int = 2**26) -> Machine:
    """A few matrix products and copies, the best of each."""
    import torch

    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    flops = 2 * side**3 / best_time(lambda: a @ b, device, 5)
    one, other = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    copied = 2 * size / best_time(lambda: other.copy_(one), device, 5)
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return Machine(name, torch.get_num_threads(), flops, copied)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def synchronised_time(device: str = "cpu") -> float:
    """Seconds, when what was asked of the device is done."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def best_time(work: Callable[[], Any], device: str = "cpu", times: int = 3) -> float:
    """Seconds of the fastest of some runs, the first of which does not count."""
    work()
    seconds = []
    for _ in range(times):
        start = synchronised_time(device)
        work()
        seconds.append(synchronised_time(device) - start)
    return min(seconds)


def measure(work: Callable[..., Any], *args: Any, apart: bool = True) -> Measurement:
    """Run `work(*args)`, in a fresh process unless told otherwise: its peak is nobody else's then.

    Both must be what a fresh process can be sent, and the result small.
    """
    if not apart:
        return Measurement(work(*args), *_peak())
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(sender, work, args, multiprocessing.get_start_method()))
    process.start()
    sender.close()
    try:
        told = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the process that measures ended with exit code {process.exitcode}") from None
    process.join()
    if isinstance(told, BaseException):
        raise told
    return Measurement(*told)


def _tell(sender: Connection, work: Callable[..., Any], args: Any, method: str) -> None:
    multiprocessing.set_start_method(method, force=True)  # of loaders: a spawned process would spawn its own
    try:
        sender.send((work(*args), *_peak()))
    except UserError as error:  # anything else prints its traceback here
        sender.send(error)


def _peak() -> tuple[int, int | None]:
    torch = sys.modules.get("torch")
    gpu = torch.cuda.max_memory_allocated() if torch and torch.cuda.is_available() else None
    return peak_resident_bytes(), gpu


def peak_resident_bytes() -> int:
    """The most memory that this program has had, in bytes.

    Linux's ru_maxrss counts what the process was before it became this program: the peak of whoever started it.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
