"""Ours beside what was published, and ours in full."""

from collections.abc import Sequence

from semcorr.metrics.pck import SUBSETS
from semcorr.report.entries import Entry
from semcorr.report.parts import NONE, Section, Table, between, percent, spread
from semcorr.report.published import Published, differences, provenance, published, whole

BESIDE = ("0.01", "0.05", "0.1")  # alphas that others publish
SUBSET_NAMES = {"all": "all keypoints", "geo": "geometry-aware subset", "std": "the rest"}


def leaderboard(entries: Sequence[Entry]) -> Section:
    """One table per subset that anybody published, then all our numbers."""
    first = entries[0].runs[0].metrics
    protocol, split = first["protocol"], first["split"]
    tables = []
    for subset in ("all", "geo"):
        theirs = published(split, subset, protocol)
        if theirs:
            tables.append(_beside(entries, subset, theirs))
    text = (
        f"All runs of this report are scored by the protocol `{protocol}`. A published figure was measured by the code "
        "of its authors: the last column names the axes on which that code differs from ours, or says that the source "
        "does not state them. docs/protocols.md explains every axis and how far it moves a number."
        if tables
        else f"Nothing that was published on `{split}` is known to this report, so ours stand alone."
    )
    return Section("Leaderboard", text, [*tables, _full(entries)])


def _beside(entries: Sequence[Entry], subset: str, theirs: Sequence[Published]) -> Table:
    first = entries[0].runs[0].metrics
    partly = whole(first["split"], first["pairs"])
    lines: list[tuple[float, bool, list[str]]] = []
    for entry in entries:
        values = [entry.headline(a) if subset == "all" else entry.value(subset, a) for a in BESIDE]
        cells = [f"{entry.label} (this report)", *(spread(value) for value in values), partly or NONE]
        lines.append((values[-1].mean or 0.0, True, cells))
    for row in theirs:
        known = [row.values.get(alpha) for alpha in BESIDE]
        told = differences(first["protocol"], row.protocol) or NONE
        named = f"{row.protocol}: {told}" if row.protocol and told != NONE else (row.protocol or told)
        lines.append((known[-1] or 0.0, False, [row.method, *map(percent, known), f"{row.source}; {named}"]))
    lines.sort(key=lambda line: (-line[0], line[2][0]))
    caption = (
        f"PCK in percent on {first['split']}, {SUBSET_NAMES[subset]}, "
        f"{'category means' if theirs[0].pooling == 'category' else 'per image'}; sorted by α = 0.1. "
        f"Ours (marked): {_pooled(entries, subset)}, {first['pairs']:,} pairs"
        + (f": only {partly} of the benchmark, so our rows are not comparable with the others. " if partly else ". ")
        + "(S): trained with keypoints. "
        + f"Sources: {provenance()}."
    )
    title = "Ours and the published figures" + ("" if subset == "all" else ", geometry-aware subset")
    columns = ["method", *(f"PCK@{alpha}" for alpha in BESIDE), "source; protocol and where it differs from ours"]
    rows = [cells for _, _, cells in lines]
    return Table(
        f"published_{subset}", title, caption, columns, rows, ours=[i for i, (_, o, _) in enumerate(lines) if o]
    )


def _pooled(entries: Sequence[Entry], subset: str) -> str:
    pooling = entries[0].runs[0].metrics["pooling"]
    named = {"image": "per image", "point": "per point", "category": "mean over categories, per point"}
    return named.get(pooling, "category means weighted by pairs") if subset == "all" else "per image"


def _full(entries: Sequence[Entry]) -> Table:
    first = entries[0].runs[0].metrics
    alphas = list(first["pck"]["all"]["image"])
    rows = []
    for entry in entries:
        for by in ("image", "point"):
            for subset in SUBSETS:
                values = [entry.value(subset, alpha, by) for alpha in alphas]
                end = entry.value(subset, "0.1", by).interval
                rows.append([entry.label, str(len(entry.runs)), by, subset, *map(spread, values), between(end)])
    columns = ["configuration", "seeds", "per", "subset", *(f"α = {alpha}" for alpha in alphas), "95 % at 0.1"]
    caption = (
        f"PCK in percent on {first['split']} under protocol {first['protocol']}: {first['pairs']:,} pairs of "
        f"{first['images']:,} images. Per image: the share of each pair's keypoints, averaged over pairs; per point: over all "
        "keypoints. geo: keypoints with a twin in the target that could be taken for them; std: the others. With "
        "several seeds: mean ± standard deviation over seeds. The interval is over images (resampled), not over seeds"
        + ("; its ends are means over the seeds." if any(len(entry.runs) > 1 for entry in entries) else ".")
    )
    return Table("ours", "Ours in full", caption, columns, rows, words=4)
