"""The members of a .zip, .tar or .tar.gz in common terms, and a check that the archive is complete.

The standard library stops in silence where a list of members is damaged. Here that is an error.
"""

import errno
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BufferedIOBase
from itertools import islice
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, cast

from rich.filesize import decimal

from semcorr.core.errors import UserError
from semcorr.core.paths import name_fault, open_plain, quote_value
from semcorr.core.terminal import Stage

CHUNK = 1 << 20
MAX_MEMBERS = 1_000_000  # members of an archive; a benchmark has some 100,000
HEADERS = 1 << 20  # bytes that a header of an archive may ask to be read at once: a name, or a few attributes
COMPRESSION_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others take gigabytes by their own settings
DAMAGE_ERRORS = (  # what the standard library raises for bytes that make no sense
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    IndexError,
    OverflowError,
    RuntimeError,
)


ArchiveEntry = zipfile.ZipInfo | tarfile.TarInfo


class ArchiveMember(NamedTuple):
    """One member, in the terms common to both kinds of archive."""

    name: str
    kind: str  # "file", "folder", or what it is that we do not take
    size: int
    entry: ArchiveEntry  # the archive's own


Content = IO[bytes] | BufferedIOBase  # of a member, as it is read
Opened = tuple[Sequence[ArchiveMember], Callable[[ArchiveMember], Content]]  # and how one is opened


@contextmanager
def open_archive(path: Path) -> Iterator[Opened]:
    """Open an archive by its content, whatever its name; yield its members, and a function that opens one.

    Raises:
        UserError: It is not a regular file.
        OSError, and those of `DAMAGE_ERRORS`: It is unreadable, not an archive, damaged, or has too many members.
    """
    with open_plain(path) as file:
        is_zip = file.read(2) == b"PK"
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            _check_count(archive)
            yield [_convert_zip_member(info) for info in archive.infolist()], partial(_open_zip_member, archive)
    else:
        with _open_tar_stream(path) as stream, tarfile.open(fileobj=cast(BinaryIO, _Bounded(stream)), mode="r:") as tar:
            members = [_convert_tar_member(info) for info in islice(tar, MAX_MEMBERS + 1)]
            _require_count(len(members))
            _check_end(tar)
            yield members, partial(_open_tar_member, tar)


def _open_zip_member(archive: zipfile.ZipFile, member: ArchiveMember) -> Content:
    assert isinstance(member.entry, zipfile.ZipInfo)
    return archive.open(member.entry)


def _open_tar_member(archive: tarfile.TarFile, member: ArchiveMember) -> Content:
    assert isinstance(member.entry, tarfile.TarInfo)
    content = archive.extractfile(member.entry)
    assert content is not None, "no file is read from a folder"
    return content


class _Bounded:
    """A file that no header can make read gigabytes at once."""

    def __init__(self, file: BufferedIOBase) -> None:
        self.file = file
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int) -> bytes:
        """Read as much as requested, within bounds."""
        if not 0 <= size <= HEADERS:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self.file.read(size)


@contextmanager
def _open_tar_stream(path: Path) -> Iterator[BufferedIOBase]:
    """Open the archive itself: as it is, or inflated as it is read."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            yield file
            return
        with gzip.open(file) as inflated:
            yield inflated


def _require_count(count: int) -> None:
    if count > MAX_MEMBERS:
        raise tarfile.ReadError(f"it has more than {MAX_MEMBERS} members")


def _convert_zip_member(info: zipfile.ZipInfo) -> ArchiveMember:
    """Convert a member of a zip.

    A folder's name ends with a slash. The upper half of `external_attr` is the Unix mode, 0 if there is none.
    """
    plain = "folder" if info.is_dir() else "file"
    if info.compress_type not in COMPRESSION_METHODS:
        raise zipfile.BadZipFile(f"{info.filename!r} is compressed in a way that is not read")
    kinds = {0: plain, stat.S_IFREG: plain, stat.S_IFDIR: plain, stat.S_IFLNK: "symbolic link"}
    kind = kinds.get(stat.S_IFMT(info.external_attr >> 16), "special file")
    return ArchiveMember(info.filename, kind, info.file_size, info)


def _convert_tar_member(info: tarfile.TarInfo) -> ArchiveMember:
    other_kind = "symbolic link" if info.issym() else "hard link" if info.islnk() else "special file"
    kind = "file" if info.isreg() else "folder" if info.isdir() else other_kind
    return ArchiveMember(info.name, kind, info.size, info)


def _check_count(archive: zipfile.ZipFile) -> None:
    """Require as many members as the end of the file states: a length altered in the list hides those after it."""
    file = archive.fp
    assert file is not None
    file.seek(-min(file.seek(0, os.SEEK_END), 22 + 0xFFFF), os.SEEK_END)  # the end record, and the longest comment
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    expected = int.from_bytes(tail[end + 10 : end + 12], "little")
    _require_count(len(archive.infolist()))
    if sum(info.compress_size for info in archive.infolist()) > file.seek(0, os.SEEK_END):
        raise zipfile.BadZipFile("its members overlap")
    if expected not in (0xFFFF, len(archive.infolist()) & 0xFFFF):  # 0xFFFF: too many, the count is stored elsewhere
        raise zipfile.BadZipFile(f"{len(archive.infolist())} members of {expected}")


def _check_end(tar: tarfile.TarFile) -> None:
    """Read on to the end of the file.

    tarfile stops at the first header that makes no sense, as if the archive ended there; it does end
    there only if nothing but zeros follows. And gzip compares its checksum at the end, not before.
    """
    file = tar.fileobj
    assert file is not None
    file.seek(tar.offset)
    zeros = 0
    while block := file.read(CHUNK):
        zeros += len(block)
        if block.count(0) != len(block):
            raise tarfile.ReadError("a header is not readable")
    if not zeros:
        raise tarfile.ReadError("it ends too early")


ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
JUNK = ("__MACOSX", ".DS_Store")
SAFE_BYTES, MAX_RATIO = 1 << 30, 100  # bytes that any archive may unpack to; or bytes for each of its own
BLOCK = 4096  # bytes a small file takes on most disks; a benchmark is tens of thousands of them


class DamagedError(UserError):
    """The archive's bytes are not what was packed: another copy may be."""


