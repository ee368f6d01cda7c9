"""The 4-D convolution of a correlation: a loop of 3-D convolutions, as public code has it, beside ours."""

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv3d

from semcorr.benchmark.measurement import Machine, Measurement, best_time, measure, measure_machine, peak_resident_bytes
from semcorr.benchmark.report import BenchmarkResult, BenchmarkRow, format_rate, format_ratio
from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonObject
from semcorr.models.heads.conv4d import conv4d as ours

MAX_DIFFERENCE = 1e-4  # largest difference, in standard deviations of the result
PASSES = ("forward", "forward and backward")


class ConvolvedVolume(NamedTuple):
    """The shape of a volume and its kernel, and the passes that are measured.

    Attributes:
        side: Cells along each of the four axes of the volume.
        channels: Channels of the volume, before and after.
        kernel: Cells along each axis of the kernel, an odd number.
        backward: Whether gradients are computed as well.
        device: `cpu` or `cuda`.
    """

    side: int
    channels: int
    kernel: int
    backward: bool
    device: str

    @property
    def operations(self) -> float:
        """Multiplications and additions; a backward is two more products of the same size."""
        return 2.0 * self.side**4 * self.channels**2 * self.kernel**4 * (3 if self.backward else 1)

    @property
    def moved(self) -> float:
        """Bytes moved at least: input and output once; with backward their gradients, and the input once more."""
        return 4.0 * self.side**4 * self.channels * (5 if self.backward else 2)

    @property
    def least(self) -> float:
        """Bytes of the result, with backward also those of the input's gradient."""
        return 4.0 * self.side**4 * self.channels * (2 if self.backward else 1)

    @property
    def description(self) -> str:
        """The label in a table."""
        return f"{self.side}^4, {PASSES[self.backward]}"


def convolve_by_slices(
    x: Float[Tensor, "b c h w k l"], weight: Float[Tensor, "o c kh kw kk kl"], bias: Float[Tensor, " o"]
) -> Float[Tensor, "b o h w k l"]:
    """Convolve slice by slice along the first axis, adding 3-D convolutions of each slice and its neighbours."""
    radius = weight.shape[2] // 2
    slices, taps = x.permute(2, 0, 1, 3, 4, 5).contiguous(), weight.permute(2, 0, 1, 3, 4, 5).contiguous()
    border = slices.new_zeros(radius, *slices.shape[1:])
    padded = torch.cat((border, slices, border))
    output = slices.new_zeros(len(slices), len(x), len(weight), *x.shape[3:])
    padding = [size // 2 for size in weight.shape[3:]]
    for i in range(len(slices)):
        output[i] = conv3d(padded[i + radius], taps[radius], bias, padding=padding)
        for j in range(1, radius + 1):
            for tap in (radius - j, radius + j):
                output[i] += conv3d(padded[i + tap], taps[tap], padding=padding)
    return output.permute(1, 2, 0, 3, 4, 5).contiguous()


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"loop": convolve_by_slices, "ours": ours}


def benchmark_conv4d(
    sides: Sequence[int] = (16, 32), channels: int = 8, kernel: int = 3, device: str = "cpu", isolated: bool = True
) -> BenchmarkResult:
    """Measure both ways, forward and with backward, on every volume.

    Args:
        sides: Cells along each axis of a volume, for each volume.
        channels: Channels in and out.
        kernel: Cells along each axis of the kernel, an odd number.
        device: `cpu` or `cuda`.
        isolated: Whether each measurement has a process of its own.

    Raises:
        UserError: A number is out of range.
        RuntimeError: The two ways give different results.
    """
    if min(sides) < 1 or channels < 1 or kernel < 1 or kernel % 2 == 0:
        raise UserError(
            f"--side and --channels must be at least 1 and --kernel odd, got {list(sides)}, {channels}, {kernel}"
        )
    limits = measure_machine(device)
    volumes = [
        ConvolvedVolume(side, channels, kernel, backward, device) for side in sides for backward in (False, True)
    ]
    measurements = []
    for volume in volumes:
        results_agree(volume)
        measurements.append({way: measure(run_convolution, volume, way, isolated=isolated) for way in WAYS})
    return _build_result(volumes, measurements, limits)


