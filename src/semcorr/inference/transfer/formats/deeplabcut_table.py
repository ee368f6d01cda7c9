"""The table of DeepLabCut, and its reading from CSV."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from semcorr.core.errors import UserError
from semcorr.core.text_files import read_text

REMEDY = "Give the CollectedData_*.csv or .h5 that DeepLabCut wrote into a folder of labeled-data."
HEADERS = ("scorer", "individuals", "bodyparts", "coords")
COORDS = ("x", "y", "likelihood")
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


def read_csv_table(path: Path) -> tuple[list[Column], list[Row]]:
    """Read a CSV table, whose rows are named in one column, or in three: labeled-data, video, image."""
    reader = csv.reader(io.StringIO(read_text(path, REMEDY)), strict=True)
    try:
        numbered_lines = [(reader.line_num, line) for line in reader if any(line)]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num} is not CSV ({error}). {REMEDY}") from None
    lines = [line for _, line in numbered_lines]
    headers: dict[str, list[str]] = {}
    while len(headers) < len(lines) and (first := lines[len(headers)][0]) in HEADERS:
        if first in headers:
            raise UserError(f"{path} has two lines of {first}. {REMEDY}")
        headers[first] = lines[len(headers)]
    if missing := [name for name in ("scorer", "bodyparts", "coords") if name not in headers]:
        raise UserError(f"{path} begins without a line of {' and of '.join(missing)}. {REMEDY}")
    width = len(headers["scorer"])
    for number, line in numbered_lines:
        if len(line) != width:
            raise UserError(f"{path}, line {number} has {len(line)} cells, and the first has {width}. Correct it.")
    start = 3 if headers["coords"][1:3] == ["", ""] else 1
    individuals: Sequence[Individual] = headers.get("individuals", [None] * width)
    columns = [
        Column(*cells)
        for cells in zip(headers["scorer"], individuals, headers["bodyparts"], headers["coords"], strict=True)
    ]
    rows = [
        Row("/".join(line[:start]), [None if cell.strip().lower() in ("", "nan") else cell for cell in line[start:]])
        for line in lines[len(headers) :]
    ]
    return columns[start:], rows
