"""Compare the published figures that the repository states with the tables of the papers' texts.

    python scripts/check_published.py FOLDER

FOLDER has the texts, whose names begin with 001 (the unified benchmark), 002 ("Telling Left from Right" and its
supplement) and 003 (its slides). Read are `src/semcorr/report/published.json`, the columns "published" of
docs/reproduce.md and the head comments of conf/experiment/. A figure is right if it is printed in every cell that it
claims to be (published_claims.py, published_heads.py); one that has no claim, a claim without a figure, and a cell that
no table has are wrong, too. The exit code is 1 if any is. Figures of published.json whose papers are not in the folder
cannot be compared: they are counted for themselves, and heads that repeat them are compared with published.json.
"""

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from published_claims import (
    GEO,
    JSON,
    JSON_COLUMNS,
    JSON_COMPLETE,
    JSON_PAPERS,
    PAGE,
    SLIDES,
    UNIFIED,
    Cell,
    Figures,
    Line,
)  # fmt: skip
from published_heads import EXPERIMENTS
from published_tables import Tables, read_captioned_tables, read_unified_tables
from rich.console import Console
from rich.table import Table

from semcorr.core.errors import UserError

ROOT = Path(__file__).parents[1]
# Experiments whose heads have figures of this repository.
MEASURED_HERE = ("heads/", "heldout_", "losses", "demo", "animal_pose", "robustness", "top_cpu")
# Papers not in the folder.
ELSEWHERE = (
    "3D-SC (arXiv 2605.30093), Table C1",
    "MARCO README",
    "INSID3 README",
    "DINOv3 model card",
    "ImCorr (2026), Tables 3 and 4",
)

FIGURES = re.compile(r"(?<![\w.@·])\d{1,3}\.\d(?!\d)(?: / \d{1,3}\.\d(?!\d))*")
NO_FIGURE = re.compile(  # names, and thresholds: a list of numbers below 1 with 0.1 or one of two decimals
    r"(?:SD|Diffusion) \d\.\d|(?<![\d.])(?<!\d / )0\.(?:1|\d\d)(?!\d)(?: / 0\.\d+)*(?! / )"
)


class Check(NamedTuple):
    """A stated figure, or a claim for which there is none, and what its cells have."""

    place: str
    source: str
    stated: str | None
    problem: str | None  # None: right


def list_lines(text: str) -> Iterator[list[tuple[str, list[str]]]]:
    """Yield the figures of each line that has some, each group of them with its label, the words before it.

    >>> list(list_lines("PCK at 0.01 / 0.1, as published: all 6.3 / 53.9, geo 3.4 (60 cells)"))
    [[('all', ['6.3', '53.9']), ('geo (60 cells)', ['3.4'])]]
    """
    for line in text.splitlines():
        masked = NO_FIGURE.sub(lambda match: match[0].replace(".", "·"), line)
        groups, end = [], 0
        for match in FIGURES.finditer(masked):
            label = _clean_label(masked[end : match.start()])
            end = match.end()
            if (after := re.match(r" \([^()]*\)", masked[end:])) and not FIGURES.search(after[0]):
                label, end = f"{label}{after[0]}".strip(), end + after.end()
            groups.append((label.replace("·", "."), match[0].split(" / ")))
        if groups:
            yield groups


def _clean_label(text: str) -> str:
    """Return the last words of a text, without what a reader takes as its end."""
    text = re.sub(r"\s+", " ", text).strip(" ,:;()#.")
    text = re.split(r": |; |\), | \(", text)[-1]
    return "" if text.endswith("published") else text


def check_text(
    place: str, text: str, claims: Sequence[Line], papers: dict[str, Tables], context: str = ""
) -> list[Check]:
    """Compare the figures of a text with the cells that its lines claim; a line is found by its first label.

    Args:
        place: Name of the text, for messages.
        text: Lines of labels and figures.
        claims: The lines that are expected.
        papers: Tables of each paper.
        context: Text that has the thresholds; none: the lines themselves.
    """
    expected: defaultdict[str, list[Line]] = defaultdict(list)
    for claim in claims:
        expected[claim[0][0]].append(claim)
    words = " ".join((context or text).replace("#", " ").split())
    checks = []
    for groups in list_lines(text):
        label = groups[0][0]
        claim = expected[label].pop(0) if expected[label] else []
        for i, (name, stated) in enumerate(groups):
            wanted, cells = claim[i] if i < len(claim) else (None, [])
            where = ", ".join(filter(None, [place, label, name if i else ""]))
            if wanted != name:
                checks += [Check(where, "none", figure, "no cell is known for it") for figure in stated]
            else:
                checks += _check_group(where, stated, cells, papers, words)
        claim = claim[len(groups) :]
        checks += [
            Check(f"{place}, {label}".strip(", "), cells[0].paper, None, "is not there")
            for _, f in claim
            for cells in f
        ]
    missing = [(label, cells) for lines in expected.values() for claim in lines for label, f in claim for cells in f]
    return checks + [
        Check(f"{place}, {label}".strip(", "), cells[0].paper, None, "is not there") for label, cells in missing
    ]


