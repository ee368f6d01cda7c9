"""Reading of users' text and JSON files: within bounds of memory and time, or with a message."""

import codecs
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from semcorr.core.errors import UserError
from semcorr.core.paths import open_plain, quote_value

# An object of a JSON file: what is in it is checked where it is read.
JsonObject = dict[str, Any]
JsonMapping = Mapping[str, Any]  # one that is only read

MEGABYTE = 1 << 20
ANNOTATIONS = 1024 * MEGABYTE  # bytes of a benchmark's file, at most: COCO's largest has 450 MB
REPORTS = 64 * MEGABYTE  # and of one about a run, a folder or a model
DIGITS = 20  # of a whole number, at most: no count, id or size of a file has more
# What may be a number beyond all bounds. Plain patterns, which are searched for in a tenth of the time of parsing.
SUSPECTS = [re.compile(pattern) for pattern in (rf"\d{{{DIGITS + 1}}}", r"e\+?\d{3}", r"E\+?\d{3}")]
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
JSON_KINDS = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
REMEDY = "Unpack the benchmark again."
MARKS = {  # what a text may begin with that says how it is encoded; UTF-32 first: it begins as UTF-16 does
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(path: Path, remedy: str = REMEDY, limit: int = ANNOTATIONS) -> str:
    """Read a text of at most `limit` bytes: in UTF-8, or in what its byte-order mark says.

    Args:
        path: The file.
        remedy: What to do about a file that cannot be read; ends the message.
        limit: Most bytes that are read.

    Raises:
        UserError: It is absent, larger, no regular file, or no text.
    """
    content = read_content(path, remedy, limit)
    try:
        text = decode_text(content)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). {remedy}") from None
    return require_text(text, path, remedy)


def read_content(path: Path, remedy: str = REMEDY, limit: int = ANNOTATIONS) -> bytes:
    """Read the bytes of a regular file that has at most `limit` of them.

    Raises:
        UserError: It is absent, larger, or no regular file.
    """
    with _open_sized(path, remedy) as (file, size):
        content = file.read(limit + 1) if size <= limit else b""
    _require_size(path, max(size, len(content)), limit, remedy)
    return content


def read_beginning(path: Path, count: int, remedy: str = REMEDY, limit: int = ANNOTATIONS) -> tuple[bytes, int]:
    """Read the first bytes of a regular file; return them, and the size of the whole in bytes.

    Args:
        path: The file.
        count: Number of bytes to read; fewer are returned of a shorter file.
        remedy: What to do about a file that cannot be read; ends the message.
        limit: Most bytes that the whole file may have.

    Raises:
        UserError: It is absent, larger than the limit, or no regular file.
    """
    with _open_sized(path, remedy) as (file, size):
        content = file.read(count)
    _require_size(path, size, limit, remedy)
    return content, size


@contextmanager
def _open_sized(path: Path, remedy: str) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file; yield it and its size."""
    try:
        with open_plain(path) as file:
            yield file, os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. {remedy}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). {remedy}") from None
    except MemoryError:
        raise UserError(f"{path} does not fit into memory. {remedy}") from None


def _require_size(path: Path, size: int, limit: int, remedy: str) -> None:
    if size > limit:
        raise UserError(f"{path} has more than the {limit // MEGABYTE} MB that are read of such a file. {remedy}")


def decode_text(content: bytes) -> str:
    """Decode UTF-8, or what the byte-order mark says.

    >>> decode_text("a".encode()), decode_text("a".encode("utf-8-sig")), decode_text("a".encode("utf-16"))
    ('a', 'a', 'a')
    """
    text = content.decode(next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8"))
    return text.removeprefix("\ufeff")  # a second mark, of a file that was saved with one twice


def require_text(text: str, path: Path, remedy: str) -> str:
    """Return a text, or refuse one with NUL bytes, as binary files have and UTF-16 without its byte-order mark."""
    if "\0" in text:
        raise UserError(f"{path} is not text: it holds a NUL byte at character {text.index(chr(0))}. {remedy}")
    return text


def read_lines(path: Path, remedy: str = REMEDY) -> list[str]:
    """Read the lines of a text, without blank lines and without the blanks around a line."""
    return [line.strip() for line in read_text(path, remedy).splitlines() if line.strip()]


def read_numbered_lines(path: Path, remedy: str = REMEDY) -> list[tuple[int, str]]:
    """Read lines as `read_lines` does, each with its number, counted from 1."""
    lines = enumerate(read_text(path, remedy).splitlines(), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def parse_number(text: str) -> float | None:
    """Return the number that a text is, whatever blanks are around it; None if it is not a finite one.

    Python's `float` takes 1_0 for 10 and digits of every script, which in a table are a slip or damage.

    >>> parse_number(" -1.5e1 "), parse_number("1_0"), parse_number("nan"), parse_number("1e999")
    (-15.0, None, None, None)
    """
    number = float(text) if NUMBER.fullmatch(text.strip()) else math.inf
    return number if math.isfinite(number) else None


def read_json(path: Path, remedy: str = REMEDY, limit: int = ANNOTATIONS, unique: bool = False) -> object:
    """Read a JSON file. It may hold NaN, as our own metrics.json does: a reader of single fields refuses it.

    Args:
        path: The file.
        remedy: What to do about a file that cannot be read; ends the message.
        limit: Most bytes that are read.
        unique: Whether an object with the same key twice is refused; else the last value counts.

    Raises:
        UserError: It is absent or no JSON; it is nested too deeply; or a number in it is too large to be computed with.
    """
    text = read_text(path, remedy, limit)
    if not text.strip():
        raise UserError(f"{path} is empty. {remedy}")
    suspicious = any(suspect.search(text) for suspect in SUSPECTS)
    hooks: JsonObject = {"parse_int": _parse_integer, "parse_float": _parse_float} if suspicious else {}
    if unique:
        hooks["object_pairs_hook"] = _require_unique_keys
    try:
        return json.loads(text, **hooks)
    except _KeyTwiceError as error:
        raise UserError(f"{path}: one object has the key {error} twice. Drop one. {remedy}") from None
    except _NumberError as error:
        raise UserError(f"{path}: the number {error} cannot be computed with. {remedy}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be read. {remedy}") from None
    except MemoryError:
        raise UserError(f"{path} does not fit into memory. {remedy}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}). {remedy}") from None


def read_mapping(path: Path, remedy: str = REMEDY, limit: int = REPORTS) -> JsonObject:
    """Read a JSON file that must hold an object.

    Raises:
        UserError: It holds something else; or as `read_json`.
    """
    content = read_json(path, remedy, limit)
    if not isinstance(content, dict):
        kind = JSON_KINDS.get(type(content), "a number")
        raise UserError(f"{path} holds {kind}, and must hold a JSON object, {{...}}. {remedy}")
    return content


class _KeyTwiceError(Exception):
    """An object with the same key twice."""


def _require_unique_keys(pairs: list[tuple[str, object]]) -> JsonObject:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _KeyTwiceError(quote_value(key))
            seen.add(key)
    return content


class _NumberError(Exception):
    """A number that cannot be computed with."""


def _parse_integer(text: str) -> int:
    if len(text.lstrip("-")) > DIGITS:
        raise _NumberError(quote_value(text).strip("'"))
    return int(text)


def _parse_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _NumberError(quote_value(text).strip("'"))
    return value
