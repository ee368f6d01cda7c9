"""What was published on a benchmark, and in what it was measured otherwise than ours."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from semcorr.data.groups import facts
from semcorr.protocol import AXES, PRESETS, Protocol

OFFICIAL = {"spair": "spair71k"}


class Published(NamedTuple):
    """A row of somebody's table, in fractions."""

    method: str
    values: Mapping[str, float]
    protocol: str | None  # of ours, the one that follows the source's code
    pooling: str
    source: str


def provenance() -> str:
    """Where the figures are from."""
    return str(_content()["provenance"])


def published(split: str, subset: str, protocol: str) -> list[Published]:
    """Rows on a split that are a PCK of the same kind: per image, or category means beside category means."""
    own = next((one for one in PRESETS if one.name == protocol.partition(" (")[0]), PRESETS[0])
    kind = "category" if own.pooling == "category" else "image"
    rows = []
    for table in _content()["tables"]:
        if (table["split"], table["subset"], table.get("pooling", "image")) != (split, subset, kind):
            continue
        for row in table["rows"]:
            values = dict(zip(table["alphas"], (value / 100 for value in row["values"]), strict=True))
            rows.append(Published(row["method"], values, row["protocol"], kind, row["source"]))
    return rows


def differences(ours: str, theirs: str | None) -> str:
    """The axes on which two protocols differ, as `ours -> theirs`.

    >>> differences("geoaware", "geoaware"), differences("semcorr", None)
    ('', 'not stated')
    >>> differences("semcorr", "dift")
    'decode centre → native'
    """
    if theirs is None:
        return "not stated"
    mine, other = protocol(ours), protocol(theirs)
    axes = [axis for axis in (*AXES, "clamp", "strict") if axis != "resize" or not mine.exact]
    told = [(axis, _value(mine, axis), _value(other, axis)) for axis in axes]
    return ", ".join(f"{axis} {one} → {two}" for axis, one, two in told if one != two)


def protocol(name: str) -> Protocol:
    """A preset by the name that tables show, changed axes included.

    >>> protocol("geoaware (strict=False)").strict
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


def whole(split: str, pairs: int) -> str:
    """What to say of a run on a part of the benchmark; nothing where it is whole, or nobody said how many there are.

    >>> whole("spair test", 600), whole("spair test", 12234)
    ('600 of 12,234 pairs', '')
    """
    benchmark, _, part = split.partition(" ")
    official = facts(OFFICIAL[benchmark])["official"]["pairs"].get(part) if benchmark in OFFICIAL else None
    return f"{pairs:,} of {official:,} pairs" if official not in (None, pairs) else ""


def _value(one: Protocol, axis: str) -> str:
    value = getattr(one, axis)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        (files("semcorr.report") / "published.json").read_text(encoding="utf-8")
    )  # fmt: skip
    return content


def sources(rows: Sequence[Published]) -> list[str]:
    """Each once, in the order they come."""
    return list(dict.fromkeys(row.source for row in rows))
