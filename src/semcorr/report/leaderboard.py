"""The leaderboard: runs beside published figures, and every part of every configuration."""

from collections.abc import Sequence

from semcorr.core.text_files import JsonObject
from semcorr.data.keypoints import benchmark_metadata
from semcorr.evaluation.protocols import AXES, PRESETS, Protocol
from semcorr.metrics.pck import SUBSETS
from semcorr.report.configurations import ALPHA, Configuration, SeedStatistics, format_value
from semcorr.report.document import NONE, ReportSection, ReportTable, format_interval, format_percent, format_spread
from semcorr.report.published import CONFIGURATION, PublishedResult, find_published, published_sources
from semcorr.report.robustness import is_corrupted

OFFICIAL = {"spair": "spair71k", "ap10k": "ap10k"}
NAMED = (*(axis for axis in AXES if axis != "pooling"), "clamp", "strict", "pooling")


def protocol_axes(protocols: Sequence[str]) -> list[list[str]]:
    """Tabulate name and axes of the protocols; from the second on, what differs from the first is marked.

    >>> [row[:4] for row in protocol_axes(["semcorr", "dift"])]
    [['semcorr', 'squash', 'annotated', 'exact'], ['dift', 'squash', 'annotated', 'exact']]
    >>> protocol_axes(["semcorr", "dift"])[1][7]
    '≠ native'
    """
    first = protocol_by_name(protocols[0])
    rows = []
    for name in protocols:
        protocol = protocol_by_name(name)
        values = [_format_axis(protocol, axis) for axis in NAMED]
        same = [getattr(protocol, axis) == getattr(first, axis) or (axis == "resize" and first.exact) for axis in NAMED]
        rows.append([name, *(value if is_same else f"≠ {value}" for value, is_same in zip(values, same, strict=True))])
    return rows


def protocol_by_name(name: str) -> Protocol:
    """Return a protocol by the name that tables show, changed axes included.

    >>> protocol_by_name("geoaware (strict=False)").strict
    False
    """
    from dataclasses import replace

    base, _, changed = name.removesuffix(")").partition(" (")
    preset = next((candidate for candidate in PRESETS if candidate.name == base), None)
    if preset is None:
        return Protocol(name)
    axes = dict(part.split("=", 1) for part in changed.split(", ")) if changed else {}
    values: JsonObject = {k: v == "True" if v in ("True", "False") else v for k, v in axes.items()}
    return replace(preset, **values)


def describe_part(split: str, pairs: int) -> str:
    """Describe the part of a benchmark that a run has scored; empty if it is whole, or if no official count is known.

    AP-10K's pairs depend on the file system's order of names: its counts vary a little and have a tolerance.

    >>> describe_part("spair test", 600), describe_part("spair test", 12234)
    ('600 of 12,234 pairs', '')
    """
    benchmark, _, part = split.partition(" ")
    counts = benchmark_metadata(OFFICIAL[benchmark])["official"] if benchmark in OFFICIAL else {"pairs": {}}
    official = counts["pairs"].get(part)
    if official is None or abs(pairs - official) <= counts.get("tolerance", 0) * official:
        return ""
    return f"{pairs:,} of {official:,} pairs"


def _format_axis(protocol: Protocol, axis: str) -> str:
    value = getattr(protocol, axis)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


SUBSET_NAMES = {"all": "all keypoints", "geo": "geometry-aware subset", "std": "the rest"}
POOLINGS = {"image": "per image", "point": "per point", "category": "category means"}
TITLES = {
    ("all", "image"): "",
    ("geo", "image"): ", geometry-aware subset",
    ("all", "point"): ", per point",
    ("all", "category"): "",
}


def build_leaderboard(entries: Sequence[Configuration]) -> ReportSection:
    """Build one table per subset and pooling with published figures, and the tables of all numbers of these runs."""
    first = entries[0].runs[0].metrics
    protocol, split = first["protocol"], first["split"]
    is_macro = protocol_by_name(protocol).pooling == "category"
    kinds = [("all", "category")] if is_macro else [("all", "image"), ("geo", "image"), ("all", "point")]
    published = {kind: rows for kind in kinds if (rows := find_published(split, *kind))}
    comparable = [entry for entry in entries if not is_corrupted(entry)]
    if not published or not comparable:
        known = f"Nothing that was published on `{split}` is known to this report, so ours stand alone."
        text = "All images were corrupted, and published figures are of clean ones." if published else known
        return ReportSection("Leaderboard", text, [_build_full_table(entries), _build_full_table(entries, "point")])
    tables = [_build_published_table(comparable, subset, rows) for (subset, _), rows in published.items()]
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
            _build_protocol_table(protocol, [row for rows in published.values() for row in rows]),
            _build_full_table(entries),
            _build_full_table(entries, "point"),
        ],
    )


