"""Examples of docstrings as blocks of code, wherever they stand; an extension of griffe for `make docs`."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^( *)>>> .*(?:\n(?! *$).*)*", re.MULTILINE)  # up to an empty line


class Doctests(griffe.Extension):
    """Without it Markdown takes `>>>` for three nested quotations."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence the examples of one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    r"""The same with a fence around each run of lines that starts with `>>>`.

    >>> fenced("Twice.\n\n>>> twice(1)\n2\n\nMore.")
    'Twice.\n\n```pycon\n>>> twice(1)\n2\n```\n\nMore.'
    """
    return EXAMPLE.sub(lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```", text)
