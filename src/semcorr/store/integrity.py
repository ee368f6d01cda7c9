"""Integrity of a stored file, checked by its header and without torch.

A safetensors file is eight bytes of length, a JSON header padded with spaces, and the tensors' bytes.
Ours has in its header the image's name, the format, the key and the id that the entry belongs to, and a checksum
over the rest of the header, types and shapes included, and all bytes. A file in another place than it was written
for is not an entry, even if it is complete.
"""

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import xxhash

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

    Args:
        content: Bytes of the file.
        place: Key and id that the entry must have been written for.
        check: Whether to compute the checksum; there is no need where this process has checked the file before.

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
