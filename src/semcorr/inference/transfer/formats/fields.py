"""Numbers and names of images in annotation files, each read or refused."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from semcorr.core.errors import UserError
from semcorr.core.paths import find_inside, name_fault, quote_value, resolve_inside
from semcorr.core.text_files import parse_number
from semcorr.data.coco_file import Notes
from semcorr.data.record import MAX_EXTENT, is_number

FOLDER_OPTION = "the folder of images"


def read_number(value: object, field: str, location: str) -> float:
    """Return a finite number of pixels or percent: a number, or a text that is one.

    Args:
        value: The number as in the file.
        field: Name of its field, for the message.
        location: File and place in it, for the message.

    Raises:
        UserError: It is none, or beyond all bounds.
    """
    number = parse_number(value) if isinstance(value, str) else value
    if not is_number(number) or not math.isfinite(number) or abs(number) > MAX_EXTENT:
        raise UserError(f"{location}: `{field}` is {quote_value(value)}; it must be a finite number. Correct it.")
    return float(number)


def read_side(value: object, field: str, location: str) -> int:
    """Return a width or a height of an image: a whole number of pixels above 0."""
    number = read_number(value, field, location)
    if number != int(number) or number < 1:
        raise UserError(
            f"{location}: `{field}` is {quote_value(value)}; it must be a whole number of pixels. Correct it."
        )
    return int(number)


class ImageFolder:
    """The images of a folder, found by names that other places gave them: no two names are one file.

    Args:
        folder: The folder, with its subfolders.
        notes: Notes to which names are added that differ from those of their files.
    """

    def __init__(self, folder: Path, notes: Notes) -> None:
        self.folder, self.notes = folder, notes
        self._names: dict[str, str] = {}  # of the files so far
        self._paths_by_name: dict[str, list[str]] | None = None

    def find(self, name: str, location: str, spellings: Sequence[str] = ()) -> str:
        """Return the path below the folder of an image that a file names by a path or a URL.

        Of each spelling the longest ending counts that is a file of the folder: of `project/labeled-data/a/img1.png`
        first all, then `labeled-data/a/img1.png`, and `img1.png` at last. If none is, it is the only file of the name
        in a subfolder. A path that is not that of the file is noted.

        Args:
            name: The name as in the file.
            location: File and place in it, for messages.
            spellings: Paths that the name may mean, the first that is there counts; the name itself, if there are none.

        Raises:
            UserError: There is no such file, or there are several; a link leads out of the folder; or another name
                was found to be the same file.
        """
        spellings = spellings or [name]
        path = self._find_path(spellings, location)
        if (other := self._names.setdefault(path, name)) != name:
            raise UserError(
                f"{location}: {quote_value(name)} and {quote_value(other)} are two images, and there is only "
                f"{quote_value(path)} for both. Give the folder of all images, with the names they have in the file."
            )
        place = Path(os.path.abspath(self.folder), path).as_posix()
        full_paths = ["/".join(parts) for spelling in spellings for parts in _split_path(spelling)]
        if not any(f"/{place}".endswith(f"/{full}") and f"/{full}".endswith(f"/{path}") for full in full_paths):
            note = "names of images are read as their files are called"
            self.notes.setdefault(note, []).append(f"{quote_value(spellings[0])} as {quote_value(path)}")
        return path

    def _find_path(self, spellings: Sequence[str], location: str) -> str:
        endings = [ending for spelling in spellings for ending in _endings(spelling)]
        for ending in endings:
            if (path := self._find_file(ending, location)) is not None:
                return path
        for base in dict.fromkeys(ending for ending in endings if "/" not in ending):
            paths = self._list_names().get(base, [])
            if len(paths) > 1:
                raise UserError(
                    f"{location} names the image {quote_value(base)}, and {self.folder} has {len(paths)} of that name, "
                    f"such as {paths[0]} and {paths[1]}. Rename them, or give the folder of one."
                )
            if paths and (path := self._find_file(paths[0], location)) is not None:
                return path
        raise UserError(
            f"{location} names the image {quote_value(spellings[0])}, which is not in {self.folder}. Restore it, or "
            "drop the entry."
        )

    def _find_file(self, name: str, location: str) -> str | None:
        path = find_inside(self.folder, name, location, FOLDER_OPTION)
        return path if resolve_inside(self.folder, path, location, FOLDER_OPTION).is_file() else None

    def _list_names(self) -> dict[str, list[str]]:
        """Return the paths of all files by their names."""
        if self._paths_by_name is None:
            self._paths_by_name = {}
            for parent, _, files in os.walk(self.folder):
                for file in files:
                    path = Path(parent, file).relative_to(self.folder).as_posix()
                    self._paths_by_name.setdefault(file, []).append(path)
        return self._paths_by_name


def _endings(name: str) -> Iterator[str]:
    """Yield a path and what is left of it without its first folders, as it is and unescaped, if it names a file.

    >>> list(_endings("../a/b.jpg"))
    ['a/b.jpg', 'b.jpg']
    """
    for parts in _split_path(name):
        for start in range(len(parts)):
            ending = "/".join(parts[start:])
            if name_fault(ending, folders=True) is None:
                yield ending


def _split_path(name: str) -> list[list[str]]:
    """Return the parts of a path as it is, and as it is unescaped."""
    spellings = dict.fromkeys((name, unquote(name)))
    return [
        [part for part in spelling.replace("\\", "/").split("/") if part not in ("", ".")] for spelling in spellings
    ]


def require_json_value(value: object, location: str) -> None:
    """Refuse what is handed on as it is, if it holds NaN, for which JSON has no word, or is nested too deeply."""
    try:
        json.dumps([[[value]]], indent=1, allow_nan=False)
    except (ValueError, RecursionError):
        raise UserError(f"{location} holds NaN or Infinity, or is nested too deeply. Correct it.") from None
