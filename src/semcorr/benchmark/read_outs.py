"""Evaluation by eleven read-outs against evaluation by one: the same whole run, from files to predictions.parquet.

Both read the pair lists, encode every image, match, score, gather the table, write it and its metrics. Neither counts
imports or the weights.
"""

from pathlib import Path
from typing import Any

from semcorr.benchmark.measure import Measured, machine, measured, now
from semcorr.benchmark.report import Outcome, Row, rate
from semcorr.benchmark.runs import Wanted, configured
from semcorr.errors import UserError

ONE = "window_15"
MANY = (
    "window_15", "argmax", "soft", "window_3", "window_5", "window_9", "window_11", "window_17", "window_15_zero",
    "kernel_5", "kernel_7",
)  # fmt: skip
ALLOWED = 1.3  # times the seconds of one read-out


def read_outs(run: Wanted, split: str, tries: int, apart: bool = True) -> Outcome:
    """The same split by one and by eleven; the best of some tries each."""
    if tries < 1:
        raise UserError(f"--tries must be at least 1, got {tries}")
    run = run.plus(f"data.split={split}")
    limits = machine(run.device)
    one, many = (measured(run_rules, run, rules, tries, apart=apart) for rules in ((ONE,), MANY))
    ratio = many.value["seconds"]["all"] / one.value["seconds"]["all"]
    if one.value["first"] != many.value["first"]:
        raise RuntimeError(f"{ONE} scores {one.value['first']} alone and {many.value['first']} among others")
    return _outcome(run, one, many, ratio, limits.told, limits.as_json())


def run_rules(run: Wanted, rules: tuple[str, ...], tries: int) -> dict[str, Any]:
    """Seconds of the fastest run, by stage."""
    from semcorr.results import write_results
    from semcorr.run import assembled, benchmark, make_trainer

    found: list[dict[str, Any]] = []
    with configured("evaluate", run.plus("localise=several", f"localise.rules=[{','.join(rules)}]")) as cfg:
        module = assembled(cfg)
        for _ in range(tries):
            trainer = make_trainer(cfg, Path(cfg.run_dir))
            start = now(run.device)
            data = benchmark(cfg, "data", ("test",))
            data.size, data.pixels = module.backbone.size, module.backbone.pairwise
            trainer.test(module, datamodule=data, verbose=False)
            metrics = write_results(module, data, Path(cfg.run_dir))
            seconds = {"all": now(run.device) - start, **module.seconds}
            found.append({"seconds": seconds, "pairs": metrics["pairs"], "first": metrics["pck"]["all"]["image"]})
    return min(found, key=lambda each: each["seconds"]["all"])


def _outcome(run: Wanted, one: Measured, many: Measured, ratio: float, told: str, limits: dict[str, Any]) -> Outcome:
    alone, all_of = one.value["seconds"], many.value["seconds"]
    rows = [
        Row("", "one read-out", f"{len(MANY)} read-outs"),
        Row("seconds in all", rate(alone["all"]), rate(all_of["all"]), f"{ratio:.2f}, at most {ALLOWED}"),
        *(
            Row(f"  {stage}", rate(alone[stage]), rate(all_of[stage]), f"{all_of[stage] / alone[stage]:.2f}")
            for stage in ("encode", "match")
        ),
        Row("  everything else", *(rate(s["all"] - s["encode"] - s["match"]) for s in (alone, all_of))),
        Row("peak memory in MB", one.told, many.told),
    ]  # fmt: skip
    content = {
        "ratio": ratio, "floor": None, "one": one.value, "many": many.value, "rules": list(MANY),
        "peak": {"one": one.peak, "many": many.peak}, "machine": limits,
    }  # fmt: skip
    title = f"{len(MANY)} read-outs of {one.value['pairs']:,} pairs beside one: {' '.join(run.overrides)}"
    return Outcome(title, rows, f"{told}. Imports and weights are not counted.", content)
