"""Parquet tables, written with a checksum for each column, and read within bounds.

Parquet's own checksums cover the data of pages and nothing else: not their headers, and not the footer, which says
where a column lies, what it is called and how many rows there are. So the footer carries one more of each column's
values, which is computed again from what was read.
"""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from semcorr.core.errors import UserError
from semcorr.core.paths import open_plain

MAGIC = b"PAR1"
MAX_FOOTER_BYTES = 16 << 20  # bytes of a footer: ours has some thousand
DEEPEST = 16  # structures within structures
CODECS = {0: "none", 1: "Snappy"}  # what we write; others can inflate a thousandfold
# Numbers of fields: of the file, of its groups of rows, of their columns, of what is said of those.
NUM_ROWS, GROUPS, COLUMNS, ELSEWHERE, ABOUT, CODEC = 3, 4, 1, 1, 3, 4
TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
WHOLE = (4, 5, 6)  # of 16, 32 and 64 bits
Fields = dict[int, Any]  # of a structure, by their numbers


class FooterError(ValueError):
    """A footer that does not belong to a table of ours."""


def require_footer(file: BinaryIO, size: int) -> None:
    """Refuse a footer that cannot be read, or that asks for what our tables have no need of.

    Args:
        file: Open file, at any position.
        size: Size of the file, in bytes.

    Raises:
        FooterError: It is damaged; values lie in another file; or they are compressed in another way than ours.
    """
    file.seek(max(0, size - 8))
    length, end = int.from_bytes(file.read(4), "little"), file.read(4)
    if end != MAGIC or not 0 < length <= min(MAX_FOOTER_BYTES, size - 12):
        raise FooterError("it has no end of a Parquet file")
    file.seek(size - 8 - length)
    try:
        footer = _Reader(file.read(length)).read_struct(0)
        groups = [column for group in footer[GROUPS] for column in group[COLUMNS]] if footer[NUM_ROWS] else []
        codecs = {column[ABOUT][CODEC] for column in groups}
        elsewhere = any(ELSEWHERE in column for column in groups)
    except (IndexError, KeyError, TypeError, RecursionError) as error:
        raise FooterError("its footer cannot be read") from error
    if elsewhere:
        raise FooterError("it names another file as the place of its values")
    if unknown := codecs - CODECS.keys():
        raise FooterError(f"it is compressed by codec {min(unknown)}; only {', '.join(CODECS.values())} are read")


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def read_struct(self, depth: int) -> Fields:
        """Read the fields of a structure by their numbers."""
        if depth > DEEPEST:
            raise FooterError("its footer is nested too deeply")
        fields: Fields = {}
        number = 0
        while head := self.read_byte():
            number = number + (head >> 4) if head >> 4 else self.read_whole()
            fields[number] = self.read_value(head & 15, depth)
        return fields

    def read_value(self, kind: int, depth: int) -> object:
        if kind in (TRUE, FALSE):
            return kind == TRUE
        if kind == BYTE:
            return self.read_byte()
        if kind in WHOLE:
            return self.read_whole()
        if kind == DOUBLE:
            return self.read_bytes(8)
        if kind == BINARY:
            return self.read_bytes(self.read_unsigned())
        if kind in (LIST, SET):
            return self.read_list(depth)
        if kind == STRUCT:
            return self.read_struct(depth + 1)
        raise FooterError("its footer cannot be read")

    def read_list(self, depth: int) -> list[object]:
        head = self.read_byte()
        length, kind = head >> 4, head & 15
        if length == 15:
            length = self.read_unsigned()
        if length > len(self.content) - self.place:  # each takes a byte at the least
            raise FooterError("its footer cannot be read")
        read_item = self.read_byte if kind in (TRUE, FALSE) else lambda: self.read_value(kind, depth)
        return [read_item() for _ in range(length)]

    def read_byte(self) -> int:
        self.place += 1
        return self.content[self.place - 1]

    def read_bytes(self, length: int) -> bytes:
        if length > len(self.content) - self.place:
            raise FooterError("its footer cannot be read")
        self.place += length
        return self.content[self.place - length : self.place]

    def read_unsigned(self) -> int:
        total = shift = 0
        while (part := self.read_byte()) & 0x80:
            total, shift = total | (part & 0x7F) << shift, shift + 7
            if shift > 63:
                raise FooterError("its footer cannot be read")
        return total | part << shift

    def read_whole(self) -> int:
        value = self.read_unsigned()
        return value >> 1 ^ -(value & 1)


CHECKSUMS = b"semcorr.columns"  # key of the footer's own notes: JSON, column to checksum
FOREIGN = {b"ARROW:schema", b"pandas"}  # keys of other writers
ROWS, TEXT, SHARE = 100_000, 64 << 20, 200  # rows, and bytes of text, that any file may hold; bytes per byte of a file


