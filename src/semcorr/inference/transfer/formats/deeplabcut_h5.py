"""DeepLabCut's tables in HDF5, as pandas lays them out. What is read is arrays and names: nothing in a file is run."""

import io
import pickle
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from semcorr.core.errors import UserError
from semcorr.core.extras import require_extra
from semcorr.core.paths import quote_value
from semcorr.core.pickles import DAMAGE, require_bounded_pickle
from semcorr.inference.transfer.formats.deeplabcut_table import HEADERS, REMEDY, Column, Row

if TYPE_CHECKING:
    import h5py

KEY = "df_with_missing"  # as DeepLabCut calls the table
ROWS, BYTES = 1_000_000, 128_000_000  # of an array, at most: rows are annotated by hand
AS_CSV = "Give the .csv beside it."


def read_hdf5_table(path: Path) -> tuple[list[Column], list[Row]]:
    """Read the table of an HDF5 file, of pandas' format `fixed` or `table`.

    Raises:
        UserError: h5py is not installed; or the file is damaged, or has no such table.
    """
    require_extra(f"Reading {path}, and not the .csv beside it,", "deeplabcut", "h5py")
    import h5py

    try:
        with h5py.File(path, "r") as file:
            keys = [key for key in file if isinstance(file.get(key, getlink=True), h5py.HardLink)]
            keys = [key for key in keys if isinstance(file[key], h5py.Group)]
            key = KEY if KEY in keys else keys[0] if len(keys) == 1 else None
            if key is None:
                raise UserError(f"{path} has no table `{KEY}`. {REMEDY}")
            group = file[key]
            names, tuples, index, values = _read_table(group) if "table" in group else _read_fixed(group)
        if len(names) == len(set(names)) and {"scorer", "bodyparts", "coords"} <= set(names) <= set(HEADERS):
            columns = [_to_column(dict(zip(names, levels, strict=True))) for levels in tuples]
            if values.shape != (len(index), len(columns)):
                raise ValueError(f"{len(index)} rows of {len(columns)} columns have values of {values.shape}")
            rows = zip(index, values.tolist(), strict=True)
            return columns, [Row(name, [None if isnan(cell) else cell for cell in cells]) for name, cells in rows]
    except UserError:
        raise
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as a table of DeepLabCut ({quote_value(reason)}). {AS_CSV}") from None
    raise UserError(
        f"{path} has columns of {quote_value(', '.join(names))}, and not of scorer, bodyparts and coords. {REMEDY}"
    )


def _to_column(levels: Mapping[str, str]) -> Column:
    return Column(levels["scorer"], levels.get("individuals"), levels["bodyparts"], levels["coords"])


Table = tuple[list[str], list[tuple[str, ...]], list[str], np.ndarray]  # levels' names, columns, rows' names, values


def _read_fixed(group: "h5py.Group") -> Table:
    """Read pandas' format `fixed`: axes, and blocks of columns of one type."""
    depth = _read_depth(group, "axis0")
    names = [_decode(_get_dataset(group, f"axis0_level{i}").attrs["name"]) for i in range(depth)]
    columns = _read_levels(group, "axis0")
    index = ["/".join(levels) for levels in _read_levels(group, "axis1")]
    if len(index) * len(columns) * 8 > BYTES:
        raise ValueError(f"{len(index)} rows of {len(columns)} columns are not read")
    values = np.full((len(index), len(columns)), np.nan)
    places = {column: i for i, column in enumerate(columns)}
    for block in range(int(group.attrs["nblocks"])):
        items = [places[column] for column in _read_levels(group, f"block{block}_items")]
        numbers = _require_numbers(_get_dataset(group, f"block{block}_values")[:])
        if numbers.shape != (len(index), len(items)):
            raise ValueError(f"{len(index)} rows of {len(items)} columns have values of {numbers.shape}")
        values[:, items] = numbers
    return names, columns, index, values


