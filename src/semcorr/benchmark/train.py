"""Training steps per second with frozen blocks computed at every step or cached, and on all pairs of a batch.

Both runs see the same batches and must have the same losses. Steps are timed one by one, the median counts, and the
time to fill the cache is reported separately.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from lightning import Callback, LightningModule, Trainer

from semcorr.benchmark.measurement import Machine, Measurement, measure, measure_machine, synchronised_time
from semcorr.benchmark.report import BenchmarkResult, BenchmarkRow, format_rate, format_ratio
from semcorr.benchmark.runs import RunSpec, compose_run
from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonObject
from semcorr.core.types import ImageBatch, PairBatch
from semcorr.data.datamodule import PairDataModule
from semcorr.data.image_variants import ImageVariant
from semcorr.store.encode import ProcessGroup
from semcorr.store.frozen import FrozenPrefix

SAME = 1e-5  # largest relative difference of the losses of both runs, in single precision
WARMUP_STEPS = 2  # steps that are not timed: loaders start and memory is allocated


class TrainingSteps(NamedTuple):
    """The number of steps, trainable blocks and pairs of the measured training."""

    steps: int  # steps of each run
    blocks: int  # last blocks of the backbone that are trained
    pairs: int  # pairs of a batch
    workers: int | None  # loader processes; None, as many as loading finds best


def benchmark_training(run: RunSpec, spec: TrainingSteps, isolated: bool = True) -> BenchmarkResult:
    """Train without and with the cache, and then on all pairs of as many images."""
    if spec.steps <= WARMUP_STEPS or spec.pairs < 1 or spec.blocks < 1:
        raise UserError(
            f"--steps must be more than {WARMUP_STEPS}, --pairs and --blocks at least 1; got {spec.steps}, "
            f"{spec.pairs} and {spec.blocks}"
        )
    workers = "null" if spec.workers is None else spec.workers
    run = run.with_overrides(
        f"finetune.blocks={spec.blocks}",
        f"data.steps={spec.steps}",
        f"data.batch_size={spec.pairs}",
        f"data.workers={workers}",
        "trainer.max_epochs=1",
        "+trainer.limit_val_batches=0",
        "+trainer.enable_checkpointing=false",
    )
    limits = measure_machine(run.device)
    uncached = measure(run_steps, run.with_overrides("store.place=off"), isolated=isolated)
    cached = measure(run_steps, run, isolated=isolated)
    all_pairs = measure(run_steps, run.with_overrides(f"data.all_pairs={2 * spec.pairs}"), isolated=isolated)
    return _build_result(run, spec, limits, uncached, cached, all_pairs)


class StepTimer(Callback):
    """A callback that records when each step ended, its loss and its number of pairs.

    Args:
        device: `cpu` or `cuda`, whose work is waited for.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.pairs: list[int] = []

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: object, batch: PairBatch | ImageBatch, batch_idx: int
    ) -> None:
        """Record when the step ended, its loss and its number of pairs."""
        assert isinstance(outputs, Mapping)
        self.ends.append(synchronised_time(self.device))
        self.losses.append(float(outputs["loss"]))
        self.pairs.append(count_pairs(batch))


