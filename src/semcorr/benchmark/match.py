"""Matching from precomputed features: every pair by itself, or all queries into one target at once."""

from functools import partial
from itertools import permutations
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from semcorr.benchmark.measurement import Machine, Measurement, best_time, measure, measure_machine
from semcorr.benchmark.naive import KERNEL, LOOPS, SIGMA, SOFT, Answers
from semcorr.benchmark.report import BenchmarkResult, BenchmarkRow, format_rate, format_ratio
from semcorr.core.coords import to_image
from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonObject
from semcorr.core.types import FeatureMap
from semcorr.matching.batched import TargetMatches, TargetQueries, match_to_targets
from semcorr.matching.readouts import argmax, kernel_soft_argmax, soft_argmax, window_soft_argmax
from semcorr.models.heads.cosine import Cosine

STRIDE = 14.0
READOUTS = (
    argmax,
    partial(soft_argmax, temperature=SOFT),
    partial(kernel_soft_argmax, sigma=SIGMA, temperature=KERNEL),
    window_soft_argmax,
)
SAME = {"nearest": 0, "soft": 1, "kernel": 2}  # readouts of the naive loops, by the index of ours that is equal
PASSES = 5  # over all pairs, of which the fastest counts, as of the products that the floor is measured by
MIN_AGREEMENT = 0.999  # share of the points on the same cell


class MatchingShape(NamedTuple):
    """The numbers of pairs and images and the size of the features that are matched.

    Attributes:
        pairs: Number of pairs.
        images: Number of images that the pairs are of.
        grid: Cells along a side of a feature map.
        channels: Channels of a feature map.
        naive_pairs: Number of pairs that the naive loops match.
        device: `cpu` or `cuda`.
        seed: Seed of features, pairs and points.
    """

    pairs: int
    images: int
    grid: int
    channels: int
    naive_pairs: int
    device: str
    seed: int = 0


class MatchingTask(NamedTuple):
    """Features of images, pairs of them, and the query points of each pair, in pixels."""

    maps: Float[Tensor, "images c h w"]
    pairs: list[tuple[int, int]]
    points: list[Float[Tensor, "_ 2"]]


def benchmark_matching(shape: MatchingShape, isolated: bool = True) -> BenchmarkResult:
    """Match the same pairs by every naive loop and by ours."""
    _validate_shape(shape)
    limits = measure_machine(shape.device)
    loops = {name: measure(run_naive_matching, shape, name, isolated=isolated) for name in LOOPS}
    ours = measure(run_matching, shape, isolated=isolated)
    agreement = {name: _agreement(loop.value, ours.value, name) for name, loop in loops.items()}
    return _build_result(shape, limits, loops, ours, agreement)


def build_task(shape: MatchingShape) -> MatchingTask:
    """Build the task that all measure: images of one scene, each shifted and with noise of its own."""
    generator = torch.Generator().manual_seed(shape.seed)
    grid, channels = shape.grid, shape.channels
    scene = torch.randn(channels, grid, grid, generator=generator)
    maps = torch.empty(shape.images, channels, grid, grid)
    for i in range(shape.images):
        shift = torch.randint(grid, (2,), generator=generator).tolist()
        maps[i] = scene.roll(shift, (1, 2)) + 0.7 * torch.randn(scene.shape, generator=generator)
    ordered_pairs = list(permutations(range(shape.images), 2))
    pairs = [ordered_pairs[i] for i in torch.randperm(len(ordered_pairs), generator=generator)[: shape.pairs].tolist()]
    counts = 3 + (torch.rand(len(pairs), 17, generator=generator) < 5 / 17).sum(-1)  # 3 to 20, 8 on average
    points = [torch.rand(n, 2, generator=generator) * (grid * STRIDE - 1) for n in counts.tolist()]
    return MatchingTask(maps.to(shape.device), pairs, [pair_points.to(shape.device) for pair_points in points])


@torch.no_grad()
def run_naive_matching(shape: MatchingShape, name: str) -> JsonObject:
    """Measure the seconds per pair of a naive loop, and return its matches.

    Args:
        shape: What is matched.
        name: A key of `LOOPS`.
    """
    maps, pairs, points = build_task(shape)
    loop, work = LOOPS[name], list(zip(pairs[: shape.naive_pairs], points, strict=False))

    def match_pairs() -> list[Answers]:
        """Match one pair after the other."""
        return [loop(maps[source], maps[target], query_points, STRIDE) for (source, target), query_points in work]

    matches = match_pairs()
    seconds = best_time(match_pairs, shape.device, PASSES)
    cells = {key: torch.cat([pair_matches[key] for pair_matches in matches]).tolist() for key in matches[0]}
    return {"seconds": seconds / len(matches), "cells": cells}


@torch.no_grad()
def run_matching(shape: MatchingShape) -> JsonObject:
    """Measure our seconds per pair, and return the matches, also those of cell centres, which need no interpolation."""
    task = build_task(shape)
    task = task._replace(maps=task.maps.to(memory_format=torch.channels_last))  # the layout that evaluation uses
    seconds = best_time(lambda: _match_by_target(task), shape.device, PASSES)
    centred_task = MatchingTask(
        task.maps, task.pairs[: shape.naive_pairs], [_move_to_centres(pair_points) for pair_points in task.points]
    )
    return {
        "seconds": seconds / len(task.pairs),
        "queries": sum(map(len, task.points)),
        "targets": len({target for _, target in task.pairs}),
        "cells": _list_cells(task, shape.naive_pairs),
        "centred": _list_cells(centred_task, shape.naive_pairs),
    }


