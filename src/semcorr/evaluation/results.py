"""Results of an evaluation: metrics.json, predictions.parquet, matches.png, and tables for the terminal."""

import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from rich.table import Table

from semcorr.core.errors import UserError
from semcorr.core.files import write_json
from semcorr.core.terminal import Terminal, escape_controls
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.data.datamodule import PairDataModule
from semcorr.evaluation.evaluator import EvaluationResult
from semcorr.evaluation.pose.alignment import pose_summary
from semcorr.evaluation.summary import format_intervals, kap_summary, summarise_predictions
from semcorr.metrics.pck import SUBSETS
from semcorr.metrics.predictions_table import write_predictions
from semcorr.visualization import predictions as draw

log = logging.getLogger(__name__)

# Tables beside the predictions: the key in metrics.json, and the function that summarises them.
BESIDE: dict[str, tuple[str, Callable[[pa.Table], JsonObject]]] = {
    "poses": ("pose", pose_summary),
    "detections": ("kap", kap_summary),
}


def write_results(result: EvaluationResult, data: PairDataModule, run_dir: Path, trained_parameters: int) -> JsonObject:
    """Write metrics.json, predictions.parquet and matches.png, and return the metrics.

    metrics.json is the last file that a finished run needs. The picture is written after it, since a run does not
    depend on it.

    Args:
        result: Result of the evaluation.
        data: The benchmark.
        run_dir: Folder of the run.
        trained_parameters: Number of parameters that were trained.
    """
    predictions, first = result.tables["predictions"], result.specs[0]
    table = predictions
    is_first = pc.and_(pc.equal(table["localise"], first.localise), pc.equal(table["protocol"], first.protocol.name))
    table = table.filter(is_first)
    metrics = {
        **result.scores,
        "pairs": len(set(table["pair"].to_pylist())),
        "keypoints": table.num_rows,
        "images": len({*table["source"].to_pylist(), *table["target"].to_pylist()}),
        "protocol": first.protocol.name,
        "resize": data.resize,
        "localise": first.localise,
        "split": f"{data.name} {data.split}",
        "trained_parameters": trained_parameters,
        "seconds": {key: round(value, 3) for key, value in result.seconds.items()},
        **summarise_predictions(table, data, result.grid, first.protocol.strict),
    }
    for name, (key, summarise) in BESIDE.items():
        if name in result.tables:
            metrics[key] = summarise(result.tables[name])
            write_predictions(result.tables[name], run_dir / f"{name}.parquet")
    write_predictions(predictions, run_dir / "predictions.parquet")
    write_json(run_dir / "metrics.json", metrics, "run_dir")
    scored_pairs = set(table["pair"].to_pylist())
    displayed = draw.evenly_spaced([pair for pair in data.pairs(data.split) if pair.name in scored_pairs])
    write_picture(run_dir / "matches.png", lambda: draw.plot_predictions(displayed, table))
    return metrics


def write_picture(path: Path, make: Callable[[], Image.Image]) -> None:
    """Draw and write a picture of a run, or warn that it could not be: figures do not depend on it.

    Args:
        path: The file.
        make: Function that draws the picture.
    """
    try:
        draw.save_plot(make(), path)
    except (OSError, UserError, MemoryError, Image.DecompressionBombError) as error:
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        log.warning("%s is not drawn (%s). All else of the run is there", path.name, escape_controls(reason))


def print_scores(metrics: JsonMapping, title: str) -> None:
    """Print rows all/geo/std, columns alpha, per image and per point, in percent."""
    alphas = list(metrics["pck"]["all"]["image"])
    table = Table(
        title=title,
        caption=f"PCK in percent at alpha = ...; {metrics['pairs']} pairs, {metrics['localise']}\n"
        f"{format_intervals(metrics)}",
    )
    for header in ("", "", *alphas):
        table.add_column(header, justify="right" if header else "left")
    for by in ("image", "point"):
        for subset in SUBSETS:
            values = [metrics["pck"][subset][by][alpha] for alpha in alphas]
            table.add_row(f"per {by}", subset, *("-" if v is None else f"{100 * v:.1f}" for v in values))
        table.add_section()
    Terminal().print(table)
    if "protocols" in metrics:
        print_protocols(metrics["protocols"], metrics["pairs"])
    if "read_outs" in metrics:
        print_read_outs(metrics["read_outs"], metrics["pairs"])


def print_protocols(scores: JsonMapping, pairs: int) -> None:
    """Print one row per protocol and read-out, all from the same features."""
    alphas = list(next(iter(next(iter(scores.values())).values()))["headline"])
    table = Table(
        title="Protocols", caption=f"PCK in percent at alpha = ..., each as it is pooled there; {pairs} pairs"
    )
    for header in ("", "read-out", "pooled by", *alphas):
        table.add_column(header, justify="right" if header in alphas else "left")
    for name, readouts in scores.items():
        for readout, metrics in readouts.items():
            values = ("-" if v is None else f"{100 * v:.1f}" for v in metrics["headline"].values())
            table.add_row(name, readout, metrics["pooling"], *values)
    Terminal().print(table)


def print_read_outs(scores: JsonMapping, pairs: int, alpha: str = "0.1") -> None:
    """Print one row per read-out, all from the same similarities."""
    table = Table(title="Read-outs", caption=f"PCK@{alpha} per image in percent; {pairs} pairs")
    for header in ("", *SUBSETS):
        table.add_column(header, justify="right" if header else "left")
    for readout, pck in scores.items():
        values = [pck[subset]["image"][alpha] for subset in SUBSETS]
        table.add_row(readout, *("-" if v is None else f"{100 * v:.1f}" for v in values))
    Terminal().print(table)
