"""Pictures of pairs and similarity maps: the worst, and those that change most from the last run to the first."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int
from PIL import Image

from semcorr.cli.errors import user_message
from semcorr.core.text_files import JsonObject
from semcorr.data.record import PairRecord
from semcorr.engine.rebuild import rebuild_scored_module
from semcorr.engine.saved_config import drop_store
from semcorr.metrics.pck import Tolerance
from semcorr.metrics.predictions import Predictions, correct_per_pair, is_correct, read_predictions, split_by_spec
from semcorr.report.configurations import Configuration
from semcorr.report.confusion import keypoint_names_of
from semcorr.report.document import ReportFigure, ReportSection, format_percent
from semcorr.report.runs import FinishedRun
from semcorr.visualization import predictions as draw
from semcorr.visualization.similarity import SIMILARITY_LEGEND, choose_queries, plot_similarity_row

ALPHA = 0.1
PAIRS_PER_FIGURE = 6
LEGEND = (
    "Source left, target right; a line leads from each keypoint to where it was found: blue discs are right, red "
    f"crosses wrong. Rings of {ALPHA} of the extent, the tolerance, are drawn around the true points; a dashed line "
    "leads from that of a wrong match to where it was found."
)


def plot_examples(entries: Sequence[Configuration], pairs: Mapping[str, PairRecord] | str) -> ReportSection:
    """Plot the worst pairs and those that change most.

    Args:
        entries: The configurations, the best first.
        pairs: The benchmark's pairs by name, or the reason why they are not available.
    """
    text = "Numbers say how often; pictures say how."
    if isinstance(pairs, str):
        return ReportSection("Pairs", f"{text} They are left out: {pairs}.", [])
    figures = [_plot_worst(entries[0], pairs)]
    if len(entries) > 1:
        figures.append(_plot_changed(entries[-1], entries[0], pairs))
    return ReportSection("Pairs", text, figures)


def _plot_worst(entry: Configuration, pairs: Mapping[str, PairRecord]) -> ReportFigure:
    run = entry.runs[0]
    rows = run.evaluated.rows
    share, count = pair_scores(run)
    mean_error = np.bincount(rows.pair, rows.error, minlength=len(rows.pairs)) / count
    order = np.lexsort((-mean_error, share))
    chosen = distinct_target_pairs(rows, order)
    table = load_run_predictions(run)
    panels = [
        _render_panel(
            run,
            table,
            pairs[rows.pairs[i]],
            f"{rows.categories[rows.category[i]]}: {_format_score(float(share[i]), int(count[i]))}",
        )
        for i in chosen
    ]
    caption = (
        f"{entry.label}: the {len(chosen)} pairs with the lowest PCK at α = {ALPHA}, and among equals with the largest "
        f"mean error; each target image once. {LEGEND}"
    )
    return ReportFigure("The worst pairs", caption, panels, layout="wide")


def _plot_changed(last: Configuration, first: Configuration, pairs: Mapping[str, PairRecord]) -> ReportFigure:
    runs = last.runs[0], first.runs[0]
    (before, count), (after, _) = pair_scores(runs[0]), pair_scores(runs[1])
    rows = runs[0].evaluated.rows
    order = np.lexsort((-count, -np.abs(after - before)))
    tables = [load_run_predictions(run) for run in runs]
    panels = []
    for i in distinct_target_pairs(rows, order)[: PAIRS_PER_FIGURE // 2]:
        for run, table, share, name in zip(runs, tables, (before, after), (last.label, first.label), strict=True):
            text = f"{name}: {_format_score(float(share[i]), int(count[i]))}"
            panels.append(_render_panel(run, table, pairs[rows.pairs[i]], text))
    caption = (
        f"From the last configuration of the leaderboard ({last.label}) to its first ({first.label}): the pairs whose "
        f"PCK at α = {ALPHA} changes most, in either direction, with each target image once; two pictures per pair. "
        f"{LEGEND}"
    )
    return ReportFigure("What changes most", caption, panels, layout="wide")


def pair_scores(run: FinishedRun) -> tuple[Float[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """Compute the PCK of every pair, and the number of keypoints that it is computed from."""
    rows = run.evaluated.rows
    is_right = is_correct(rows, [ALPHA], Tolerance.of_metrics(run.metrics))
    correct, count = correct_per_pair(rows, is_right, np.ones_like(rows.ambiguous))
    return correct[0] / count, count


def distinct_target_pairs(rows: Predictions, order: Int[np.ndarray, " p"], limit: int = PAIRS_PER_FIGURE) -> list[int]:
    """Return the first pairs of an order that do not share a target image.

    Args:
        rows: Predictions of the pairs.
        order: Indices of pairs.
        limit: Largest number of pairs.
    """
    chosen: dict[int, int] = {}
    for i in order.tolist():
        chosen.setdefault(int(rows.target_image[i]), i)
        if len(chosen) == limit:
            break
    return list(chosen.values())


def load_run_predictions(run: FinishedRun) -> pa.Table:
    """Load the rows of the readout and protocol that the run reports."""
    table = read_predictions(run.folder / "predictions.parquet")
    return split_by_spec(table)[run.metrics["protocol"], run.metrics["localise"]]


def _render_panel(run: FinishedRun, table: pa.Table, pair: PairRecord, text: str) -> str:
    rows: list[JsonObject] = table.filter(pc.equal(table["pair"], pair.name)).to_pylist()
    names = f"{pair.source.name} to {pair.target.name}"
    image = draw.plot_pair(pair, rows, ALPHA, Tolerance.of_metrics(run.metrics))
    return f"{embed_image(image, names)}\n<p>{escape(text)}<br>{escape(names)}</p>"


def embed_image(image: Image.Image, text: str) -> str:
    """Encode an image as an HTML element that contains its data.

    Args:
        image: The image.
        text: Text in place of the image, which is escaped.
    """
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=84)
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(text)}" {size}>'


def _format_score(share: float, count: int) -> str:
    return f"{round(share * count)} of {count} right ({format_percent(share)} %)"


def plot_similarity_maps(
    entry: Configuration, pairs: Mapping[str, PairRecord], root: Path | None
) -> ReportFigure | str:
    """Plot similarity maps of a configuration, or return the reason why they cannot be computed again.

    Args:
        entry: The configuration, of which the first run is used.
        pairs: The benchmark's pairs by name.
        root: Folder of the benchmark; None, the one in the run's configuration.
    """
    run = entry.runs[0]
    rows = run.evaluated.rows
    cfg = run.cfg.copy()
    if root is not None:
        cfg.data.root = str(root)
    cfg.compile = None
    drop_store(cfg)
    try:
        module, data = rebuild_scored_module(run.folder, cfg)
    except Exception as error:  # an error in a part's arguments arrives wrapped in another exception
        if (reason := user_message(error, "evaluate")) is None:
            raise
        return reason
    queries = choose_queries(rows)
    module.eval()
    panels = []
    for row, kind in queries:
        pair = pairs[rows.pairs[rows.pair[row]]]
        image = plot_similarity_row(module, data, pair, int(rows.keypoint[row]), rows.predicted[row])
        keypoint = int(rows.keypoint[row])
        keypoint_name = keypoint_names_of(data.name, pair.category).get(keypoint, f"keypoint {keypoint}")
        text = f"{kind}: {keypoint_name}, off by {rows.error[row]:.2f} of the extent"
        names = f"{pair.source.name} to {pair.target.name}"
        panels.append(f"{embed_image(image, names)}\n<p>{escape(text)}<br>{escape(names)}</p>")
    caption = (
        f"{entry.label}: {SIMILARITY_LEGEND} Shown are keypoints of the geometry-aware subset with the largest "
        "errors, and others with the smallest; each target once."
    )
    return ReportFigure("Similarity maps", caption, panels, layout="wide")
