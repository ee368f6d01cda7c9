"""An extension of griffe for `make docs`: examples become code blocks, and comments document fields."""

import re

import griffe

EXAMPLE = re.compile(r"^( *)>>> .*(?:\n(?! *$).*)*", re.MULTILINE)  # up to an empty line


class Docstrings(griffe.Extension):
    """An extension that fits docstrings to Markdown, where `>>>` is a quotation, and documents fields by comments."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Fence the examples of a docstring."""
        if obj.docstring is not None:
            obj.docstring.value = fence_examples(obj.docstring.value)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: object) -> None:
        """Use the comment beside a field of a class as its docstring."""
        if attr.docstring is None and attr.annotation is not None and attr.parent is not None and attr.parent.is_class:
            _, _, comment = (attr.lines or [""])[-1].partition("  # ")
            attr.docstring = griffe.Docstring(comment, lineno=attr.lineno, parent=attr)


def fence_examples(text: str) -> str:
    r"""Put a fence around each block of lines that starts with `>>>`.

    >>> fenced("Twice.\n\n>>> twice(1)\n2\n\nMore.")
    'Twice.\n\n```pycon\n>>> twice(1)\n2\n```\n\nMore.'
    """
    return EXAMPLE.sub(lambda match: f"{match[1]}```pycon\n{match[0]}\n{match[1]}```", text)
