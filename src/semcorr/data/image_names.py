"""Names of a user's own images: the keys of their features."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from semcorr.data.image_variants import MIRRORED, TURNED

VARIANT = re.compile(rf".*({re.escape(MIRRORED)}|{re.escape(TURNED)}\d+)", re.DOTALL)  # as variants are called

FileIdentity = tuple[int, int] | str  # device and number, or the path where the system has none


def name_images(folder: Path, files: Iterable[str]) -> dict[str, str]:
    """Give each image file a unique name, whatever the spelling of its path.

    A name is the path below the folder without its suffix; with it where two files would have the same name, as a.jpg
    and a.png, or a name would be that of another's mirror image. The order of the files does not matter.

    Args:
        folder: The folder of the files.
        files: Paths below it, of which several may denote one file: `./a.jpg`, links, another case on some systems.

    Returns:
        The name for each of the given paths.
    """
    spellings = {file: posixpath.normpath(file) for file in files}
    owner = {file: _file_identity(folder / file) for file in spellings}
    full_paths: dict[FileIdentity, str] = {}  # of each file, the first of its spellings
    for file in sorted(spellings, key=lambda file: spellings[file]):
        full_paths.setdefault(owner[file], spellings[file])
    names = {key: Path(path).with_suffix("").as_posix() for key, path in full_paths.items()}
    while clashing := _find_clashes(names, full_paths):
        names |= {
            key: full_paths[key] if len(names[key]) < len(full_paths[key]) else f"{names[key]}." for key in clashing
        }
    return {file: names[owner[file]] for file in spellings}


def _find_clashes(names: dict[FileIdentity, str], full_paths: dict[FileIdentity, str]) -> list[FileIdentity]:
    """Return the files whose names are not unique; of two, one that has its whole path keeps it."""
    counts = Counter(names.values())
    variant_like = [key for key, name in names.items() if VARIANT.fullmatch(name)]
    shared = [key for key, name in names.items() if counts[name] > 1]
    short = [key for key in shared if names[key] != full_paths[key]]
    return variant_like + [key for key in short or shared if key not in variant_like]


def _file_identity(path: Path) -> FileIdentity:
    """Return a key that is the same for all paths of one file."""
    try:
        status = os.stat(path)
    except OSError:  # the reader of the file reports it
        return os.path.realpath(path)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
