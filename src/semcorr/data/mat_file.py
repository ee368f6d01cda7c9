"""Reading arrays of numbers from a MATLAB file that a user brings: bounded, and nothing but numbers."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np

from semcorr.core.errors import UserError
from semcorr.core.paths import open_plain

MAX_BYTES = 16 << 20  # bytes of the file, and of what it inflates to: an annotation has a kilobyte
MAX_STRUCTURE_BYTES = 512 << 20  # the same of a structure: one of PASCAL-Part has a mask for each part of each object
HEADER, TAG = 128, struct.Struct("<II")  # bytes before the first element, and what stands before each
COMPRESSED = 15  # type of an element that holds another, deflated


def read_mat_file(path: Path, names: Sequence[str], remedy: str) -> list[np.ndarray]:
    """Read matrices of real numbers, one for each name, as arrays of float64.

    Args:
        path: A file of version 4 to 7; 7.3 is HDF5, which is not read.
        names: Names of the variables.
        remedy: What to do about a file that cannot be read; ends the message.

    Raises:
        UserError: The file is not a MATLAB file, inflates too far, or a variable is missing or not a matrix of numbers.
    """
    from scipy.io import loadmat

    with _explain_damage(path, "a PF-PASCAL annotation", remedy):
        arrays = loadmat(BytesIO(_read_bounded(path, MAX_BYTES)), variable_names=list(names))
        return [_require_numbers(arrays[name], name) for name in names]


def read_mat_structure(path: Path, name: str, what: str, remedy: str) -> object:
    """Read a structure. Its fields are attributes, and a list of a single entry is that entry.

    Args:
        path: A file of version 4 to 7.
        name: Name of the variable.
        what: What the file should be, for messages.
        remedy: What to do about a file that cannot be read; ends the message.

    Raises:
        UserError: The file is not a MATLAB file, inflates too far, or has no such variable.
    """
    from scipy.io import loadmat

    with _explain_damage(path, what, remedy):
        content = BytesIO(_read_bounded(path, MAX_STRUCTURE_BYTES))
        structure: object = loadmat(content, variable_names=[name], squeeze_me=True, struct_as_record=False)[name]
        return structure


@contextmanager
def _explain_damage(path: Path, what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. {remedy}") from None
    except UserError:
        raise
    except Exception as error:  # a damaged file can fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is not {what} ({reason}). {remedy}") from None


def _read_bounded(path: Path, limit: int) -> bytes:
    with open_plain(path) as file:
        content = file.read(limit + 1)
    _require_bounded(content, limit)
    return content


def _require_numbers(value: object, name: str) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub" or value.ndim != 2:
        raise ValueError(f"`{name}` is not a matrix of numbers")
    return value.astype(np.float64)


def _require_bounded(content: bytes, limit: int) -> None:
    """Inflate each element of a file of version 5 up to the limit, and discard the result."""
    if len(content) > limit:
        raise ValueError(f"it has more than {limit >> 20} MB")
    if content.startswith(b"\x89HDF") or content[:HEADER].startswith(b"MATLAB 7.3"):
        raise ValueError("it is of version 7.3, which is HDF5; save it with -v7")
    if content[126:128] != b"IM":  # of version 4, which compresses nothing, or big-endian
        return
    start, room = HEADER, limit
    while start + TAG.size <= len(content):
        kind, size = TAG.unpack_from(content, start)
        start += TAG.size
        if kind == COMPRESSED:
            inflate = zlib.decompressobj()
            room -= len(inflate.decompress(content[start : start + size], room))
            if inflate.unconsumed_tail or room <= 0:
                raise ValueError(f"it inflates to more than {limit >> 20} MB")
        start += size
