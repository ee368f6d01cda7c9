"""Panels of the report: as wide as the page, letters of one size, matrices whose columns have names."""

import re

import numpy as np

from semcorr.report.confusion import _draw_matrix
from semcorr.report.svg import WIDE, WIDTH, PlotFrame, draw_axes, draw_panel, draw_text


def test_a_panel_alone_has_the_letters_of_two_beside_each_other():
    """Its drawing is as wide as two and the gap between them, and so is reduced to the page by the same factor."""
    assert WIDE == 2 * WIDTH + 24
    assert f'viewBox="0 0 {WIDE} 300" class="alone"' in draw_panel("one", [], width=WIDE)
    assert "alone" not in draw_panel("one", [])


def test_a_wide_frame_uses_its_width():
    narrow, wide = (PlotFrame((0, 1), (0, 1), width=width) for width in (WIDTH, WIDE))

    assert wide.px(1) - narrow.px(1) == WIDE - WIDTH
    rules = [float(x) for x in re.findall(r'x2="([\d.]+)"', "".join(draw_axes(wide, {0: "0"}, "x")))]
    assert set(rules) == {WIDE - wide.right}


def test_columns_of_a_matrix_have_the_names_of_its_rows():
    matrix = np.array([[5, 1, 0], [2, 4, 1]])

    svg = _draw_matrix("cat", matrix, {0: "left eye", 1: "right eye"})

    for name in ("left eye 0", "right eye 1"):
        assert len(re.findall(rf"<text[^>]*>{name}</text>", svg)) == 2  # of a row and of a column
    columns = re.findall(
        r'<text x="([\d.]+)" y="[\d.]+" class="axis" transform="rotate\(-50 [\d. ]+\)">(.*?)</text>', svg
    )
    assert [name for _, name in columns] == ["left eye 0", "right eye 1", "none"]
    cells = sorted({float(x) for x in re.findall(r'<rect x="([\d.]+)"', svg)})
    assert all(cell < float(x) < cell + 19 for cell, (x, _) in zip(cells, columns, strict=True))
    width = float(re.findall(r'viewBox="0 0 ([\d.]+)', svg)[0])
    assert cells[-1] + 19 < width


def test_text_is_turned_about_its_own_place():
    assert 'transform="rotate(-50 3 4)"' in draw_text(3, 4, "a", angle=-50)
    assert "transform" not in draw_text(3, 4, "a")
