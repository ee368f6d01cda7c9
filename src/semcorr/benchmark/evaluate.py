"""Evaluation from files to scores: `semcorr.evaluate` against a loop that encodes both images of every pair.

What is counted of ours: reading the pair lists and annotations, making the loaders, encoding, matching, four
read-outs, scoring, the table of all keypoints. Of the loop: decoding, encoding and reading out, no more. Neither
counts imports or the weights.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from semcorr.benchmark.measure import Machine, Measured, best, machine, measured, now
from semcorr.benchmark.naive import LOOPS
from semcorr.benchmark.report import Outcome, Row, rate, times
from semcorr.benchmark.runs import Wanted, configured
from semcorr.data.images import unique_images
from semcorr.errors import UserError

ALLOWED = 1.3  # of the seconds that encoding every image once and matching take by themselves


class Part(NamedTuple):
    """How much of the split."""

    split: str
    pairs: int | None
    naive_pairs: int


def evaluate(run: Wanted, part: Part, apart: bool = True) -> Outcome:
    """The same split by both."""
    if part.naive_pairs < 1 or (part.pairs is not None and part.pairs < 1):
        raise UserError(f"--pairs and --naive-pairs must be at least 1, got {part.pairs} and {part.naive_pairs}")
    run = run.plus("localise=all", f"data.split={part.split}")
    limits = machine(run.device)
    naive = measured(run_naive, run, part, apart=apart)
    ours = measured(run_ours, run, part, apart=apart)
    return _outcome(run, part, limits, naive, ours)


@torch.no_grad()
def run_naive(run: Wanted, part: Part) -> dict[str, Any]:
    """Seconds per pair."""
    from semcorr.data.dataset import PairDataset
    from semcorr.run import build

    with configured("evaluate", run) as cfg:
        data: Any
        module, data = build(cfg)
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
        start = now(run.device)
        for i in range(len(pairs)):
            one(i)
        return {"seconds": (now(run.device) - start) / len(pairs), "pairs": len(pairs)}


def run_ours(run: Wanted, part: Part) -> dict[str, Any]:
    """Seconds by stage, and what encoding alone takes."""
    from semcorr.run import assembled, benchmark, make_trainer

    with configured("evaluate", run) as cfg:
        module = assembled(cfg)
        trainer = make_trainer(cfg, Path(cfg.run_dir))
        start = now(run.device)
        data = benchmark(cfg, "data", ("test",))
        data.size, data.pixels = module.backbone.size, module.backbone.pairwise
        pairs = _first(data, part)
        read = now(run.device)
        data.pairs = lambda split: pairs
        trainer.test(module, datamodule=data, verbose=False)
        done = now(run.device)
        backbone: Any = module.backbone.to(run.device).eval()  # type: ignore[attr-defined]
        _require_single(backbone)
        found = {
            "seconds": {"all": done - start, "read": read - start, **module.seconds},
            "pairs": len(pairs), "images": len(unique_images(pairs)), "rows": module.table.num_rows,
            "keypoints": module.table.num_rows // len(module.readings),
        }  # fmt: skip
        return found | _encoding(backbone, data.at_once, run.device)


@torch.no_grad()
def _encoding(backbone: Any, batch: int, device: str) -> dict[str, float]:
    """Of one image: seconds in a batch as evaluated, operations, values."""
    image = torch.rand(batch, 3, backbone.size, backbone.size, device=device)
    counter = FlopCounterMode(display=False)
    with counter:
        values = backbone(image[:1]).values
    seconds = best(lambda: backbone(image), device, times=2) / batch
    return {"encoding": seconds, "operations": counter.get_total_flops(), "channels": values.shape[1],
            "cells": values.shape[2] * values.shape[3]}  # fmt: skip


def _first(data: Any, part: Part) -> Any:
    return data.pairs(data.split)[: part.pairs]


def _require_single(backbone: Any) -> None:
    if backbone.pairwise:
        raise UserError(
            f"--backbone: {backbone.name} sees images in pairs; there is nothing to encode once. Choose another"
        )


def _outcome(run: Wanted, part: Part, limits: Machine, naive: Measured, ours: Measured) -> Outcome:
    mine, seconds = ours.value, ours.value["seconds"]
    each = seconds["all"] / mine["pairs"]
    ratio = naive.value["seconds"] / each
    operations = mine["images"] * mine["operations"] + 2 * mine["keypoints"] * mine["cells"] * mine["channels"]
    floor = limits.floor(operations)
    alone = mine["images"] * mine["encoding"] + seconds["match"]
    rows = [
        Row("pairs/s, files to scores", rate(1 / naive.value["seconds"]), rate(1 / each), times(ratio),
            rate(mine["pairs"] / floor)),
        Row("seconds in all", f"({rate(naive.value['seconds'] * mine['pairs'])})", rate(seconds["all"]), "",
            rate(floor)),
        Row("  reading annotations", "", rate(seconds["read"])),
        Row(f"  encoding {mine['images']:,} images", "", rate(seconds["encode"]), "",
            rate(mine["images"] * mine["encoding"])),
        Row(f"  matching {mine['pairs']:,} pairs", "", rate(seconds["match"])),
        Row(f"all / (images x one encoding + matching), at most {ALLOWED}", "", f"{seconds['all'] / alone:.2f}"),
        Row("peak memory in MB", naive.told, ours.told),
    ]  # fmt: skip
    caption = (
        f"{limits.told}. Imports and weights are not counted; the naive loop ran on {naive.value['pairs']} pairs. "
        f"Floor: {operations / 1e12:.2f} TFLOP; of encoding, every image at the {mine['encoding'] * 1e3:.1f} ms that "
        "it takes by itself. Loader processes' memory is apart."
    )
    content = {
        "ratio": ratio, "pairs_per_second": 1 / each, "naive_pairs_per_second": 1 / naive.value["seconds"],
        "floor": {"seconds": floor, "operations": operations, "encoding_seconds": mine["images"] * mine["encoding"]},
        "over_encoding_and_matching": seconds["all"] / alone, "found": mine,
        "peak": {"ours": ours.peak, "naive": naive.peak}, "machine": limits.as_json(),
    }  # fmt: skip
    title = f"Evaluation of {mine['pairs']:,} pairs, {mine['images']:,} images: {' '.join(run.overrides)}"
    return Outcome(title, rows, caption, content)
