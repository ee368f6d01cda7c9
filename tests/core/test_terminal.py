"""Tables in terminals of any width."""

import re

import pytest
from rich.table import Table

from semcorr.core.terminal import Terminal

NUMBERS = ["0.01", "12.3", "100.0", "1,234,567"]


def print_at(width: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    table = Table(title="Scores", caption="in percent")
    for header in ("settings", *NUMBERS):
        table.add_column(header, justify="left" if header == "settings" else "right")
    table.add_row("backbone=squeezenet head=bottleneck", *reversed(NUMBERS))
    Terminal(width=width).print_table(table)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", [1, 20, 40, 60, 80, 200])
def test_numbers_are_whole_at_any_width(capsys, width):
    lines = print_at(width, capsys)

    words = re.findall(r"[\d.,]+", " ".join(lines))
    assert sorted(words) == sorted(2 * NUMBERS)
    assert len({len(line) for line in lines if line[0] in "┏┃┡│└"}) == 1


def test_a_table_that_fits_is_as_it_was(capsys):
    assert max(map(len, print_at(80, capsys))) <= 80
    assert any("backbone=squeezenet head=bottleneck" in line for line in print_at(200, capsys))
