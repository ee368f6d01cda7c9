"""What was published on a benchmark, and in what it was measured otherwise than ours."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from semcorr.data.keypoints import benchmark_metadata
from semcorr.evaluation.protocols import AXES, PRESETS, Protocol

OFFICIAL = {"spair": "spair71k", "ap10k": "ap10k"}
NAMED = (*(axis for axis in AXES if axis != "pooling"), "clamp", "strict", "pooling")


class PublishedResult(NamedTuple):
    """A row of somebody's table, in fractions."""

    method: str
    values: Mapping[str, float]
    protocol: str | None  # of ours, the one that follows the source's code
    pooling: str
    source: str


def published_sources() -> str:
    """Where the figures are from."""
    return str(_content()["provenance"])


def find_published(split: str, subset: str, protocol: str) -> list[PublishedResult]:
    """Rows on a split that are a PCK of the same kind: per image, or category means beside category means."""
    kind = "category" if protocol_by_name(protocol).pooling == "category" else "image"
    rows = []
    for table in _content()["tables"]:
        if (table["split"], table["subset"], table.get("pooling", "image")) != (split, subset, kind):
            continue
        for row in table["rows"]:
            values = dict(zip(table["alphas"], (value / 100 for value in row["values"]), strict=True))
            rows.append(PublishedResult(row["method"], values, row["protocol"], kind, row["source"]))
    return rows


def protocol_axes(protocols: Sequence[str]) -> list[list[str]]:
    """Every protocol's name and axes; from the second on, what differs from the first is marked.

    >>> [row[:4] for row in protocol_axes(["semcorr", "dift"])]
    [['semcorr', 'squash', 'exact', 'centre'], ['dift', 'squash', 'exact', 'centre']]
    >>> protocol_axes(["semcorr", "dift"])[1][4]
    '≠ native'
    """
    first = protocol_by_name(protocols[0])
    rows = []
    for name in protocols:
        one = protocol_by_name(name)
        own = [_value(one, axis) for axis in NAMED]
        same = [getattr(one, axis) == getattr(first, axis) or (axis == "resize" and first.exact) for axis in NAMED]
        rows.append([name, *(said if alike else f"≠ {said}" for said, alike in zip(own, same, strict=True))])
    return rows


def protocol_by_name(name: str) -> Protocol:
    """A preset by the name that tables show, changed axes included.

    >>> protocol_by_name("geoaware (strict=False)").strict
    False
    """
    from dataclasses import replace

    base, _, changed = name.removesuffix(")").partition(" (")
    own = next((one for one in PRESETS if one.name == base), None)
    if own is None:
        return Protocol(name)
    axes = dict(part.split("=", 1) for part in changed.split(", ")) if changed else {}
    values: dict[str, Any] = {k: v == "True" if v in ("True", "False") else v for k, v in axes.items()}
    return replace(own, **values)


def describe_part(split: str, pairs: int) -> str:
    """What to say of a run on a part of the benchmark; nothing where it is whole, or nobody said how many there are.

    AP-10K's pairs are drawn with the file system's order of names, so that its counts are never met to the last.

    >>> describe_part("spair test", 600), describe_part("spair test", 12234)
    ('600 of 12,234 pairs', '')
    """
    benchmark, _, part = split.partition(" ")
    known = benchmark_metadata(OFFICIAL[benchmark])["official"] if benchmark in OFFICIAL else {"pairs": {}}
    official = known["pairs"].get(part)
    if official is None or abs(pairs - official) <= known.get("tolerance", 0) * official:
        return ""
    return f"{pairs:,} of {official:,} pairs"


def _value(one: Protocol, axis: str) -> str:
    value = getattr(one, axis)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        (files("semcorr.report") / "published.json").read_text(encoding="utf-8")
    )  # fmt: skip
    return content
