"""Names and files that come from a file: none may lead out of its folder, or block a reader."""

import os
import re
import stat
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from semcorr.core.errors import UserError

NAME_BYTES, PATH_BYTES = 255, 4095  # what file systems take, of one part and of a whole path
MAX_QUOTED = 80  # characters of a value that a message repeats
ORDINARY = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.() -][A-Za-z0-9_.():-]{0,198})?")  # names that need no closer look
PART = r"[A-Za-z0-9_]([A-Za-z0-9_.() -][A-Za-z0-9_.()-]{0,198})?"  # without a colon: no drive and no URL
ORDINARY_PATH = re.compile(rf"({PART}/){{0,4}}{PART}")
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def resolve_inside(root: Path, name: object, location: str, option: str) -> Path:
    """Return the file `name` below `root`; refuse a name that leads out of it, by itself or through a link.

    The root may be a link, and links below it may lead to other places below it. The file need not exist.

    Args:
        root: The folder that the user gave.
        name: A path below the root, as it stands in a file.
        location: Which file says so, and where in it, as `pairs.csv, line 3, column source_image`.
        option: Option by which the user gives the folder, for the remedy.

    Raises:
        UserError: The name leads elsewhere, is not that of a file, or is that of a pipe, a device or a folder.
    """
    path = root / require_file_name(name, location, folders=True)
    home, end = os.path.realpath(root), os.path.realpath(path)
    if os.path.commonpath((home, end)) != home:
        raise UserError(
            f"{location} names {quote_value(name)}, which a link leads out of {root}, to {end}. "
            f"Give the folder that holds the images themselves as {option}, or copy them into it."
        )
    require_plain(path, location)
    return path


def find_inside(root: Path, name: object, location: str, option: str) -> str:
    """Return the name under which a file is there: as it stands in a file, or as the tool that wrote it means it.

    Tools on Windows put backslashes between folders, Label Studio escapes blanks as %20, and others begin with the
    folder that is given already, or are the whole path of a file in it: where only that file is there, it is meant.
    Else the one file is whose name differs in case, as on Windows, or in how its umlauts are composed, as on macOS.
    If there is none, the name is returned.

    Args:
        root: The folder that the user gave.
        name: A path below the folder, as it stands in a file.
        location: Which file holds the name, and where in it.
        option: Option by which the user gives the folder, for the remedy.

    Raises:
        UserError: The name leads out of the folder, is not that of a file, or is that of a pipe, a device or a folder.
    """
    spellings = _spellings(root, name) if isinstance(name, str) else []
    plain = [spelling for spelling in spellings if name_fault(spelling, folders=True) is None]
    for spelling in plain:
        if resolve_inside(root, spelling, location, option).is_file():
            return spelling
    for spelling in filter(None, (_find_alike(root, spelling) for spelling in plain)):
        if name_fault(spelling, folders=True) is None and resolve_inside(root, spelling, location, option).is_file():
            return spelling
    resolve_inside(root, name, location, option)
    return str(name)


def _spellings(root: Path, name: str) -> list[str]:
    """Return the name itself, then what may be meant by it."""
    slashed = name.replace("\\", "/")
    folders = Path(os.path.abspath(root)).parts[1:]
    candidates = [name]
    for spelling in dict.fromkeys((name, slashed, unquote(name), unquote(slashed))):
        parts = [part for part in spelling.split("/") if part not in ("", ".")]
        least = len(folders) if spelling.startswith("/") else 0  # of an absolute path the whole folder is left out
        below_root = [i for i in range(1, len(parts)) if i >= least and tuple(parts[:i]) == folders[-i:]]
        candidates += ["/".join(parts[i:]) for i in ([0] if least == 0 else []) + below_root]
    return list(dict.fromkeys(candidates))


def _find_alike(root: Path, name: str) -> str | None:
    """Find the one path below the root that equals this up to case, Unicode form and blanks around its parts."""
    parts: list[str] = []
    for part in (part for part in name.split("/") if part not in ("", ".")):
        folder = root.joinpath(*parts)
        if not os.path.lexists(folder / part):
            try:
                matches = _group_names(folder, os.stat(folder).st_mtime_ns).get(_fold(part), [])
            except OSError:  # no folder, or not to be listed
                return None
            if len(matches) != 1:
                return None
            part = matches[0]
        parts.append(part)
    return "/".join(parts)


