"""Training steps per second with frozen blocks computed at every step and with their output kept; all pairs of a batch.

Both runs see the same batches and must have the same losses. Steps are timed one by one: the median counts, and what
is computed ahead is told apart.
"""

import statistics
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Callback

from semcorr.benchmark.measurement import Machine, Measurement, measure, measure_machine, synchronised_time
from semcorr.benchmark.report import BenchmarkResult, BenchmarkRow, format_rate, format_ratio
from semcorr.benchmark.runs import RunSpec, compose_run
from semcorr.core.errors import UserError

SAME = 1e-5  # largest relative difference of the losses of both runs, in single precision
WARM = 2  # steps that are not timed: loaders start, memory is taken


class TrainingSteps(NamedTuple):
    """What is trained."""

    steps: int
    blocks: int
    pairs: int  # of a batch
    workers: int | None


def benchmark_training(run: RunSpec, asked: TrainingSteps, apart: bool = True) -> BenchmarkResult:
    """Without and with what is kept; then all pairs of as many images."""
    if asked.steps <= WARM or asked.pairs < 1 or asked.blocks < 1:
        raise UserError(
            f"--steps must be more than {WARM}, --pairs and --blocks at least 1; got {asked.steps}, {asked.pairs} "
            f"and {asked.blocks}"
        )
    workers = "null" if asked.workers is None else asked.workers
    run = run.plus(
        f"finetune.blocks={asked.blocks}", f"data.steps={asked.steps}", f"data.batch_size={asked.pairs}",
        f"data.workers={workers}", "trainer.max_epochs=1", "+trainer.limit_val_batches=0",
        "+trainer.enable_checkpointing=false",
    )  # fmt: skip
    limits = measure_machine(run.device)
    again = measure(run_steps, run.plus("store.place=off"), apart=apart)
    kept = measure(run_steps, run, apart=apart)
    every = measure(run_steps, run.plus(f"data.all_pairs={2 * asked.pairs}"), apart=apart)
    return _outcome(run, asked, limits, again, kept, every)


class StepTimer(Callback):
    """When each step ended, and its loss."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.pairs: list[int] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Remember."""
        self.ends.append(synchronised_time(self.device))
        self.losses.append(float(outputs["loss"]))
        self.pairs.append(count_pairs(batch))


def count_pairs(batch: Any) -> int:
    """Of a batch of pairs; ordered pairs with something to train on of a batch of images."""
    if hasattr(batch, "pair"):
        return len(batch.pair)
    return len(batch.queries[:, [0, 2]].unique(dim=0))


def run_steps(run: RunSpec) -> dict[str, Any]:
    """Seconds of a step, of what is computed ahead, the losses, and what a step consists of."""
    from semcorr.engine.build import (
        build_datamodule_and_module,
        build_trainer,
        build_training_parts,
        use_cached_features,
    )

    with compose_run("train", run) as cfg:
        module, data = build_datamodule_and_module(cfg, ("fit",), build_training_parts(cfg))
        assert isinstance(data, PairDataModule)
        use_cached_features(module, data)
        clock, fill, filling = StepTimer(run.device), module.frozen.fill, [0.0]

        def timed(*args: Any) -> None:
            start = synchronised_time(run.device)
            fill(*args)
            filling[0] += synchronised_time(run.device) - start

        module.frozen.fill = timed  # type: ignore[method-assign,assignment]
        trainer = build_trainer(cfg, Path(cfg.run_dir), callbacks=[clock])
        trainer.fit(module, datamodule=data)
        steps = [end - start for start, end in zip(clock.ends[WARM - 1 :], clock.ends[WARM:], strict=False)]
        return {
            "step": statistics.median(steps), "filling": filling[0], "losses": clock.losses,
            "pairs": statistics.mean(clock.pairs[WARM:]), "depth": len(module.backbone.blocks),
        }  # fmt: skip


def largest_difference(losses: list[float], others: list[float]) -> float:
    """The largest relative one.

    >>> largest_difference([1.0, 2.0], [1.0, 2.002])
    0.000999...
    """
    return max(abs(a - b) / max(abs(a), abs(b)) for a, b in zip(losses, others, strict=True))


def speedup_bound(depth: int, moving: int) -> float:
    """How many times faster a step can become: backward costs two forwards, and is through moving blocks only.

    >>> round(speedup_bound(12, 2), 2), round(speedup_bound(12, 1), 2)
    (2.67, 4.67)
    """
    return (depth + 2 * moving) / (3 * moving)


def _outcome(
    run: RunSpec, asked: TrainingSteps, limits: Machine, again: Measurement, kept: Measurement, every: Measurement
) -> BenchmarkResult:
    apart = largest_difference(again.value["losses"], kept.value["losses"])
    if apart > SAME:
        raise RuntimeError(f"the losses of both runs differ by {apart:.2e}, relatively; {SAME} are allowed")
    depth, step, steps = kept.value["depth"], kept.value["step"], asked.steps
    ratio, most = again.value["step"] / step, speedup_bound(depth, asked.blocks)
    per_second = [one["pairs"] / one["step"] for one in (kept.value, every.value)]
    rows = [
        BenchmarkRow("steps/s, frozen blocks: at each step, kept", format_rate(1 / again.value["step"]),
            format_rate(1 / step), format_ratio(ratio), format_ratio(most)),
        BenchmarkRow("seconds to compute ahead", "0", format_rate(kept.value["filling"])),
        BenchmarkRow("pays off after steps", "", _pays(again.value["step"] - step, kept.value["filling"])),
        *[BenchmarkRow(f"loss of step {i + 1}", f"{again.value['losses'][i]:.6f}", f"{kept.value['losses'][i]:.6f}")
          for i in sorted({0, steps // 2, steps - 1})],
        BenchmarkRow("largest relative difference of a loss", "", f"{apart:.1e}", "", f"{SAME:.0e}"),
        BenchmarkRow(f"pairs/s of {2 * asked.pairs} images: {asked.pairs} pairs, all", format_rate(per_second[0]),
            format_rate(per_second[1]), format_ratio(per_second[1] / per_second[0]),
            format_ratio(every.value["pairs"] / asked.pairs)),
        BenchmarkRow("peak memory in MB", again.description, kept.description),
        BenchmarkRow("peak memory in MB, all pairs", kept.description, every.description),
    ]  # fmt: skip
    caption = (
        f"{limits.description}. Median of {steps - WARM} steps. Floor: {depth} blocks forward and {asked.blocks} back "
        f"against {asked.blocks} forward and back, backward as two forwards; of all pairs, steps that cost the same."
    )
    content = {
        "ratio": ratio, "steps_per_second": 1 / step, "naive_steps_per_second": 1 / again.value["step"],
        "floor": {"ratio": most, "reached": ratio / most}, "filling_seconds": kept.value["filling"],
        "losses": {"naive": again.value["losses"], "ours": kept.value["losses"], "relative_difference": apart},
        "all_pairs": {
            "ratio": per_second[1] / per_second[0], "pairs_per_second": per_second, "pairs": every.value["pairs"],
        },
        "peak": {"naive": again.peak, "ours": kept.peak, "all_pairs": every.peak}, "machine": limits.as_json(),
    }  # fmt: skip
    return BenchmarkResult(
        f"Training of {asked.blocks} of {depth} blocks: {' '.join(run.overrides)}", rows, caption, content
    )


def _pays(saved: float, filling: float) -> str:
    return f"{filling / saved:,.0f}" if saved > 0 else "never"
