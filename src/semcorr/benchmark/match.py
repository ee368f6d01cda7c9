"""Matching from features that are there: every pair by itself, or all queries into one target at once."""

from functools import partial
from itertools import permutations
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from semcorr.benchmark.measurement import Machine, Measurement, measure, measure_machine, synchronised_time
from semcorr.benchmark.naive import KERNEL, LOOPS, SIGMA, SOFT
from semcorr.benchmark.report import BenchmarkResult, BenchmarkRow, format_rate, format_ratio
from semcorr.core.coords import to_grid, to_image
from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.matching.batched import match_to_target
from semcorr.matching.readouts import argmax, kernel_soft_argmax, soft_argmax, window_soft_argmax
from semcorr.models.heads.cosine import Cosine

STRIDE = 14.0
RULES = (
    argmax,
    partial(soft_argmax, temperature=SOFT),
    partial(kernel_soft_argmax, sigma=SIGMA, temperature=KERNEL),
    window_soft_argmax,
)
SAME = {"nearest": 0, "soft": 1, "kernel": 2}  # read-outs of theirs that are defined as one of ours
AGREED = 0.999  # share of the points on the same cell


class MatchingShape(NamedTuple):
    """What is matched."""

    pairs: int
    images: int
    grid: int
    channels: int
    naive_pairs: int
    device: str
    seed: int = 0


class MatchingTask(NamedTuple):
    """Features, pairs of them, and the points asked of each pair, in pixels."""

    maps: Float[Tensor, "images c h w"]
    pairs: list[tuple[int, int]]
    points: list[Float[Tensor, "_ 2"]]


def benchmark_matching(shape: MatchingShape, apart: bool = True) -> BenchmarkResult:
    """The same pairs by every loop and by ours."""
    _check(shape)
    limits = measure_machine(shape.device)
    loops = {name: measure(run_naive_matching, shape, name, apart=apart) for name in LOOPS}
    ours = measure(run_matching, shape, apart=apart)
    agreement = {name: _agreement(loop.value, ours.value, name) for name, loop in loops.items()}
    return _outcome(shape, limits, loops, ours, agreement)


def build_task(shape: MatchingShape) -> MatchingTask:
    """The same for everyone: images of one scene, each shifted and with noise of its own."""
    chance = torch.Generator().manual_seed(shape.seed)
    grid, channels = shape.grid, shape.channels
    scene = torch.randn(channels, grid, grid, generator=chance)
    maps = torch.empty(shape.images, channels, grid, grid)
    for i in range(shape.images):
        shift = torch.randint(grid, (2,), generator=chance).tolist()
        maps[i] = scene.roll(shift, (1, 2)) + 0.7 * torch.randn(scene.shape, generator=chance)
    every = list(permutations(range(shape.images), 2))
    pairs = [every[i] for i in torch.randperm(len(every), generator=chance)[: shape.pairs].tolist()]
    counts = 3 + (torch.rand(len(pairs), 17, generator=chance) < 5 / 17).sum(-1)  # 3 to 20, 8 on average
    points = [torch.rand(n, 2, generator=chance) * (grid * STRIDE - 1) for n in counts.tolist()]
    return MatchingTask(maps.to(shape.device), pairs, [some.to(shape.device) for some in points])


@torch.no_grad()
def run_naive_matching(shape: MatchingShape, name: str) -> dict[str, Any]:
    """Seconds per pair, and the answers."""
    maps, pairs, points = build_task(shape)
    loop, answers = LOOPS[name], []
    loop(maps[0], maps[1], points[0], STRIDE)
    start = synchronised_time(shape.device)
    for (source, target), asked in zip(pairs[: shape.naive_pairs], points, strict=False):
        answers.append(loop(maps[source], maps[target], asked, STRIDE))
    seconds = synchronised_time(shape.device) - start
    found = {key: torch.cat([each[key] for each in answers]).tolist() for key in answers[0]}
    return {"seconds": seconds / len(answers), "cells": found}


@torch.no_grad()
def run_matching(shape: MatchingShape) -> dict[str, Any]:
    """Seconds per pair, and the answers; those at the cells' own centres as well, where nothing is interpolated."""
    work = build_task(shape)
    work = work._replace(maps=work.maps.to(memory_format=torch.channels_last))  # as evaluation keeps them
    _grouped(work._replace(pairs=work.pairs[: shape.naive_pairs]))
    start = synchronised_time(shape.device)
    cells = _grouped(work)
    seconds = synchronised_time(shape.device) - start
    few = MatchingTask(work.maps, work.pairs[: shape.naive_pairs], [_centred(some) for some in work.points])
    return {
        "seconds": seconds / len(work.pairs),
        "queries": sum(map(len, work.points)),
        "targets": len({target for _, target in work.pairs}),
        "cells": _listed(cells[: shape.naive_pairs]),
        "centred": _listed(_grouped(few)),
    }


