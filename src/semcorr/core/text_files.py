"""Read what people bring as text, JSON or CSV: within bounds of memory and time, or a sentence."""

import csv
import json
import os
import re
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from semcorr.core.paths import open_plain, shorten
from semcorr.errors import UserError

MEGABYTE = 1 << 20
ANNOTATIONS = 1024 * MEGABYTE  # bytes of a benchmark's file, at most: COCO's largest has 450 MB
REPORTS = 64 * MEGABYTE  # and of one about a run, a folder or a model
ROW = 16 * MEGABYTE  # characters of a row of a table, and of a line
DIGITS = 20  # of a whole number, at most: no count, id or size of a file has more
# What may be a number beyond all bounds. Plain patterns, which are searched for in a tenth of the time of parsing.
SUSPECTS = [re.compile(pattern) for pattern in (rf"\d{{{DIGITS + 1}}}", r"e\+?\d{3}", r"E\+?\d{3}")]
REMEDY = "Unpack the benchmark again."


def read_text(path: Path, remedy: str = REMEDY, limit: int = ANNOTATIONS, encoding: str = "utf-8") -> str:
    """Read a text of at most `limit` bytes.

    Args:
        path: The file.
        remedy: What to do about a file that cannot be read; ends the message.
        limit: In bytes.
        encoding: Of the text.

    Raises:
        UserError: It is absent, larger, no regular file, or no text.
    """
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(limit + 1) if size <= limit else b""
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. {remedy}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). {remedy}") from None
    except MemoryError:
        raise UserError(f"{path} does not fit into memory. {remedy}") from None
    if max(size, len(content)) > limit:
        raise UserError(f"{path} has more than the {limit // MEGABYTE} MB that are read of such a file. {remedy}")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}). {remedy}") from None
    if "\0" in text:
        raise UserError(f"{path} is no text: it holds a NUL byte at character {text.index(chr(0))}. {remedy}")
    return text


def read_lines(path: Path, remedy: str = REMEDY) -> list[str]:
    """Read the lines of a list, without blank ones and without what surrounds them."""
    return [line.strip() for line in read_text(path, remedy).splitlines() if line.strip()]


def read_json(path: Path, remedy: str = REMEDY, limit: int = ANNOTATIONS) -> Any:
    """Read a JSON file. NaN may stand in it, as in our own metrics.json: who reads a field refuses it there.

    Args:
        path: The file.
        remedy: What to do about a file that cannot be read; ends the message.
        limit: In bytes.

    Raises:
        UserError: It is no JSON; it is nested too deeply; or a number in it is too large to be computed with.
    """
    text = read_text(path, remedy, limit)
    suspicious = any(suspect.search(text) for suspect in SUSPECTS)
    hooks: dict[str, Any] = {"parse_int": _whole, "parse_float": _real} if suspicious else {}
    try:
        return json.loads(text, **hooks)
    except _NumberError as error:
        raise UserError(f"{path}: the number {error} cannot be computed with. {remedy}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be read. {remedy}") from None
    except MemoryError:
        raise UserError(f"{path} does not fit into memory. {remedy}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}). {remedy}") from None


def read_mapping(path: Path, remedy: str = REMEDY, limit: int = REPORTS) -> dict[str, Any]:
    """Read a JSON file that must hold an object."""
    content = read_json(path, remedy, limit)
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, {{...}}, and holds a {type(content).__name__}. {remedy}")
    return content


class Row(NamedTuple):
    """A row of a table."""

    line: int  # in the file, counted from 1: that of its end
    cells: list[str]


def read_rows(path: Path, remedy: str = REMEDY) -> list[Row]:
    """Read a CSV file, its header included, without blank rows.

    Raises:
        UserError: It is no text; a field or a row is too long; a quote is not closed.
    """
    lines = _Lines(read_text(path, remedy, encoding="utf-8-sig"))
    reader = csv.reader(lines, skipinitialspace=True, strict=False)
    rows = []
    try:
        for cells in reader:
            lines.taken = 0
            if cells:
                rows.append(Row(reader.line_num, cells))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}. {remedy}") from None
    except MemoryError:
        raise UserError(f"{path} does not fit into memory. {remedy}") from None
    return rows


def read_table(path: Path, columns: Sequence[str], remedy: str = REMEDY) -> list[tuple[int, dict[str, str]]]:
    """Read the rows of a CSV file with a header, each with its line and as many cells as the header.

    Raises:
        UserError: As `read_rows`; or a column is missing, or a row is shorter or longer than the header.
    """
    header, *rows = read_rows(path, remedy) or [Row(1, [])]
    missing = [column for column in columns if column not in header.cells]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}; it needs {','.join(columns)}. {remedy}")
    table = []
    for line, cells in rows:
        if len(cells) != len(header.cells):
            raise UserError(
                f"{path}, line {line}: {len(cells)} columns, not as many columns as the header has, "
                f"{len(header.cells)}. Correct it."
            )
        table.append((line, dict(zip(header.cells, cells, strict=True))))
    return table


class _Lines:
    """The lines of a text, not more of them to a row than a row may hold."""

    def __init__(self, text: str) -> None:
        self.lines, self.taken = StringIO(text, newline=""), 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        self.taken += len(line)
        if self.taken > ROW:
            raise csv.Error(f"the row has more than {ROW // MEGABYTE} million characters; is a quote not closed?")
        return line


class _NumberError(Exception):
    """A number that nothing can be computed with."""


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > DIGITS:
        raise _NumberError(shorten(text).strip("'"))
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _NumberError(shorten(text).strip("'"))
    return value
