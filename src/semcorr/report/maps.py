"""Similarity maps of a few points: where the features of the target look like the marked one."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

from semcorr.audit import built
from semcorr.cli import explained
from semcorr.data.record import PairRecord
from semcorr.report.confused import names_of
from semcorr.report.entries import Entry
from semcorr.report.parts import Figure
from semcorr.report.pictures import embedded
from semcorr.saved_config import drop_store
from semcorr.similarity_map import LEGEND, drawn, queries


def similarity_maps(entry: Entry, pairs: Mapping[str, PairRecord], root: Path | None) -> Figure | str:
    """Of the best configuration; or why it cannot be computed again."""
    run = entry.runs[0]
    rows = run.evaluated.rows
    cfg = run.cfg.copy()
    if root is not None:
        cfg.data.root = str(root)
    cfg.compile = None
    drop_store(cfg)
    try:
        module, data = built(run.folder, cfg)
    except Exception as error:  # a mistake in a part's arguments comes wrapped
        if (reason := explained(error, "evaluate")) is None:
            raise
        return reason
    chosen = queries(rows)
    module.eval()
    panels = []
    for row, kind in chosen:
        pair = pairs[rows.pairs[rows.pair[row]]]
        image = drawn(module, data, pair, int(rows.keypoint[row]), rows.predicted[row])
        keypoint = int(rows.keypoint[row])
        named = names_of(data.name, pair.category).get(keypoint, f"keypoint {keypoint}")
        said = f"{kind}: {named}, off by {rows.error[row]:.2f} of the extent"
        about = f"{pair.source.name} to {pair.target.name}"
        panels.append(f"{embedded(image, about)}\n<p>{escape(said)}<br>{escape(about)}</p>")
    caption = (
        f"{entry.label}: {LEGEND} Shown are keypoints of the geometry-aware subset with the largest errors, and others "
        "with the smallest; each target once."
    )
    return Figure("Similarity maps", caption, panels, layout="wide")
