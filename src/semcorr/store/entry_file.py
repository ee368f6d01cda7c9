"""Files of one image's features: written with a checksum that names their entry, and mapped rather than read."""

import json
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import xxhash
from torch import Tensor

from semcorr.core.files import part_path
from semcorr.core.text_files import JsonMapping, JsonObject

METADATA, NAME, CHECKSUM = "__metadata__", "name", "xxh3_128"
FORMAT_KEY, FORMAT = "semcorr", "2"  # 1 named neither itself nor the entry's place
SUFFIX = ".safetensors"
LENGTH = struct.Struct("<Q")
ALIGN = 64  # bytes, of the first tensor: a cache line

Header = JsonObject  # names of the tensors, each with dtype, shape and offsets; and the metadata


class DamagedEntryError(Exception):
    """A file that is not what was stored; the message says what is wrong with it."""


class OutdatedEntryError(DamagedEntryError):
    """A file of another version of the format."""


class EntryKey(NamedTuple):
    """Key and id that an entry belongs to."""

    key: str  # the name of the key's folder: a hash of all that its features depend on
    entry: str


def entry_key_of(path: Path) -> EntryKey:
    """Return the key and id that an entry at `path` must have been written for."""
    return EntryKey(path.parent.name, path.name.removesuffix(SUFFIX))


def header_metadata(name: str, place: EntryKey) -> dict[str, str]:
    """Return the metadata of the header, but for the checksum."""
    return {NAME: name, FORMAT_KEY: FORMAT, **place._asdict()}


def entry_checksum(header: JsonMapping, data: Iterable[bytes | memoryview]) -> str:
    """Compute the checksum of names, dtypes, shapes and offsets in `header`, and of the bytes in `data`, in order."""
    state = xxhash.xxh3_128(json.dumps(header, sort_keys=True).encode())
    for part in data:
        state.update(part)
    return state.hexdigest()


def write_header(header: JsonMapping, digest: str) -> bytes:
    """Return what precedes the tensors: the length of the header, and the header with its checksum."""
    sealed = {**header, METADATA: {**header[METADATA], CHECKSUM: digest}}
    text = json.dumps(sealed, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH.size + len(text)) % ALIGN)
    return LENGTH.pack(len(text)) + text


def read_header(content: memoryview, place: EntryKey, check: bool = True) -> tuple[Header, int]:
    """Return the header, less the checksum, and the tensors' offset, if `content` is valid and belongs to `place`.

    Without `check` the checksum is not computed: for what this process has checked before.

    Raises:
        OutdatedEntryError: The file is of another version of the format.
        DamagedEntryError: The file is incomplete, or was written for another entry.
    """
    header, begin = _parse_header(content)
    metadata = header[METADATA]
    checksum = metadata.pop(CHECKSUM, None)
    if checksum is None:
        raise DamagedEntryError("it carries no checksum of ours")
    if check and checksum != entry_checksum(header, [content[begin:]]):
        raise DamagedEntryError("its checksum does not fit its content")
    if metadata.get(FORMAT_KEY) != FORMAT:
        raise OutdatedEntryError(f"it is of format {metadata.get(FORMAT_KEY, 1)}, this version writes {FORMAT}")
    written = EntryKey(*(str(metadata.get(field)) for field in EntryKey._fields))
    if written != place:
        raise DamagedEntryError(f"it was stored as {written.key}/{written.entry}")
    return header, begin


def stored_image_name(path: Path) -> str:
    """Return the name of the image whose features a file holds, as far as the file can be read."""
    if not path.is_file():  # opening a pipe waits for its writer
        return "unknown image"
    try:
        with path.open("rb") as file:
            head = file.read(LENGTH.size)
            head += file.read(min(LENGTH.unpack(head)[0], 1 << 20))
        return str(_parse_header(memoryview(head))[0][METADATA][NAME])
    except (OSError, DamagedEntryError, KeyError, struct.error):
        return "unknown image"


def _parse_header(content: memoryview) -> tuple[Header, int]:
    """Parse the header, and return it with the offset of the tensors."""
    if len(content) < LENGTH.size:
        raise DamagedEntryError(f"it has {len(content)} bytes")
    begin = LENGTH.size + LENGTH.unpack(content[: LENGTH.size])[0]
    if begin > len(content):
        raise DamagedEntryError("it ends within its header")
    try:
        header = json.loads(bytes(content[LENGTH.size : begin]))
        if isinstance(header[METADATA], dict):
            return header, begin
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise DamagedEntryError("its header cannot be read")


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
    """Pack the content of the file of an entry. Tensors that are contiguous in the CPU's memory are not copied."""
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

    Writing to them changes no file. Without `check`, only the header is checked.

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
        raise DamagedEntryError("it is no file")
    size = info.st_size
    if size == 0:
        raise DamagedEntryError("it is empty")
    try:
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except RuntimeError as error:
        if not path.exists():  # evicted since the check
            raise FileNotFoundError(path) from None
        raise DamagedEntryError(str(error)) from None
