"""Reading arrays of numbers from a MATLAB file that a user brings: bounded, and nothing but numbers."""

import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from semcorr.core.errors import UserError
from semcorr.core.paths import open_plain

MAX_BYTES = 16 << 20  # bytes of the file, and of what it inflates to: an annotation has a kilobyte
HEADER, TAG = 128, struct.Struct("<II")  # bytes before the first element, and what stands before each
COMPRESSED = 15  # type of an element that holds another, deflated


def read_mat_file(path: Path, names: Sequence[str], remedy: str) -> list[np.ndarray]:
    """Read matrices of real numbers, one for each name.

    Args:
        path: A file of version 4 to 7; 7.3 is HDF5, which is not read.
        names: Names of the variables.
        remedy: What to do about a file that cannot be read; ends the message.

    Raises:
        UserError: The file is no MATLAB file, inflates too far, or a variable is missing or no matrix of numbers.
    """
    from scipy.io import loadmat

    try:
        with open_plain(path) as file:
            content = file.read(MAX_BYTES + 1)
        _require_bounded(content)
        arrays = loadmat(BytesIO(content), variable_names=list(names))
        return [_require_numbers(arrays[name], name) for name in names]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. {remedy}") from None
    except UserError:
        raise
    except Exception as error:  # a damaged file can fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is not a PF-PASCAL annotation ({reason}). {remedy}") from None


def _require_numbers(value: object, name: str) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub" or value.ndim != 2:
        raise ValueError(f"`{name}` is no matrix of numbers")
    return value.astype(np.float64)


def _require_bounded(content: bytes) -> None:
    """Inflate each element of a file of version 5 up to the limit, and discard the result."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES >> 20} MB")
    if content.startswith(b"\x89HDF") or content[:HEADER].startswith(b"MATLAB 7.3"):
        raise ValueError("it is of version 7.3, which is HDF5; save it with -v7")
    if content[126:128] != b"IM":  # of version 4, which compresses nothing, or big-endian
        return
    start, room = HEADER, MAX_BYTES
    while start + TAG.size <= len(content):
        kind, size = TAG.unpack_from(content, start)
        start += TAG.size
        if kind == COMPRESSED:
            inflate = zlib.decompressobj()
            room -= len(inflate.decompress(content[start : start + size], room))
            if inflate.unconsumed_tail or room <= 0:
                raise ValueError(f"it inflates to more than {MAX_BYTES >> 20} MB")
        start += size
