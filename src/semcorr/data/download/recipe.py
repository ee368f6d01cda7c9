"""Recipes by which `prepare` installs a benchmark: its archives, and how they become a tree."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class ArchiveInfo(NamedTuple):
    """One official file: a .zip or .tar.gz, or a list or table that is used as it is."""

    file: str  # its name; a file given with --archive is recognised by it
    url: str
    sha256: str | None = None  # None where the official bytes are not known to us


class DownloadRecipe(NamedTuple):
    """The recipe of a benchmark's files. Its class has one as `recipe`; None where nothing is downloaded."""

    licence: str  # one line, shown before a download starts
    archives: tuple[ArchiveInfo, ...]
    marker_file: str  # a file or folder that every whole tree has, relative to its root
    convert: Callable[[Path], None] | None = None  # what is left to do in the unpacked tree
