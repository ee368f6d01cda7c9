"""Start-up time of fresh processes, beside the import of PyTorch alone."""

import os
import subprocess
import sys
import time
from typing import NamedTuple

from semcorr.benchmark.report import BenchmarkResult, BenchmarkRow, format_rate, format_ratio
from semcorr.core.errors import UserError

TORCH = "python -c 'import torch'"
LINES = {
    TORCH: ("-c", "import torch"),
    "python -m semcorr.train --help": ("-m", "semcorr.train", "--help"),
    "python -c 'import semcorr'": ("-c", "import semcorr"),
}


class ProcessTime(NamedTuple):
    """The time and the peak memory of a process."""

    seconds: float
    memory: float  # MB at its peak


def benchmark_startup(tries: int) -> BenchmarkResult:
    """Measure the best of some tries of each command, in turn, so that other load of the machine affects all."""
    if tries < 1:
        raise UserError(f"--tries must be at least 1, got {tries}")
    runs_by_line: dict[str, list[ProcessTime]] = {line: [] for line in LINES}
    for _ in range(tries):
        for line, arguments in LINES.items():
            runs_by_line[line].append(time_process(arguments))
    best = {line: min(runs) for line, runs in runs_by_line.items()}
    torch, ours = best[TORCH].seconds, {line: run for line, run in best.items() if line != TORCH}
    rows = [
        BenchmarkRow(
            line,
            "",
            f"{format_rate(run.seconds)} s, {run.memory:.0f} MB",
            format_ratio(torch / run.seconds),
            f"{format_rate(torch)} s",
        )
        for line, run in ours.items()
    ]
    content = {
        "ratio": torch / best["python -m semcorr.train --help"].seconds,
        "seconds": {line: run.seconds for line, run in best.items()},
        "floor": {"seconds": torch},
        "peak": {line: {"memory_mb": run.memory} for line, run in best.items()},
    }
    caption = (
        f"Best of {tries} fresh processes each. Floor: {TORCH}, which every framework on PyTorch waits for. Peaks are "
        "upper bounds: Linux counts what started a process as well."
    )
    return BenchmarkResult("Start", rows, caption, content)


def time_process(arguments: tuple[str, ...]) -> ProcessTime:
    """Run a Python process to its end, and measure it."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return ProcessTime(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6)
