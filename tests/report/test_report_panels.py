"""Panels of the report: as wide as the page, letters of one size, matrices whose columns have names."""

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import made, run_dir

from semcorr.report import difficulty
from semcorr.report.categories import _draw_bars
from semcorr.report.choices import plot_choices
from semcorr.report.confusion import _draw_matrix
from semcorr.report.curves import plot_curves
from semcorr.report.svg import WIDE, WIDTH, PlotFrame, draw_axes, draw_panel, draw_text, place_bar_names


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


# -- nothing is cut off --

LONG = "an animal with a name that nobody would give to a category, but which a table of one's own may well hold"


def cut_texts(panel: str) -> list[str]:
    """The texts of a panel of which letters, 6 pixels wide, lie outside."""
    width, height = (float(side) for side in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', panel).groups())
    moved = float((re.search(r"translate\(0 (\d+)\)", panel) or [0, 0])[1])
    cut = []
    for x, y, rest, words in re.findall(r'<text x="([-\d.]+)" y="([-\d.]+)"([^>]*)>([^<]*)</text>', panel):
        length = 6 * len(unescape(words))
        start = float(x) - length * {"end": 1, "middle": 0.5}.get("".join(re.findall('anchor="(.*?)"', rest)), 0)
        end = float(y) + (0 if 'class="title"' in rest else moved)
        if start < 0 or start + length > width or end < 8 or end > height:
            cut.append(unescape(words))
    return cut


def transports(root: Path) -> list[Path]:
    """Cosine and four transports, as docs/heads.md compares them, at two sizes and on one tuned block and none."""
    heads = [{"_target_": "semcorr.models.heads.cosine.Cosine"}]
    for dustbin, iterations, marginals, temperature in (
        (None, 20, "uniform", 0.05),
        (None, 1, "uniform", 0.05),
        (0.3, 20, "uniform", 0.05),
        (None, 20, "staircase", 0.1),
    ):
        options = {"dustbin": dustbin, "iterations": iterations, "marginals": marginals, "temperature": temperature}
        heads.append({"_target_": "semcorr.models.heads.transport.Transport", **options})
    return [
        run_dir(root / f"{size}_{i}", 3 * i + size / 96, (4, 4), {"head": head, "backbone": {"size": size}})
        for size in (96, 128)
        for i, head in enumerate(heads)
    ]


@pytest.mark.integration
def test_names_of_many_settings_are_within_their_panels(tmp_path):
    folders = transports(tmp_path)
    for entries in (made(*folders), made(*folders[:5])):  # in two panels beside each other, and in a wide one
        sections = [section for section in (plot_choices(entries), plot_curves(entries)) if section]
        panels = [panel for section in sections for figure in section.parts for panel in figure.panels]

        assert [words for panel in panels for words in cut_texts(panel)] == []
        (choices,) = (figure for figure in sections[0].parts if figure.title == "PCK over choices of head")
        for row in choices.table.rows:
            assert any(row[1] in " ".join(re.findall(">([^<]+)</text>", panel)) for panel in choices.panels)


@pytest.mark.integration
def test_lines_whose_names_have_no_room_are_numbered_and_named_below(tmp_path):
    joint = plot_curves(made(*transports(tmp_path))).parts[0]

    ends = re.findall(r'class="end [^"]*">([^<]*)</text>', joint.panels[0])
    assert sorted(ends) == ["1", "2", "3", "4", "5"]
    best = list(dict.fromkeys(row[0] for row in joint.table.rows))
    assert joint.caption.endswith("Lines: " + "; ".join(f"{i}: {name}" for i, name in enumerate(best, 1)) + ".")
    rest = joint.panels[0].split('class="line ')[1:]
    assert len(rest) == 5


@pytest.mark.integration
@pytest.mark.parametrize("width", [WIDTH, WIDE])
def test_long_names_of_categories_are_within_their_panel(tmp_path, width):
    (entry,) = made(run_dir(tmp_path / "run", 0.0, (4, 4)))
    names = ["cat", LONG]
    value = entry.value("all", "0.1")
    entry.runs[0].metrics["category"] = dict.fromkeys(names, next(iter(entry.runs[0].metrics["category"].values())))

    for panel in (
        _draw_bars(entry, names, width, scale=1.0),
        difficulty._draw_bars("title", [[(f"{name} small", [value] * len(difficulty.SHADES))] for name in names]),
    ):
        assert cut_texts(panel) == []
        bars = [float(length) for length in re.findall(r'<rect x="[\d.]+" y="[\d.]+" width="([-\d.]+)"', panel)]
        assert bars
        assert min(bars) >= 0
        assert max(bars) > 0.1 * WIDTH


def test_a_name_above_its_bar_moves_it_down_by_its_lines():
    places = place_bar_names(["cat", LONG], WIDTH)

    (one,), two = places.draw("cat", 50, 13)[0], places.draw(LONG, 50, 13)
    assert ">cat<" in one
    assert " ".join(re.findall(">([^<]+)<", "".join(two[0]))) == LONG.replace("'", "&#x27;")
    assert (places.draw("cat", 50, 13)[1], two[1]) == (65, 50 + 15 * len(two[0]))


def test_a_long_title_moves_what_is_below_it():
    body = [draw_text(4, 40, "first")]

    short, long = draw_panel("a title", body), draw_panel(f"{LONG}, {LONG}", body)

    assert "<g" not in short
    assert cut_texts(long) == []
    lines = [float(y) for y in re.findall(r'y="([\d.]+)" class="title"', long)]
    moved = float(re.search(r"translate\(0 (\d+)\)", long)[1])
    assert lines[-1] <= 40 + moved - 11
    assert f'viewBox="0 0 {WIDTH} {300 + moved:g}"' in long
