"""The parts of a report: sections of paragraphs, tables and figures. Every writer gets the same strings."""

from collections.abc import Sequence
from typing import NamedTuple

from semcorr.report.configurations import SeedStatistics

NONE = "–"


class ReportTable(NamedTuple):
    """A table whose cells are formatted once, so that no two formats can round differently."""

    key: str  # identifies the table in CSV and in LaTeX's labels
    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1  # columns of text from the left; numbers follow
    notes: int = 0  # columns of text at the right, after the numbers
    ours: Sequence[int] = ()  # indices of the rows of this report's runs, where the table has others as well
    folded: bool = False  # closed on the page until the reader opens it

    def is_text(self, column: int) -> bool:
        """Tell whether a column holds words."""
        return column < self.words or column >= len(self.columns) - self.notes


class ReportFigure(NamedTuple):
    """Panels side by side, or below each other on a phone, and the table of the numbers that they show."""

    title: str
    caption: str
    panels: Sequence[str]  # SVG or an image element
    table: ReportTable | None = None
    layout: str = ""  # "wide" for pictures and matrices


class ReportSection(NamedTuple):
    """A heading, an introductory text and the tables and figures below it."""

    title: str
    text: str
    parts: Sequence[ReportTable | ReportFigure]


def format_percent(value: float | None) -> str:
    """Format a fraction in percent.

    >>> format_percent(0.50904), format_percent(None)
    ('50.9', '–')
    """
    return NONE if value is None else f"{100 * value:.1f}"


def format_spread(value: SeedStatistics) -> str:
    """Format a mean over seeds with its standard deviation.

    >>> format_spread(SeedStatistics(0.5, 0.012, None)), format_spread(SeedStatistics(0.5, None, None))
    ('50.0 ± 1.2', '50.0')
    """
    return format_percent(value.mean) + ("" if value.spread is None else f" ± {100 * value.spread:.1f}")


def format_interval(ends: tuple[float, float] | None) -> str:
    """Format an interval in percent.

    >>> format_interval((0.4, 0.613))
    '40.0 to 61.3'
    """
    return NONE if ends is None else f"{format_percent(ends[0])} to {format_percent(ends[1])}"
