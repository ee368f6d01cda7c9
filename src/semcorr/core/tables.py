"""Reading of CSV files: benchmarks' and our own strictly, users' own as spreadsheets write them."""

import csv
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from semcorr.core.errors import UserError
from semcorr.core.paths import quote_value
from semcorr.core.text_files import MEGABYTE, REMEDY, decode_text, read_content, read_text, require_text

log = logging.getLogger(__name__)

ROW = 16 * MEGABYTE  # characters of a row of a table, and of a line
SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[,;\t |]*(\r\n|\r|\n|$)', re.IGNORECASE)  # Excel's, before the header
HEADER_LINES = 50  # lines in which a header is looked for
DECIMAL_COMMA = re.compile(r"[+-]?\d+,(\d{1,2}|\d{4,})", re.ASCII)  # with three digits it may be 1,234
NOTHING = ("", "nan", "null", "none", "na", "n/a", "#n/a", "<na>")  # what spreadsheets and data frames write for none
SAVE = 'Save it as "CSV UTF-8".'


class TableRow(NamedTuple):
    """A row of a table."""

    line: int  # line of the file in which the row ends, counted from 1
    cells: list[str]


class Spreadsheet(NamedTuple):
    """A user's table."""

    rows: list[tuple[int, dict[str, str]]]  # line of the file, and cells by their columns
    others: list[str]  # columns that were not looked for
    encoding: str  # `utf-8`, also for UTF-16 with its mark, or `Windows-1252`


def read_rows(path: Path, remedy: str = REMEDY, separator: str = ",") -> list[TableRow]:
    """Read a CSV file, its header included, without blank rows.

    Args:
        path: The file.
        remedy: What to do about a file that cannot be read; ends the message.
        separator: What stands between the cells.

    Raises:
        UserError: It is not text; a field or a row is too long; a quote is not closed.
    """
    return list(_split(read_text(path, remedy), path, remedy, separator))


def read_table(path: Path, columns: Sequence[str], remedy: str = REMEDY) -> list[tuple[int, dict[str, str]]]:
    """Read the rows of a CSV file with a header, each with its line and as many cells as the header.

    Raises:
        UserError: As `read_rows`; a column is missing or there twice; a row is shorter or longer than the header.
    """
    header, *rows = read_rows(path, remedy) or [TableRow(1, [])]
    return _name_cells(_require_columns(header.cells, columns, path, remedy), rows, path)


def read_spreadsheet(path: Path, columns: Sequence[str], optional: Sequence[str], remedy: str) -> Spreadsheet:
    """Read a user's table, as spreadsheets and data frames write it.

    It may be in UTF-8, in UTF-16 with its mark, or in Windows-1252, of which a warning tells; between its cells stand
    commas, semicolons, tabs or bars, whichever splits its header into the columns. Blank rows, empty columns at its
    end and columns without a name are passed over; names of columns may have any case, and blanks around them.

    Args:
        path: The file.
        columns: Columns that it must have.
        optional: Columns that it may have.
        remedy: What to do about a file that cannot be read; ends the message.

    Raises:
        UserError: It is none of these; a column is missing or there twice; a row is shorter or longer than the header.
    """
    content = read_content(path, remedy)
    text, encoding = _decode(content, path)
    names_by_key = {name.casefold(): name for name in (*columns, *optional)}
    try:
        start, lines, separator = _separator(require_text(text, path, SAVE), columns, names_by_key, path, remedy)
    except UserError:
        if encoding == "utf-8":
            raise
        raise UserError(
            f"{path}, {_find_invalid_line(content)}, is not UTF-8 text, and read as Windows-1252 it has no header "
            f"with {','.join(columns)}. {SAVE}"
        ) from None
    if encoding != "utf-8":
        log.warning(
            "%s, %s, is not UTF-8 text: it is read as Windows-1252. %s", path, _find_invalid_line(content), SAVE
        )
    rows = list(_drop_empty_rows(_split(text[start:], path, remedy, separator, lines)))
    header = _header(rows[0].cells, names_by_key)
    names = _require_columns(header, columns, path, remedy)
    rows = [row._replace(cells=_trim_cells(row.cells, len(names))) for row in rows[1:]]
    return Spreadsheet(
        _name_cells(names, rows, path), [name for name in names if name and name not in names_by_key.values()], encoding
    )


def _drop_empty_rows(rows: Iterator[TableRow]) -> Iterator[TableRow]:
    """Yield rows with a cell that is not empty: spreadsheets write empty rows, too."""
    return (row for row in rows if any(cell.strip() for cell in row.cells))


