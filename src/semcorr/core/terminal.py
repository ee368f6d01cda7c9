"""What is printed: text from files made safe, so that it cannot move the cursor; and stages of long work."""

import logging
import unicodedata
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.cells import cell_len
from rich.console import Console, HighlighterType, JustifyMethod, OverflowMethod
from rich.progress import Progress, ProgressColumn
from rich.style import Style
from rich.table import Table
from rich.text import Text

from semcorr.core.ranks import is_first_process

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control, format (bidi overrides), unpaired, line ends
MIN_WORD_WIDTH = 6  # characters of a word in a table that is too wide for the line
JOINERS = "\u200c\u200d"  # of letters and of emoji: format characters that names may hold


def configure_logging() -> None:
    """Print warnings of any package on standard error, after their level."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")


def escape_controls(text: str, keep: str = "") -> str:
    r"""Show as escapes what a terminal would obey rather than print.

    Args:
        text: A name, or a message that quotes one.
        keep: Characters that are left as they are, as line ends in a message of several lines.

    >>> escape_controls("cat\x1b[2J.jpg"), escape_controls("a\u202eb"), escape_controls("für")
    ('cat\\x1b[2J.jpg', 'a\\u202eb', 'für')
    """
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if unicodedata.category(char) in HIDDEN and char not in JOINERS and char not in keep
        else char
        for char in text
    )


Item = TypeVar("Item")


def print_line(text: str) -> None:
    """Print a line at once, also into a pipe; of the processes of a run only the first prints."""
    if is_first_process():
        print(escape_controls(text), flush=True)


def format_score(value: float | None) -> str:
    """Format a score in percent, without the sign; "-" where there is none.

    >>> format_score(0.5094), format_score(None)
    ('50.9', '-')
    """
    return "-" if value is None else f"{100 * value:.1f}"


class Stage:
    """A stage of long work: a line that says what begins, and a progress bar while it lasts, where a terminal shows it.

    Args:
        text: The line, with counts, as "Encoding 50 images on cpu".
        total: Number of steps; None if it is not known.
        columns: Columns of the bar; empty: rich's own.
        done: Number of steps that were done before.
    """

    def __init__(
        self, text: str, total: int | None, columns: Iterable[str | ProgressColumn] = (), done: int = 0
    ) -> None:
        self.text, self.total, self.done = text, total, done
        console = Terminal()
        is_shown = console.is_terminal and is_first_process()
        self._bar = Progress(*columns, console=console, transient=True) if is_shown else None

    def __enter__(self) -> "Stage":
        """Print the line, and show the bar."""
        print_line(self.text)
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total, completed=self.done)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()

    def advance(self, steps: int = 1) -> None:
        """Count steps that are done."""
        if self._bar is not None:
            self._bar.advance(self._task, steps)

    def track(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield items, each of which is a step."""
        for item in items:
            yield item
            self.advance()


class Terminal(Console):
    """A console that prints every string, cells of tables included, as text: no markup, no control characters."""

    def print_table(self, table: Table) -> None:
        """Print a table with its numbers in full: words wrap, and where that is not enough, lines run on."""
        _, right, _, left = table.padding
        least = 1  # beside each column a border
        for column in table.columns:
            words = [word for cell in (column.header, *column.cells) for word in str(cell).split()]
            longest = max(map(cell_len, words), default=1)
            narrowest = longest if column.justify == "right" else min(longest, MIN_WORD_WIDTH)
            column.min_width = max(narrowest, column.min_width or 1)
            least += left + column.min_width + right + 1
        table.width = least if least > self.width else table.width
        self.print(table, crop=False)

    def render_str(
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        emoji: bool | None = None,
        markup: bool | None = None,
        highlight: bool | None = None,
        highlighter: HighlighterType | None = None,
    ) -> Text:
        """Make text of a string; markup and names of emoji are left as they are written.

        The arguments are those of `rich.console.Console.render_str`, of which `emoji` and `markup` have no effect.
        """
        return super().render_str(
            escape_controls(text, keep="\n"),
            style=style,
            justify=justify,
            overflow=overflow,
            emoji=False,
            markup=False,
            highlight=highlight,
            highlighter=highlighter,
        )
