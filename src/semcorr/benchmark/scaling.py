"""How time and memory grow: of evaluation with images and pairs, of training with processes.

Evaluation is that of `semcorr.benchmark evaluate`, from files to scores, of trees with 1, 4 and 16 times the images and
as many times the pairs. Training is that of `semcorr.benchmark train` without a cache, by gloo processes of one thread
each, every one with its own batch.
"""

import math
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from semcorr.benchmark.evaluate import SplitPart, run_evaluation
from semcorr.benchmark.measurement import Measurement, measure, measure_together
from semcorr.benchmark.report import BenchmarkResult, BenchmarkRow, format_rate, format_ratio
from semcorr.benchmark.runs import RunSpec
from semcorr.benchmark.synthetic_spair import write_spair_counts
from semcorr.benchmark.train import WARMUP_STEPS, run_steps
from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonObject
from semcorr.data.loaders import count_cores

HEADERS = ("", "before", "measured", "growth", "expected")
VALUE_BYTES = 4  # of a feature in single precision, as a CPU computes it
TEST = SplitPart("test", None, 1)


class ScalingShape(NamedTuple):
    """What is measured: the sizes of evaluation, and the processes and steps of training."""

    images: int  # of a category's test split at size 1; each is the source of one pair with every other
    sizes: Sequence[int]  # times as many images, and as many pairs
    tries: int  # of each size; the best counts
    processes: Sequence[int]
    steps: int
    pairs: int  # of a step on each process
    side: int  # of the square that images are resized to, in pixels


def benchmark_scaling(shape: ScalingShape, folder: Path | None = None, isolated: bool = True) -> BenchmarkResult:
    """Measure evaluation at each size, and then training by each number of processes.

    Args:
        shape: What is measured.
        folder: Folder of the trees, which are written unless they are there.
        isolated: Whether each size of evaluation has a process of its own. Training always has.
    """
    _check_shape(shape)
    place = folder or Path(tempfile.gettempdir()) / f"semcorr-scaling-{shape.images}"
    overrides = ("backbone=tiny", f"backbone.size={shape.side}", "data.workers=0")
    runs = {}
    for size in shape.sizes:
        tree = write_spair_counts(place / f"x{size}", shape.images * size, shape.images - 1)
        runs[size] = RunSpec("spair", str(tree.resolve()), "cpu", overrides)
    smallest = runs[shape.sizes[0]]
    evaluated = {
        size: measure(run_fastest_evaluation, smallest, run, shape.tries, isolated=isolated)
        for size, run in runs.items()
    }
    trained = {count: measure_processes(smallest, shape, count) for count in shape.processes}
    return _build_result(shape, evaluated, trained)


