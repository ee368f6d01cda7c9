"""Text that comes from files, made safe to print: it can neither move the cursor nor pass for another line."""

import unicodedata

from rich.console import Console, HighlighterType, JustifyMethod, OverflowMethod
from rich.style import Style
from rich.text import Text

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control, format (bidi overrides), unpaired, line ends
JOINERS = "\u200c\u200d"  # of letters and of emoji: format characters that names may hold


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


class Terminal(Console):
    """A console that prints every string, cells of tables included, as text: no markup, no control characters."""

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
        """Make text of a string; markup and names of emoji are left as they are written."""
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
