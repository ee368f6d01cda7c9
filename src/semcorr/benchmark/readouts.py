"""Evaluation by eleven readouts against evaluation by one: the same whole run, from files to predictions.parquet.

Both read the pair lists, encode every image, match, score, gather the table, and write it and its metrics. Neither
counts imports or loading the weights.
"""

from pathlib import Path

from omegaconf import DictConfig

from semcorr.benchmark.measurement import Machine, Measurement, measure, measure_machine, synchronised_time
from semcorr.benchmark.report import BenchmarkResult, BenchmarkRow, format_rate
from semcorr.benchmark.runs import RunSpec, compose_run
from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonObject
from semcorr.data.datamodule import PairDataModule
from semcorr.engine.module import CorrespondenceModule
from semcorr.matching.readouts import ReadoutList

SINGLE_READOUT = "window_15"
SEVERAL_READOUTS = (
    "window_15",
    "argmax",
    "soft",
    "window_3",
    "window_5",
    "window_9",
    "window_11",
    "window_17",
    "window_15_zero",
    "kernel_5",
    "kernel_7",
)
MAX_RATIO = 1.3  # times the seconds of one readout


def benchmark_readouts(run: RunSpec, split: str, tries: int, isolated: bool = True) -> BenchmarkResult:
    """Evaluate the same split by one and by eleven readouts, in turn; the fastest run of each counts.

    Args:
        run: The run.
        split: `train`, `val` or `test`.
        tries: Number of runs of each.
        isolated: Whether the measurement has a process of its own.

    Raises:
        UserError: `tries` is less than 1.
        RuntimeError: The readout that both have gives different scores.
    """
    if tries < 1:
        raise UserError(f"--tries must be at least 1, got {tries}")
    run = run.with_overrides(f"data.split={split}")
    limits = measure_machine(run.device)
    measurement = measure(run_both, run, tries, isolated=isolated)
    single, several = measurement.value
    if single["first"] != several["first"]:
        raise RuntimeError(f"{SINGLE_READOUT} scores {single['first']} alone and {several['first']} among others")
    return _build_result(run, measurement, several["seconds"]["all"] / single["seconds"]["all"], limits)


def run_both(run: RunSpec, tries: int) -> list[JsonObject]:
    """Measure the fastest run of each, by stage; both run in turn, so that other load of the machine affects both."""
    from semcorr.engine.build import build_module, build_protocols
    from semcorr.evaluation.protocols import build_scoring_specs

    runs: list[list[JsonObject]] = [[], []]
    with compose_run(
        "evaluate", run.with_overrides("localise=several", f"localise.rules=[{','.join(SEVERAL_READOUTS)}]")
    ) as cfg:
        module = build_module(cfg)
        for _ in range(tries):
            for results, names in zip(runs, ((SINGLE_READOUT,), SEVERAL_READOUTS), strict=True):
                module.set_specs(build_scoring_specs(build_protocols(cfg), ReadoutList(names))[0])
                results.append(_run_evaluation(run, cfg, module))
    return [min(results_of_list, key=lambda result: result["seconds"]["all"]) for results_of_list in runs]


def _run_evaluation(run: RunSpec, cfg: DictConfig, module: CorrespondenceModule) -> JsonObject:
    """Run an evaluation, from the annotations to its files."""
    from semcorr.engine.build import build_datamodule
    from semcorr.engine.trainer import build_trainer
    from semcorr.evaluation.results import write_results

    trainer = build_trainer(cfg, Path(cfg.run_dir))
    start = synchronised_time(run.device)
    data = build_datamodule(cfg, "data", ("test",))
    assert isinstance(data, PairDataModule)
    data.fit_backbone(module.backbone)
    trainer.test(module, datamodule=data, verbose=False)
    metrics = write_results(module.result, data, Path(cfg.run_dir), 0)
    seconds = {"all": synchronised_time(run.device) - start, **module.result.seconds}
    return {"seconds": seconds, "pairs": metrics["pairs"], "first": metrics["pck"]["all"]["image"]}


def _build_result(
    run: RunSpec, measurement: Measurement[list[JsonObject]], ratio: float, limits: Machine
) -> BenchmarkResult:
    single, several = measurement.value
    single_seconds, several_seconds = single["seconds"], several["seconds"]
    rows = [
        BenchmarkRow("", "one readout", f"{len(SEVERAL_READOUTS)} readouts"),
        BenchmarkRow(
            "seconds in all",
            format_rate(single_seconds["all"]),
            format_rate(several_seconds["all"]),
            f"{ratio:.2f}, at most {MAX_RATIO}",
        ),
        *(
            BenchmarkRow(f"  {stage}", format_rate(single_seconds[stage]), format_rate(several_seconds[stage]))
            for stage in ("encode", "match")
        ),
        BenchmarkRow(
            "  everything else",
            *(
                format_rate(seconds["all"] - seconds["encode"] - seconds["match"])
                for seconds in (single_seconds, several_seconds)
            ),
        ),
        BenchmarkRow("peak memory in MB", "", measurement.description),
    ]
    content = {
        "ratio": ratio,
        "floor": None,
        "one": single,
        "many": several,
        "rules": list(SEVERAL_READOUTS),
        "peak": {"both": measurement.peak},
        "machine": limits.as_json(),
    }
    title = f"{len(SEVERAL_READOUTS)} readouts of {single['pairs']:,} pairs beside one: {' '.join(run.overrides)}"
    return BenchmarkResult(title, rows, f"{limits.description}. Imports and weights are not counted.", content)