def _match_by_target(task: MatchingTask) -> tuple[list[list[int]], list[TargetMatches]]:
    """Match all queries into one target in one product; return the pairs of each target, and their matches."""
    features = [FeatureMap(image[None], STRIDE) for image in task.maps]
    groups: dict[int, list[int]] = {}
    for i, (_, target) in enumerate(task.pairs):
        groups.setdefault(target, []).append(i)
    queries = [
        TargetQueries(features[target], [features[task.pairs[i][0]] for i in pairs], [task.points[i] for i in pairs])
        for target, pairs in groups.items()
    ]
    return list(groups.values()), match_to_targets(Cosine(), queries, READOUTS)


def _list_cells(task: MatchingTask, pairs: int) -> list[list[list[float]]]:
    """Match, and list the cells of the first `pairs` pairs, pair after pair, by readout."""
    cells: dict[int, list[Tensor]] = {}
    for members, matches in zip(*_match_by_target(task), strict=True):
        counts = [len(task.points[i]) for i in members]
        parts = [readout_cells.split(counts) for readout_cells in matches.cells]
        cells |= {i: [part[position] for part in parts] for position, i in enumerate(members)}
    return [torch.cat([cells[i][j] for i in range(pairs)]).tolist() for j in range(len(READOUTS))]


def _move_to_centres(points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Return the centres of the cells that contain the points."""
    return to_image((points / STRIDE).floor(), STRIDE)


def _agreement(naive: JsonObject, ours: JsonObject, name: str) -> dict[str, float]:
    """Compute the share of points on the same cell, and the largest distance between soft readouts, in cells."""
    cells = ours["centred" if name == "full correlation" else "cells"]
    distances = {
        key: (torch.tensor(naive["cells"][key]) - torch.tensor(cells[i])).norm(dim=-1) for key, i in SAME.items()
    }
    share = (distances["nearest"] == 0).float().mean().item()
    if share < MIN_AGREEMENT:
        raise RuntimeError(f"ours and `{name}` find the same cell for {share:.1%} of the points only")
    return {
        "same_cell": share,
        "soft_cells": distances["soft"].max().item(),
        "kernel_cells": distances["kernel"].max().item(),
    }


def _validate_shape(shape: MatchingShape) -> None:
    largest = shape.images * (shape.images - 1)
    if shape.images < 2 or not 1 <= shape.pairs <= largest:
        raise UserError(
            f"--pairs {shape.pairs}: {shape.images} images make up to {max(largest, 0)} pairs. Give --images"
        )
    if not 1 <= shape.naive_pairs <= shape.pairs:
        raise UserError(f"--naive-pairs must be between 1 and --pairs, {shape.pairs}, got {shape.naive_pairs}")
    if shape.grid < 2 or shape.channels < 1:
        raise UserError(f"--grid must be at least 2 and --channels at least 1, got {shape.grid} and {shape.channels}")


def _build_result(
    shape: MatchingShape,
    limits: Machine,
    loops: dict[str, Measurement[JsonObject]],
    ours: Measurement[JsonObject],
    agreement: dict[str, dict[str, float]],
) -> BenchmarkResult:
    cells, queries = shape.grid**2, ours.value["queries"]
    operations = 2 * queries * cells * shape.channels
    moved = 4 * (ours.value["targets"] * shape.channels * cells + 2 * queries * cells)
    floor, seconds = limits.floor(operations, moved) / shape.pairs, ours.value["seconds"]
    rows = [
        BenchmarkRow(
            f"pairs/s, {name}",
            format_rate(1 / (naive_seconds := loop.value["seconds"])),
            format_rate(1 / seconds),
            format_ratio(naive_seconds / seconds),
            format_rate(1 / floor),
        )
        for name, loop in loops.items()
    ]
    rows += [
        BenchmarkRow(f"peak memory in MB, {name}", loop.description, ours.description) for name, loop in loops.items()
    ]
    rows += [
        BenchmarkRow(
            f"same best cell as ours; soft answers within, {name}", f"{agreed['same_cell']:.1%}; {soft:.0e} cells"
        )
        for name, agreed in agreement.items()
        for soft in [max(agreed["soft_cells"], agreed["kernel_cells"])]
    ]
    caption = (
        f"{limits.description}. Features in memory, one process each; the naive loops run on "
        f"{shape.naive_pairs} pairs. Floor: {operations / 1e9:.1f} GFLOP, {moved / 1e9:.2f} GB: targets "
        "read once, similarities written and read once."
    )
    ratios = {name: loop.value["seconds"] / seconds for name, loop in loops.items()}
    content = {
        "ratio": ratios["full correlation"],
        "ratios": ratios,
        "pairs_per_second": 1 / seconds,
        "naive_pairs_per_second": {name: 1 / loop.value["seconds"] for name, loop in loops.items()},
        "floor": {"pairs_per_second": 1 / floor, "operations": operations, "bytes": moved, "reached": floor / seconds},
        "peak": {"ours": ours.peak, **{name: loop.peak for name, loop in loops.items()}},
        "agreement": agreement,
        "machine": limits.as_json(),
    }
    title = f"{shape.pairs} pairs of {shape.images} images, {shape.grid} x {shape.grid} x {shape.channels}"
    return BenchmarkResult(title, rows, caption, content)
