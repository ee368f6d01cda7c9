"""Tables of the papers' texts, for check_published.py: two layouts, as the texts of the papers' pages have them."""

import re

Table = dict[str, dict[str, str]]  # row -> column -> printed figure
Tables = dict[str, Table]

UNIFIED_HEADERS = {  # the unified benchmark's text has no captions: its tables are known by their order and headers
    "I": "Dataset Name, Year, Pairs, Class, Source datasets, Annotations, Characteristics",
    "II": "Methods, Backbone, FT., ML., Aug., Reso., SPair-71k, PF-PASCAL, PF-WILLOW",
    "III": "Methods, Backbone, FT., ML., Aug., Reso., SPair-71k, PF-PASCAL, PF-WILLOW",
    "IV": "Methods, Backbone, Reso., SPair-71k, PF-PASCAL, PF-WILLOW",
    "V": "Backbone, Reso., SPair-71k",
    "VI": "Backbone, Reso., SPair-71k",
    "VII": "Backbone, FF., Reso., SPair-71k",
    "VIII": "Backbone, FT., Bottleneck, Reso., SPair-71k",
    "IX": "Backbone, FT., Cost Aggregator, Reso., SPair-71k",
    "X": "Methods, Backbone, Reso., SPair-71k, PF-PASCAL, PF-WILLOW",
    "XI": "Methods, Backbone, Reso., SPair-71k, PF-PASCAL, PF-WILLOW",
    "XII": "Methods, Reso., AP-10K",
    "A1": "Backbone, FT., Bottleneck, Reso., SPair-71k",
    "A2": "Backbone, FT., Cost Aggregator, Reso., SPair-71k",
}
UNUSED = {"I"}  # it lists benchmarks
LITERATURE = {"II", "III", "IV"}  # their rows lack the cells whose mark is an empty box; PF-WILLOW is there twice
BOXES = ("SPair-71k", "PF-PASCAL", "PF-WILLOW (first)", "PF-WILLOW")  # the second is that of Tables X and XI
LABELS = {"Methods", "Backbone", "FT.", "FF.", "Bottleneck", "Cost Aggregator", "Reso."}
LABELS |= {"Method", "Model Variants", "Method Variants", "Inference Strategy", "Feature", "Setting"}
FIGURE = re.compile(r"[-\u2013]|[+-]?\d+\.\d")  # a dash: not published
THRESHOLD = re.compile(r"0\.\d+")
SIZES = ("60", "32", "16")  # cells a side, in the order of Table A1, whose text lost them


def read_unified_tables(text: str) -> Tables:
    """Read Tables II to XII, A1 and A2 of the unified benchmark's text.

    Rows are named by their labels: `DINOv2 60`, `DINOv2 tuned ResNet Bottleneck Block 16`, `Ours(DINOv2) DINOv2 840`;
    those of Tables II to IV without their marks: `CATs ResNet-101 256`.

    Raises:
        ValueError: Tables are not those of UNIFIED_HEADERS; a row has not its header's columns, or a twin.
    """
    blocks: list[list[list[str]]] = []
    for line in text.splitlines():
        cells = [_clean(cell) for cell in line.split("|")]
        if len(cells) < 4 or cells[0].startswith("---"):
            continue
        while cells and not cells[-1]:
            cells.pop()
        if cells and cells[0] in {"Backbone", "Methods", "Dataset Name"}:
            blocks.append([])
        if blocks and cells:
            blocks[-1].append(cells)
    headers = [", ".join(block[0]) for block in blocks]
    if headers != list(UNIFIED_HEADERS.values()):
        raise ValueError(f"Tables with the headers {headers}, where {list(UNIFIED_HEADERS.values())} are expected.")
    numbered = zip(UNIFIED_HEADERS, blocks, strict=True)
    return {number: _read_block(number, block) for number, block in numbered if number not in UNUSED}


def _read_block(number: str, block: list[list[str]]) -> Table:
    """Read one table of the unified benchmark, from its header to its last row."""
    labels = [name for name in block[0] if name in LABELS]
    benchmarks = list(BOXES) if number in LITERATURE else block[0][len(labels) :]
    start = next(i for i, cells in enumerate(block) if THRESHOLD.fullmatch(cells[0]))
    thresholds = [cell for cell in block[start] if THRESHOLD.fullmatch(cell)]
    columns = _name_columns(number, benchmarks, thresholds)
    columns += ["gain"] * (len(block[start]) - len(thresholds))
    found: list[tuple[list[str], list[str]]] = []
    for cells in block[start + 1 :]:
        names, figures = cells[: -len(columns)], cells[-len(columns) :]
        if number in LITERATURE:
            names, labels = [*names[:2], names[-1]], labels[:3]  # marks are not told apart where a cell is lost
        elif "FT." in labels:
            names = [names[0], "tuned", *names[2:]] if "✓" in names else [*names[:1], "frozen", *names[1:]]
        names[-1] = names[-1].removesuffix("1") if names[-1] == "960, 8401" else names[-1]  # the sign of a footnote
        has_size = len(names) == len(labels)
        is_figures = all(FIGURE.fullmatch(figure) for figure in figures)
        if not is_figures or not (has_size or len(names) == len(labels) - 1):
            raise ValueError(f"Table {number}: {cells} is no row of {labels} and {columns}.")
        found.append((names if has_size else [*names, ""], figures))
    _fill_sizes(found)
    table: Table = {}
    for (*names, size), figures in found:
        name = " ".join([*names, size.rpartition(", ")[2] if size.endswith(SIZES) else size])
        _add_row(table, number, name, columns, figures)
    return table


