"""Similarity maps of a few points: where the features of the target resemble those of the marked point."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

from semcorr.cli.errors import user_message
from semcorr.data.record import PairRecord
from semcorr.engine.rebuild import rebuild_scored_module
from semcorr.engine.saved_config import drop_store
from semcorr.report.configurations import Configuration
from semcorr.report.confusion import keypoint_names_of
from semcorr.report.document import ReportFigure
from semcorr.report.examples import embed_image
from semcorr.visualization.similarity import LEGEND, choose_queries, plot_similarity


def plot_similarity_maps(
    entry: Configuration, pairs: Mapping[str, PairRecord], root: Path | None
) -> ReportFigure | str:
    """Plot similarity maps of a configuration, or return the reason why they cannot be computed again."""
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
        image = plot_similarity(module, data, pair, int(rows.keypoint[row]), rows.predicted[row])
        keypoint = int(rows.keypoint[row])
        keypoint_name = keypoint_names_of(data.name, pair.category).get(keypoint, f"keypoint {keypoint}")
        text = f"{kind}: {keypoint_name}, off by {rows.error[row]:.2f} of the extent"
        names = f"{pair.source.name} to {pair.target.name}"
        panels.append(f"{embed_image(image, names)}\n<p>{escape(text)}<br>{escape(names)}</p>")
    caption = (
        f"{entry.label}: {LEGEND} Shown are keypoints of the geometry-aware subset with the largest errors, and others "
        "with the smallest; each target once."
    )
    return ReportFigure("Similarity maps", caption, panels, layout="wide")
