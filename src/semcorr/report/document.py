"""What a report is made of: sections of paragraphs, tables and figures. Every writer gets the same strings."""

from collections.abc import Sequence
from typing import NamedTuple

from semcorr.report.configurations import SeedStatistics

NONE = "–"


class ReportTable(NamedTuple):
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


class ReportFigure(NamedTuple):
    """Panels that flow side by side, or below each other on a phone; the numbers that they show."""

    title: str
    caption: str
    panels: Sequence[str]  # SVG or an image element
    table: ReportTable | None = None
    layout: str = ""  # "wide" for pictures, "two" for panels that belong together in twos


class ReportSection(NamedTuple):
    """A heading, what to know first, and its parts."""

    title: str
    text: str
    parts: Sequence[ReportTable | ReportFigure]


def format_percent(value: float | None) -> str:
    """A fraction, in percent.

    >>> format_percent(0.50904), format_percent(None)
    ('50.9', '–')
    """
    return NONE if value is None else f"{100 * value:.1f}"


def format_spread(value: SeedStatistics) -> str:
    """A mean over seeds with its standard deviation.

    >>> format_spread(SeedStatistics(0.5, 0.012, None)), format_spread(SeedStatistics(0.5, None, None))
    ('50.0 ± 1.2', '50.0')
    """
    return format_percent(value.mean) + ("" if value.spread is None else f" ± {100 * value.spread:.1f}")


def format_interval(ends: tuple[float, float] | None) -> str:
    """An interval.

    >>> format_interval((0.4, 0.613))
    '40.0 to 61.3'
    """
    return NONE if ends is None else f"{format_percent(ends[0])} to {format_percent(ends[1])}"
