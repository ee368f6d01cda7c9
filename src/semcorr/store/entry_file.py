"""Files of one image's features: written with a checksum, and mapped rather than read."""

import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from semcorr.core.files import part_path
from semcorr.store.integrity import (
    METADATA,
    DamagedEntryError,
    EntryKey,
    Header,
    OutdatedEntryError,
    entry_checksum,
    entry_key_of,
    header_metadata,
    read_header,
    write_header,
)

__all__ = [
    "DamagedEntryError",
    "EntryKey",
    "OutdatedEntryError",
    "PackedEntry",
    "entry_key_of",
    "pack_entry",
    "read_entry",
    "write_entry",
    "write_packed",
]

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class PackedEntry(NamedTuple):
    """Content of a file before it is written."""

    head: bytes
    parts: list[memoryview]  # bytes of the tensors, not copied
    size: int  # of the file, in bytes


def pack_entry(values: Mapping[str, Tensor], name: str, place: EntryKey) -> PackedEntry:
    """Pack the content of the file of an entry. Tensors that are contiguous in the CPU's memory are not copied.

    Args:
        values: Tensors of one image by key, without a batch axis.
        name: Readable name of the image.
        place: Key and id that the entry belongs to.
    """
    # Widest numbers first, so that every tensor begins at a multiple of its number's width.
    ordered = sorted(values.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: Header = {METADATA: header_metadata(name, place)}
    parts: list[memoryview] = []
    end = 0
    for key, value in ordered:
        start, end = end, end + value.numel() * value.element_size()
        header[key] = {"dtype": NAMES[value.dtype], "shape": [*value.shape], "data_offsets": [start, end]}
        parts.append(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    head = write_header(header, entry_checksum(header, parts))
    return PackedEntry(head, parts, len(head) + end)


def write_entry(path: Path, values: Mapping[str, Tensor], name: str) -> None:
    """Store one image's tensors (no batch axis) under its readable name.

    Written to a temporary file and renamed: `path` is complete or missing, however this process ends.
    Nothing waits for the disk. A power cut can leave a file whose bytes never arrived; its checksum
    shows it, and it is computed again.
    """
    write_packed(path, pack_entry(values, name, entry_key_of(path)))


def write_packed(path: Path, packed: PackedEntry) -> None:
    """Write a packed entry, as `write_entry` does."""
    temporary = part_path(path)
    try:
        with temporary.open("wb") as file:
            file.write(packed.head)
            for part in packed.parts:
                file.write(part)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_entry(path: Path, check: bool = True) -> dict[str, Tensor]:
    """Map the tensors stored at `path`: they are the file's pages, shared by all processes that read it.

    Writing to them changes no file.

    Args:
        path: The file.
        check: Whether to compute the checksum of the content as well; the header is checked in any case.

    Raises:
        FileNotFoundError: The file does not exist.
        DamagedEntryError: The file is not what was stored there.
    """
    content = _map_file(path)
    header, begin = read_header(content.numpy().data, entry_key_of(path), check)
    try:
        return dict(_view_tensors(content[begin:], header))
    except (RuntimeError, ValueError, LookupError, TypeError, OverflowError):  # changed since the check
        raise DamagedEntryError("its header does not fit its content") from None


def _view_tensors(data: Tensor, header: Header) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a file by name."""
    for key, info in header.items():
        if key != METADATA:
            start, end = info["data_offsets"]
            yield key, data[start:end].view(DTYPES[info["dtype"]]).view(info["shape"])


def _map_file(path: Path) -> Tensor:
    """Map the file's bytes; private to this process once written to, and no file descriptor stays open."""
    try:
        info = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except OSError as error:
        raise DamagedEntryError(str(error.strerror)) from None
    if not stat.S_ISREG(info.st_mode):
        raise DamagedEntryError("it is not a file")
    size = info.st_size
    if size == 0:
        raise DamagedEntryError("it is empty")
    try:
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except RuntimeError as error:
        if not path.exists():  # evicted since the check
            raise FileNotFoundError(path) from None
        raise DamagedEntryError(str(error)) from None
