"""Tables as spreadsheets and data frames write them are read, or refused with file and line."""

import csv
import io
import logging

import pytest
from tiny_benchmarks import picture

from semcorr.core.errors import UserError
from semcorr.core.tables import read_spreadsheet, read_table
from semcorr.data.pairs_csv import PairsCSV

HEADER = ["source_image", "target_image", "XA", "YA", "XB", "YB", "category", "box"]
ROWS = [
    ["a/one.png", "a/two.png", "1;2.5;;4", "5;6;;8", "9;;11;12", "13;;15;16", "cup", "2;3;32;23"],
    ["a/two.png", "a/one.png", "7", "8", "9", "10", "shoe", "0;0;10;12"],
]


def text(rows=ROWS, header=HEADER, **how) -> str:
    file = io.StringIO()
    csv.writer(file, **how).writerows([header, *rows])
    return file.getvalue()


def write(root, content: str | bytes, stems=("one", "two")):
    for stem in stems:
        picture(root / "a" / f"{stem}.png")
    (root / "pairs.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def list_scored(root) -> list[tuple]:
    """What is scored, of each pair; files and lines aside."""
    return [
        (pair.category, pair.extent, *(
            (one.path.name, one.keypoints.tolist(), one.visible.tolist(), one.box) for one in (pair.source, pair.target)
        ))
        for pair in PairsCSV(root=str(root), size=32, extent="box").pairs("test")
    ]  # fmt: skip


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return list_scored(write(tmp_path_factory.mktemp("plain"), text()))


def comma(rows=ROWS) -> list[list[str]]:
    """Decimals as many countries of Europe write them."""
    return [[*row[:2], *(cell.replace(".", ",") for cell in row[2:6]), *row[6:]] for row in rows]


PLAIN = text()
HARMLESS = {
    "a mark": PLAIN.encode("utf-8-sig"),
    "Excel's Unicode text": text(delimiter="\t").encode("utf-16"),
    "UTF-16, the other way": "\ufeff".encode("utf-16-be") + PLAIN.encode("utf-16-be"),
    "Excel in Europe": text(comma(), delimiter=";"),
    "Excel in Europe, with a mark": text(comma(), delimiter=";").encode("utf-8-sig"),
    "semicolons": text(delimiter=";"),
    "tabs": text(delimiter="\t"),
    "bars": text(delimiter="|"),
    "sep=": "sep=;\r\n" + text(delimiter=";"),
    "sep= of commas": "sep=,\n" + PLAIN,
    "sep= in quotes": '"sep=;"\r\n' + text(delimiter=";"),
    "decimal commas in quotes": text(comma()),
    "everything in quotes": text(quoting=csv.QUOTE_ALL),
    "CR": text(lineterminator="\r"),
    "LF": text(lineterminator="\n"),
    "no end of the last line": PLAIN.rstrip(),
    "blank rows": PLAIN.replace("\r\n", "\r\n\r\n") + "\r\n  \r\n",
    "rows of separators": PLAIN + ",,,,,,,\r\n" * 20,
    "rows of a separator too many": PLAIN + ",,,,,,,,,,,,\r\n, ,,\r\n",
    "blank rows before the header": "\r\n,,,,,,,\r\n" + PLAIN,
    "a separator after each row": PLAIN.replace("\r\n", ",\r\n"),
    "separators after the rows": text([[*row, "", ""] for row in ROWS]),
    "blanks around names": text(header=[f" {name} " for name in HEADER]),
    "names in capitals": text(header=[name.upper() for name in HEADER]),
    "names in small letters": text(header=[name.lower() for name in HEADER]),
    "blanks around cells": text([[f" {cell} " for cell in row] for row in ROWS]),
    "an index": text([[str(i), *row] for i, row in enumerate(ROWS)], ["", *HEADER]),
    "a column of notes": text([[*row, "é"] for row in ROWS], [*HEADER, "notes"]),
    "another order": text([row[::-1] for row in ROWS], HEADER[::-1]),
    **{f"{word!r} for none": PLAIN.replace(";;", f";{word};") for word in ("nan", "NaN", "NULL", "None", "NA", " ")},
    "backslashes": text([[cell.replace("/", "\\") for cell in row] for row in ROWS]),
    "a mark twice": b"\xef\xbb\xbf" + PLAIN.encode("utf-8-sig"),
    "pandas' index twice": text([["0", "0", *row] for row in ROWS], ["Unnamed: 0.1", "Unnamed: 0", *HEADER]),
    "R's row names": text([["1", *row] for row in ROWS], ["", *HEADER], quoting=csv.QUOTE_ALL),
    "paths in other case": PLAIN.replace("a/two.png", "A/Two.PNG"),
    "dots": text([[f"./{cell}" if cell.endswith("png") else cell for cell in row] for row in ROWS]),
    "exponents": PLAIN.replace("2.5", "2.5e0").replace("10", "1e1", 1),
}  # fmt: skip


@pytest.mark.parametrize("content", HARMLESS.values(), ids=HARMLESS)
def test_what_says_the_same_otherwise_is_read_the_same(tmp_path, expected, content):
    assert list_scored(write(tmp_path, content)) == expected


def test_windows_1252_is_read_where_its_paths_make_sense_and_is_reported(tmp_path, caplog):
    rows = [[cell.replace("two", "größe") for cell in row] for row in ROWS]
    write(tmp_path, text(rows).encode("cp1252"), ("one", "größe"))

    with caplog.at_level(logging.WARNING):
        pairs = PairsCSV(root=str(tmp_path), size=32).pairs("test")

    assert [pair.target.path.name for pair in pairs] == ["größe.png", "one.png"]
    assert "pairs.csv, line 2, is not UTF-8 text: it is read as Windows-1252" in caplog.text


def row(**cells: str) -> str:
    """The table with a row before the others, which differs from the first in these cells."""
    return text([[cells.get(name, cell) for name, cell in zip(HEADER, ROWS[0], strict=True)], *ROWS])


REFUSED = {
    "nothing": ("", ["has no column source_image"]),
    "no header": (text().split("\r\n", 1)[1], ["has no column source_image"]),
    "a column missing": (text([r[:5] for r in ROWS], HEADER[:5]), ["has no column YB"]),
    "a column twice": (text([[*r, "x"] for r in ROWS], [*HEADER, "XA"]), ["the column XA twice"]),
    "a column twice, in capitals": (text([[*r, "x"] for r in ROWS], [*HEADER, "Box "]), ["the column box twice"]),
    "a row too short": (PLAIN + "a/one.png,a/two.png\r\n", ["line 4", "2 columns", "8"]),
    "a row too long": (PLAIN + ",".join([*ROWS[0], "1"]) + "\r\n", ["line 4", "9 columns", "8"]),
    "sep= of something else": ("sep=x\n" + PLAIN, ["line 1", "sep=x"]),
    "sep= that is not so": ("sep=;\n" + PLAIN, ["has no column"]),
    "points without quotes": (PLAIN.replace(",", ";"), ["line 2", "columns"]),
    "a quote not closed": (PLAIN + '"a/one.png,a/two.png,1,2,3,4,cup,\r\n', ["line 4"]),
    "a quote over two rows": (
        PLAIN + 'a/one.png,a/two.png,1,2,3,4,"cup,\r\na/one.png,a/two.png,1,2,3,4,cup",\r\n', ["line 5", "category"],
    ),
    "half of a point": (row(YA="5;;;8"), ["line 2", "point 2", "XA"]),
    "half of a point, NaN": (row(XB="nan;;11;12"), ["line 2", "point 1", "YB"]),
    "infinite": (row(XA="inf;2.5;;4"), ["line 2", "XA holds 'inf'", "finite"]),
    "beyond all": (row(XA="1e400;2.5;;4"), ["line 2", "'1e400'"]),
    "a billion billions": (row(XA="1e18;2.5;;4"), ["line 2", "'1e18'", "pixels"]),
    "thousands": (row(XA="1,234;2.5;;4"), ["line 2", "'1,234'", "nothing between thousands"]),
    "thousands and decimals": (row(XA="1,234.5;2.5;;4"), ["line 2", "'1,234.5'"]),
    "thousands of the Swiss": (row(XA="1'234;2.5;;4"), ["line 2", "1'234"]),
    "underscores": (row(XA="1_0;2.5;;4"), ["line 2", "'1_0'"]),
    "commas between points": (row(XA="120,200", YA="1,2", XB="1,2", YB="1,2"), ["line 2", "'120,200'", "Write ;"]),
    "a single decimal comma": (row(XA="1,5", YA="1", XB="1", YB="2"), ["line 2", "'1,5'", "Write ;"]),
    "more commas": (row(XA="1,5,7", YA="1,2,3", XB="1,2,3", YB="1,2,3"), ["line 2", "'1,5,7'"]),
    "a date": (row(XA="01. May;2.5;;4"), ["line 2", "'01. May'"]),
    "a word": (row(XA="x;2.5;;4"), ["line 2", "'x'"]),
    "digits of others": (row(XA="\u0661;2.5;;4"), ["line 2", "XA"]),
    "a box backwards": (row(box="32;3;2;23"), ["line 2", "'32;3;2;23'", "x1 < x2"]),
    "a box with NaN": (row(box="nan;3;2;23"), ["line 2", "'nan;3;2;23'"]),
    "a box of five": (row(box="1;2;3;4;5"), ["line 2", "'1;2;3;4;5'"]),
    "a URL": (row(source_image="http://a.org/one.png"), ["line 2", "source_image", "URL", "must be on disk"]),
    "above": (row(target_image="..\\one.png"), ["line 2", "target_image", "a folder above"]),
    "no such image": (row(target_image="a/three.png"), ["line 2", "target_image", "three.png does not exist"]),
    "UTF-16 without a mark": (PLAIN.encode("utf-16-le"), ["NUL", "CSV UTF-8"]),
    "no text": (PLAIN.encode() + b"\x81\x8d", ["line 4", "UTF-8", "Windows-1252", "CSV UTF-8"]),
    "another encoding": (
        row(source_image="a/больше.png").encode("cp1251"), ["line 2", "read as Windows-1252", "does not exist"],
    ),
    "a Japanese name in Excel's encoding": (
        row(source_image="a/猫.png").encode("cp932"), ["line 2", "read as Windows-1252", 'Save it as "CSV UTF-8"'],
    ),
    "the name of the table before it": ("Table 1\r\n" + PLAIN, ["its header is in line 2", "Delete the lines before"]),
    "notes before it": ("# by me\n# 2026\n\n" + text(delimiter=";"), ["its header is in line 4"]),
    "a point at -1": (row(XA="-1;2.5;;4", YA="-1;6;;8"), ["line 2", "point 1 is -1, -1 in A", "Leave both empty"]),
    "a reference of a sheet": (row(XA="#REF!;2.5;;4"), ["line 2", "'#REF!'"]),
    "a list": (row(XA="[1, 2]", YA="[1, 2]"), ["line 2", "'[1, 2]'", "Write ;"]),
    "a formula": (row(XA='="1;2.5;;4"'), ["line 2", "XA holds '=\"1'"]),
    "no box": (row(box=""), ["line 2", "this row has none in its column `box`"]),
    "a header in another encoding": ("é" + "\n".join(["x"] * 3), ["has no column"]),
    "a header of the same in Windows-1252": ("é,x\n".encode("cp1252"), ["line 1", "Windows-1252", "CSV UTF-8"]),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_a_user_error_with_file_and_line(tmp_path, content, words):
    write(tmp_path, content)

    with pytest.raises(UserError, match=r"pairs\.csv") as error:
        list_scored(tmp_path)

    assert all(word in str(error.value) for word in words), str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_points_that_are_fractions_of_the_sides_are_refused(tmp_path):
    rows = [[*r[:2], "0.5;0.25", "0.1;0.2", "0.5;0.75", "1;0", "cup", "2;3;32;23"] for r in ROWS]
    write(tmp_path, text(rows))

    with pytest.raises(UserError, match=r"pairs\.csv: all its points are from 0 to 1.*Multiply"):
        list_scored(tmp_path)


def test_lines_are_counted_with_what_is_passed_over(tmp_path):
    write(tmp_path, "sep=;\r\n\r\n" + text(delimiter=";") + ";;;;;;;\r\n\r\nx;y;1;2;3;4;cup;\r\n")

    with pytest.raises(UserError, match="line 8"):
        list_scored(tmp_path)


def test_columns_that_are_not_read_are_named(tmp_path, caplog):
    write(tmp_path, text([[*r, "1"] for r in ROWS], [*HEADER, "bbox"]))

    with caplog.at_level(logging.WARNING):
        list_scored(tmp_path)

    assert "the columns 'bbox' are not read" in caplog.text


def test_a_separator_follows_from_the_header_alone(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1;2;3;4,5;6\n7;8,9;9\n")

    assert [cells for _, cells in read_spreadsheet(path, ("a", "b"), (), "").rows] == [
        {"a": "1;2;3;4", "b": "5;6"}, {"a": "7;8", "b": "9;9"},
    ]  # fmt: skip


def test_official_tables_and_our_own_stay_as_strict_as_they_were(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("A;b\n1;2\n")
    with pytest.raises(UserError, match="has no column a, b"):
        read_table(path, ("a", "b"))
    path.write_text("step,val/all/pck@0.1\n1,0.5\n\n2,\n")
    assert read_table(path, ("step",)) == [
        (2, {"step": "1", "val/all/pck@0.1": "0.5"}), (4, {"step": "2", "val/all/pck@0.1": ""}),
    ]  # fmt: skip
