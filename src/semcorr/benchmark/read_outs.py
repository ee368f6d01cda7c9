"""Evaluation by eleven read-outs against evaluation by one: the same whole run, from files to predictions.parquet.

Both read the pair lists, encode every image, match, score, gather the table, write it and its metrics. Neither counts
imports or the weights.
"""

from pathlib import Path
from typing import Any

from semcorr.benchmark.measure import Machine, Measured, machine, measured, now
from semcorr.benchmark.report import Outcome, Row, rate
from semcorr.benchmark.runs import Wanted, configured
from semcorr.errors import UserError
from semcorr.read_outs import Several

ONE = "window_15"
MANY = (
    "window_15", "argmax", "soft", "window_3", "window_5", "window_9", "window_11", "window_17", "window_15_zero",
    "kernel_5", "kernel_7",
)  # fmt: skip
ALLOWED = 1.3  # times the seconds of one read-out


def read_outs(run: Wanted, split: str, tries: int, apart: bool = True) -> Outcome:
    """The same split by one and by eleven, in turn; the best of some tries each."""
    if tries < 1:
        raise UserError(f"--tries must be at least 1, got {tries}")
    run = run.plus(f"data.split={split}")
    limits = machine(run.device)
    found = measured(run_both, run, tries, apart=apart)
    one, many = found.value
    if one["first"] != many["first"]:
        raise RuntimeError(f"{ONE} scores {one['first']} alone and {many['first']} among others")
    return _outcome(run, found, many["seconds"]["all"] / one["seconds"]["all"], limits)


def run_both(run: Wanted, tries: int) -> list[dict[str, Any]]:
    """Seconds of the fastest run of each, by stage. In turn: what else the machine does is then shared."""
    from semcorr.readings import readings
    from semcorr.run import assembled, protocols

    found: list[list[dict[str, Any]]] = [[], []]
    with configured("evaluate", run.plus("localise=several", f"localise.rules=[{','.join(MANY)}]")) as cfg:
        module = assembled(cfg)
        for _ in range(tries):
            for into, names in zip(found, ((ONE,), MANY), strict=True):
                module.readings, module.localise = readings(protocols(cfg), Several(names))
                into.append(_whole(run, cfg, module))
    return [min(each, key=lambda one: one["seconds"]["all"]) for each in found]


def _whole(run: Wanted, cfg: Any, module: Any) -> dict[str, Any]:
    """An evaluation, from the annotations to its files."""
    from semcorr.results import write_results
    from semcorr.run import benchmark, make_trainer

    trainer = make_trainer(cfg, Path(cfg.run_dir))
    start = now(run.device)
    data = benchmark(cfg, "data", ("test",))
    data.size, data.pixels = module.backbone.size, module.backbone.pairwise
    trainer.test(module, datamodule=data, verbose=False)
    metrics = write_results(module, data, Path(cfg.run_dir))
    seconds = {"all": now(run.device) - start, **module.seconds}
    return {"seconds": seconds, "pairs": metrics["pairs"], "first": metrics["pck"]["all"]["image"]}


def _outcome(run: Wanted, found: Measured, ratio: float, limits: Machine) -> Outcome:
    one, many = found.value
    alone, all_of = one["seconds"], many["seconds"]
    rows = [
        Row("", "one read-out", f"{len(MANY)} read-outs"),
        Row("seconds in all", rate(alone["all"]), rate(all_of["all"]), f"{ratio:.2f}, at most {ALLOWED}"),
        *(Row(f"  {stage}", rate(alone[stage]), rate(all_of[stage])) for stage in ("encode", "match")),
        Row("  everything else", *(rate(s["all"] - s["encode"] - s["match"]) for s in (alone, all_of))),
        Row("peak memory in MB", "", found.told),
    ]
    content = {
        "ratio": ratio, "floor": None, "one": one, "many": many, "rules": list(MANY),
        "peak": {"both": found.peak}, "machine": limits.as_json(),
    }  # fmt: skip
    title = f"{len(MANY)} read-outs of {one['pairs']:,} pairs beside one: {' '.join(run.overrides)}"
    return Outcome(title, rows, f"{limits.told}. Imports and weights are not counted.", content)
