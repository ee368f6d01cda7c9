"""The table of DeepLabCut, and its reading from CSV."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from semcorr.core.errors import UserError
from semcorr.core.tables import DECIMAL_COMMA, NOTHING, SEPARATORS, read_rows
from semcorr.core.text_files import read_text

REMEDY = "Give the CollectedData_*.csv or .h5 that DeepLabCut wrote into a folder of labeled-data."
HEADERS = ("scorer", "individuals", "bodyparts", "coords")
COORDS = ("x", "y", "likelihood")
START = re.compile(rf'"?scorer"?\s*([{"".join(map(re.escape, SEPARATORS))}])', re.IGNORECASE)
Individual = str | None  # None: of a project with one animal


class Column(NamedTuple):
    """What a column holds."""

    scorer: str
    individual: Individual
    bodypart: str
    coord: str


class Row(NamedTuple):
    """An image, and a cell for each column; one that is empty is None."""

    name: str
    cells: Sequence[object]


def find_separator(text: str) -> str | None:
    """Return what stands between the cells of a table that begins with the line of scorers; None: it does not.

    DeepLabCut writes commas; a spreadsheet that saves the table again may write what is usual in its country.

    >>> find_separator("scorer,me"), find_separator("scorer;me"), find_separator("scores,me")
    (',', ';', None)
    """
    match = START.match(text)
    return match[1] if match else None


def read_csv_table(path: Path) -> tuple[list[Column], list[Row]]:
    """Read a CSV table, whose rows are named in one column, or in three: labeled-data, video, image."""
    separator = find_separator(read_text(path, REMEDY).lstrip()) or ","
    lines = [line for line in read_rows(path, REMEDY, separator) if any(line.cells)]
    headers: dict[str, list[str]] = {}
    while len(headers) < len(lines) and (first := lines[len(headers)].cells[0].strip().lower()) in HEADERS:
        if first in headers:
            raise UserError(f"{path} has two lines of {first}. {REMEDY}")
        headers[first] = [cell.strip() for cell in lines[len(headers)].cells]
    if missing := [name for name in ("scorer", "bodyparts", "coords") if name not in headers]:
        raise UserError(f"{path} begins without a line of {' and of '.join(missing)}. {REMEDY}")
    width = max(i for names in headers.values() for i, name in enumerate(names, 1) if name)
    for line in lines:  # spreadsheets add empty columns
        if len(line.cells) < width or any(cell.strip() for cell in line.cells[width:]):
            raise UserError(
                f"{path}, line {line.line} has {len(line.cells)} cells, and the first have {width}. Correct it."
            )
    start = 3 if headers["coords"][1:3] == ["", ""] else 1
    individuals: Sequence[Individual] = headers.get("individuals", [None] * width)
    columns = [
        Column(headers["scorer"][i], individuals[i], headers["bodyparts"][i], headers["coords"][i].lower())
        for i in range(start, width)
    ]
    rows = [
        Row("/".join(line.cells[:start]), [_read_cell(cell, separator) for cell in line.cells[start:width]])
        for line in lines[len(headers) :]
    ]
    return columns, rows


def _read_cell(cell: str, separator: str) -> str | None:
    """Return a cell, or None where it says that there is nothing; a decimal comma stands where it splits no cells."""
    text = cell.strip()
    if text.lower() in NOTHING:
        return None
    return text.replace(",", ".") if separator != "," and DECIMAL_COMMA.fullmatch(text) else text
