"""Drawing as SVG text: a plot's frame, lines, bars and labels; colours are classes, for a light and a dark page."""

from collections.abc import Mapping, Sequence
from html import escape
from textwrap import wrap
from typing import NamedTuple

WIDTH, HEIGHT = 440, 300  # of a panel: two fill the width of a page, one that of a phone
WIDE = 2 * WIDTH + 24  # of a panel alone in its figure, whose letters have the same size
LETTER = 6.4  # approximate width of a letter at the size of labels
LINE = 15  # pixels from a line of text to the next
RAMP = ("a1", "a2", "a3", "a4", "a5")  # from a fine tolerance to a coarse one
SERIES = ("s1", "s2", "s3", "s4")
LINE_SERIES = (*SERIES, "s5", "s6", "s7", "s8")


class PlotFrame(NamedTuple):
    """The ranges of a plot's data and the margins around them.

    Attributes:
        x: Least and greatest value along x.
        y: Least and greatest value along y.
        right: Margin at the right in pixels, with the names of lines.
        left: Margin at the left in pixels, with the numbers of the y axis.
        top: Margin at the top in pixels, with the title.
        bottom: Margin at the bottom in pixels, with the ticks and the name of the x axis.
        width: Width of the panel in pixels; its height is `HEIGHT`.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    right: float = 62
    left: float = 40
    top: float = 56
    bottom: float = 40
    width: float = WIDTH

    def px(self, x: float) -> float:
        """Convert a value to a horizontal position in pixels."""
        low, high = self.x
        return round(self.left + (x - low) / ((high - low) or 1) * (self.width - self.left - self.right), 1)

    def py(self, y: float) -> float:
        """Convert a value to a vertical position in pixels."""
        low, high = self.y
        return round(HEIGHT - self.bottom - (y - low) / ((high - low) or 1) * (HEIGHT - self.top - self.bottom), 1)


def draw_panel(title: str, body: Sequence[str], height: float = HEIGHT, width: float = WIDTH) -> str:
    """Draw a panel with its title; as wide as its place in the page, or as scrolls on a phone if it is a wide one.

    A body leaves room for two lines of title, and is moved down by any more.

    Args:
        title: Title, which is wrapped.
        body: SVG elements, in pixels of the panel.
        height: Height of the panel in pixels, without further lines of title.
        width: Width of the panel in pixels; `WIDE` for one that scrolls.
    """
    lines = wrap(title, int(width / 6.9))
    moved = LINE * max(0, len(lines) - 2)
    wide = ' class="alone"' if width == WIDE else ""
    head = f'<svg viewBox="0 0 {width:g} {height + moved:g}"{wide} role="img" aria-label="{escape(title)}">'
    parts = [draw_text(4, 14 + LINE * i, line, "title") for i, line in enumerate(lines)]
    parts += [f'<g transform="translate(0 {moved})">', *body, "</g>"] if moved else body
    return "\n".join([head, *parts, "</svg>"])


class BarNames(NamedTuple):
    """Where the names of bars that grow to the right are written.

    Attributes:
        left: Where the bars begin, in pixels.
        above: Lines of each name above its bar; none where it is left of it.
    """

    left: float
    above: Mapping[str, Sequence[str]]

    def draw(self, name: str, y: float, drop: float) -> tuple[list[str], float]:
        """Draw a name, and return with it the top of its bar.

        Args:
            name: The name.
            y: First pixel of name and bar.
            drop: Pixels from the top of the bar to the foot of a name that is left of it.
        """
        lines = self.above[name]
        if not lines:
            return [draw_text(self.left - 6, y + drop, name, "axis", "end")], y
        parts = [draw_text(self.left, y + 11 + LINE * i, line, "axis") for i, line in enumerate(lines)]
        return parts, y + LINE * len(lines)


def place_bar_names(names: Sequence[str], width: float) -> BarNames:
    """Place names left of their bars if all have room in half of a panel, and else above them, in lines.

    >>> place_bar_names(["cat", "dog"], WIDTH).above
    {'cat': [], 'dog': []}
    >>> place_bar_names(["cat", "an animal that has a long name, with its number 12"], WIDTH).above["cat"]
    ['cat']
    """
    left = 12 + 6.6 * max(map(len, names), default=0)
    if left <= width / 2:
        return BarNames(left, {name: [] for name in names})
    return BarNames(8, {name: wrap(name, int((width - 12) / 6.6)) for name in names})


def draw_text(x: float, y: float, words: str, css: str = "", anchor: str = "start", angle: float = 0) -> str:
    """Draw a line of text.

    Args:
        x: Horizontal position in pixels.
        y: Position of the baseline in pixels from the top.
        words: The text, which is escaped.
        css: Classes of the style sheet.
        anchor: What lies at `x`: `start`, `middle` or `end` of the text.
        angle: Degrees by which the text is turned clockwise about the position.
    """
    attribute = "" if anchor == "start" else f' text-anchor="{anchor}"'
    attribute += f' transform="rotate({angle:g} {x:g} {y:g})"' if angle else ""
    return f'<text x="{x:g}" y="{y:g}" class="{css}"{attribute}>{escape(words)}</text>'


def draw_line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """Draw a line between two points in pixels, in classes of the style sheet."""
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="{css}"/>'


def draw_axes(frame: PlotFrame, ticks: Mapping[float, str], across: str, upward: str = "PCK, %") -> list[str]:
    """Draw rules at round percents and ticks below, without those that would touch the tick before them.

    Args:
        frame: Frame of the plot, whose y are fractions.
        ticks: Text of each tick, by its value of x.
        across: Name of the x axis.
        upward: Name of the y axis.
    """
    parts = [draw_text(4, frame.top - 13, upward, "axis")]
    for value in round_ticks(*frame.y):
        y = frame.py(value)
        parts.append(draw_line(frame.left, y, frame.width - frame.right, y, "rule"))
        parts.append(draw_text(frame.left - 6, y + 4, f"{100 * value:.0f}", "axis", "end"))
    previous_end = -1e9
    for value, name in sorted(ticks.items()):
        x, half = frame.px(value), len(name) * LETTER / 2
        if x - half > previous_end + 4:
            parts.append(draw_text(x, HEIGHT - frame.bottom + 16, name, "axis", "middle"))
            previous_end = x + half
    parts.append(draw_text((frame.left + frame.width - frame.right) / 2, HEIGHT - 6, across, "axis", "middle"))
    return parts


def draw_bar_axis(left: float, full: float, top: float, bottom: float, scale: float) -> list[str]:
    """Draw upright rules at round percents for bars that grow to the right, with ticks below them.

    Args:
        left: Where the bars begin, in pixels.
        full: Pixels of a bar of `scale`.
        top: First pixel of the rules.
        bottom: Last pixel of the rules.
        scale: The value at the right end.
    """
    parts = []
    for value in round_ticks(0.0, scale):
        x = round(left + full * value / scale, 1)
        parts.append(draw_line(x, top - 4, x, bottom, "rule"))
        parts.append(draw_text(x, bottom + 15, f"{100 * value:.0f}", "axis", "middle"))
    return parts


def draw_dumbbells(title: str, groups: Mapping[str, Sequence[tuple[float | None, float | None]]]) -> str:
    """Draw a panel of two values each, joined by a line: the first a disc, the second a ring; one row per series.

    Args:
        title: Title of the panel.
        groups: The two values of each series, by the name of a group of rows.
    """
    left, right, top, row = 12 + 6.6 * max(map(len, groups), default=0), 20, 46, 9
    full, y = WIDTH - left - right, top
    scale = ticks_up_to([value for rows in groups.values() for ends in rows for value in ends if value is not None])[1]
    body = []
    for name, rows in groups.items():
        body.append(draw_text(left - 8, y + row * len(rows) / 2 + 4, name, "axis", "end"))
        for ends, css in zip(rows, SERIES, strict=False):
            first, second = (None if value is None else round(left + full * value / scale, 1) for value in ends)
            middle = y + row / 2
            if first is not None and second is not None:
                body.append(f'<path d="M{first:g} {middle:g}H{second:g}" class="line {css}"/>')
            if first is not None:
                body.append(f'<circle cx="{first:g}" cy="{middle:g}" r="3.5" class="dot {css}"/>')
            if second is not None:
                body.append(f'<circle cx="{second:g}" cy="{middle:g}" r="3.5" class="ring {css}"/>')
            y += row
        y += 8
    return draw_panel(title, [*draw_bar_axis(left, full, top, y, scale), *body], y + 24)


class HeatCell(NamedTuple):
    """A cell of a heat matrix.

    Attributes:
        value: Fraction that the cell is shaded by; None, as little as 0.
        text: The number in the cell.
        name: Name of the cell, which its tooltip gives before the number.
    """

    value: float | None
    text: str
    name: str


def draw_heat_matrix(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[str, str], HeatCell],
    *,
    row_height: int,
    max_width: float,
) -> str:
    """Draw a panel of cells that are the darker, the larger their value is.

    Args:
        title: Title of the panel.
        rows: Names of the rows.
        columns: Names of the columns, which are cut to the width of a cell.
        cells: Cells by their row and column; one that is missing stays empty.
        row_height: Pixels of a row.
        max_width: Most pixels of a column.
    """
    left, top = 12 + LETTER * max(map(len, rows)), 66
    side = min(max_width, (WIDTH - left) / len(columns))
    letters = max(2, int(side / LETTER))
    baseline = row_height // 2 + 4
    body = [
        draw_text(left + j * side + side / 2, top - 8, name[:letters], "axis", "middle")
        for j, name in enumerate(columns)
    ]
    for i, row in enumerate(rows):
        y = top + i * row_height
        body.append(draw_text(left - 6, y + baseline, row, "axis", "end"))
        for j, column in enumerate(columns):
            cell = cells.get((row, column))
            if cell is None:
                continue
            x, value = left + j * side, cell.value or 0.0
            body.append(
                f'<rect x="{x:g}" y="{y:g}" width="{side - 2:g}" height="{row_height - 2}" class="heat" '
                f'fill-opacity="{0.06 + 0.9 * value:.2f}"><title>{escape(f"{cell.name}: {cell.text}")}</title></rect>'
            )
            css = "end over" if value > 0.6 else "end"
            body.append(draw_text(x + side / 2 - 1, y + baseline, cell.text, css, "middle"))
    return draw_panel(title, body, top + len(rows) * row_height + 6)


def round_ticks(low: float, high: float) -> list[float]:
    """Return the round percents in a range, in steps of 1, 2, 5, 10 or 20.

    >>> round_ticks(0.0, 0.8)
    [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    step = next((s for s in (1, 2, 5, 10) if (high - low) * 100 / s <= 5), 20)
    return [k * step / 100 for k in range(0, 101) if low - 1e-9 <= k * step / 100 <= high + 1e-9]


def ticks_up_to(values: Sequence[float]) -> tuple[float, float]:
    """Return the range from 0 to a round percent above all values, so that several panels can be compared.

    >>> ticks_up_to([0.31, 0.52])
    (0.0, 0.6)
    """
    return 0.0, min(1.0, (int(max(values, default=0.0) * 10 - 1e-9) + 1) / 10)


def draw_polyline(frame: PlotFrame, points: Sequence[tuple[float, float]], css: str) -> list[str]:
    """Draw a line with a dot at every value.

    Args:
        frame: Frame of the plot.
        points: x and y of the values, in the data's units.
        css: Classes of the style sheet.
    """
    positions = [(frame.px(x), frame.py(y)) for x, y in points]
    joined = " ".join(f"{x:g},{y:g}" for x, y in positions)
    return [
        f'<polyline points="{joined}" class="line {css}"/>',
        *(f'<circle cx="{x:g}" cy="{y:g}" r="3" class="dot {css}"/>' for x, y in positions),
    ]


def draw_whisker(frame: PlotFrame, x: float, ends: tuple[float, float], css: str) -> list[str]:
    """Draw an interval as an upright line with a bar at each end.

    Args:
        frame: Frame of the plot.
        x: Value of x.
        ends: Least and greatest value of y.
        css: Classes of the style sheet.
    """
    centre, low, high = frame.px(x), *map(frame.py, ends)
    return [
        draw_line(centre, low, centre, high, f"whisker {css}"),
        *(draw_line(centre - 3, end, centre + 3, end, f"whisker {css}") for end in (low, high)),
    ]


def spread_labels(heights: Sequence[float], gap: float = 13) -> list[float]:
    """Spread labels at least `gap` apart, in the order of the dots and as near to them as possible.

    Neighbours that are too near become a block around the mean of their dots.

    >>> spread_labels([10, 50, 52, 12], 10), spread_labels([30, 10], 10)
    ([6.0, 46.0, 56.0, 16.0], [30.0, 10.0])
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    blocks: list[tuple[float, int]] = []  # position of the block's first label, and its count
    for rank, i in enumerate(order):
        first, count = heights[i] - rank * gap, 1
        while blocks and blocks[-1][0] > first:
            previous_first, previous_count = blocks.pop()
            first, count = (
                (previous_first * previous_count + first * count) / (previous_count + count),
                previous_count + count,
            )
        blocks.append((first, count))
    firsts = [first for first, count in blocks for _ in range(count)]
    positions = dict(zip(order, (first + rank * gap for rank, first in enumerate(firsts)), strict=True))
    return [float(positions[i]) for i in range(len(heights))]


def draw_label(x: float, y: float, place: float, name: str, css: str) -> list[str]:
    """Draw a label right of a dot; a thin line leads to it where it had to move away.

    Args:
        x: Horizontal position of the dot in pixels.
        y: Vertical position of the dot in pixels.
        place: Vertical position of the label in pixels.
        name: Text of the label.
        css: Classes of the style sheet.
    """
    moved = abs(place - y) > 3
    lead = [draw_line(x + 4, y, x + 13, place, "lead")] if moved else []
    return [*lead, draw_text(x + (15 if moved else 7), place + 4, name, css)]


def draw_line_ends(frame: PlotFrame, named: Sequence[tuple[str, float, str]]) -> list[str]:
    """Draw names at the right end of lines, moved apart where they would overlap.

    Args:
        frame: Frame of the plot.
        named: Name, last value of y, and class of each line.
    """
    line_heights = [frame.py(value) for _, value, _ in named]
    label_heights = spread_labels(line_heights)
    overflow = max(0.0, max(label_heights, default=0.0) - (HEIGHT - frame.bottom))
    x = frame.width - frame.right
    return [
        part
        for y, label_y, (name, _, css) in zip(line_heights, label_heights, named, strict=True)
        for part in draw_label(x, y, label_y - overflow, name, f"end {css}")
    ]
