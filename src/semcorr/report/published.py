"""Published figures that runs can stand beside, read from published.json: those of the same definition."""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from semcorr.core.text_files import JsonObject

CONFIGURATION = ("backbone", "supervision", "head", "data", "resolution")  # columns beside a method's figures


class PublishedResult(NamedTuple):
    """A row of a published table; its values are fractions."""

    method: str
    values: Mapping[str, float]  # by alpha; without those that were not published
    protocol: str | None  # the preset that follows the source's code; None if unknown
    pooling: str
    source: str
    configuration: Mapping[str, str]  # of CONFIGURATION, what the source states


def published_sources() -> str:
    """Return the provenance of the published figures."""
    return str(_read_published()["provenance"])


def find_published(split: str, subset: str, pooling: str) -> list[PublishedResult]:
    """Find the published rows of a split and a subset that are pooled in one way, by the benchmark's own extent.

    Args:
        split: Benchmark and split, as metrics.json names them: `spair test`.
        subset: `all` or `geo`.
        pooling: `image`, `point` or `category`.
    """
    rows = []
    for table in _read_published()["tables"]:
        if (table["split"], table["subset"], table.get("pooling", "image")) != (split, subset, pooling):
            continue
        if "extent" in table:
            continue  # of another box than the benchmark's
        for row in table["rows"]:
            pairs = zip(table["alphas"], row["values"], strict=True)
            values = {alpha: value / 100 for alpha, value in pairs if value is not None}
            stated = {name: row[name] for name in CONFIGURATION if name in row}
            rows.append(PublishedResult(row["method"], values, row["protocol"], pooling, row["source"], stated))
    return rows


@cache
def _read_published() -> JsonObject:
    content: JsonObject = json.loads((files("semcorr.report") / "published.json").read_text(encoding="utf-8"))
    return content
