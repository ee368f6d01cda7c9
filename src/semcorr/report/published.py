"""Published results of a benchmark, and the axes in which their protocols differ from ours."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from semcorr.core.text_files import JsonObject
from semcorr.data.keypoints import benchmark_metadata
from semcorr.evaluation.protocols import AXES, PRESETS, Protocol

OFFICIAL = {"spair": "spair71k", "ap10k": "ap10k"}
NAMED = (*(axis for axis in AXES if axis != "pooling"), "clamp", "strict", "pooling")


class PublishedResult(NamedTuple):
    """A row of a published table; its values are fractions."""

    method: str
    values: Mapping[str, float]
    protocol: str | None  # the preset that follows the source's code; None if unknown
    pooling: str
    source: str


def published_sources() -> str:
    """Return the provenance of the published figures."""
    return str(_read_published()["provenance"])


def find_published(split: str, subset: str, protocol: str) -> list[PublishedResult]:
    """Find the published rows on a split whose PCK is of the protocol's kind: per image, or category means."""
    kind = "category" if protocol_by_name(protocol).pooling == "category" else "image"
    rows = []
    for table in _read_published()["tables"]:
        if (table["split"], table["subset"], table.get("pooling", "image")) != (split, subset, kind):
            continue
        for row in table["rows"]:
            values = dict(zip(table["alphas"], (value / 100 for value in row["values"]), strict=True))
            rows.append(PublishedResult(row["method"], values, row["protocol"], kind, row["source"]))
    return rows


def protocol_axes(protocols: Sequence[str]) -> list[list[str]]:
    """Tabulate name and axes of the protocols; from the second on, what differs from the first is marked.

    >>> [row[:4] for row in protocol_axes(["semcorr", "dift"])]
    [['semcorr', 'squash', 'exact', 'centre'], ['dift', 'squash', 'exact', 'centre']]
    >>> protocol_axes(["semcorr", "dift"])[1][4]
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


@cache
def _read_published() -> JsonObject:
    content: JsonObject = json.loads((files("semcorr.report") / "published.json").read_text(encoding="utf-8"))
    return content