def _check_group(
    place: str, stated: Sequence[str], cells: Figures, papers: dict[str, Tables], words: str = ""
) -> Iterator[Check]:
    """Compare figures with their cells, and the thresholds of the cells with the words around the figures."""
    if len(stated) != len(cells):
        for figure in stated:
            yield Check(place, "none", figure, f"one of {len(stated)} where {len(cells)} are published")
        return
    alphas = dict.fromkeys(each[0].column.split(" ")[-1] for each in cells if re.search(r"0\.\d+$", each[0].column))
    if words and " / ".join(alphas) not in words:
        yield Check(place, cells[0][0].paper, None, f"is not said to be at {' / '.join(alphas)}")
    for figure, each in zip(stated, cells, strict=True):
        problems = [problem for cell in each if (problem := _compare(figure, cell, papers))]
        yield Check(place, each[0].paper, figure, "; ".join(problems) or None)


def _compare(figure: str, cell: Cell, papers: dict[str, Tables]) -> str | None:
    """Return what is wrong about a figure that claims a cell."""
    printed = papers.get(cell.paper, {}).get(cell.table, {}).get(cell.row, {}).get(cell.column)
    name = f"{cell.paper}, Table {cell.table}, {cell.row}, {cell.column}"
    if printed is None:
        return f"there is no cell {name}"
    return None if printed == figure else f"{printed} is printed in {name}"


