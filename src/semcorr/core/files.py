"""Writing of files that are complete or absent: written to a temporary file, flushed, then renamed into place.

What is unfinished carries the process and the machine that it is of in its name. It goes when that process does; where
a process was killed, the next that writes to the same place removes it.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain, count
from pathlib import Path
from unicodedata import normalize

from semcorr.core.errors import UserError
from semcorr.core.interrupt import record_written_file

ABANDONED_SECONDS = 24 * 3600.0  # after which an unfinished file has no writer, whichever machine it was on
MIN_FREE_BYTES = 1 << 18  # bytes that a run writes, at the least
REASONS = {  # errors of the disk, of permissions and of limits, which are not defects of the program
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EMFILE,
    errno.ENFILE,
    errno.ELOOP,
    errno.ESTALE,
    errno.ENOENT,
    errno.ENXIO,
}
# Bytes of a file's own name in that of its unfinished copy, so that the whole is no longer than names may be.
MAX_NAME_BYTES = 80
_PART = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)-(?P<host>[^/]*)-[0-9a-f]{8}\.part", re.DOTALL)


@contextmanager
def replace_file(path: Path, option: str | None = None) -> Iterator[Path]:
    """Yield a path beside `path` to write to; flush what was written to the disk and give it its name.

    After an error, `path` is what it was before and nothing lies beside it.

    Args:
        path: The file; its folder must exist.
        option: Option that names the file, as `run_dir`; named in the error.

    Raises:
        UserError: The file cannot be written: the disk is full, the folder is read-only or missing, ...
    """
    beside = part_path(path)
    try:
        _require_file(path)
        yield beside
        _flush(beside)
        beside.replace(path)
        record_written_file(path)
        _flush(path.parent)
    except OSError as error:
        if error.errno not in REASONS:
            raise
        raise UserError(write_error(path, error, option)) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def write_text(path: Path, text: str, option: str | None = None) -> None:
    """Write a text file, as `replace_file` does."""
    with replace_file(path, option) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object, option: str | None = None) -> None:
    """Write a JSON file, as `replace_file` does.

    Raises:
        UserError: The file cannot be written.
        ValueError: A number is NaN or infinite, for which JSON has no word.
    """
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n", option)


@contextmanager
def temporary_folder(home: Path, name: str = "semcorr") -> Iterator[Path]:
    """Yield a folder in `home` that is gone in the end; remove what killed processes left of theirs there.

    Args:
        home: Parent folder; must exist.
        name: Readable part of the folder's name.
    """
    remove_parts(home)
    folder = part_path(home / name)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_files(folder: Path, out: Path, last: str | None = None) -> list[Path]:
    """Move all files of a folder to another on the same disk, flushed; nothing, where one of them cannot go.

    Args:
        folder: Folder of the files.
        out: Folder to move them to; made if it is missing.
        last: Name of the file that is moved last, as the sign that the others are complete.

    Raises:
        OSError: There is no room, or a folder has the name of a file.
    """
    paths = sorted(folder.iterdir(), key=lambda path: (path.name == last, path.name))
    for path in paths:
        _require_file(out / path.name)
        _flush(path)
    out.mkdir(parents=True, exist_ok=True)
    moved = []
    for path in paths:
        moved.append(path.replace(out / path.name))
        record_written_file(moved[-1])
    _flush(out)
    return moved


def write_error(path: Path, error: OSError, option: str | None = None) -> str:
    """Return the sentence for a file or folder that cannot be written.

    Args:
        path: The file or folder.
        error: Error of the system.
        option: Option that names it, a key of the configuration or a flag (`--out`); None: no option does.
    """
    start = f"`{option}`: " if option and not option.startswith("--") else f"{option}: " if option else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "Free some space, or choose another folder" if full else "Choose another folder"
    return f"{start}{path} cannot be written ({error.strerror or error}). {remedy}."


def require_writable(folder: Path, option: str, size: int = 0) -> None:
    """Refuse, before any work, a folder that nothing can be written to. The folder need not exist yet.

    Args:
        folder: Folder of the results.
        option: Option that names the folder.
        size: Least number of bytes that will be written.

    Raises:
        UserError: It or the folder above it is a file, is read-only, or its disk is full.
    """
    try:
        home = _find_nearest_folder(folder)
        disk = os.statvfs(home)
        if disk.f_bavail * disk.f_frsize < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        probe = part_path(home / "probe")
        try:
            probe.write_bytes(b"semcorr")
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(write_error(folder, error, option)) from error


def require_writable_file(path: Path, option: str, size: int = 0) -> None:
    """Refuse, before any work, the name of a file that cannot be written. Its folder must exist.

    What a killed process left unfinished in the folder goes.

    Args:
        path: The file.
        option: Option that names the file.
        size: Least number of bytes that will be written.

    Raises:
        UserError: It is a folder or a device; its folder is missing or cannot be written.
    """
    try:
        _require_file(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"no folder {path.parent}")
    except OSError as error:
        raise UserError(write_error(path, error, option)) from error
    require_writable(path.parent, option, size)
    remove_parts(path.parent)


def _find_nearest_folder(folder: Path) -> Path:
    """Return the folder itself, or the nearest above it that there is, if what is missing can be made in it."""
    if "\0" in str(folder):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    absolute = folder.absolute()
    home = next(parent for parent in (absolute, *absolute.parents) if os.path.lexists(parent))
    if not home.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    longest = max((len(os.fsencode(part)) for part in absolute.relative_to(home).parts), default=0)
    if longest > os.pathconf(home, "PC_NAME_MAX") or len(os.fsencode(absolute)) >= os.pathconf(home, "PC_PATH_MAX"):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    return home


def _require_file(path: Path) -> None:
    """Refuse what is there and is not a file: it must not be replaced by one."""
    with suppress(FileNotFoundError):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.ENXIO, "Not a file")


def part_path(path: Path) -> Path:
    """Name an unfinished file or folder beside `path`: hidden, of this process, unlike any other."""
    name = os.fsdecode(os.fsencode(path.name)[:MAX_NAME_BYTES])
    return path.with_name(f".{name}.{os.getpid()}-{_host_name()}-{secrets.token_hex(4)}.part")


def remove_parts(folder: Path) -> list[Path]:
    """Remove what killed processes left unfinished in a folder, files and folders; return what was removed.

    What is of a process that lives is left alone; of another machine, until it is a day old.
    """
    removed = []
    with suppress(OSError):
        for path in folder.glob(".*.part"):
            with suppress(OSError):
                if _is_abandoned(path):
                    remove: Callable[[Path], None] = shutil.rmtree if _is_folder(path) else Path.unlink
                    remove(path)
                    removed.append(path)
    return removed


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_abandoned(path: Path) -> bool:
    match = _PART.fullmatch(path.name)
    if match is None:
        return False
    if match["host"] == _host_name():
        return not is_alive(int(match["pid"]))
    return time.time() - path.lstat().st_mtime > ABANDONED_SECONDS


def is_alive(pid: int) -> bool:
    """Tell whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def file_sha256(path: Path) -> str:
    """Return the file's checksum, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _host_name() -> str:
    return re.sub(r"[^\w.]", "_", socket.gethostname())[:64]


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    with suppress(OSError) if path.is_dir() else nullcontext():  # not every file system syncs folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def atomic_output_dir(out: Path, option: str = "--out") -> Iterator[Path]:
    """Yield a folder whose files move to `out` in the end; after a failure `out` is as it was before.

    It lies in `out` itself, or in the nearest folder above that there is: a file moves within a disk. What killed
    processes left of theirs there goes first.

    Args:
        out: Folder of the results; may be missing.
        option: Option that names the folder.

    Raises:
        UserError: The folder cannot be written.
    """
    home = require_output_dir(out, option)
    try:
        with temporary_folder(home) as folder:
            yield folder
            move_files(folder, out)
    except OSError as error:
        raise UserError(write_error(out, error, option)) from None


def require_output_dir(out: Path, option: str = "--out") -> Path:
    """Refuse, before any work, what is not a folder or cannot be written; return it, or the nearest above that exists.

    Args:
        out: Folder of the results; may be missing.
        option: Option that names the folder.

    Raises:
        UserError: It or the folder above it is a file, is read-only, or its disk is full.
    """
    try:
        home = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    except OSError as error:  # a name that is too long, links in a circle
        raise UserError(write_error(out, error, option)) from None
    if not home.is_dir():
        raise UserError(f"{option}: {home} is a file. Give a folder")
    require_writable(out, option)
    return home


def require_inputs_kept(folder: Path, files: Iterable[str], read: Iterable[Path], option: str = "--out") -> None:
    """Refuse, before anything is computed, outputs that would overwrite an input.

    Args:
        folder: Folder of the outputs.
        files: Names of the outputs in the folder.
        read: Paths of the inputs; links are followed.
        option: Option that names the outputs.

    Raises:
        UserError: An output is one of the inputs.
    """
    inputs = {path.resolve() for path in read}
    for path in (folder / file for file in files):
        if path.resolve() in inputs:
            raise UserError(
                f"{option}: {path} is one of the pictures that are read, and would be replaced. Choose another place"
            )


def unique_names(wished: Iterable[Sequence[str]], endings: Sequence[str] = ("",)) -> list[str]:
    """Choose for each item the first of its possible names whose files no other has; with a number, if there is none.

    A and a are the same, as they are on some disks, and so are two spellings of ä.

    Args:
        wished: Possible names of each item, at least one, the preferred one first.
        endings: Endings of the files that are written under a name.

    Returns:
        A name for each item.

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


def list_outputs(folder: Path, most: int = 8) -> list[str]:
    """List what lies in a folder, without hidden files: folders have a slash, and of many the rest is counted.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     folder = Path(name)
    ...     (folder / "checkpoints").mkdir()
    ...     _ = [(folder / f"{i}.png").touch() for i in range(4)]
    ...     list_outputs(folder, most=3)
    ['0.png', '1.png', '2.png', '2 more']
    """
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    names = [f"{path.name}/" if path.is_dir() else path.name for path in paths]
    return [*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])]
