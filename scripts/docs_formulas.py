"""A hook of `make docs` that converts formulas to MathML, so that a browser needs no script to display them."""

import re
from html import unescape

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html: str, **_: object) -> str:
    """Convert the formulas that arithmatex marked."""
    return FORMULA.sub(_convert_formula, html)


def _convert_formula(match: re.Match[str]) -> str:
    """Convert one formula."""
    display = "block" if match[1] == "div" else "inline"
    bars = '<mo stretchy="false">&#x02016;</mo>'  # bars of a norm, stretched to the height of their content
    return convert(unescape(match[2]).strip(), display=display).replace("<mo>&#x02016;</mo>", bars)
