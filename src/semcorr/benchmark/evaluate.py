"""Evaluation from files to scores: `semcorr.evaluate` against a loop that encodes both images of every pair.

What is counted of ours: reading the pair lists and annotations, making the loaders, encoding, matching, four
read-outs, scoring, the table of all keypoints. Of the loop: decoding, encoding and reading out, no more. Neither
counts imports or the weights.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from semcorr.benchmark.measurement import Machine, Measurement, best_time, measure, measure_machine, synchronised_time
from semcorr.benchmark.naive import LOOPS
from semcorr.benchmark.report import BenchmarkResult, BenchmarkRow, format_rate, format_ratio
from semcorr.benchmark.runs import RunSpec, compose_run
from semcorr.core.errors import UserError
from semcorr.data.image_variants import unique_images

ALLOWED = 1.3  # of the seconds that encoding every image once and matching take by themselves


class SplitPart(NamedTuple):
    """How much of the split."""

    split: str
    pairs: int | None
    naive_pairs: int


def benchmark_evaluation(run: RunSpec, part: SplitPart, apart: bool = True) -> BenchmarkResult:
    """The same split by both."""
    if part.naive_pairs < 1 or (part.pairs is not None and part.pairs < 1):
        raise UserError(f"--pairs and --naive-pairs must be at least 1, got {part.pairs} and {part.naive_pairs}")
    run = run.plus("localise=all", f"data.split={part.split}")
    limits = measure_machine(run.device)
    naive = measure(run_naive_evaluation, run, part, apart=apart)
    ours = measure(run_evaluation, run, part, apart=apart)
    return _outcome(run, part, limits, naive, ours)


@torch.no_grad()
def run_naive_evaluation(run: RunSpec, part: SplitPart) -> dict[str, Any]:
    """Seconds per pair."""
    from semcorr.data.dataset import PairDataset
    from semcorr.engine.build import build_datamodule_and_module

    with compose_run("evaluate", run) as cfg:
        data: Any
        module, data = build_datamodule_and_module(cfg)
        pairs = _first(data, part)[: part.naive_pairs]
        shown = PairDataset(pairs, data.size, data.resize, pixels=True)
        backbone: Any = module.backbone.to(run.device).eval()  # type: ignore[attr-defined]
        _require_single(backbone)
        loop = LOOPS["full correlation"]

        def one(i: int) -> None:
            source, target = shown[i][:2]
            maps = [backbone(view.image[None].to(run.device)) for view in (source, target)]
            points = source.keypoints[source.visible & target.visible].to(run.device)
            loop(maps[0].values[0].float(), maps[1].values[0].float(), points, float(backbone.stride))

        one(0)
        start = synchronised_time(run.device)
        for i in range(len(pairs)):
            one(i)
        return {"seconds": (synchronised_time(run.device) - start) / len(pairs), "pairs": len(pairs)}


def run_evaluation(run: RunSpec, part: SplitPart) -> dict[str, Any]:
    """Seconds by stage, and what encoding alone takes."""
    from semcorr.engine.build import build_datamodule, build_module, build_trainer

    with compose_run("evaluate", run) as cfg:
        module = build_module(cfg)
        trainer = build_trainer(cfg, Path(cfg.run_dir))
        start = synchronised_time(run.device)
        data = build_datamodule(cfg, "data", ("test",))
        data.size, data.pixels = module.backbone.size, module.backbone.pairwise
        pairs = _first(data, part)
        read = synchronised_time(run.device)
        data.pairs = lambda split: pairs
        trainer.test(module, datamodule=data, verbose=False)
        done = synchronised_time(run.device)
        backbone: Any = module.backbone.to(run.device).eval()  # type: ignore[attr-defined]
        _require_single(backbone)
        rows = module.result.tables["predictions"].num_rows
        found = {
            "seconds": {"all": done - start, "read": read - start, **module.result.seconds},
            "pairs": len(pairs), "images": len(unique_images(pairs)), "rows": rows,
            "keypoints": rows // len(module.specs),
        }  # fmt: skip
        return found | _encoding(backbone, data.encoding_batch, run.device)


@torch.no_grad()
def _encoding(backbone: Any, batch: int, device: str) -> dict[str, float]:
    """Of one image: seconds in a batch as evaluated, operations, values."""
    image = torch.rand(batch, 3, backbone.size, backbone.size, device=device)
    counter = FlopCounterMode(display=False)
    with counter:
        values = backbone(image[:1]).values
    seconds = best_time(lambda: backbone(image), device, times=2) / batch
    return {"encoding": seconds, "operations": counter.get_total_flops(), "channels": values.shape[1],
            "cells": values.shape[2] * values.shape[3]}  # fmt: skip


def _first(data: Any, part: SplitPart) -> Any:
    return data.pairs(data.split)[: part.pairs]


def _require_single(backbone: Any) -> None:
    if backbone.pairwise:
        raise UserError(
            f"--backbone: {backbone.name} sees images in pairs; there is nothing to encode once. Choose another"
        )


def _outcome(run: RunSpec, part: SplitPart, limits: Machine, naive: Measurement, ours: Measurement) -> BenchmarkResult:
    mine, seconds = ours.value, ours.value["seconds"]
    each = seconds["all"] / mine["pairs"]
    ratio = naive.value["seconds"] / each
    operations = mine["images"] * mine["operations"] + 2 * mine["keypoints"] * mine["cells"] * mine["channels"]
    floor = limits.floor(operations)
    alone = mine["images"] * mine["encoding"] + seconds["match"]
    rows = [
        BenchmarkRow("pairs/s, files to scores", format_rate(1 / naive.value["seconds"]), format_rate(1 / each),
            format_ratio(ratio), format_rate(mine["pairs"] / floor)),
        BenchmarkRow("seconds in all", f"({format_rate(naive.value['seconds'] * mine['pairs'])})",
            format_rate(seconds["all"]), "", format_rate(floor)),
        BenchmarkRow("  reading annotations", "", format_rate(seconds["read"])),
        BenchmarkRow(f"  encoding {mine['images']:,} images", "", format_rate(seconds["encode"]), "",
            format_rate(mine["images"] * mine["encoding"])),
        BenchmarkRow(f"  matching {mine['pairs']:,} pairs", "", format_rate(seconds["match"])),
        BenchmarkRow(f"all / (images x one encoding + matching), at most {ALLOWED}", "",
            f"{seconds['all'] / alone:.2f}"),
        BenchmarkRow("peak memory in MB", naive.description, ours.description),
    ]  # fmt: skip
    caption = (
        f"{limits.description}. Imports and weights are not counted; the naive loop ran on "
        f"{naive.value['pairs']} pairs. Floor: {operations / 1e12:.2f} TFLOP; of encoding, every image at the "
        f"{mine['encoding'] * 1e3:.1f} ms that it takes by itself. Loader processes' memory is apart."
    )
    content = {
        "ratio": ratio, "pairs_per_second": 1 / each, "naive_pairs_per_second": 1 / naive.value["seconds"],
        "floor": {"seconds": floor, "operations": operations, "encoding_seconds": mine["images"] * mine["encoding"]},
        "over_encoding_and_matching": seconds["all"] / alone, "found": mine,
        "peak": {"ours": ours.peak, "naive": naive.peak}, "machine": limits.as_json(),
    }  # fmt: skip
    title = f"Evaluation of {mine['pairs']:,} pairs, {mine['images']:,} images: {' '.join(run.overrides)}"
    return BenchmarkResult(title, rows, caption, content)
