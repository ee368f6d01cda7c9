"""Start-up time of fresh processes, beside the import of PyTorch alone."""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from semcorr.benchmark.report import BenchmarkResult, BenchmarkRow, format_rate, format_ratio
from semcorr.core.errors import UserError

TORCH, HELP = "python -c 'import torch'", "python -m semcorr.train --help"
LINES = {
    TORCH: ("-c", "import torch"),
    HELP: ("-m", "semcorr.train", "--help"),
    "python -c 'import semcorr'": ("-c", "import semcorr"),
}
FIRST_IMAGE = "python -m semcorr.{verb}, until it encodes an image"
VERBS: dict[str, tuple[str, ...]] = {"evaluate": (), "train": ("finetune.blocks=1",)}  # and what they are given
DRAWING = {"train": 3, "val": 2, "test": 3, "pixels": 96}  # images per category, and their side
MARK = "First image at"  # what semcorr.benchmark.first_image prints


class ProcessTime(NamedTuple):
    """The time and the peak memory of a process."""

    seconds: float
    memory: float  # MB at its peak


def benchmark_startup(tries: int) -> BenchmarkResult:
    """Measure the best of some tries of each command, in turn, so that other load of the machine affects all."""
    if tries < 1:
        raise UserError(f"--tries must be at least 1, got {tries}")
    runs_by_line: dict[str, list[ProcessTime]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = draw_images(Path(folder) / "drawn")
        for i in range(tries):
            runs = {FIRST_IMAGE.format(verb=verb): run_line(verb, tree, Path(folder) / f"{verb}{i}") for verb in VERBS}
            for line, arguments in (LINES | runs).items():
                runs_by_line.setdefault(line, []).append(time_process(arguments))
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
        "ratio": torch / best[HELP].seconds,
        "seconds": {line: run.seconds for line, run in best.items()},
        "floor": {"seconds": torch},
        "peak": {line: {"memory_mb": run.memory} for line, run in best.items()},
    }
    caption = (
        f"Best of {tries} fresh processes each. Floor: {TORCH}, which every framework on PyTorch waits for. Images are "
        "drawn before, and the backbone costs nothing. Peaks are of whole runs, and upper bounds: Linux counts what "
        "started a process as well."
    )
    return BenchmarkResult("Start", rows, caption, content)


def draw_images(root: Path) -> Path:
    """Draw the images of the runs, which none of them then waits for, and return their folder."""
    images = {"trn": DRAWING["train"], "val": DRAWING["val"], "test": DRAWING["test"]}
    line = f"write_synthetic({str(root)!r}, images={images}, size={DRAWING['pixels']})"
    # In a process of its own: the memory of this one counts for all that it starts.
    subprocess.run(
        [sys.executable, "-c", f"from semcorr.data.synthetic import write_synthetic; {line}"],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return root


def run_line(verb: str, tree: Path, run_dir: Path) -> tuple[str, ...]:
    """Return Python's arguments for a run on drawn images, whose backbone prints the time of the first of them.

    Args:
        verb: `train` or `evaluate`.
        tree: Folder of the images.
        run_dir: Directory of the run.
    """
    return (
        *("-m", f"semcorr.{verb}", f"run_dir={run_dir}", "data=synthetic", f"data.root={tree}", "data.workers=0"),
        *(f"data.{key}={value}" for key, value in DRAWING.items()),
        *("trainer=cpu", "backbone=efficientnet_lite0", f"backbone.size={DRAWING['pixels']}"),
        *("backbone._target_=semcorr.benchmark.first_image.TimedPatches", *VERBS[verb]),
    )


def time_process(arguments: tuple[str, ...]) -> ProcessTime:
    """Run a Python process to its end, and measure it; the time of one that encodes images ends with the first."""
    start = time.monotonic()  # the clock of the machine, which its processes share
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    end = time.monotonic()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    if mark := re.search(rf"{MARK} ([\d.]+)", printed):
        end = float(mark[1])
    return ProcessTime(end - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6)