def _read_table(group: "h5py.Group") -> Table:
    """Read pandas' format `table`: rows with a name and an array, whose columns a pickled list names."""
    table = _get_dataset(group, "table")
    blocks = [name for name in table.dtype.names if name.startswith("values_block_")]
    if len(blocks) != 1 or "index" not in table.dtype.names:
        raise ValueError("its rows are not of a name and numbers")
    columns = _unpickle(table.attrs[f"{blocks[0]}_kind"])
    if not isinstance(columns, list) or not all(
        isinstance(levels, tuple) and all(isinstance(name, str) for name in levels) for levels in columns
    ):
        raise ValueError("its columns have no names")
    names = list(HEADERS) if len(columns[0]) == 4 else ["scorer", "bodyparts", "coords"]
    rows = table[:]
    return names, columns, [_decode(name) for name in rows["index"]], _require_numbers(rows[blocks[0]])


def _read_levels(group: "h5py.Group", axis: str) -> list[tuple[str, ...]]:
    """Return the entries of an axis: names, or tuples of them."""
    if _decode(group.attrs[f"{axis}_variety"]) == "regular":
        return [(name,) for name in _read_names(group, axis)]
    levels = []
    for i in range(_read_depth(group, axis)):
        names = _read_names(group, f"{axis}_level{i}")
        codes = _require_numbers(_get_dataset(group, f"{axis}_label{i}")[:]).astype(int)
        if codes.min(initial=0) < 0:
            raise ValueError("an entry of an axis has no name")
        levels.append([names[code] for code in codes])
    return list(zip(*levels, strict=True))


def _read_depth(group: "h5py.Group", axis: str) -> int:
    depth = int(group.attrs[f"{axis}_nlevels"])
    if not 1 <= depth <= len(HEADERS):
        raise ValueError(f"an axis has {depth} levels")
    return depth


def _read_names(group: "h5py.Group", key: str) -> list[str]:
    dataset = _get_dataset(group, key)
    if dataset.dtype.kind != "S" or dataset.ndim != 1:
        raise ValueError("its names are not plain texts, as an old pandas writes them")
    return [_decode(name) for name in dataset[:]]


def _get_dataset(group: "h5py.Group", key: str) -> "h5py.Dataset":
    """Return an array whose values lie in this file, and that fits into memory, whatever the file says of its size."""
    import h5py

    dataset = group[key] if isinstance(group.get(key, getlink=True), h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise ValueError(f"{key} is not an array of this file")
    if len(dataset) > ROWS or dataset.size * dataset.dtype.itemsize > BYTES:
        raise ValueError(f"{key} has more than the {ROWS} rows or {BYTES} bytes that are read of an array")
    return dataset


def _require_numbers(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "iuf":
        raise ValueError("its values are not numbers, as of an empty table")
    return values


def _decode(value: bytes | str) -> str:
    return value if isinstance(value, str) else bytes(value).decode()


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler of lists, tuples and texts, which refuses whatever would have to be imported."""

    def find_class(self, module: str, name: str) -> object:
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not read")


def _unpickle(content: object) -> object:
    raw = content.encode("latin-1") if isinstance(content, str) else content
    if not isinstance(raw, bytes):
        raise ValueError("its columns have no names")
    require_bounded_pickle(io.BytesIO(raw), len(raw))
    return _PlainUnpickler(io.BytesIO(raw)).load()


def write_hdf5_table(path: Path, columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Write a table by pandas, in its format `fixed`; cells that are None are NaN.

    Args:
        path: The file.
        columns: Columns, all with an individual or none.
        rows: Rows whose names have three parts: labeled-data, video, image.
    """
    import pandas

    several = any(column.individual is not None for column in columns)
    names = [name for name in HEADERS if several or name != "individuals"]
    tuples = [tuple(part for part in column if part is not None) for column in columns]
    table = pandas.DataFrame(
        [[np.nan if cell is None else cell for cell in row.cells] for row in rows],
        index=pandas.MultiIndex.from_arrays([[row.name.split("/")[i] for row in rows] for i in range(3)]),
        columns=pandas.MultiIndex.from_tuples(tuples, names=names),
        dtype=float,
    )
    table.to_hdf(path, key=KEY, mode="w")