def run_fastest_evaluation(warm: RunSpec, run: RunSpec, tries: int) -> JsonObject:
    """Evaluate a few times by one thread, after a run that does not count, and return the results of the fastest.

    Several threads wait for each other, on a machine that others use for longer than they compute.

    Args:
        warm: The run that does not count.
        run: The run that is measured.
        tries: Number of measured runs.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_evaluation(warm, TEST)
        return min((run_evaluation(run, TEST) for _ in range(tries)), key=lambda results: results["seconds"]["all"])
    finally:
        torch.set_num_threads(threads)


def measure_processes(run: RunSpec, shape: ScalingShape, count: int) -> list[Measurement[JsonObject]]:
    """Train by several processes, side by side, and return what each of them measured.

    Args:
        run: The run.
        shape: Steps, and pairs of a step.
        count: Number of processes.
    """
    run = run.with_overrides(
        "trainer.strategy=ddp",
        f"trainer.devices={count}",
        "trainer.max_epochs=1",
        "+trainer.limit_val_batches=0",
        "+trainer.enable_checkpointing=false",
        "finetune.blocks=2",
        "store.place=off",
        f"data.steps={shape.steps}",
        f"data.batch_size={shape.pairs}",
    )
    port = find_free_port()
    return measure_together(run_process, [(run, rank, port) for rank in range(count)])


def run_process(run: RunSpec, rank: int, port: int) -> JsonObject:
    """Train as one of the processes of a run, which Lightning finds started already, with one thread.

    Args:
        run: The run, the same for all processes.
        rank: Number of this process, from 0 on.
        port: Port of this machine by which the processes find each other.
    """
    import torch

    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return run_steps(run)


def find_free_port() -> int:
    """Return a port of this machine that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def fit_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope of values over sizes, both as logarithms, by least squares.

    >>> round(fit_exponent([1, 4, 16], [2.0, 8.0, 32.0]), 3), round(fit_exponent([1, 4, 16], [1.0, 16.0, 256.0]), 3)
    (1.0, 2.0)
    """
    x, y = ([math.log(value) for value in each] for each in (sizes, values))
    centre = sum(x) / len(x)
    return sum((a - centre) * b for a, b in zip(x, y, strict=True)) / sum((a - centre) ** 2 for a in x)


def expected_speedup(processes: int, cores: int) -> int:
    """Return the expected growth of the pairs per second over one process: each process computes on one core."""
    return min(processes, cores)


def _check_shape(shape: ScalingShape) -> None:
    if shape.images < 2 or shape.tries < 1 or shape.pairs < 1 or shape.steps <= WARMUP_STEPS:
        raise UserError(
            f"--images must be at least 2, --tries and --pairs at least 1 and --steps more than {WARMUP_STEPS}; got "
            f"{shape.images}, {shape.tries}, {shape.pairs} and {shape.steps}"
        )
    for flag, values in (("--size", shape.sizes), ("--processes", shape.processes)):
        if len(values) < 2 or values[0] < 1 or list(values) != sorted({*values}):
            typed = " ".join(map(str, values))
            raise UserError(f"{flag}: growth is seen from two numbers on, each larger than the one before; got {typed}")


def _build_result(
    shape: ScalingShape,
    evaluated: dict[int, Measurement[JsonObject]],
    trained: dict[int, list[Measurement[JsonObject]]],
) -> BenchmarkResult:
    cores, measured = count_cores(), [measurement.value for measurement in evaluated.values()]
    work = [results["images"] + results["pairs"] for results in measured]
    seconds = [results["seconds"]["all"] for results in measured]
    exponent = fit_exponent(work, seconds)
    peaks = [measurement.memory for measurement in evaluated.values()]
    features = [VALUE_BYTES * results["images"] * results["channels"] * results["cells"] for results in measured]
    rates = {
        count: sum(measurement.value["pairs"] / measurement.value["step"] for measurement in measurements)
        for count, measurements in trained.items()
    }
    single = rates[shape.processes[0]] / expected_speedup(shape.processes[0], cores)
    speedups = {count: rate / single for count, rate in rates.items()}
    rows = [
        *_time_rows(measured, seconds, work),
        BenchmarkRow("  slope over images + pairs, log-log", "", f"{exponent:.2f}", "", "1"),
        *_memory_rows(measured, peaks, features),
        *_training_rows(rates, speedups, cores),
        *[
            BenchmarkRow(f"  MB of each of {count}", "", f"{largest_peak(measurements):,.0f}")
            for count, measurements in trained.items()
        ],
    ]
    caption = (
        f"{cores} cores. Evaluation: best of {shape.tries} runs, from files to scores, one thread. Expected: time "
        "grows as images and pairs, memory by the features in single precision. Training: median of "
        f"{shape.steps - WARMUP_STEPS} steps, {shape.pairs} pairs and one thread for each process. Expected: as many "
        "times the pairs of one process as there are processes, or cores where these are fewer."
    )
    content = {
        "ratio": exponent,
        "floor": {"exponent": 1, "speedups": {str(count): expected_speedup(count, cores) for count in rates}},
        "cores": cores,
        "evaluate": [
            {
                "images": results["images"],
                "pairs": results["pairs"],
                "seconds": results["seconds"],
                "memory_mb": peak / 1e6,
                "features_mb": size / 1e6,
            }
            for results, peak, size in zip(measured, peaks, features, strict=True)
        ],
        "train": {
            str(count): {
                "pairs_per_second": rate,
                "speedup": speedups[count],
                "memory_mb": largest_peak(trained[count]),
            }
            for count, rate in rates.items()
        },
        "peak": {f"evaluate x{size}": measurement.peak for size, measurement in evaluated.items()},
    }
    title = f"Growth: {' '.join(f'{size}x' for size in shape.sizes)}, {shape.side} px, tiny backbone"
    return BenchmarkResult(title, rows, caption, content, HEADERS)


def _training_rows(rates: Mapping[int, float], speedups: Mapping[int, float], cores: int) -> list[BenchmarkRow]:
    """Return the pairs in a second of each number of processes, beside those of the first."""
    first = next(iter(rates))
    return [
        BenchmarkRow(
            f"train, processes: {count}, pairs/s",
            format_rate(rates[first]) if count != first else "",
            format_rate(rate),
            format_ratio(speedups[count]),
            format_ratio(expected_speedup(count, cores)),
        )
        for count, rate in rates.items()
    ]


def _time_rows(measured: Sequence[JsonObject], seconds: Sequence[float], work: Sequence[float]) -> list[BenchmarkRow]:
    """Return the seconds of each size, and how many times those of the size before they are."""
    rows = []
    for i, results in enumerate(measured):
        name = f"evaluate, images: {results['images']:,}, pairs: {results['pairs']:,}, s"
        growth = (format_ratio(seconds[i] / seconds[i - 1]), format_ratio(work[i] / work[i - 1])) if i else ("", "")
        rows.append(BenchmarkRow(name, format_rate(seconds[i - 1]) if i else "", format_rate(seconds[i]), *growth))
    return rows


def _memory_rows(measured: Sequence[JsonObject], peaks: Sequence[int], features: Sequence[int]) -> list[BenchmarkRow]:
    """Return the peak memory of each size, and how much it adds to that of the size before."""
    rows = []
    for i, results in enumerate(measured):
        added = [f"{(each[i] - each[i - 1]) / 1e6:+,.0f}" if i else "" for each in (peaks, features)]
        before = f"{peaks[i - 1] / 1e6:,.0f}" if i else ""
        rows.append(BenchmarkRow(f"  MB, images: {results['images']:,}", before, f"{peaks[i] / 1e6:,.0f}", *added))
    return rows


def largest_peak(measurements: Sequence[Measurement[JsonObject]]) -> float:
    """Return the largest peak memory of some processes, in MB."""
    return max(measurement.memory for measurement in measurements) / 1e6