def _fill_sizes(rows: list[tuple[list[str], list[str]]]) -> None:
    """Give each row without a size its block's; a block begins with a row without a head, `-`."""
    starts = [i for i, (names, _) in enumerate(rows) if names[-2] == "-"]
    for k, start in enumerate(starts):
        block = rows[start : starts[k + 1] if k + 1 < len(starts) else len(rows)]
        printed = [names[-1] for names, _ in block if names[-1]]
        for names, _ in block:
            names[-1] = names[-1] or (printed or [SIZES[k % len(SIZES)]])[0]


def read_captioned_tables(text: str) -> Tables:
    """Read the tables below captions `Table 3. ...`, whose cells tabs or bars separate.

    Rows are named by their labels without references: `Ours (Adapt. Pose)`, `SD+DINO Soft Argmax Inference`.

    Raises:
        ValueError: A row has more or fewer columns than its header, or its twin.
    """
    tables = {}
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if caption := re.match(r"Table (\w+)\. ", line):
            block: list[list[str]] = []
            for row in lines[i + 1 :]:
                separator = "\t" if "\t" in row else "|"
                if separator in row and not row.startswith("|--"):
                    cells = row.strip("| ").split("|") if separator == "|" else row.split("\t")
                    block.append([_clean(cell) for cell in (["", *cells] if row.startswith("| |") else cells)])
                elif block and separator not in row:
                    break
            tables[caption[1]] = _read_captioned(caption[1], block)
    return tables


def _read_captioned(number: str, block: list[list[str]]) -> Table:
    """Read one table below a caption."""
    heads = [[cell for cell in cells if cell] for cells in block[:2]]
    names = [cell for cell in heads[0] if cell not in LABELS]
    carries = len(heads[0]) - len(names) > 1  # the first of two labels is printed once for several rows
    thresholds = [cell for cell in heads[1] if cell not in LABELS]
    is_split = all(THRESHOLD.fullmatch(cell) for cell in thresholds)
    columns = _name_columns(number, names, thresholds) if is_split else [_trim(name) for name in names]
    table: Table = {}
    group = ""
    for cells in block[1 + is_split :]:
        start = next(i for i in range(len(cells) + 1) if all(not c or FIGURE.fullmatch(c) for c in cells[i:]))
        if start == len(cells):
            continue  # a row of words
        labels, figures = [_strip_kind(cell) for cell in cells[:start]], cells[start:]
        if len(figures) != len(columns):
            raise ValueError(f"Table {number}: {cells} has {len(figures)} figures, its header {len(columns)}.")
        group = labels[0] or group
        _add_row(table, number, " ".join([group, labels[-1]] if carries else labels[-1:]), columns, figures)
    return table


def _add_row(table: Table, number: str, name: str, columns: list[str], figures: list[str]) -> None:
    """Add a row, of which a table has one."""
    if name in table:
        raise ValueError(f"Table {number} has two rows {name}.")
    table[name] = dict(zip(columns, figures, strict=True))


def _name_columns(number: str, names: list[str], thresholds: list[str]) -> list[str]:
    """Name the columns under each of the benchmarks, which have as many thresholds each."""
    each, rest = divmod(len(thresholds), len(names))
    if rest or not each:
        raise ValueError(f"Table {number}: {len(thresholds)} thresholds under {names}.")
    return [f"{names[i // each]} {_trim(threshold)}" for i, threshold in enumerate(thresholds)]


def _trim(name: str) -> str:
    """Write a threshold as the repository does."""
    return name.removeprefix("PCK@").replace("0.10", "0.1")


def _strip_kind(label: str) -> str:
    """Remove what stands before a method's name: supervised or unsupervised, and a plus."""
    return re.sub(r"^(?:[US]\s+|\+ )", "", label)


def _clean(cell: str) -> str:
    """Remove references, footnotes and emphasis."""
    return re.sub(r"\s+", " ", re.sub(r"</?u>|\*|\[?†\]?|\[\d[\d, ]*\]", "", cell)).strip()
