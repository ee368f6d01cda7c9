"""The pages that are written by hand, their blocks of code, and the lines that they have a reader type."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from repository import ROOT

DOCS = ROOT / "docs"
OUTSIDE = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/my_backbone/README.md")
PAGES = [*(ROOT / name for name in OUTSIDE), *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`((?:python|semcorr|pip) [^`]+)`")
GENERAL = re.compile(r"\bVERB\b|\bSUB\b|\.\.\.")  # what stands for any


class TypedLine(NamedTuple):
    """A line of a page, as a shell splits it."""

    page: str
    words: tuple[str, ...]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text())


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a page in a language."""
    return [text for _, name, text in FENCE.findall(page.read_text()) if name == language]


def split_block(text: str) -> list[tuple[str, ...]]:
    """The commands of a block for a shell, without their comments."""
    lines = (shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines())
    return [tuple(words) for words in lines if words]


def typed_lines(page: Path) -> list[TypedLine]:
    """The commands of a page: those of its blocks, and whole ones in its sentences."""
    within = [tuple(shlex.split(span)) for span in SPAN.findall(prose(page)) if not GENERAL.search(span)]
    return [TypedLine(name_of(page), words) for text in blocks(page, "sh") for words in split_block(text)] + [
        TypedLine(name_of(page), words) for words in within
    ]
