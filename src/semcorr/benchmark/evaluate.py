"""Evaluation from files to scores: `semcorr.evaluate` against a loop that encodes both images of every pair.

Ours counts reading the pair lists and annotations, making the loaders, encoding, matching, four readouts, scoring and
the table of all keypoints. The loop counts only decoding, encoding and reading out. Neither counts imports or loading
the weights.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch
from hydra.utils import get_class
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from semcorr.benchmark.measurement import Machine, Measurement, best_time, measure, measure_machine, synchronised_time
from semcorr.benchmark.naive import LOOPS
from semcorr.benchmark.report import BenchmarkResult, BenchmarkRow, format_rate, format_ratio
from semcorr.benchmark.runs import RunSpec, compose_run
from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.text_files import JsonObject
from semcorr.data.datamodule import PairDataModule
from semcorr.data.image_variants import unique_images
from semcorr.data.open_image import list_decoders
from semcorr.data.record import PairRecord
from semcorr.data.views import to_unit_range

MAX_RATIO = 1.3  # times the seconds that encoding every image once and matching take by themselves


class SplitPart(NamedTuple):
    """A split, and how many of its pairs are evaluated.

    Attributes:
        split: `train`, `val` or `test`.
        pairs: Number of pairs, from the first on; None, all of them.
        naive_pairs: Number of pairs that the naive loop evaluates.
    """

    split: str
    pairs: int | None
    naive_pairs: int


def benchmark_evaluation(run: RunSpec, part: SplitPart, isolated: bool = True) -> BenchmarkResult:
    """Evaluate the same split by the naive loop and by ours.

    Args:
        run: The run.
        part: The split.
        isolated: Whether each measurement has a process of its own.
    """
    if part.naive_pairs < 1 or (part.pairs is not None and part.pairs < 1):
        raise UserError(f"--pairs and --naive-pairs must be at least 1, got {part.pairs} and {part.naive_pairs}")
    run = run.with_overrides("localise=all", f"data.split={part.split}")
    limits = measure_machine(run.device)
    naive = measure(run_naive_evaluation, run, part, isolated=isolated)
    ours = measure(run_evaluation, run, part, isolated=isolated)
    return _build_result(run, part, limits, naive, ours)


@torch.no_grad()
def run_naive_evaluation(run: RunSpec, part: SplitPart) -> JsonObject:
    """Measure the seconds per pair of the naive loop."""
    from semcorr.data.dataset import PairDataset
    from semcorr.engine.build import build_datamodule_and_module

    with compose_run("evaluate", run) as cfg:
        module, data = build_datamodule_and_module(cfg)
        assert isinstance(data, PairDataModule)
        pairs = _select_pairs(data, part)[: part.naive_pairs]
        dataset = PairDataset(pairs, data.size, data.resize, pixels=True)
        backbone = module.backbone.to(run.device).eval()
        _require_single_image(backbone)
        loop = LOOPS["full correlation"]

        def match_pair(i: int) -> None:
            source, target = dataset[i][:2]
            maps = [backbone(to_unit_range(view.image[None].to(run.device))) for view in (source, target)]
            points = source.keypoints[source.visible & target.visible].to(run.device)
            loop(maps[0].values[0].float(), maps[1].values[0].float(), points, float(backbone.stride))

        match_pair(0)
        start = synchronised_time(run.device)
        for i in range(len(pairs)):
            match_pair(i)
        return {"seconds": (synchronised_time(run.device) - start) / len(pairs), "pairs": len(pairs)}


def run_evaluation(run: RunSpec, part: SplitPart) -> JsonObject:
    """Measure the seconds by stage, and what encoding alone takes."""
    from semcorr.engine.build import build_datamodule, build_module
    from semcorr.engine.trainer import build_trainer

    with compose_run("evaluate", run) as cfg:
        module = build_module(cfg)
        trainer = build_trainer(cfg, Path(cfg.run_dir))
        _import_readers(cfg)
        start = synchronised_time(run.device)
        data = build_datamodule(cfg, "data", ("test",))
        assert isinstance(data, PairDataModule)
        data.fit_backbone(module.backbone)
        pairs = _select_pairs(data, part)
        after_reading = synchronised_time(run.device)
        data.restrict_split(data.split, pairs)
        trainer.test(module, datamodule=data, verbose=False)
        end = synchronised_time(run.device)
        backbone = module.backbone.to(run.device).eval()
        _require_single_image(backbone)
        rows = module.result.tables["predictions"].num_rows
        results = {
            "seconds": {"all": end - start, "read": after_reading - start, **module.result.seconds},
            "pairs": len(pairs),
            "images": len(unique_images(pairs)),
            "rows": rows,
            "keypoints": rows // len(module.specs),
        }
        return results | _measure_encoding(backbone, data.encoding_batch, run.device)


def _import_readers(cfg: DictConfig) -> None:
    """Import what reading imports at its first file, as imports do not count."""
    get_class(cfg.data._target_)
    list_decoders()
    pa.array([0])  # pandas, where it is installed


@torch.no_grad()
def _measure_encoding(backbone: Backbone, batch: int, device: str) -> dict[str, float]:
    """Measure one image: seconds in a batch as evaluated, operations, channels and cells."""
    image = torch.rand(batch, 3, backbone.size, backbone.size, device=device)
    counter = FlopCounterMode(display=False)
    with counter:
        values = backbone(image[:1]).values
    seconds = best_time(lambda: backbone(image), device, times=2) / batch
    return {
        "encoding": seconds,
        "operations": counter.get_total_flops(),
        "channels": values.shape[1],
        "cells": values.shape[2] * values.shape[3],
    }


def _select_pairs(data: PairDataModule, part: SplitPart) -> Sequence[PairRecord]:
    return data.pairs(data.split)[: part.pairs]


def _require_single_image(backbone: Backbone) -> None:
    if backbone.needs_pair:
        raise UserError(
            f"--backbone: {backbone.name} sees images in pairs; there is nothing to encode once. Choose another"
        )


def _build_result(
    run: RunSpec, part: SplitPart, limits: Machine, naive: Measurement[JsonObject], ours: Measurement[JsonObject]
) -> BenchmarkResult:
    results, seconds = ours.value, ours.value["seconds"]
    pair_seconds = seconds["all"] / results["pairs"]
    ratio = naive.value["seconds"] / pair_seconds
    operations = (
        results["images"] * results["operations"] + 2 * results["keypoints"] * results["cells"] * results["channels"]
    )
    floor = limits.floor(operations)
    minimum = results["images"] * results["encoding"] + seconds["match"]
    rows = [
        BenchmarkRow(
            "pairs/s, files to scores",
            format_rate(1 / naive.value["seconds"]),
            format_rate(1 / pair_seconds),
            format_ratio(ratio),
            format_rate(results["pairs"] / floor),
        ),
        BenchmarkRow(
            "seconds in all",
            f"({format_rate(naive.value['seconds'] * results['pairs'])})",
            format_rate(seconds["all"]),
            "",
            format_rate(floor),
        ),
        BenchmarkRow("  reading annotations", "", format_rate(seconds["read"])),
        BenchmarkRow(
            f"  encoding {results['images']:,} images",
            "",
            format_rate(seconds["encode"]),
            "",
            format_rate(results["images"] * results["encoding"]),
        ),
        BenchmarkRow(f"  matching {results['pairs']:,} pairs", "", format_rate(seconds["match"])),
        BenchmarkRow(
            f"all / (images x one encoding + matching), at most {MAX_RATIO}", "", f"{seconds['all'] / minimum:.2f}"
        ),
        BenchmarkRow("peak memory in MB", naive.description, ours.description),
    ]
    caption = (
        f"{limits.description}. Imports and weights are not counted; the naive loop ran on "
        f"{naive.value['pairs']} pairs. Floor: {operations / 1e12:.2f} TFLOP; of encoding, every image at the "
        f"{results['encoding'] * 1e3:.1f} ms that it takes by itself. Loader processes' memory is apart."
    )
    content = {
        "ratio": ratio,
        "pairs_per_second": 1 / pair_seconds,
        "naive_pairs_per_second": 1 / naive.value["seconds"],
        "floor": {
            "seconds": floor,
            "operations": operations,
            "encoding_seconds": results["images"] * results["encoding"],
        },
        "over_encoding_and_matching": seconds["all"] / minimum,
        "found": results,
        "peak": {"ours": ours.peak, "naive": naive.peak},
        "machine": limits.as_json(),
    }
    title = f"Evaluation of {results['pairs']:,} pairs, {results['images']:,} images: {' '.join(run.overrides)}"
    return BenchmarkResult(title, rows, caption, content)