class DamagedTableError(ValueError):
    """A table that is not what was written."""


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table of numbers, truth values and texts, with a checksum of each column in its footer."""
    sums = json.dumps({name: column_checksum(table[name], name) for name in table.schema.names})
    with_checksums = table.replace_schema_metadata({**(table.schema.metadata or {}), CHECKSUMS: sums})
    pq.write_table(with_checksums, path, write_page_checksum=True)


def read_parquet(
    path: Path, schema: pa.Schema, optional: Collection[str] = (), remedy: str = "Evaluate again"
) -> pa.Table:
    """Read the columns of a schema; an older table without checksums is read without checking them.

    Args:
        path: The file.
        schema: Names and types, of whatever width. Other columns of the file are not read.
        optional: Names of columns that may be missing.
        remedy: What to do about a file that cannot be read; ends the message.

    Returns:
        The table, with the file's own columns of the schema.

    Raises:
        UserError: It is not such a table, is damaged, or would not fit into memory.
    """
    try:
        with open_plain(path) as plain:
            require_footer(plain, os.fstat(plain.fileno()).st_size)
        with pa.OSFile(str(path)) as file:
            return _read(file, schema, optional)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. {remedy}") from None
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is damaged, or no table of a run ({reason}). {remedy}") from None


def column_checksum(column: pa.ChunkedArray, name: str) -> str:
    """Compute a checksum of a column's name, type and values, however they are laid out in memory."""
    state = xxhash.xxh3_128(f"{name} {column.type} {len(column)}".encode())
    combined = column.combine_chunks()
    for chunk in combined.chunks if isinstance(combined, pa.ChunkedArray) else [combined]:
        state.update(np.packbits(chunk.is_null().to_numpy(zero_copy_only=False)).tobytes())
        if pa.types.is_string(chunk.type):
            state.update(pc.binary_length(chunk).fill_null(0).to_numpy(zero_copy_only=False).tobytes())
            state.update("".join(chunk.drop_null().to_pylist()).encode())
        else:
            filled = chunk.fill_null(False if pa.types.is_boolean(chunk.type) else 0) if chunk.null_count else chunk
            state.update(np.ascontiguousarray(filled.to_numpy(zero_copy_only=False)).tobytes())
    return state.hexdigest()


def _read(file: pa.NativeFile, schema: pa.Schema, optional: Collection[str]) -> pa.Table:
    columns = pq.read_schema(file).names
    texts = [field.name for field in schema if pa.types.is_string(field.type) and field.name in columns]
    source = pq.ParquetFile(file, page_checksum_verification=True, read_dictionary=texts)
    names = _require_columns(source.schema_arrow, schema, optional)
    _require_bounded(source.metadata, file.size())
    table = source.read(columns=names)
    if table.num_rows != source.metadata.num_rows or table.schema.names != names:
        raise DamagedTableError(f"{table.num_rows} of {source.metadata.num_rows} rows can be read")
    table.validate(full=True)
    table = pa.table({name: _decode(table[name], file.size()) for name in names})
    _compare(table, source.metadata.metadata or {}, schema)
    return table


def _require_columns(file_schema: pa.Schema, schema: pa.Schema, optional: Collection[str]) -> list[str]:
    for field in schema:
        if file_schema.names.count(field.name) != 1:
            if field.name in optional and field.name not in file_schema.names:
                continue
            raise DamagedTableError(f"it has no column {field.name}")
        if not is_kin(kind := file_schema.field(field.name).type, field.type):
            raise DamagedTableError(f"its column {field.name} is {kind}, not {field.type}")
    return [name for name in file_schema.names if name in schema.names]


def is_kin(kind: pa.DataType, expected: pa.DataType) -> bool:
    """Return whether both are texts, truth values, integers or real numbers, of whatever width."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_large_string(plain):
        plain = pa.string()
    kinds = pa.types.is_string, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating
    return any(is_kind(plain) and is_kind(expected) for is_kind in kinds)


def _require_bounded(metadata: pq.FileMetaData, size: int) -> None:
    """Refuse more rows than the file has bytes: a row takes a byte at least."""
    if not 0 <= metadata.num_rows <= max(ROWS, size):
        raise DamagedTableError(f"it claims {metadata.num_rows} rows in {size} bytes")


def _decode(column: pa.ChunkedArray, size: int) -> pa.ChunkedArray:
    """Decode texts, each of which the file holds only once."""
    if not pa.types.is_dictionary(column.type):
        return column
    total = 0
    for chunk in column.chunks:
        lengths = pc.binary_length(chunk.dictionary).take(chunk.indices)
        total += pc.sum(lengths.cast(pa.int64())).as_py() or 0
    if total > TEXT + SHARE * size:
        raise DamagedTableError(f"its texts would take {total / 1e9:.1f} GB")
    return column.cast(pa.string())


def _compare(table: pa.Table, notes: dict[bytes, bytes], schema: pa.Schema) -> None:
    if CHECKSUMS not in notes:
        if set(notes) - FOREIGN:
            raise DamagedTableError("its checksums are not there")
        return
    sums = json.loads(notes[CHECKSUMS])
    if absent := [name for name in schema.names if name in sums and name not in table.schema.names]:
        raise DamagedTableError(f"its column {absent[0]} is not there")
    damaged = [name for name in table.schema.names if sums.get(name) != column_checksum(table[name], name)]
    if damaged:
        raise DamagedTableError(f"the checksum of column {damaged[0]} does not fit its content")
