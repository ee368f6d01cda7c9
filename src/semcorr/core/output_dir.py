"""Output folders of commands: distinct names, no input overwritten, and all files or none."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from unicodedata import normalize

from semcorr.core.errors import UserError
from semcorr.core.files import move_files, require_writable, temporary_folder, write_error


@contextmanager
def atomic_output_dir(out: Path, option: str = "--out") -> Iterator[Path]:
    """Yield a folder whose files move to `out` in the end; after a failure `out` is as it was before.

    It lies in `out` itself, or in the nearest folder above that there is: a file moves within a disk. What killed
    processes left of theirs there goes first.

    Args:
        out: Folder of the results; may be missing.
        option: Option that names the folder.
    """
    home = require_output_dir(out, option)
    try:
        with temporary_folder(home) as folder:
            yield folder
            move_files(folder, out)
    except OSError as error:
        raise UserError(write_error(out, error, option)) from None


def require_output_dir(out: Path, option: str = "--out") -> Path:
    """Refuse, before any work, what is no folder or cannot be written; return it, or the nearest above that exists."""
    try:
        home = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    except OSError as error:  # a name that is too long, links in a circle
        raise UserError(write_error(out, error, option)) from None
    if not home.is_dir():
        raise UserError(f"{option}: {home} is a file. Give a folder")
    require_writable(out, option)
    return home


def require_inputs_kept(folder: Path, files: Iterable[str], read: Iterable[Path], option: str = "--out") -> None:
    """Refuse, before anything is computed, outputs that would overwrite an input."""
    inputs = {path.resolve() for path in read}
    for path in (folder / file for file in files):
        if path.resolve() in inputs:
            raise UserError(
                f"{option}: {path} is one of the pictures that are read, and would be replaced. Choose another place"
            )


def unique_names(wished: Iterable[Sequence[str]], endings: Sequence[str] = ("",)) -> list[str]:
    """Choose for each the first of its possible names whose files no other has; with a number, if there is none.

    A and a are the same, as they are on some disks, and so are two spellings of ä.

    Args:
        wished: Possible names of each, at least one.
        endings: Endings of the files that are written under a name.

    >>> unique_names([["a"], ["a", "b"], ["A"]])
    ['a', 'b', 'A-2']
    >>> unique_names([["b"], ["b_warped", "b_warped.jpg"]], endings=["", "_warped"])
    ['b', 'b_warped.jpg']
    """
    chosen: list[str] = []
    taken: set[str] = set()

    def files(name: str) -> set[str]:
        return {normalize("NFC", normalize("NFC", f"{name}{ending}").casefold()) for ending in endings}

    for names in wished:
        numbered = (f"{names[-1]}-{i}" for i in count(2))
        chosen.append(next(name for name in chain(names, numbered) if not files(name) & taken))
        taken |= files(chosen[-1])
    return chosen
