"""What an evaluation leaves behind: metrics.json, predictions.parquet, matches.png, and a table to read."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from semcorr import draw
from semcorr.data.datamodule import PairDataModule
from semcorr.metrics.pck import SUBSETS
from semcorr.metrics.table import write
from semcorr.module import Correspondence
from semcorr.pose.adaptive import chosen
from semcorr.read_outs import described


def write_results(module: Correspondence, data: PairDataModule, run_dir: Path) -> dict[str, Any]:
    """metrics.json, predictions.parquet and matches.png; the metrics."""
    table = module.table
    shown_by = described(module.localise)
    table = table.filter(pc.equal(table["localise"], shown_by))
    metrics = {
        **module.scores,
        "pairs": len(set(table["pair"].to_pylist())),
        "keypoints": table.num_rows,
        "images": len({*table["source"].to_pylist(), *table["target"].to_pylist()}),
        "protocol": "semcorr",
        "localise": shown_by,
        "split": f"{data.name} {data.split}",
        "trained_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "seconds": {key: round(value, 3) for key, value in module.seconds.items()},
    }
    write(module.table, run_dir / "predictions.parquet")
    if module.poses is not None:
        metrics["pose"] = chosen(module.poses)
        write(module.poses, run_dir / "poses.parquet")
    scored = set(table["pair"].to_pylist())
    shown = draw.spread([pair for pair in data.pairs(data.split) if pair.name in scored])
    draw.save(draw.page(shown, table), run_dir / "matches.png")
    write_text(run_dir / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    return metrics


def print_scores(metrics: Mapping[str, Any], title: str) -> None:
    """Rows all/geo/std, columns alpha, per image and per point, in percent."""
    alphas = list(metrics["pck"]["all"]["image"])
    table = Table(
        title=title, caption=f"PCK in percent at alpha = ...; {metrics['pairs']} pairs, {metrics['localise']}"
    )
    for header in ("", "", *alphas):
        table.add_column(header, justify="right" if header else "left")
    for by in ("image", "point"):
        for subset in SUBSETS:
            values = [metrics["pck"][subset][by][alpha] for alpha in alphas]
            table.add_row(f"per {by}", subset, *("-" if v is None else f"{100 * v:.1f}" for v in values))
        table.add_section()
    Console().print(table)
    if "read_outs" in metrics:
        print_read_outs(metrics["read_outs"], metrics["pairs"])


def print_read_outs(scores: Mapping[str, Any], pairs: int, alpha: str = "0.1") -> None:
    """One row per read-out, from the same similarities."""
    table = Table(title="Read-outs", caption=f"PCK@{alpha} per image in percent; {pairs} pairs")
    for header in ("", *SUBSETS):
        table.add_column(header, justify="right" if header else "left")
    for rule, pck in scores.items():
        values = [pck[subset]["image"][alpha] for subset in SUBSETS]
        table.add_row(rule, *("-" if v is None else f"{100 * v:.1f}" for v in values))
    Console().print(table)


def write_text(path: Path, text: str) -> None:
    """Write beside, then rename: a killed run leaves no half-written file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