def check_experiments(folder: Path, papers: dict[str, Tables], claims: dict[str, list[Line]]) -> list[Check]:
    """Compare the head comments of all experiments, but for those with figures of this repository."""
    checks = []
    for path in sorted(folder.rglob("*.yaml")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        head = re.match(r"(?:#.*\n)*", path.read_text(encoding="utf-8"))
        assert head is not None
        lines = [line for line in head[0].splitlines() if "python " not in line]
        if not name.startswith(MEASURED_HERE) or "published" in head[0]:
            checks += check_text(f"conf/experiment/{name}.yaml", "\n".join(lines), claims.get(name, []), papers)
    absent = [name for name in claims if not (folder / f"{name}.yaml").is_file()]
    return checks + [Check(f"conf/experiment/{name}.yaml", "none", None, "is not there") for name in absent]


def check_page(text: str, papers: dict[str, Tables], claims: dict[str, Line]) -> list[Check]:
    """Compare the columns of a Markdown page's tables whose head begins with "published"."""
    checks: list[Check] = []
    column: int | None = None
    left = dict(claims)
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        heads = [i for i, cell in enumerate(cells) if cell.startswith("published")]
        column = heads[0] if heads else column if cells else None
        if column is not None and not heads:
            claim = left.pop(cells[0], None)
            checks += check_text(
                f"docs/reproduce.md, {cells[0]}", cells[column], [claim] if claim else [], papers, text
            )
    absent = [(row, cells) for row, claim in left.items() for _, figures in claim for cells in figures]
    return checks + [Check(f"docs/reproduce.md, {row}", cells[0].paper, None, "is not there") for row, cells in absent]


def name_part(table: dict) -> str:
    """Name the part of a benchmark that a table of published.json is of, with its pooling and its box if unusual."""
    return ", ".join([table["split"], table["subset"], *(table[key] for key in ("pooling", "extent") if key in table)])


def read_uncompared(content: dict) -> Tables:
    """Read the rows of published.json whose papers are not in the folder as tables, one for each part."""
    return {
        name_part(table): {
            row["method"]: dict(zip(table["alphas"], map(str, row["values"]), strict=True))
            for row in table["rows"]
            if row["source"] in ELSEWHERE
        }
        for table in content["tables"]
    }


def check_json(content: dict, papers: dict[str, Tables]) -> tuple[list[Check], Counter[str]]:
    """Compare the figures of published.json, and count those of each source whose paper is not in the folder."""
    checks: list[Check] = []
    uncompared, claimed = Counter[str](), set[Cell]()
    for table in content["tables"]:
        for row in table["rows"]:
            if row["source"] in ELSEWHERE:
                uncompared[row["source"]] += sum(value is not None for value in row["values"])
                continue
            place = f"published.json, {name_part(table)}, {row['method']}"
            for alpha, value in zip(table["alphas"], row["values"], strict=True):
                cells = _claim_json(name_part(table), row, alpha, papers)
                claimed |= set(cells)
                checks += _check_json_cell(place, None if value is None else str(value), cells, papers)
    return checks + list(_list_unclaimed(claimed, papers)), uncompared


def _claim_json(part: str, row: dict, alpha: str, papers: dict[str, Tables]) -> list[Cell]:
    """Return the cells that a figure of published.json claims: those in which something is printed."""
    cells = []
    for key, name in row.get("printed", {}).items():
        paper, number = key.split(" ")
        columns = [column for column, tables in JSON_COLUMNS.get(part, {}).items() if number in tables.split()]
        for column in columns:
            cell = Cell(JSON_PAPERS[paper], number, name, column if column == "All" else f"{column} {alpha}")
            printed = papers.get(cell.paper, {}).get(number, {}).get(name, {}).get(cell.column, "-")
            cells += [cell] if printed != "-" else []
    return cells


def _check_json_cell(
    place: str, stated: str | None, cells: Sequence[Cell], papers: dict[str, Tables]
) -> Iterator[Check]:
    """Compare a figure with all cells that it claims; where none is stated, none may be printed."""
    if stated is not None:
        yield from _check_group(place, [stated], [tuple(cells)] if cells else [], papers)
    else:
        yield from (Check(place, cell.paper, None, f"has no figure, but {cell} is printed") for cell in cells)


def _list_unclaimed(claimed: set[Cell], papers: dict[str, Tables]) -> Iterator[Check]:
    """Yield the figures of the tables that published.json has in whole, but for which it has no row."""
    for paper, numbers in JSON_COMPLETE.items():
        for number in [n for n in numbers.split() if n in papers.get(paper, {})]:
            for row, figures in papers[paper][number].items():
                for column, figure in figures.items():
                    cell = Cell(paper, number, row, column)
                    if column != "gain" and figure != "-" and cell not in claimed:
                        yield Check("published.json", paper, None, f"has no row with {cell}")


def read_papers(folder: Path) -> dict[str, Tables]:
    """Read the tables of all papers of a folder.

    Raises:
        UserError: The folder has not one text for each.
        ValueError: A table is not as expected.
    """
    readers = {"001": read_unified_tables, "002": read_captioned_tables, "003": read_captioned_tables}
    papers = {}
    for name, (number, read) in zip((UNIFIED, GEO, SLIDES), readers.items(), strict=True):
        found = sorted(folder.glob(f"{number}*.txt"))
        if len(found) != 1:
            raise UserError(f"{folder} has {len(found)} files {number}*.txt, where one is needed: {name}.")
        papers[name] = read(found[0].read_text(encoding="utf-8"))
    return papers


def check_repository(root: Path, folder: Path) -> tuple[list[Check], Counter[str]]:
    """Compare all published figures of a repository with the papers of a folder."""
    content = json.loads((root / "src/semcorr/report/published.json").read_text(encoding="utf-8"))
    papers = read_papers(folder) | {JSON: read_uncompared(content)}
    checks, uncompared = check_json(content, papers)
    checks += check_page((root / "docs/reproduce.md").read_text(encoding="utf-8"), papers, PAGE)
    return checks + check_experiments(root / "conf/experiment", papers, EXPERIMENTS), uncompared


def main() -> None:
    """Print what is wrong and how many figures of each source are right."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with the papers' texts, 001*.txt to 003*.txt")
    try:
        checks, uncompared = check_repository(ROOT, parser.parse_args().folder)
    except ValueError as error:
        sys.exit(str(error))
    for check in checks:
        if check.problem:
            print(f"{check.place}: {check.stated or 'a figure'}: {check.problem}")
    summary = Table("read in", "source", "figures", "right")
    count = Counter((check.place.partition("/")[0].partition(",")[0], check.source) for check in checks)
    right = Counter(
        (check.place.partition("/")[0].partition(",")[0], check.source) for check in checks if not check.problem
    )
    for (read_in, source), number in count.items():
        summary.add_row(read_in, source, f"{number:,}", f"{right[read_in, source]:,}")
    summary.add_row("all", "", f"{len(checks):,}", f"{right.total():,}")
    Console().print(summary)
    for source, number in uncompared.items():
        print(f"{number} figures of published.json are of {source}, which the folder has not: not compared.")
    sys.exit(int(right.total() != len(checks)))


if __name__ == "__main__":
    main()
