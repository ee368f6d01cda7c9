"""Parquet tables, written with a checksum for each column, and read within bounds.

Parquet's own checksums cover the data of pages and nothing else: not their headers, and not the footer, which says
where a column lies, what it is called and how many rows there are. So the footer carries one more of each column's
values, which is computed again from what was read.
"""

import json
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from semcorr.core.errors import UserError
from semcorr.core.parquet_footer import require_footer
from semcorr.core.paths import open_plain

CHECKSUMS = b"semcorr.columns"  # key of the footer's own notes: JSON, column to checksum
FOREIGN = {b"ARROW:schema", b"pandas"}  # keys of other writers
ROWS, TEXT, SHARE = 100_000, 64 << 20, 200  # rows, and bytes of text, that any file may hold; bytes per byte of a file


class DamagedTableError(ValueError):
    """A table that is not what was written."""


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table of numbers, truth values and texts."""
    sums = json.dumps({name: column_checksum(table[name], name) for name in table.schema.names})
    noted = table.replace_schema_metadata({**(table.schema.metadata or {}), CHECKSUMS: sums})
    pq.write_table(noted, path, write_page_checksum=True)


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
        UserError: It is no such table, is damaged, or would not fit into memory.
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


def _require_columns(found: pa.Schema, schema: pa.Schema, optional: Collection[str]) -> list[str]:
    for field in schema:
        if found.names.count(field.name) != 1:
            if field.name in optional and field.name not in found.names:
                continue
            raise DamagedTableError(f"it has no column {field.name}")
        if not _is_kin(kind := found.field(field.name).type, field.type):
            raise DamagedTableError(f"its column {field.name} is {kind}, not {field.type}")
    return [name for name in found.names if name in schema.names]


def _is_kin(kind: pa.DataType, wanted: pa.DataType) -> bool:
    """Tell whether both are texts, truth values, integers or real numbers, of whatever width."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    kinds = pa.types.is_string, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating
    return any(is_kind(plain) and is_kind(wanted) for is_kind in kinds)


def _require_bounded(about: pq.FileMetaData, size: int) -> None:
    """Refuse more rows than the file has bytes: a row takes a byte at least."""
    if not 0 <= about.num_rows <= max(ROWS, size):
        raise DamagedTableError(f"it claims {about.num_rows} rows in {size} bytes")


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
