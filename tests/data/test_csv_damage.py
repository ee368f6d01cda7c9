"""A damaged table gives what the undamaged one gives, or one sentence."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_damage import damage, refusal
from test_csv_tables import HEADER, PLAIN, ROWS, comma, list_scored, text, write

JUNK = ["x", "nan", "inf", "1e400", "1,234", "1,5", "1;", ";", "1;2;3;4;5", '"', "1 2", "-", "\t"]
JUNK += ["http://a.org/a.png", "\\", "\0", "é", ""]
BLANK = ["", " ", "{0}", "{0}{0}{0}{0}{0}{0}{0}", "{0} {0}", "{0}" * 12]


def dressed(draw: random.Random) -> bytes:
    """The table as one program or another writes it: nothing of it may matter."""
    separator, end = draw.choice(",;\t|"), draw.choice(["\r\n", "\n", "\r"])
    header, rows = list(HEADER), [list(row) for row in (comma() if separator != "," and draw.random() < 0.5 else ROWS)]
    order = draw.sample(range(len(header)), len(header)) if draw.random() < 0.3 else list(range(len(header)))
    header, rows = [header[i] for i in order], [[row[i] for i in order] for row in rows]
    header = [draw.choice([str, str.upper, str.title, "  {} ".format])(name) for name in header]
    if draw.random() < 0.3:  # a data frame's index
        header, rows = ["", *header], [[str(i), *row] for i, row in enumerate(rows)]
    if draw.random() < 0.3:
        nothing = draw.choice(["nan", "NaN", "NULL", "None", "NA", "<NA>"])
        rows = [[cell.replace(";;", f";{nothing};") for cell in row] for row in rows]
    lines = text(rows, header, delimiter=separator, quoting=draw.choice([0, 1])).split("\r\n")[:-1]
    if draw.random() < 0.3:
        lines = [line + separator for line in lines]
    for _ in range(draw.randrange(4)):
        lines.insert(draw.randrange(len(lines) + 1), draw.choice(BLANK).format(separator))
    if draw.random() < 0.3:
        lines.insert(0, f"sep={separator}")
    return (end.join(lines) + draw.choice(["", end])).encode(draw.choice(["utf-8", "utf-8-sig", "utf-16"]))


def spoilt(draw: random.Random) -> bytes:
    """A cell that is another, or a row that is longer or shorter; of categories any is as good."""
    header, rows = list(HEADER), [list(row) for row in ROWS]
    row, place = draw.choice([header, *rows]), draw.choice([i for i in range(len(header)) if i != 6])
    if draw.random() < 0.2:
        row.insert(place, draw.choice(JUNK))
    elif draw.random() < 0.2:
        del row[place]
    else:
        row[place] = draw.choice(JUNK)
    return text(rows, header).encode(draw.choice(["utf-8", "cp1252"]), errors="replace")


def repeated(count: int, each) -> None:
    healthy = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

    @settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=healthy)
    @given(st.randoms(use_true_random=False))
    def every(draw: random.Random) -> None:
        each(draw)

    every()


COUNTS = pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])


@COUNTS
def test_how_a_program_writes_a_table_does_not_matter(tmp_path, count):
    expected = list_scored(write(tmp_path, PLAIN))

    def each(draw: random.Random) -> None:
        (tmp_path / "pairs.csv").write_bytes(dressed(draw))
        assert list_scored(tmp_path) == expected

    repeated(count, each)


@COUNTS
def test_damage_to_a_cell_is_the_same_answer_or_a_user_error(tmp_path, count):
    expected, seen = list_scored(write(tmp_path, PLAIN)), []

    def each(draw: random.Random) -> None:
        (tmp_path / "pairs.csv").write_bytes(spoilt(draw))
        message = refusal(lambda: same(tmp_path, expected))
        assert not message or "pairs" in message
        seen.append(bool(message))

    repeated(count, each)
    assert sum(seen) > count // 2


def same(root: Path, expected: list[tuple]) -> None:
    assert list_scored(root) == expected


@COUNTS
def test_damage_to_its_bytes_is_no_traceback(tmp_path, count):
    write(tmp_path, PLAIN)
    failed = 0
    for seed in range(count):
        (tmp_path / "pairs.csv").write_bytes(damage(PLAIN.encode(), seed))
        failed += bool(refusal(lambda: list_scored(tmp_path)))
    assert failed > count // 2
