"""The output of a benchmark: a table to read, and its part of benchmark.json."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from semcorr.core.errors import UserError
from semcorr.core.files import require_writable_file, write_json
from semcorr.core.terminal import Terminal
from semcorr.core.text_files import JsonMapping, JsonObject

HEADERS = ("", "naive", "ours", "ratio", "floor")


class BenchmarkRow(NamedTuple):
    """A line of the table: the naive value, ours, how many times better ours is, and the limit."""

    what: str
    naive: str = ""
    ours: str = ""
    ratio: str = ""
    floor: str = ""


class BenchmarkResult(NamedTuple):
    """The result of a benchmark.

    Attributes:
        title: Title of the table.
        rows: Rows of the table.
        caption: Text below the table.
        content: Part of benchmark.json, with `ratio`, `floor` and `peak` among other keys.
        headers: Headers of the five columns of the table.
    """

    title: str
    rows: Sequence[BenchmarkRow]
    caption: str
    content: JsonMapping
    headers: Sequence[str] = HEADERS


def format_ratio(ratio: float) -> str:
    """Format a ratio for a table.

    >>> format_ratio(12.345), format_ratio(150.2)
    ('12.3x', '150x')
    """
    return f"{ratio:.0f}x" if ratio >= 100 else f"{ratio:.3g}x"


def format_rate(value: float) -> str:
    """Format a number per second, or of seconds, for a table.

    >>> format_rate(1234.5), format_rate(0.01234)
    ('1,234', '0.0123')
    """
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def read_benchmark_file(out: Path) -> JsonObject:
    """Read benchmark.json as it is so far, which is empty if it is missing.

    Raises:
        UserError: It is another file, or cannot be written; this is reported before anything is measured.
    """
    if not out.parent.is_dir():
        raise UserError(f"--out: {out.parent} is not a folder. Make it, or choose another file")
    require_writable_file(out, "--out")
    try:
        content = json.loads(out.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"--out: {out} is not a benchmark.json. Choose another file")
    return content


def publish_result(name: str, outcome: BenchmarkResult, out: Path, settings: JsonMapping) -> None:
    """Print the table, and write the rest in place of an earlier result of the same name.

    Args:
        name: Name of the sub-command, the result's key in the file.
        outcome: The result.
        out: The benchmark.json, which keeps the results of other sub-commands.
        settings: Options of the command line, for the record.
    """
    table = Table(title=outcome.title, caption=outcome.caption, caption_justify="left", title_justify="left")
    for header in outcome.headers:
        table.add_column(header, justify="right" if header else "left", overflow="fold")
    for row in outcome.rows:
        table.add_row(*row)
    Terminal().print_table(table)
    context = {"settings": dict(settings), "date": time.strftime("%Y-%m-%d %H:%M:%S")}
    write_json(out, {**read_benchmark_file(out), name: {**outcome.content, **context}}, "--out")
    Terminal().print(f"written to {out}")
