"""What a report is made of: sections of paragraphs, tables and figures. Every writer gets the same strings."""

from collections.abc import Sequence
from typing import NamedTuple

from semcorr.report.entries import Value

NONE = "–"


class Table(NamedTuple):
    """Cells as they are shown everywhere, so that no two formats can round differently."""

    key: str  # for CSV and LaTeX's labels
    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1  # columns of text from the left, then numbers,
    notes: int = 0  # and columns of text at the right
    ours: Sequence[int] = ()  # rows that are of this report's runs, where others are not
    folded: bool = False  # on the page, until asked for

    def is_text(self, column: int) -> bool:
        """Whether a column holds words."""
        return column < self.words or column >= len(self.columns) - self.notes


class Figure(NamedTuple):
    """Panels that flow side by side, or below each other on a phone; the numbers that they show."""

    title: str
    caption: str
    panels: Sequence[str]  # SVG or an image element
    table: Table | None = None
    layout: str = ""  # "wide" for pictures, "two" for panels that belong together in twos


class Section(NamedTuple):
    """A heading, what to know first, and its parts."""

    title: str
    text: str
    parts: Sequence[Table | Figure]


def percent(value: float | None) -> str:
    """A fraction, in percent.

    >>> percent(0.50904), percent(None)
    ('50.9', '–')
    """
    return NONE if value is None else f"{100 * value:.1f}"


def spread(value: Value) -> str:
    """A mean over seeds with its standard deviation.

    >>> spread(Value(0.5, 0.012, None)), spread(Value(0.5, None, None))
    ('50.0 ± 1.2', '50.0')
    """
    return percent(value.mean) + ("" if value.spread is None else f" ± {100 * value.spread:.1f}")


def between(ends: tuple[float, float] | None) -> str:
    """An interval.

    >>> between((0.4, 0.613))
    '40.0 to 61.3'
    """
    return NONE if ends is None else f"{percent(ends[0])} to {percent(ends[1])}"
