"""Checks of a pickle or a PyTorch file before it is read: it may not take gigabytes, nor endless time.

Reading with a list of allowed names keeps code from being run. It does not keep a file of 3 MB from inflating to 3 GB,
or an instruction of five bytes from asking for a table of four billion entries.
"""

import os
import pickle
import pickletools
import struct
import zipfile
import zlib
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import BinaryIO

from semcorr.core.paths import open_plain

PICKLE = 64 << 20  # bytes of the pickle in a PyTorch file: it names tensors, whose values lie beside it
STEPS = 4_000_000  # instructions of a pickle; a network of 1000 tensors takes about 40,000
MEMBERS = 1_000_000  # files in an archive
SHARE, FREE = 20, 64 << 20  # bytes that may come of a byte of an archive, and bytes that may come of any archive
LEGACY = 5  # pickles one after the other at the start of a PyTorch file that is not an archive
DAMAGE = (  # what reading bytes that make no sense, or too many of them, ends with
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    AttributeError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    AssertionError,
)
OPCODES = {opcode.code.encode("latin1"): opcode for opcode in pickletools.opcodes}
COUNTED = {  # bytes of the length that stands before an argument
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


class BombError(ValueError):
    """An input that would take more memory or time than anything of its kind needs."""


def require_torch_file(path: Path, crc: bool = False) -> None:
    """Refuse a file of `torch.save` or `torch.jit.save` that would take more memory than its size explains.

    Args:
        path: The file.
        crc: Compare the checksums of an archive's members as well, which `torch.load` does not. They are always
            there in our own files; foreign ones may have been written without.

    Raises:
        BombError, zipfile.BadZipFile, EOFError: It is one, or is damaged.
        UserError: It is not a regular file.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        zipped = file.read(4) == b"PK\3\4"  # as torch.load tells them apart
        file.seek(0)
        if not zipped:
            for _ in range(LEGACY):
                if file.tell() < size:
                    require_bounded_pickle(file, size)
            return
        with zipfile.ZipFile(file) as archive:
            require_bounded_archive(archive, size)
            for member in archive.infolist():
                if member.filename.endswith("/data.pkl"):
                    require_bounded_pickle(BytesIO(read_member(archive, member.filename)), member.file_size)
            if crc and (damaged := archive.testzip()):
                raise zipfile.BadZipFile(f"the checksum of {damaged} in it does not fit")


def require_bounded_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse an archive whose members overlap, or inflate far beyond its size.

    Args:
        archive: Archive of PyTorch; begins with its first member.
        size: Size of the file, in bytes.

    Raises:
        BombError: The archive has too many members, or they take more than its size explains.
    """
    members = archive.infolist()
    if len(members) > MEMBERS:
        raise BombError(f"it has {len(members)} members; at most {MEMBERS} are read")
    if members and min(member.header_offset for member in members) != 0:
        raise BombError("it does not begin with its first member")
    if sum(member.compress_size for member in members) > size:
        raise BombError("its members overlap")
    total = sum(member.file_size for member in members)
    if total > FREE + SHARE * size:
        raise BombError(f"it would inflate from {size / 1e6:.1f} MB to {total / 1e9:.1f} GB")
    for member in members:
        if member.filename.endswith("/data.pkl") and member.file_size > PICKLE:
            raise BombError(
                f"its {member.filename} has {member.file_size / 1e6:.0f} MB, at most {PICKLE >> 20} are read"
            )


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a member, and no more of it than the archive says it has: `archive.read` inflates all that is there."""
    with archive.open(name) as file:
        return file.read(archive.getinfo(name).file_size)


def require_bounded_pickle(file: BinaryIO | BufferedIOBase, size: int) -> None:
    """Walk through the instructions of one pickle, and refuse one that would take more memory than it has bytes.

    Args:
        file: File, positioned at the pickle's start, and at its end afterwards.
        size: Size of the file, in bytes.

    Raises:
        BombError: It has too many instructions, or one claims more than follows.
        EOFError: It ends too early.
    """
    for step in range(STEPS):
        code = file.read(1)
        if not code:
            raise EOFError("it ends too early")
        if code == b".":
            return
        opcode = OPCODES.get(code)
        if opcode is None:
            raise BombError(f"it is not a pickle: {code!r} is not an instruction")
        argument = _skip_argument(file, opcode, size)
        if "PUT" in opcode.name and int(argument) > step:  # the table of what was put grows to twice the number
            raise BombError(f"it puts something at place {argument[:20]} after {step} instructions")
    raise BombError(f"it has more than {STEPS} instructions")


def _skip_argument(file: BinaryIO | BufferedIOBase, opcode: pickletools.OpcodeInfo, size: int) -> str:
    """Skip an argument; return it as text where it is a number."""
    if opcode.arg is None:
        return ""
    width = opcode.arg.n
    if width in COUNTED:
        length = int.from_bytes(file.read(COUNTED[width]), "little")
        if length > size - file.tell():
            raise BombError(f"an instruction claims {length} bytes, and {size - file.tell()} follow")
        file.seek(length, os.SEEK_CUR)
        return ""
    if width < 0:
        lines = 2 if "pair" in opcode.arg.name else 1
        texts = [file.readline(PICKLE) for _ in range(lines)]
        return texts[0].decode("latin1").strip() or "0"
    return str(int.from_bytes(file.read(width), "little"))