def _build_published_table(
    entries: Sequence[Configuration], subset: str, published: Sequence[PublishedResult]
) -> ReportTable:
    first = entries[0].runs[0].metrics
    part, pooling = describe_part(first["split"], first["pairs"]), published[0].pooling
    alphas = [alpha for alpha in first["pck"]["all"]["image"] if any(alpha in row.values for row in published)]
    lines: list[tuple[float, bool, str, list[str], dict[str, str], list[str]]] = []
    for entry in entries:
        statistics = [_pool(entry, subset, alpha, pooling) for alpha in alphas]
        notes = [first["protocol"], f"this report, {part}" if part else "this report"]
        best = _pool(entry, subset, ALPHA, pooling).mean or 0.0
        lines.append((best, True, entry.label, [*map(format_spread, statistics)], _describe_parts(entry), notes))
    for row in published:
        differs = "" if row.protocol in (None, first["protocol"]) else " ≠"
        notes = [f"{row.protocol}{differs}" if row.protocol else "not stated", row.source]
        cells = [format_percent(row.values.get(alpha)) for alpha in alphas]
        lines.append((row.values.get(ALPHA, 0.0), False, row.method, cells, dict(row.configuration), notes))
    lines.sort(key=lambda line: (-line[0], line[2], line[-1]))
    known = [name for name in CONFIGURATION if any(name in row.configuration for row in published)]
    caption = (
        f"PCK in percent on {first['split']}, {SUBSET_NAMES[subset]}, {POOLINGS[pooling]}, ours (`this report`) and "
        f"the published ones alike; sorted by α = {ALPHA}. "
        + (f"Ours are of {part}: not comparable with the rest, which are of the whole benchmark. " if part else "")
        + "≠: measured by a protocol that differs from ours. (S), and supervision by keypoints: trained with annotated "
        "keypoints; weak: with class labels, pairs of images or masks; none: as pre-trained. What a source does not "
        f"state is left empty. Sources: {published_sources()}."
    )
    title = "Ours and the published figures" + TITLES[subset, pooling]
    columns = ["method", *(f"PCK@{alpha}" for alpha in alphas), *known, "protocol", "source"]
    return ReportTable(
        f"published_{subset}" + ("_point" if pooling == "point" else ""),
        title,
        caption,
        columns,
        [[name, *cells, *(parts.get(key, NONE) for key in known), *notes] for _, _, name, cells, parts, notes in lines],
        notes=2 + len(known),
        ours=[i for i, (_, is_ours, *_) in enumerate(lines) if is_ours],
    )


def _pool(entry: Configuration, subset: str, alpha: str, pooling: str) -> SeedStatistics:
    """Return the PCK pooled as published figures are; the mean over categories is the headline of its protocol."""
    return entry.headline(alpha) if pooling == "category" else entry.value(subset, alpha, pooling)


def _describe_parts(entry: Configuration) -> dict[str, str]:
    """Describe a configuration in the columns of the published ones."""
    is_trained = bool(entry.runs[0].metrics["trained_parameters"])
    parts = {"backbone": entry.name, "supervision": "trained" if is_trained else "none"}
    for name, key in (("head", "head._target_"), ("data", "data._target_"), ("resolution", "backbone.size")):
        if entry.settings.get(key) is not None and (is_trained or name != "data"):
            parts[name] = format_value(key, entry.settings[key])
    return parts


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


def _build_full_table(entries: Sequence[Configuration], by: str = "image") -> ReportTable:
    first = entries[0].runs[0].metrics
    alphas = list(first["pck"]["all"]["image"])
    rows = []
    for entry in entries:
        for subset in SUBSETS:
            values = [entry.value(subset, alpha, by) for alpha in alphas]
            interval = entry.value(subset, ALPHA, by).interval
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


PARTS = {
    "size": "backbone.size",
    "layers": "backbone.layers",
    "tuned": "finetune._target_",
    "head": "head._target_",
    "resize": "resize",
    "weights": "weights",
}


def build_settings_table(entries: Sequence[Configuration]) -> ReportSection:
    """Build a table with a row per configuration."""
    rows = []
    for number, entry in enumerate(entries, 1):
        cells = [str(number), entry.label, ", ".join(str(run.cfg.get("seed")) for run in entry.runs)]
        for name, key in PARTS.items():
            value = entry.settings.get(key)
            cell = NONE if value is None else format_value(key, value)
            if name == "tuned" and cell == "last_blocks":
                blocks = entry.settings.get("finetune.blocks")
                cell = f"last {blocks} blocks" if blocks else "frozen"
            cells.append(cell)
        versions = {str(run.cfg.provenance.get("git") or NONE)[:7] for run in entry.runs}
        rows.append([*cells, str(entry.runs[0].metrics["localise"]), ", ".join(sorted(versions))])
    caption = (
        "size: side of the square that images are resized to, in pixels; layers: whose outputs are the features; "
        "weights: the first digits of their SHA-256; code: the git revision of semcorr. config.yaml in each run's "
        "folder has every other setting."
    )
    columns = ["place", "configuration", "seeds", *PARTS, "readout", "code"]
    table = ReportTable("configurations", "Configurations", caption, columns, rows, words=len(columns))
    text = "All that a number depends on is in the run's own files; this is the part of it that tells runs apart."
    return ReportSection("What was run", text, [table])