def extract(path: Path, destination: Path, name: str) -> None:
    """Extract all files of an archive below a folder; one that is not an archive by its official name is copied there.

    Args:
        path: The file, under any name.
        destination: The folder; must exist.
        name: The file's official name.

    Raises:
        DamagedError: The archive is cut short or altered.
        UserError: A member is unsafe, or the disk lacks space.
    """
    if not name.endswith(ARCHIVES):
        _require_space(path, path.stat().st_size, destination)
        with path.open("rb") as file:
            _write_file(file, destination / name)
        return
    try:
        with open_archive(path) as (members, open_member):
            plan = extraction_plan(path, members)
            _refuse_bomb(path, sum(member.size for member in plan.values()))
            _refuse_to_overwrite(path, plan, destination)
            _require_space(path, sum(-(-member.size // BLOCK) * BLOCK for member in plan.values()), destination)
            with Stage(f"Unpacking {len(plan):,} files of {name}", len(plan)) as stage:
                for parts, member in stage.track(plan.items()):
                    with open_member(member) as source:
                        _write_file(source, destination.joinpath(*parts))
    except UserError:
        raise
    except (*DAMAGE_ERRORS, OSError) as error:
        if not isinstance(error, DAMAGE_ERRORS) and (error.filename or error.errno not in (None, errno.EINVAL)):
            raise  # of the disk; an offset that makes no sense is EINVAL, of no file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DamagedError(f"{path} is damaged or not an archive ({reason})") from None


def extraction_plan(path: Path, members: Sequence[ArchiveMember]) -> dict[tuple[str, ...], ArchiveMember]:
    """Return the members that are files, by the parts of their paths below the folder that they are extracted to.

    Args:
        path: The archive, for messages.
        members: All of its members.

    Raises:
        UserError: A name leads out of the folder, a member is a link or a device, or two have the same path.
    """
    files: dict[tuple[str, ...], ArchiveMember] = {}
    folders: set[tuple[str, ...]] = set()
    for member in members:
        parts = tuple(part for part in re.split(r"[/\\]", member.name) if part not in ("", "."))
        if ".." in parts or re.match(r"[/\\]|[A-Za-z]:", member.name):
            fault: str | None = "leads out of the folder"
        else:
            fault = name_fault("/".join(parts), folders=True) if parts else None
        if fault:
            raise UserError(f"{path}: member {quote_value(member.name)} {fault}. Nothing of it is unpacked.")
        if member.kind not in ("file", "folder"):
            raise UserError(f"{path}: member {member.name!r} is a {member.kind}. Nothing of it is unpacked.")
        if not parts or any(junk in parts for junk in JUNK):
            continue
        folders.update(parts[:i] for i in range(1, len(parts) + (member.kind == "folder")))
        if member.kind == "file" and files.setdefault(parts, member) is not member:
            raise UserError(f"{path}: member {member.name!r} is there twice. Nothing of it is unpacked.")
    if conflicts := folders & files.keys():
        raise UserError(
            f"{path}: member {'/'.join(min(conflicts))!r} is a file and a folder. Nothing of it is unpacked."
        )
    return files


def _refuse_to_overwrite(path: Path, plan: Iterable[tuple[str, ...]], into: Path) -> None:
    """Refuse to overwrite what an archive extracted before this one wrote."""
    if any(into.iterdir()) and (duplicates := [parts for parts in plan if into.joinpath(*parts).exists()]):
        raise UserError(
            f"{path}: member {'/'.join(duplicates[0])!r} is in another archive too. Give the official ones."
        )


def _refuse_bomb(path: Path, total: int) -> None:
    """Refuse a decompression bomb: pictures do not shrink, and lists of numbers to a tenth."""
    if total > max(SAFE_BYTES, MAX_RATIO * (size := path.stat().st_size)):
        raise UserError(
            f"{path} would unpack from {decimal(size)} to {decimal(total)}: no benchmark does. Give the official file."
        )


def _require_space(path: Path, needed: int, into: Path) -> None:
    free = shutil.disk_usage(into).free
    if needed > free:
        raise UserError(
            f"{path} needs {decimal(needed)} unpacked, {into.parent} has {decimal(free)} left. "
            "Free some space, or choose another place with --root DIR"
        )


def _write_file(source: Content, target: Path) -> None:
    """Write a new file, never through an existing one, and with our own permissions less the umask's."""
    _create_folder(target.parent)
    with open(target, "xb", opener=lambda name, flags: os.open(name, flags, 0o644)) as file:
        shutil.copyfileobj(source, file, CHUNK)


def _create_folder(path: Path) -> None:
    if not path.is_dir():
        _create_folder(path.parent)
        path.mkdir(mode=0o755)
