"""Docstrings as a page needs them: examples as blocks of code, fields with the comment beside them.

An extension of griffe for `make docs`.
"""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^( *)>>> .*(?:\n(?! *$).*)*", re.MULTILINE)  # up to an empty line


class Docstrings(griffe.Extension):
    """Without it Markdown takes `>>>` for three nested quotations, and types without docstrings have no fields."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence the examples of one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """A field of a class says what it is in the comment beside it, if its name and shape do not."""
        if attr.docstring is None and attr.annotation is not None and attr.parent is not None and attr.parent.is_class:
            _, _, comment = (attr.lines or [""])[-1].partition("  # ")
            attr.docstring = griffe.Docstring(comment, lineno=attr.lineno, parent=attr)


def fenced(text: str) -> str:
    r"""The same with a fence around each run of lines that starts with `>>>`.

    >>> fenced("Twice.\n\n>>> twice(1)\n2\n\nMore.")
    'Twice.\n\n```pycon\n>>> twice(1)\n2\n```\n\nMore.'
    """
    return EXAMPLE.sub(lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```", text)