def run_convolution(volume: ConvolvedVolume, way: str) -> JsonObject:
    """Measure the seconds, and the peak of bytes beyond the input and what the process needs anyway.

    Args:
        volume: The volume and its kernel.
        way: A key of `WAYS`.
    """
    _build_work(volume._replace(side=4), way)()  # so that loading code is not measured
    run_once = _build_work(volume, way)
    baseline = _peak_bytes(volume.device, reset=True)
    run_once()
    peak = _peak_bytes(volume.device) - baseline
    return {"seconds": best_time(run_once, volume.device), "bytes": peak}


def results_agree(volume: ConvolvedVolume) -> None:
    """Raise `RuntimeError` unless both ways agree in result and gradients on a volume of 5 cells a side."""
    small = volume._replace(side=5)
    for result, reference in zip(*(_build_work(small, way)() for way in WAYS), strict=True):
        difference = ((result - reference).abs().max() / reference.std()).item()
        if difference > MAX_DIFFERENCE:
            raise RuntimeError(f"ours and the loop are {difference:.1e} standard deviations apart")


def _build_work(volume: ConvolvedVolume, way: str) -> Callable[[], list[Tensor]]:
    side, channels, kernel, backward, device = volume
    generator = torch.Generator().manual_seed(0)
    shapes = ([1, channels, *[side] * 4], [channels, channels, *[kernel] * 4], [channels])
    inputs = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    inputs[1] /= prod(shapes[1][1:]) ** 0.5
    for tensor in inputs:
        tensor.requires_grad_(backward)

    def work() -> list[Tensor]:
        with torch.set_grad_enabled(backward):
            output = WAYS[way](*inputs)
            return [output, *torch.autograd.grad(output.sum(), inputs)] if backward else [output]

    return work


def _peak_bytes(device: str, reset: bool = False) -> int:
    if device == "cpu":
        return peak_resident_bytes()
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated()


def _build_result(
    volumes: list[ConvolvedVolume], measurements: list[dict[str, Measurement[JsonObject]]], limits: Machine
) -> BenchmarkResult:
    rows, results = [], {}
    for volume, entries in zip(volumes, measurements, strict=True):
        seconds, tensor_bytes = (
            {way: entry.value[key] for way, entry in entries.items()} for key in ("seconds", "bytes")
        )
        floor = limits.floor(volume.operations, volume.moved)
        ratio, memory = seconds["loop"] / seconds["ours"], tensor_bytes["loop"] / max(tensor_bytes["ours"], 1)
        (naive_ms, naive_mb), (ms, mb) = (
            (format_rate(1e3 * seconds[way]), format_rate(tensor_bytes[way] / 1e6)) for way in WAYS
        )
        rows += [
            BenchmarkRow(f"ms, {volume.description}", naive_ms, ms, format_ratio(ratio), format_rate(1e3 * floor)),
            BenchmarkRow(
                f"MB, {volume.description}", naive_mb, mb, format_ratio(memory), format_rate(volume.least / 1e6)
            ),
        ]
        results[volume.description] = {
            "ratio": ratio,
            "memory_ratio": memory,
            "seconds": seconds,
            "bytes": tensor_bytes,
            "floor": {"seconds": floor, "operations": volume.operations, "reached": floor / seconds["ours"]},
            "peak": {way: entry.peak for way, entry in entries.items()},
        }
    caption = (
        f"{limits.description}. Memory is what a process takes at most beyond the input, one process each. Floor: one "
        "matrix product of as many operations; memory for the result, with backward also the input's gradient."
    )
    content = {
        "ratio": min(entry["ratio"] for entry in results.values()),
        "volumes": results,
        "floor": {description: entry["floor"] for description, entry in results.items()},
        "peak": {description: entry["peak"] for description, entry in results.items()},
        "machine": limits.as_json(),
    }
    c, k = volumes[0].channels, volumes[0].kernel
    return BenchmarkResult(
        f"4-D convolution, {c} to {c} channels, {k}^4 kernels: naive is a loop of conv3d", rows, caption, content
    )
