"""What `prepare` needs to know of a benchmark: its archives, and how they become a tree."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class ArchiveInfo(NamedTuple):
    """One official file: a .zip or .tar.gz, or a list or table that is used as it is."""

    file: str  # its name; a file given with --archive is recognised by it
    url: str
    sha256: str | None = None  # None where the official bytes are not known to us


class DownloadRecipe(NamedTuple):
    """How to get a benchmark. Its class carries one as `recipe`; None: there is nothing to get."""

    licence: str  # one line, shown before a download starts
    archives: tuple[ArchiveInfo, ...]
    marker_file: str  # a file or folder that every whole tree has, relative to its root
    convert: Callable[[Path], None] | None = None  # what is left to do in the unpacked tree
