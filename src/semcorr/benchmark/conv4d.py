"""A 4-D convolution of a correlation: a loop of 3-D convolutions, as public code has it, and ours."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv3d

from semcorr.benchmark.measurement import Machine, Measurement, best_time, measure, measure_machine, peak_resident_bytes
from semcorr.benchmark.report import BenchmarkResult, BenchmarkRow, format_rate, format_ratio
from semcorr.core.errors import UserError
from semcorr.models.heads.conv4d import conv4d as ours

AGREED = 1e-4  # largest difference, in standard deviations of the result
PASSES = ("forward", "forward and backward")


class ConvolvedVolume(NamedTuple):
    """What is convolved."""

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
        """Bytes: input and output once; their gradients, and the input once more."""
        return 4.0 * self.side**4 * self.channels * (5 if self.backward else 2)

    @property
    def least(self) -> float:
        """Bytes of the result, and of the input's gradient."""
        return 4.0 * self.side**4 * self.channels * (2 if self.backward else 1)

    @property
    def description(self) -> str:
        """For a table."""
        return f"{self.side}^4, {PASSES[self.backward]}"


def convolve_by_slices(
    x: Float[Tensor, "b c h w k l"], weight: Float[Tensor, "o c kh kw kk kl"], bias: Float[Tensor, " o"]
) -> Float[Tensor, "b o h w k l"]:
    """Slice by slice along the first axis: a 3-D convolution of it and of each of its neighbours, added up."""
    reach = weight.shape[2] // 2
    slices, taps = x.permute(2, 0, 1, 3, 4, 5).contiguous(), weight.permute(2, 0, 1, 3, 4, 5).contiguous()
    beyond = slices.new_zeros(reach, *slices.shape[1:])
    padded = torch.cat((beyond, slices, beyond))
    found = slices.new_zeros(len(slices), len(x), len(weight), *x.shape[3:])
    around = [size // 2 for size in weight.shape[3:]]
    for i in range(len(slices)):
        found[i] = conv3d(padded[i + reach], taps[reach], bias, padding=around)
        for j in range(1, reach + 1):
            for tap in (reach - j, reach + j):
                found[i] += conv3d(padded[i + tap], taps[tap], padding=around)
    return found.permute(1, 2, 0, 3, 4, 5).contiguous()


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"loop": convolve_by_slices, "ours": ours}


def benchmark_conv4d(
    sides: Sequence[int] = (16, 32), channels: int = 8, kernel: int = 3, device: str = "cpu", apart: bool = True
) -> BenchmarkResult:
    """Both ways, forward and with backward, on every volume."""
    if min(sides) < 1 or channels < 1 or kernel < 1 or kernel % 2 == 0:
        raise UserError(
            f"--side and --channels must be at least 1 and --kernel odd, got {list(sides)}, {channels}, {kernel}"
        )
    limits = measure_machine(device)
    volumes = [
        ConvolvedVolume(side, channels, kernel, backward, device) for side in sides for backward in (False, True)
    ]
    found = []
    for volume in volumes:
        results_agree(volume)
        found.append({way: measure(run_convolution, volume, way, apart=apart) for way in WAYS})
    return _outcome(volumes, found, limits)


def run_convolution(volume: ConvolvedVolume, way: str) -> dict[str, Any]:
    """Seconds, and bytes at most beyond the input and what the process needs anyway."""
    _work(volume._replace(side=4), way)()  # loads code
    work = _work(volume, way)
    before = _taken(volume.device, anew=True)
    work()
    taken = _taken(volume.device) - before
    return {"seconds": best_time(work, volume.device), "bytes": taken}


def results_agree(volume: ConvolvedVolume) -> None:
    """On a volume of 5 cells a side: result and gradients."""
    small = volume._replace(side=5)
    for one, other in zip(*(_work(small, way)() for way in WAYS), strict=True):
        apart = ((one - other).abs().max() / other.std()).item()
        if apart > AGREED:
            raise RuntimeError(f"ours and the loop are {apart:.1e} standard deviations apart")


def _work(volume: ConvolvedVolume, way: str) -> Callable[[], list[Tensor]]:
    side, channels, kernel, backward, device = volume
    chance = torch.Generator().manual_seed(0)
    shapes = ([1, channels, *[side] * 4], [channels, channels, *[kernel] * 4], [channels])
    inputs = [torch.randn(shape, generator=chance).to(device) for shape in shapes]
    inputs[1] /= prod(shapes[1][1:]) ** 0.5
    for one in inputs:
        one.requires_grad_(backward)

    def work() -> list[Tensor]:
        with torch.set_grad_enabled(backward):
            found = WAYS[way](*inputs)
            return [found, *torch.autograd.grad(found.sum(), inputs)] if backward else [found]

    return work


def _taken(device: str, anew: bool = False) -> int:
    if device == "cpu":
        return peak_resident_bytes()
    if anew:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated()


def _outcome(volumes: list[ConvolvedVolume], found: list[dict[str, Measurement]], limits: Machine) -> BenchmarkResult:
    rows, results = [], {}
    for volume, ways in zip(volumes, found, strict=True):
        seconds, taken = ({way: one.value[key] for way, one in ways.items()} for key in ("seconds", "bytes"))
        floor = limits.floor(volume.operations, volume.moved)
        ratio, memory = seconds["loop"] / seconds["ours"], taken["loop"] / max(taken["ours"], 1)
        (naive_ms, naive_mb), (ms, mb) = (
            (format_rate(1e3 * seconds[way]), format_rate(taken[way] / 1e6)) for way in WAYS
        )
        rows += [
            BenchmarkRow(f"ms, {volume.description}", naive_ms, ms, format_ratio(ratio), format_rate(1e3 * floor)),
            BenchmarkRow(
                f"MB, {volume.description}", naive_mb, mb, format_ratio(memory), format_rate(volume.least / 1e6)
            ),
        ]
        results[volume.description] = {
            "ratio": ratio, "memory_ratio": memory, "seconds": seconds, "bytes": taken,
            "floor": {"seconds": floor, "operations": volume.operations, "reached": floor / seconds["ours"]},
            "peak": {way: one.peak for way, one in ways.items()},
        }  # fmt: skip
    caption = (
        f"{limits.description}. Memory is what a process takes at most beyond the input, one process each. Floor: one "
        "matrix product of as many operations; memory for the result, with backward also the input's gradient."
    )
    content = {
        "ratio": min(one["ratio"] for one in results.values()), "volumes": results,
        "floor": {told: one["floor"] for told, one in results.items()},
        "peak": {told: one["peak"] for told, one in results.items()}, "machine": limits.as_json(),
    }  # fmt: skip
    c, k = volumes[0].channels, volumes[0].kernel
    return BenchmarkResult(
        f"4-D convolution, {c} to {c} channels, {k}^4 kernels: naive is a loop of conv3d", rows, caption, content
    )