def _decode(content: bytes, path: Path) -> tuple[str, str]:
    try:
        return decode_text(content), "utf-8"
    except UnicodeDecodeError:
        pass
    try:
        return content.decode("cp1252"), "Windows-1252"
    except UnicodeDecodeError:
        raise UserError(
            f"{path}, {_find_invalid_line(content)}, is neither UTF-8 nor Windows-1252 text. {SAVE}"
        ) from None


def _find_invalid_line(content: bytes) -> str:
    """Return the line of the first byte that makes a text invalid UTF-8."""
    try:
        decode_text(content)
    except UnicodeDecodeError as error:
        ends = re.findall(rb"\r\n|\r|\n", content[: error.start])
        return f"line {1 + len(ends)}"
    return "line 1"


def _separator(
    text: str, columns: Sequence[str], known: dict[str, str], path: Path, remedy: str
) -> tuple[int, int, str]:
    """Find where the header begins, the lines before it, and the separator of its cells, which splits the columns."""
    separator_line = SEPARATOR_LINE.match(text)
    start, lines = (separator_line.end(), 1) if separator_line else (0, 0)
    if separator_line and separator_line[1] not in SEPARATORS:
        raise UserError(
            f"{path}, line 1: sep={separator_line[1]} is none of {', '.join(SEPARATORS.values())}. {remedy}"
        )
    headers: dict[str, list[str]] = {}
    for separator in (separator_line[1],) if separator_line else SEPARATORS:
        first = next(
            _drop_empty_rows(_split(text[start:], path, remedy, separator, lines, strict=False)), TableRow(1, [])
        )
        headers[separator] = _header(first.cells, known)
    fitting = [separator for separator, names in headers.items() if set(columns) <= set(names)]
    if len(fitting) > 1:
        kinds = " or ".join(SEPARATORS[separator] for separator in fitting)
        raise UserError(f"{path}: its header has the columns with {kinds} between them. Use one. {remedy}")
    if not fitting and (line := _find_header_line(text, columns, known, separator_line[1] if separator_line else None)):
        raise UserError(f"{path}: its header is in line {line}. Delete the lines before it.")
    best = max(headers.values(), key=lambda names: len(set(columns) & set(names)))
    _require_columns(best if fitting else [name for name in best if name in columns], columns, path, remedy)
    return start, lines, fitting[0]


def _find_header_line(text: str, columns: Sequence[str], known: dict[str, str], separator: str | None) -> int | None:
    """Find which of the first lines is the header, where it is not the first that is filled."""
    for number, line in enumerate(text.splitlines()[:HEADER_LINES], 1):
        for candidate in (separator,) if separator else SEPARATORS:
            if set(columns) <= set(_header(next(csv.reader([line], delimiter=candidate), []), known)):
                return number
    return None


def _header(cells: Sequence[str], known: dict[str, str]) -> list[str]:
    """Return the names of columns, without empty ones at the end."""
    names = [known.get(cell.strip().casefold(), cell.strip()) for cell in cells]
    return _trim_cells(names, max((i for i, name in enumerate(names, 1) if name), default=0))


def _trim_cells(cells: list[str], most: int) -> list[str]:
    """Remove empty cells beyond the last column."""
    return cells[:most] if not any(cell.strip() for cell in cells[most:]) else cells


def _require_columns(names: list[str], columns: Sequence[str], path: Path, remedy: str) -> list[str]:
    missing = [column for column in columns if column not in names]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}; it needs {','.join(columns)}. {remedy}")
    repeated = next((name for name, times in Counter(names).items() if name and times > 1), None)
    if repeated:
        raise UserError(f"{path} has the column {quote_value(repeated).strip(chr(39))} twice. Drop or rename one.")
    return names


def _name_cells(names: list[str], rows: Sequence[TableRow], path: Path) -> list[tuple[int, dict[str, str]]]:
    for line, cells in rows:
        if len(cells) != len(names):
            raise UserError(
                f"{path}, line {line}: {len(cells)} columns, not as many columns as the header has, "
                f"{len(names)}. Correct it."
            )
    return [(line, dict(zip(names, cells, strict=True))) for line, cells in rows]


def _split(
    text: str, path: Path, remedy: str, separator: str = ",", before: int = 0, strict: bool = True
) -> Iterator[TableRow]:
    """Yield rows that are not blank lines."""
    lines = _Lines(text)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=strict)
    try:
        for cells in reader:
            lines.taken = 0
            if cells:
                yield TableRow(before + reader.line_num, cells)
    except csv.Error as error:
        raise UserError(f"{path}, line {before + reader.line_num}: {error}. {remedy}") from None
    except MemoryError:
        raise UserError(f"{path} does not fit into memory. {remedy}") from None


class _Lines:
    """Lines of a text, with a limit on the lines of one row."""

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
