"""Formulas of the pages as MathML, so that a browser needs no script to show them; a hook of `make docs`."""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    """What arithmatex marked, converted."""
    return FORMULA.sub(_mathml, html)


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    bars = '<mo stretchy="false">&#x02016;</mo>'  # of a norm, as high as what they stand around
    return convert(unescape(found[2]).strip(), display=display).replace("<mo>&#x02016;</mo>", bars)
