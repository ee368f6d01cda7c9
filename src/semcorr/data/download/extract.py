"""Extraction of a foreign archive into a folder: every member is checked before any is written.

An archive may name any path and any kind of file. Ours may only add regular files below the folder,
with our own permissions; anything else is refused as a whole.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.filesize import decimal
from rich.progress import Progress

from semcorr.core.errors import UserError
from semcorr.core.paths import name_fault, quote_value
from semcorr.data.download.archive import DAMAGE, ArchiveMember, Content, open_archive

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
JUNK = ("__MACOSX", ".DS_Store")
CHUNK = 1 << 20
UNSUSPICIOUS, RATIO = 1 << 30, 100  # bytes that any archive may unpack to; or bytes for each of its own
BLOCK = 4096  # bytes a small file takes on most disks; a benchmark is tens of thousands of them


class DamagedError(UserError):
    """The archive's bytes are not what was packed: another copy may be."""


def extract(path: Path, into: Path, name: str) -> None:
    """Extract all files of `path` below `into`; copy a file whose official `name` is no archive's there.

    Raises:
        DamagedError: The archive is cut short or altered.
        UserError: A member is unsafe, or the disk lacks space.
    """
    if not name.endswith(ARCHIVES):
        _require_space(path, path.stat().st_size, into)
        with path.open("rb") as file:
            _write_file(file, into / name)
        return
    try:
        with open_archive(path) as (members, open_member):
            plan = extraction_plan(path, members)
            _refuse_bomb(path, sum(member.size for member in plan.values()))
            _refuse_to_overwrite(path, plan, into)
            _require_space(path, sum(-(-member.size // BLOCK) * BLOCK for member in plan.values()), into)
            with Progress(transient=True) as bar:
                for parts, member in bar.track(plan.items(), description=f"Unpacking {name}"):
                    with open_member(member) as source:
                        _write_file(source, into.joinpath(*parts))
    except UserError:
        raise
    except (*DAMAGE, OSError) as error:
        if not isinstance(error, DAMAGE) and (error.filename or error.errno not in (None, errno.EINVAL)):
            raise  # of the disk; an offset that makes no sense is EINVAL, of no file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DamagedError(f"{path} is damaged or not an archive ({reason})") from None


def extraction_plan(path: Path, members: Sequence[ArchiveMember]) -> dict[tuple[str, ...], ArchiveMember]:
    """Return where each file goes, as the parts of a path below the folder.

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
    if total > max(UNSUSPICIOUS, RATIO * (size := path.stat().st_size)):
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
