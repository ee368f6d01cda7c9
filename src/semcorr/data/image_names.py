"""Names of a user's own images: the keys of their features."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from semcorr.data.image_variants import MIRRORED, TURNED

VARIANT = re.compile(rf".*({re.escape(MIRRORED)}|{re.escape(TURNED)}\d+)", re.DOTALL)  # as variants are called


def name_images(folder: Path, files: Iterable[str]) -> dict[str, str]:
    """Give each image file a unique name, whatever the spelling of its path.

    It is its path below the folder without the ending; with it where two files would have one name, as a.jpg and
    a.png, or a name would be that of another's mirror image. The order of the files does not matter.

    Args:
        folder: Where they are.
        files: Paths below it, of which several may lead to one file: `./a.jpg`, links, another case on some systems.

    Returns:
        The name for each of the given paths.
    """
    spellings = {file: posixpath.normpath(file) for file in files}
    owner = {file: _identity(folder / file) for file in spellings}
    whole: dict[object, str] = {}  # of each file, the first of its spellings
    for file in sorted(spellings, key=lambda file: spellings[file]):
        whole.setdefault(owner[file], spellings[file])
    names = {of: Path(path).with_suffix("").as_posix() for of, path in whole.items()}
    while clashing := _clashing(names, whole):
        names |= {of: whole[of] if len(names[of]) < len(whole[of]) else f"{names[of]}." for of in clashing}
    return {file: names[owner[file]] for file in spellings}


def _clashing(names: dict[object, str], whole: dict[object, str]) -> list[object]:
    """Return the files whose names are not unique; of two, one that has its whole path keeps it."""
    counts = Counter(names.values())
    odd = [of for of, name in names.items() if VARIANT.fullmatch(name)]
    shared = [of for of, name in names.items() if counts[name] > 1]
    short = [of for of in shared if names[of] != whole[of]]
    return odd + [of for of in short or shared if of not in odd]


def _identity(path: Path) -> object:
    """Return a key that is the same for all paths of one file."""
    try:
        found = os.stat(path)
    except OSError:  # who reads it says so
        return os.path.realpath(path)
    return (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(path)
