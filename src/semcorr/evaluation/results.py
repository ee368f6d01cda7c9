"""Results of an evaluation: their summary, the files of a run directory, and tables for the terminal."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from rich.table import Table

from semcorr.core.errors import UserError
from semcorr.core.files import write_json
from semcorr.core.terminal import Terminal, escape_controls
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.data.datamodule import PairDataModule
from semcorr.data.heldout_keypoints import list_heldout
from semcorr.data.record import PairRecord
from semcorr.data.views import fit_to_square
from semcorr.evaluation.evaluator import EvaluationResult
from semcorr.evaluation.pose.alignment import pose_summary
from semcorr.metrics.breakdown import (
    LABELS,
    category_mean,
    nearest_centres,
    pck_by_class,
    pck_by_domains,
    pck_from_predictions,
    pck_of_heldout,
    sensitivity,
    subset_proportions,
)
from semcorr.metrics.confidence import pck_intervals
from semcorr.metrics.confusion import is_own_nearest, left_right_confusion, target_landmarks
from semcorr.metrics.kap import KAP_ALPHAS, keypoint_average_precision
from semcorr.metrics.pck import ALPHAS, INCLUSIVE, SUBSETS, Tolerance, normalised_error
from semcorr.metrics.predictions import Predictions, is_correct, load_predictions, write_predictions
from semcorr.visualization import predictions as draw

SUMMARY_ALPHA = 0.1  # the alpha of intervals and classes


def summarise_predictions(
    table: pa.Table, data: PairDataModule, grid: tuple[int, int] | None, tolerance: Tolerance = INCLUSIVE
) -> JsonObject:
    """Compute what metrics.json holds beside `pck`, from the rows of one readout under one protocol.

    Args:
        table: Rows of the predictions.
        data: The benchmark.
        grid: Columns and rows of the similarities; None where features were matched at the image's own resolution.
        tolerance: The protocol's comparison of errors with alpha.
    """
    rows = load_predictions(table)
    records = {pair.name: pair for pair in data.pairs(data.split)}
    pairs = [records[name] for name in rows.pairs]
    correct = is_correct(rows, ALPHAS, tolerance)
    flips = {pair.category: pair.flip for pair in pairs if pair.flip is not None}
    halves: JsonObject = {}
    if data.heldout_keypoints is not None:
        of_category = {pair.category: pair for pair in pairs}
        heldout = {name: list_heldout(data.heldout_keypoints, pair) for name, pair in of_category.items()}
        halves["heldout_keypoints"] = pck_of_heldout(rows, heldout, ALPHAS, correct)
    return {
        **halves,
        "intervals": pck_intervals(rows, correct[[ALPHAS.index(SUMMARY_ALPHA)]], [SUMMARY_ALPHA]),
        "category_mean": category_mean(pck_from_predictions(rows, ALPHAS, correct)["category"]),
        "dagger": pck_from_predictions(rows, ALPHAS, correct & is_own_nearest(rows))["pck"],
        "geometry_aware": subset_proportions(rows),
        "left_right": left_right_confusion(rows, target_landmarks(rows, pairs), flips),
        "ceiling": None if grid is None else quantisation_ceiling(rows, pairs, data.size, data.resize, grid),
        "classes": pck_by_classes(rows, pairs, tolerance),
    }


def quantisation_ceiling(
    rows: Predictions, pairs: Sequence[PairRecord], side: int, resize: str, grid: tuple[int, int]
) -> JsonObject:
    """Compute the PCK of the best cell centre for every keypoint, under our own protocol.

    Args:
        rows: Predictions, of which only the keypoints matter.
        pairs: Records of the pairs, in the order of `rows.pairs`.
        side: Side of the square that images are resized to, in pixels.
        resize: Placing of the images in their squares, as `data.resize` takes it.
        grid: Columns and rows of the similarities.
    """
    fits = [fit_to_square(pair.target.size, side, resize) for pair in pairs]
    scale = torch.tensor([fit.scale for fit in fits], dtype=torch.double)[rows.pair]
    offset = torch.tensor([fit.offset for fit in fits], dtype=torch.double)[rows.pair]
    truth = torch.from_numpy(rows.target)[:, None]
    best = nearest_centres(truth, scale, offset, grid, side / grid[0])
    error = normalised_error(best, truth, torch.from_numpy(rows.extent))[:, 0].numpy()
    return pck_from_predictions(rows._replace(predicted=best[:, 0].numpy(), error=error))["pck"]


def pck_by_classes(rows: Predictions, pairs: Sequence[PairRecord], tolerance: Tolerance = INCLUSIVE) -> JsonObject:
    """Compute PCK by each kind of class that at least one pair's annotation has; and the sensitivity to the azimuth.

    Args:
        rows: Predictions of one readout and protocol.
        pairs: Records of the pairs.
        tolerance: The protocol's comparison of errors with alpha.
    """
    metrics: JsonObject = {}
    correct = is_correct(rows, [SUMMARY_ALPHA], tolerance)
    for kind, names in LABELS.items():
        labels = {pair.name: pair.details.get(kind) for pair in pairs}
        if any(value is not None for value in labels.values()):
            metrics[kind] = pck_by_class(rows, labels, names, [SUMMARY_ALPHA], correct)
    if "azimuth_difference" in metrics:
        metrics["azimuth_sensitivity"] = sensitivity(metrics["azimuth_difference"], LABELS["azimuth_difference"])
    domains = {pair.name: (pair.details.get("source_domain"), pair.details.get("target_domain")) for pair in pairs}
    if any(source and target for source, target in domains.values()):
        metrics["domains"] = pck_by_domains(rows, domains, [SUMMARY_ALPHA], correct)
    return metrics


def kap_summary(detections: pa.Table) -> JsonObject:
    """Compute KAP at every alpha, by its definition and as released."""
    return {
        name: {f"{alpha:g}": keypoint_average_precision(detections, alpha, released) for alpha in KAP_ALPHAS}
        for name, released in (("definition", False), ("released", True))
    }


def format_intervals(metrics: JsonMapping) -> str:
    """Format the intervals of the three subsets, per image, in one line."""
    alpha = f"{SUMMARY_ALPHA:g}"
    intervals = {subset: metrics["intervals"][subset]["image"][alpha] for subset in SUBSETS}
    if not any(intervals.values()):
        return "no intervals: too few images"
    parts = (
        f"{subset} {100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
        for subset, interval in intervals.items()
        if interval
    )
    return f"per image at {alpha}, 95 % over images: {', '.join(parts)}"


log = logging.getLogger(__name__)

# Tables beside the predictions: the key in metrics.json, and the function that summarises them.
EXTRA_TABLES: dict[str, tuple[str, Callable[[pa.Table], JsonObject]]] = {
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
        trained_parameters: Number of parameters that were trained, for metrics.json.
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
        "cells": None if result.grid is None else [*result.grid],
        "localise": first.localise,
        "split": f"{data.name} {data.split}",
        "trained_parameters": trained_parameters,
        "seconds": {key: round(value, 3) for key, value in result.seconds.items()},
        **({"corruption": data.corruption.to_dict()} if data.corruption else {}),
        **summarise_predictions(table, data, result.grid, first.protocol.tolerance),
    }
    for name, (key, summarise) in EXTRA_TABLES.items():
        if name in result.tables:
            metrics[key] = summarise(result.tables[name])
            write_predictions(result.tables[name], run_dir / f"{name}.parquet")
    write_predictions(predictions, run_dir / "predictions.parquet")
    write_json(run_dir / "metrics.json", metrics, "run_dir")
    scored_pairs = set(table["pair"].to_pylist())
    displayed = draw.evenly_spaced([pair for pair in data.pairs(data.split) if pair.name in scored_pairs])
    tolerance = first.protocol.tolerance
    write_picture(
        run_dir / "matches.png", lambda: draw.plot_predictions(displayed, table, SUMMARY_ALPHA, tolerance=tolerance)
    )
    return metrics


def write_picture(path: Path, make_picture: Callable[[], Image.Image]) -> None:
    """Draw and write a picture of a run, or warn that it could not be: figures do not depend on it.

    Args:
        path: The file.
        make_picture: Function that draws the picture.
    """
    try:
        draw.save_plot(make_picture(), path)
    except (OSError, UserError, MemoryError, Image.DecompressionBombError) as error:
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        log.warning("%s is not drawn (%s). All else of the run is there", path.name, escape_controls(reason))


def print_scores(metrics: JsonMapping, title: str) -> None:
    """Print rows all/geo/std, columns alpha, per image and per point, in percent."""
    alphas = list(metrics["pck"]["all"]["image"])
    table = Table(
        title=title + format_corruption(metrics),
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
    Terminal().print_table(table)
    if "domains" in metrics.get("classes", {}):
        print_domains(metrics["classes"]["domains"])
    if "protocols" in metrics:
        print_protocols(metrics["protocols"], metrics["pairs"])
    if "read_outs" in metrics:
        print_subsets("Readouts", metrics["read_outs"], f"{metrics['pairs']} pairs")
    if "heldout_keypoints" in metrics:
        halves = metrics["heldout_keypoints"]
        counts = ", ".join(f"{scores['keypoints']} {name.replace('_', ' ')}" for name, scores in halves.items())
        print_subsets("Held-out keypoints", halves, f"keypoints: {counts}")


def format_corruption(metrics: JsonMapping) -> str:
    """Format what was done to the images that were scored, after the title of a table; nothing if nothing was.

    >>> format_corruption({"corruption": {"kind": "fog", "severity": 3, "images": "target"}})
    ', target corrupted: fog, severity 3'
    """
    if (corruption := metrics.get("corruption")) is None:
        return ""
    images = "images" if corruption["images"] == "both" else corruption["images"]
    return f", {images} corrupted: {corruption['kind']}, severity {corruption['severity']}"


def print_domains(classes: JsonMapping, alpha: str = "0.1") -> None:
    """Print a row for each domain of sources, a column for each domain of targets."""
    scores = {(c["source"], c["target"]): c["image"][alpha] for name, c in classes.items() if name != "unknown"}
    sources, targets = (sorted({domain_pair[side] for domain_pair in scores}) for side in (0, 1))
    table = Table(title="Across domains", caption=f"PCK@{alpha} per image in percent; rows sources, columns targets")
    for header in ("", *map(escape_controls, targets)):
        table.add_column(header, justify="right" if header else "left")
    for source in sources:
        values = [scores.get((source, target)) for target in targets]
        table.add_row(escape_controls(source), *("-" if v is None else f"{100 * v:.1f}" for v in values))
    Terminal().print_table(table)


def print_protocols(scores: JsonMapping, pairs: int) -> None:
    """Print one row per protocol and readout, all from the same features."""
    alphas = list(next(iter(next(iter(scores.values())).values()))["headline"])
    table = Table(
        title="Protocols", caption=f"PCK in percent at alpha = ..., each as it is pooled there; {pairs} pairs"
    )
    for header in ("", "readout", "pooled by", *alphas):
        table.add_column(header, justify="right" if header in alphas else "left")
    for name, readouts in scores.items():
        for readout, metrics in readouts.items():
            values = ("-" if v is None else f"{100 * v:.1f}" for v in metrics["headline"].values())
            table.add_row(name, readout, metrics["pooling"], *values)
    Terminal().print_table(table)


def print_subsets(title: str, scores: JsonMapping, counts: str, alpha: str = "0.1") -> None:
    """Print one row per name, a column for each subset of keypoints.

    Args:
        title: Title of the table.
        scores: PCK of each name.
        counts: Text with the numbers of pairs or keypoints, for the caption.
        alpha: Tolerance of the scores that are printed, as metrics.json writes it.
    """
    table = Table(title=title, caption=f"PCK@{alpha} per image in percent; {counts}")
    for header in ("", *SUBSETS):
        table.add_column(header, justify="right" if header else "left")
    for name, pck in scores.items():
        values = [pck[subset]["image"][alpha] for subset in SUBSETS]
        table.add_row(name, *("-" if v is None else f"{100 * v:.1f}" for v in values))
    Terminal().print_table(table)
