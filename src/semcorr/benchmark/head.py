"""Run time that a head adds: one pair from pixels to similarities by the head, beside the same pair by cosines.

"Telling Left from Right" (section 1) states 0.32 % for its post-processor, `aggregation`, on Stable Diffusion with
DINOv2.
Both images of the pair are encoded; what is kept of an image that is in several pairs makes the share larger.
"""

from typing import NamedTuple

import torch

from semcorr.benchmark.measurement import Machine, Measurement, measure, measure_machine, synchronised_time
from semcorr.benchmark.report import BenchmarkResult, BenchmarkRow, format_rate
from semcorr.benchmark.runs import RunSpec, compose_run
from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonObject
from semcorr.core.types import FeatureMap
from semcorr.engine.packages import list_choices
from semcorr.models.heads.cosine import Cosine

HEADERS = ("", "cosine", "head", "added", "")


class TimedPair(NamedTuple):
    """The head, the query points of the pair, and the runs of each part, of which the fastest counts."""

    head: str
    points: int
    tries: int


def benchmark_head(run: RunSpec, pair: TimedPair, isolated: bool = True) -> BenchmarkResult:
    """Time the same pair by the head and by cosines, in turn: other load of the machine affects both."""
    choices = list_choices("head")
    if pair.head not in choices:
        raise UserError(f"--head: no head is called {pair.head!r}. There are {', '.join(choices)}")
    limits = measure_machine(run.device)
    measurement = measure(time_pair, run.with_overrides(f"head={pair.head}"), pair, isolated=isolated)
    return _build_result(run, pair, measurement, limits)


@torch.inference_mode()
def time_pair(run: RunSpec, pair: TimedPair) -> JsonObject:
    """Measure the seconds of encoding both images, of the head and of cosines; the fastest of several runs of each."""
    from semcorr.engine.build import build_module

    with compose_run("evaluate", run) as cfg:
        module = build_module(cfg)
        backbone, head = module.backbone.to(run.device).eval(), module.head.to(run.device).eval()
        if backbone.needs_pair:
            raise UserError(f"--backbone: {backbone.name} sees images in pairs. Choose one that sees them one by one")
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(2, 3, backbone.size, backbone.size, generator=generator).to(run.device)
        points = (torch.rand(1, pair.points, 2, generator=generator) * (backbone.size - 1)).to(run.device)
        cosine = Cosine()
        fastest: dict[str, float] = {}
        for number in range(pair.tries + 1):
            times = [synchronised_time(run.device)]
            maps = [backbone(image[None]) for image in images]
            source, target = (FeatureMap(features.values.float(), features.stride) for features in maps)
            times.append(synchronised_time(run.device))
            cosine(source, target, points)
            times.append(synchronised_time(run.device))
            head(source, target, points)
            times.append(synchronised_time(run.device))
            if number:  # the first run of all is not counted
                for i, name in enumerate(("encode", "cosine", "head")):
                    fastest[name] = min(fastest.get(name, float("inf")), times[i + 1] - times[i])
        return {"seconds": fastest, "parameters": sum(weight.numel() for weight in module.head.parameters())}


def _build_result(
    run: RunSpec, pair: TimedPair, measurement: Measurement[JsonObject], limits: Machine
) -> BenchmarkResult:
    seconds = measurement.value["seconds"]
    plain, whole = seconds["encode"] + seconds["cosine"], seconds["encode"] + seconds["head"]
    added = whole / plain - 1
    rows = [
        BenchmarkRow("seconds, two images to similarities", format_rate(plain), format_rate(whole), f"{added:+.2%}"),
        BenchmarkRow("  encoding", format_rate(seconds["encode"]), format_rate(seconds["encode"])),
        BenchmarkRow("  similarities", format_rate(seconds["cosine"]), format_rate(seconds["head"])),
        BenchmarkRow("weights of the head", "0", f"{measurement.value['parameters']:,}"),
        BenchmarkRow("peak memory in MB", "", measurement.description),
    ]
    caption = (
        f"{limits.description}. One pair, {pair.points} points; the fastest of {pair.tries} runs of each part, in "
        "turn. Imports, weights and decoding are not counted."
    )
    content = {
        "ratio": whole / plain,
        "added": added,
        "floor": None,
        **measurement.value,
        "peak": {"both": measurement.peak},
        "machine": limits.as_json(),
    }
    title = f"Run time that head={pair.head} adds: {' '.join(run.overrides)}"
    return BenchmarkResult(title, rows, caption, content, HEADERS)
