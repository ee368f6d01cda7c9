"""The leaderboard: this report's runs beside published figures, and this report's runs in full."""

from collections.abc import Sequence

from semcorr.metrics.pck import SUBSETS
from semcorr.report.configurations import Configuration
from semcorr.report.document import ReportSection, ReportTable, format_interval, format_percent, format_spread
from semcorr.report.published import (
    NAMED,
    PublishedResult,
    describe_part,
    find_published,
    protocol_axes,
    published_sources,
)

BESIDE = ("0.01", "0.05", "0.1")  # alphas of the published figures
SUBSET_NAMES = {"all": "all keypoints", "geo": "geometry-aware subset", "std": "the rest"}


def build_leaderboard(entries: Sequence[Configuration]) -> ReportSection:
    """Build one table per subset with published figures, and the tables of all numbers of this report's runs."""
    first = entries[0].runs[0].metrics
    protocol, split = first["protocol"], first["split"]
    published = {subset: rows for subset in ("all", "geo") if (rows := find_published(split, subset, protocol))}
    if not published:
        text = f"Nothing that was published on `{split}` is known to this report, so ours stand alone."
        return ReportSection("Leaderboard", text, [_build_full_table(entries), _build_full_table(entries, "point")])
    tables = [_build_published_table(entries, subset, rows) for subset, rows in published.items()]
    text = (
        f"All runs of this report are scored by the protocol `{protocol}`. The published figures were measured by "
        "their authors' own code, which differs: the table of protocols names every axis, and docs/protocols.md "
        "says how far each moves a number."
    )
    return ReportSection(
        "Leaderboard",
        text,
        [
            *tables,
            _build_protocol_table(protocol, [*published["all"]]),
            _build_full_table(entries),
            _build_full_table(entries, "point"),
        ],
    )


def _build_published_table(
    entries: Sequence[Configuration], subset: str, published: Sequence[PublishedResult]
) -> ReportTable:
    first = entries[0].runs[0].metrics
    part = describe_part(first["split"], first["pairs"])
    lines: list[tuple[float, bool, list[str]]] = []
    for entry in entries:
        statistics = [entry.headline(a) if subset == "all" else entry.value(subset, a) for a in BESIDE]
        source = f"this report, {part}" if part else "this report"
        cells = [entry.label, *(format_spread(value) for value in statistics), first["protocol"], source]
        lines.append((statistics[-1].mean or 0.0, True, cells))
    for row in published:
        values = [row.values.get(alpha) for alpha in BESIDE]
        differs = "" if row.protocol in (None, first["protocol"]) else " ≠"
        protocol = f"{row.protocol}{differs}" if row.protocol else "not stated"
        lines.append((values[-1] or 0.0, False, [row.method, *map(format_percent, values), protocol, row.source]))
    lines.sort(key=lambda line: (-line[0], line[2][0]))
    caption = (
        f"PCK in percent on {first['split']}, {SUBSET_NAMES[subset]}, "
        f"{'category means' if published[0].pooling == 'category' else 'per image'}; sorted by α = 0.1. Ours (`this "
        f"report`) are pooled {_describe_pooling(entries, subset)}. "
        + (f"Ours are of {part}: not comparable with the rest, which are of the whole benchmark. " if part else "")
        + "≠: measured by a protocol that differs from ours. (S): trained with annotated keypoints. "
        + f"Sources: {published_sources()}."
    )
    title = "Ours and the published figures" + ("" if subset == "all" else ", geometry-aware subset")
    columns = ["method", *(f"PCK@{alpha}" for alpha in BESIDE), "protocol", "source"]
    ours = [i for i, (_, is_ours, _) in enumerate(lines) if is_ours]
    return ReportTable(
        f"published_{subset}", title, caption, columns, [cells for *_, cells in lines], notes=2, ours=ours
    )


def _build_protocol_table(ours: str, published: Sequence[PublishedResult]) -> ReportTable:
    names = list(dict.fromkeys([ours, *sorted({row.protocol for row in published if row.protocol})]))
    columns = ["protocol", *("clamped" if axis == "clamp" else axis for axis in NAMED)]
    caption = (
        "What lies between a similarity map and a number, axis by axis; ≠ marks what differs from ours (first row), "
        "whose definition holds for any resize. "
        "resize: how an image fills its square; scaling: of points; lookup: where the source is read; decode: from "
        "cells back to pixels; frame: where distances are measured; clamped: points are kept inside the view; strict: "
        "right if the error is less than α, not at most α; pooling: how pairs become one number."
    )
    rows = protocol_axes(names)
    return ReportTable("protocols", "How the protocols differ", caption, columns, rows, words=len(columns), ours=[0])


def _describe_pooling(entries: Sequence[Configuration], subset: str) -> str:
    pooling = entries[0].runs[0].metrics["pooling"]
    names = {"image": "per image", "point": "per point", "category": "over categories of their means per point"}
    return names.get(pooling, "over categories weighted by pairs") if subset == "all" else "per image"


def _build_full_table(entries: Sequence[Configuration], by: str = "image") -> ReportTable:
    first = entries[0].runs[0].metrics
    alphas = list(first["pck"]["all"]["image"])
    rows = []
    for entry in entries:
        for subset in SUBSETS:
            values = [entry.value(subset, alpha, by) for alpha in alphas]
            interval = entry.value(subset, "0.1", by).interval
            rows.append([entry.label, subset, *map(format_spread, values), format_interval(interval)])
    columns = ["configuration", "subset", *(f"α = {alpha}" for alpha in alphas), "95 % at 0.1"]
    definition = (
        "the share of each pair's keypoints that is right, averaged over pairs"
        if by == "image"
        else "over all keypoints"
    )
    has_std = any(len(entry.runs) > 1 for entry in entries)
    caption = (
        f"PCK in percent on {first['split']} under protocol {first['protocol']}, per {by}: {definition}; "
        f"{first['pairs']:,} pairs of {first['images']:,} images. geo: keypoints with a twin in the target that "
        "could be taken for them, as a left and a right eye; std: the others. The interval is over images, which are "
        "resampled"
        + (", not over seeds; its ends are means over the seeds. ±: standard deviation over seeds." if has_std else ".")
    )
    return ReportTable(f"ours_{by}", f"Ours in full, per {by}", caption, columns, rows, words=2, folded=by == "point")