class TimedPrefix(FrozenPrefix):
    """Frozen blocks of a module that measure how long it takes to fill their cache."""

    def __init__(self, frozen: FrozenPrefix, device: str) -> None:
        super().__init__(frozen.backbone, frozen.cache_config, frozen.key)
        self.device, self.seconds = device, 0.0

    def fill(
        self,
        images: Sequence[ImageVariant],
        data: PairDataModule,
        group: ProcessGroup,
        context: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """Compute the values that are not cached yet, and add up the seconds.

        Args:
            images: Images whose values are computed.
            data: The benchmark, which loads them.
            group: Processes that share the work.
            context: Function that returns the context of the computation, which sets its precision.
        """
        start = synchronised_time(self.device)
        super().fill(images, data, group, context)
        self.seconds += synchronised_time(self.device) - start


def count_pairs(batch: PairBatch | ImageBatch) -> int:
    """Count the pairs of a batch; of a batch of images, the ordered pairs that have something to train on."""
    if isinstance(batch, PairBatch):
        return len(batch.pair)
    return len(batch.queries[:, [0, 2]].unique(dim=0))


def run_steps(run: RunSpec) -> JsonObject:
    """Measure the seconds of a step and of filling the cache, the losses, the pairs of a step and the depth."""
    from semcorr.engine.build import build_datamodule_and_module, build_training_parts, use_cached_features
    from semcorr.engine.trainer import build_trainer

    with compose_run("train", run) as cfg:
        module, data = build_datamodule_and_module(cfg, ("fit",), build_training_parts(cfg))
        assert isinstance(data, PairDataModule)
        use_cached_features(module, data)
        timer, frozen = StepTimer(run.device), TimedPrefix(module.frozen, run.device)
        module.frozen = frozen
        trainer = build_trainer(cfg, Path(cfg.run_dir), callbacks=[timer])
        trainer.fit(module, datamodule=data)
        steps = [
            end - start for start, end in zip(timer.ends[WARMUP_STEPS - 1 :], timer.ends[WARMUP_STEPS:], strict=False)
        ]
        return {
            "step": statistics.median(steps),
            "filling": frozen.seconds,
            "losses": timer.losses,
            "pairs": statistics.mean(timer.pairs[WARMUP_STEPS:]),
            "depth": len(module.backbone.blocks),
        }


def largest_difference(losses: list[float], others: list[float]) -> float:
    """Return the largest relative difference of two lists of losses.

    >>> largest_difference([1.0, 2.0], [1.0, 2.002])
    0.000999...
    """
    return max(abs(a - b) / max(abs(a), abs(b)) for a, b in zip(losses, others, strict=True))


def speedup_bound(depth: int, trainable: int) -> float:
    """Bound the speed-up of a step: backward costs two forwards, and runs through the trainable blocks only.

    >>> round(speedup_bound(12, 2), 2), round(speedup_bound(12, 1), 2)
    (2.67, 4.67)
    """
    return (depth + 2 * trainable) / (3 * trainable)


def _build_result(
    run: RunSpec,
    spec: TrainingSteps,
    limits: Machine,
    uncached: Measurement[JsonObject],
    cached: Measurement[JsonObject],
    all_pairs: Measurement[JsonObject],
) -> BenchmarkResult:
    largest = largest_difference(uncached.value["losses"], cached.value["losses"])
    if largest > SAME:
        raise RuntimeError(f"the losses of both runs differ by {largest:.2e}, relatively; {SAME} are allowed")
    depth, step, steps = cached.value["depth"], cached.value["step"], spec.steps
    ratio, bound = uncached.value["step"] / step, speedup_bound(depth, spec.blocks)
    per_second = [value["pairs"] / value["step"] for value in (cached.value, all_pairs.value)]
    rows = [
        BenchmarkRow(
            "steps/s, frozen blocks: at each step, kept",
            format_rate(1 / uncached.value["step"]),
            format_rate(1 / step),
            format_ratio(ratio),
            format_ratio(bound),
        ),
        BenchmarkRow("seconds to compute ahead", "0", format_rate(cached.value["filling"])),
        BenchmarkRow("pays off after steps", "", _break_even(uncached.value["step"] - step, cached.value["filling"])),
        *[
            BenchmarkRow(
                f"loss of step {i + 1}", f"{uncached.value['losses'][i]:.6f}", f"{cached.value['losses'][i]:.6f}"
            )
            for i in sorted({0, steps // 2, steps - 1})
        ],
        BenchmarkRow("largest relative difference of a loss", "", f"{largest:.1e}", "", f"{SAME:.0e}"),
        BenchmarkRow(
            f"pairs/s of {2 * spec.pairs} images: {spec.pairs} pairs, all",
            format_rate(per_second[0]),
            format_rate(per_second[1]),
            format_ratio(per_second[1] / per_second[0]),
            format_ratio(all_pairs.value["pairs"] / spec.pairs),
        ),
        BenchmarkRow("peak memory in MB", uncached.description, cached.description),
        BenchmarkRow("peak memory in MB, all pairs", cached.description, all_pairs.description),
    ]
    caption = (
        f"{limits.description}. Median of {steps - WARMUP_STEPS} steps. Floor: {depth} blocks forward and "
        f"{spec.blocks} back against {spec.blocks} forward and back, backward as two forwards; of all pairs, steps "
        "that cost the same."
    )
    content = {
        "ratio": ratio,
        "steps_per_second": 1 / step,
        "naive_steps_per_second": 1 / uncached.value["step"],
        "floor": {"ratio": bound, "reached": ratio / bound},
        "filling_seconds": cached.value["filling"],
        "losses": {"naive": uncached.value["losses"], "ours": cached.value["losses"], "relative_difference": largest},
        "all_pairs": {
            "ratio": per_second[1] / per_second[0],
            "pairs_per_second": per_second,
            "pairs": all_pairs.value["pairs"],
        },
        "peak": {"naive": uncached.peak, "ours": cached.peak, "all_pairs": all_pairs.peak},
        "machine": limits.as_json(),
    }
    return BenchmarkResult(
        f"Training of {spec.blocks} of {depth} blocks: {' '.join(run.overrides)}", rows, caption, content
    )


def _break_even(saved: float, filling: float) -> str:
    return f"{filling / saved:,.0f}" if saved > 0 else "never"