def _grouped(work: MatchingTask) -> list[list[Float[Tensor, "n 2"]]]:
    """By pair and rule. All queries into one target in one product."""
    found: dict[int, list[Tensor]] = {}
    groups: dict[int, list[int]] = {}
    for i, (_, target) in enumerate(work.pairs):
        groups.setdefault(target, []).append(i)
    head = Cosine()
    for target, members in groups.items():
        sources = [FeatureMap(work.maps[work.pairs[i][0], None], STRIDE) for i in members]
        asked = [work.points[i] for i in members]
        cells = match_to_target(head, FeatureMap(work.maps[target, None], STRIDE), sources, asked, RULES).points
        parts = [to_grid(rule, STRIDE).split([len(some) for some in asked]) for rule in cells]
        found |= {i: [part[k] for part in parts] for k, i in enumerate(members)}
    return [found[i] for i in range(len(work.pairs))]


def _centred(points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """The centres of the cells that hold the points."""
    return to_image((points / STRIDE).floor(), STRIDE)


def _listed(cells: list[list[Tensor]]) -> list[list[list[float]]]:
    return [torch.cat([pair[i] for pair in cells]).tolist() for i in range(len(RULES))]


def _agreement(theirs: dict[str, Any], ours: dict[str, Any], name: str) -> dict[str, float]:
    """Share of points on the same cell, and the farthest two answers of a soft read-out, in cells."""
    mine = ours["centred" if name == "full correlation" else "cells"]
    apart = {key: (torch.tensor(theirs["cells"][key]) - torch.tensor(mine[i])).norm(dim=-1) for key, i in SAME.items()}
    share = (apart["nearest"] == 0).float().mean().item()
    if share < AGREED:
        raise RuntimeError(f"ours and `{name}` find the same cell for {share:.1%} of the points only")
    return {"same_cell": share, "soft_cells": apart["soft"].max().item(), "kernel_cells": apart["kernel"].max().item()}


def _check(shape: MatchingShape) -> None:
    most = shape.images * (shape.images - 1)
    if shape.images < 2 or not 1 <= shape.pairs <= most:
        raise UserError(f"--pairs {shape.pairs}: {shape.images} images make up to {max(most, 0)} pairs. Give --images")
    if not 1 <= shape.naive_pairs <= shape.pairs:
        raise UserError(f"--naive-pairs must be between 1 and --pairs, {shape.pairs}, got {shape.naive_pairs}")
    if shape.grid < 2 or shape.channels < 1:
        raise UserError(f"--grid must be at least 2 and --channels at least 1, got {shape.grid} and {shape.channels}")


def _outcome(
    shape: MatchingShape,
    limits: Machine,
    loops: dict[str, Measurement],
    ours: Measurement,
    agreement: dict[str, dict[str, float]],
) -> BenchmarkResult:
    cells, queries = shape.grid**2, ours.value["queries"]
    operations = 2 * queries * cells * shape.channels
    moved = 4 * (ours.value["targets"] * shape.channels * cells + 2 * queries * cells)
    floor, mine = limits.floor(operations, moved) / shape.pairs, ours.value["seconds"]
    rows = [
        BenchmarkRow(
            f"pairs/s, {name}",
            format_rate(1 / (s := loop.value["seconds"])),
            format_rate(1 / mine),
            format_ratio(s / mine),
            format_rate(1 / floor),
        )
        for name, loop in loops.items()
    ]
    rows += [
        BenchmarkRow(f"peak memory in MB, {name}", loop.description, ours.description) for name, loop in loops.items()
    ]
    rows += [
        BenchmarkRow(
            f"same best cell as ours; soft answers within, {name}", f"{found['same_cell']:.1%}; {soft:.0e} cells"
        )
        for name, found in agreement.items()
        for soft in [max(found["soft_cells"], found["kernel_cells"])]
    ]
    caption = (
        f"{limits.description}. Features in memory, one process each; the naive loops run on "
        f"{shape.naive_pairs} pairs. Floor: {operations / 1e9:.1f} GFLOP, {moved / 1e9:.2f} GB: targets "
        "read once, similarities written and read once."
    )
    ratios = {name: loop.value["seconds"] / mine for name, loop in loops.items()}
    content = {
        "ratio": ratios["full correlation"], "ratios": ratios, "pairs_per_second": 1 / mine,
        "naive_pairs_per_second": {name: 1 / loop.value["seconds"] for name, loop in loops.items()},
        "floor": {"pairs_per_second": 1 / floor, "operations": operations, "bytes": moved, "reached": floor / mine},
        "peak": {"ours": ours.peak, **{name: loop.peak for name, loop in loops.items()}},
        "agreement": agreement, "machine": limits.as_json(),
    }  # fmt: skip
    title = f"{shape.pairs} pairs of {shape.images} images, {shape.grid} x {shape.grid} x {shape.channels}"
    return BenchmarkResult(title, rows, caption, content)