@lru_cache(maxsize=64)
def _group_names(folder: Path, changed: int) -> dict[str, list[str]]:
    """Group the names in a folder by what they have in common; `changed` is for the cache."""
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        names.setdefault(_fold(name), []).append(name)
    return names


def _fold(name: str) -> str:
    """Map names to one form that some systems and tools take for the same.

    >>> _fold("Z\u00fcrich.JPG ") == _fold("zu\u0308rich.jpg"), _fold("a.jpg") == _fold("a.jpeg")
    (True, False)
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name.strip()).casefold())


def require_file_name(name: object, location: str, folders: bool = False) -> str:
    """Return a name that stands in a file, or refuse it: it must name a file below the folder it is looked for in.

    Args:
        name: The name.
        location: Which file says so, and where in it.
        folders: Whether the file may lie in a folder below, with `/` between the parts of its path.

    Raises:
        UserError: It is not such a name.
    """
    if isinstance(name, str) and (ORDINARY_PATH if folders else ORDINARY).fullmatch(name):
        return name
    if reason := name_fault(name, folders):
        kind = "a path below the folder, with / between its parts" if folders else "the plain name of a file, without /"
        raise UserError(f"{location} names {quote_value(name)}, which {reason}. It must be {kind}; correct it.")
    assert isinstance(name, str)
    return name


def name_fault(name: object, folders: bool) -> str | None:
    """Say what is wrong with the name of a file; None if nothing is.

    Args:
        name: The name, as it stands in a file.
        folders: Whether the file may lie in a folder below, with `/` between the parts of its path.
    """
    if not isinstance(name, str):
        return "is not text"
    parts = [part for part in name.split("/") if part not in ("", ".")]
    control = next((c for c in name if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")), None)
    faults = {
        "names no file": not parts or name.endswith(("/", "/.")),
        f"holds the control character {control!r}": control is not None,
        "is a URL, and files must be on disk": re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", name),
        "is an absolute path": name.startswith("/"),
        "names a drive": re.match(r"[A-Za-z]:", name),
        "leads to a folder above": ".." in re.split(r"[/\\]", name),
        "holds a backslash": "\\" in name,
        "begins with ~, a home folder": name.startswith("~"),
        "names a folder": len(parts) > 1 and not folders,
        f"is longer than the {NAME_BYTES} bytes of a file's name": control is None and _is_too_long(name, parts),
    }
    return next((reason for reason, applies in faults.items() if applies), None)


def require_plain(path: Path, location: str | None = None) -> None:
    """Refuse what is there and no regular file: reading a pipe or a device may never end.

    Args:
        path: The file; it need not exist.
        location: File that names it, and where in it; None: the user does.

    Raises:
        UserError: It is a folder, a pipe, a socket or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:  # absent, or not to be reached: who opens it says so
        return
    if not stat.S_ISREG(mode):
        start = f"{location} names " if location else ""
        kind = KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise UserError(
            f"{start}{path}, which is {kind}. Give a regular file." if location else _describe_irregular(path, kind)
        )


def open_plain(path: Path) -> BinaryIO:
    """Open a regular file to read its bytes, without ever waiting for one that is none.

    Raises:
        UserError: It is a folder, a pipe, a socket or a device.
        OSError: It is absent, or may not be read.
    """
    require_plain(path)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(_describe_irregular(path, "no regular file"))
    return file


def quote_value(value: object) -> str:
    """Quote a value from a user's file for a message: on one line, and of limited length."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."


def _describe_irregular(path: Path, kind: str) -> str:
    return f"{path} is {kind}. Give a regular file."


def _is_too_long(name: str, parts: list[str]) -> bool:
    return max((len(part.encode()) for part in parts), default=0) > NAME_BYTES or len(name.encode()) > PATH_BYTES // 2
