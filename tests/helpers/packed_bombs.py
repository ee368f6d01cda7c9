"""Small files of weights, tables, MATLAB and archives that would become large ones."""

import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bombs import DEEP, GIGABYTES, deflated_zeros, sparse, zipped
from scipy.io import savemat

from semcorr.metrics.predictions import SCHEMA

# -- pickles and weights --


def zip_member(path: Path, name: str, content: bytes, also: bool = False) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"a/{name}", content)
        if also:
            archive.writestr("a/constants.pkl", pickle.dumps(()))


def huge_view(path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(1 << 20, 1 << 20)}, path)


def itself(path: Path) -> None:
    content: dict[str, object] = {"a": torch.ones(2)}
    content["model"] = content
    torch.save(content, path)


def overlapping(path: Path) -> None:
    """Members that share their bytes."""
    torch.save({"a": torch.ones(10_000), "b": torch.zeros(10_000)}, path)
    content = path.read_bytes()
    places = [at for at in range(len(content)) if content[at : at + 4] == b"PK\1\2"]
    data = [at for at in places if b"data/" in content[at + 46 : at + 60]]
    changed = bytearray(content)
    for at in data:
        changed[at + 20 : at + 28] = struct.pack("<II", 79_000, 79_000)
    path.write_bytes(changed)


def prefixed(path: Path) -> None:
    """Two archives one after the other: some readers take the first, some the second."""
    torch.save({"a": torch.ones(2)}, path)
    path.write_bytes(path.read_bytes() * 2)


def shared_modules(path: Path) -> None:
    """A TorchScript archive of 60 modules, each of which has the next twice."""
    steps = b"\x80\x02" + b"c__torch__\nM\n)\x81"
    for _ in range(60):  # an object whose state is {"a": the one before, "b": the one before}
        steps += b"q\x01c__torch__\nM\n)\x81}(X\x01\x00\x00\x00ah\x01X\x01\x00\x00\x00bh\x01ub"
    zip_member(path, "data.pkl", steps + b".", also=True)


STEPS = {
    "a place of 4 billion": b"\x80\x02]r\xff\xff\xff\xff.",
    "bytes of 2^60": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b".",
    "text of 4 GB": b"\x80\x02X\xff\xff\xff\xff.",
    "5 million instructions": b"\x80\x02" + b"]0" * 2_500_000 + b"].",
    "no end": b"\x80\x02" + b"]0" * 1000,
    "no instruction": b"\x80\x02\xff\xff",
}
PICKLES: dict[str, Callable[[Path], object]] = {
    name: lambda path, steps=steps: path.write_bytes(steps)  # type: ignore[misc]
    for name, steps in STEPS.items()
}
DEEP_PICKLE = b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b"."
TORCH: dict[str, Callable[[Path], object]] = {
    "a data.pkl of 3 GB": lambda path: zipped(path, "a/data.pkl", deflated_zeros(GIGABYTES), GIGABYTES),
    "one of 3 GB that is said to have 1000 bytes": lambda path: zipped(
        path, "a/data.pkl", deflated_zeros(GIGABYTES), GIGABYTES, 1000
    ),
    "tensors of 3 GB": lambda path: zipped(path, "a/data/0", deflated_zeros(GIGABYTES), GIGABYTES),
    **{
        f"archive, {name}": lambda path, steps=steps: zip_member(path, "data.pkl", steps)  # type: ignore[misc]
        for name, steps in STEPS.items()
    },
    "overlapping members": overlapping,
    "two archives in one": prefixed,
    "a checkpoint of nothing": lambda path: path.write_bytes(b""),
    **PICKLES,
}
WEIGHTS: dict[str, Callable[[Path], object]] = {
    **TORCH,
    "a view of 4 TB": huge_view,
    "a dictionary that contains itself": itself,
    "modules that share modules": shared_modules,
    "TorchScript of 100 MB": lambda path: zip_member(path, "data.pkl", bytes(100 << 20), also=True),
    "lists of depth a million": lambda path: path.write_bytes(DEEP_PICKLE),
}


def header(path: Path, text: bytes, length: int | None = None, data: bytes = b"") -> None:
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def tensor_of(shape: str, offsets: str) -> bytes:
    return f'{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}'.encode()


SAFETENSORS: dict[str, Callable[[Path], object]] = {
    "a header of 2^63 bytes": lambda path: header(path, b"{}", 2**63),
    "a header of 2 GB": lambda path: header(path, b"{}", 2 << 30),
    "shapes of 2^64": lambda path: header(path, tensor_of("[4294967296,4294967296]", "[0,4]"), data=bytes(4)),
    "offsets beyond the end": lambda path: header(
        path, tensor_of("[1000000000000]", "[0,4000000000000]"), data=bytes(4)
    ),
    "overlapping tensors": lambda path: header(
        path,
        tensor_of("[1]", "[0,4]")[:-1] + b',"b":' + tensor_of("[1]", "[0,4]")[5:],
        data=bytes(4),
    ),
    "depth of 100,000": lambda path: header(path, b"[" * DEEP + b"]" * DEEP),
    "another length": lambda path: header(path, tensor_of("[2]", "[0,4]"), data=bytes(4)),
    "nothing": lambda path: path.write_bytes(b""),
}


def big_array(path: Path) -> None:
    """An array made of its shape alone."""
    shape = b"(J\xff\xff\xff\x7fJ\x08\x00\x00\x00K\x08K\x03t"
    video = b"cnumpy\nndarray\n(" + shape + b"X\x02\x00\x00\x00u1tR"
    path.write_bytes(b"\x80\x02}(X\x01\x00\x00\x00a}(X\x05\x00\x00\x00video" + video + b"uu.")


ARRAYS = {**PICKLES, "an array of 400 GB": big_array}

# -- MATLAB --


def mat(path: Path, **content: object) -> None:
    savemat(path, {"kps": np.ones((4, 2)), "bbox": np.ones((1, 4))} | content)


def huge_mat(path: Path) -> None:
    packed = b"\x78\xda" + deflated_zeros(400 << 20)
    path.write_bytes(b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(packed)) + packed)


def claimed_mat(path: Path) -> None:
    """A matrix that is said to be 2 billion by 2."""
    mat(path)
    content = bytearray(path.read_bytes())
    place = content.index(struct.pack("<iii", 5, 8, 4)[:8]) + 8
    content[place : place + 4] = struct.pack("<i", 2**31 - 1)
    path.write_bytes(content)


MAT: dict[str, Callable[[Path], object]] = {
    "400 MB in one": huge_mat,
    "2 billion rows": claimed_mat,
    "version 7.3": lambda path: path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n"),
    "text": lambda path: mat(path, kps="abc"),
    "a struct": lambda path: mat(path, kps={"a": 1}),
    "a cell": lambda path: mat(path, bbox=np.array([1, "a"], dtype=object)),
    "complex numbers": lambda path: mat(path, kps=np.ones((4, 2)) * 1j),
    "three dimensions": lambda path: mat(path, kps=np.ones((4, 2, 2))),
    "3 GB": sparse,
    "nothing": lambda path: path.write_bytes(b""),
}

# -- tables --


def table(rows: int = 4, **columns: object) -> pa.Table:
    """A predictions table of rows that are all the same."""
    usual = {
        field.name: pa.repeat(pa.scalar("a" if pa.types.is_string(field.type) else 0, pa.string() if
        pa.types.is_string(field.type) else pa.int64()).cast(field.type), rows)
        for field in SCHEMA
    }  # fmt: skip
    return pa.table(usual | columns)


def long_text(path: Path) -> None:
    """20 MB of text in each of 1000 rows, and once in the file."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["x" * (20 << 20)]))
    pq.write_table(table(1000, pair=text), path)


TABLES: dict[str, Callable[[Path], object]] = {
    "2 million rows": lambda path: pq.write_table(table(2_000_000), path),
    "20 GB of text": long_text,
    "another way of packing": lambda path: pq.write_table(table(), path, compression="gzip"),
    "lists": lambda path: pq.write_table(table(pair=pa.array([["a"]] * 4)), path),
    "numbers for text": lambda path: pq.write_table(table(pair=pa.array([1, 2, 3, 4])), path),
    "text for numbers": lambda path: pq.write_table(table(extent=pa.array(["a"] * 4)), path),
    "no values": lambda path: pq.write_table(table(extent=pa.nulls(4, pa.float32())), path),
    "no column": lambda path: pq.write_table(table().drop_columns("extent"), path),
    "3 GB": sparse,
    "no table": lambda path: path.write_text("PAR1" * 10),
    "a footer of 2 GB": lambda path: path.write_bytes(b"PAR1" * 4 + b"\xff\xff\xff\x7fPAR1"),
    "nothing": lambda path: path.write_bytes(b""),
}

# -- archives --


def tar_header(path: Path, kind: bytes) -> None:
    """An archive whose first header says that 3 GB of names follow; and they do, of zeros."""
    info = tarfile.TarInfo("a")
    info.type, info.size = kind, GIGABYTES
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(info.tobuf()) + packer.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + start + deflated_zeros(GIGABYTES) + bytes(8))


def packed_otherwise(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.txt", bytes(1000))


def quoted(path: Path) -> None:
    """Two members of an archive, of which each says that it is the whole archive."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", bytes(1000))
        archive.writestr("b.txt", bytes(1000))
    content = bytearray(path.read_bytes())
    for at in range(len(content)):
        if content[at : at + 4] == b"PK\1\2":
            content[at + 20 : at + 24] = struct.pack("<I", 2000)
    path.write_bytes(content)


def sparse_tar(path: Path) -> None:
    buffer = io.BytesIO()
    info = tarfile.TarInfo("a.txt")
    info.size = 1 << 50
    buffer.write(info.tobuf(tarfile.GNU_FORMAT))
    path.write_bytes(buffer.getvalue() + bytes(10240))


ARCHIVES: dict[str, Callable[[Path], object]] = {
    "a name of 3 GB": lambda path: tar_header(path, tarfile.GNUTYPE_LONGNAME),
    "attributes of 3 GB": lambda path: tar_header(path, tarfile.XHDTYPE),
    "a file of 3 GB": lambda path: zipped(path, "a.txt", deflated_zeros(GIGABYTES), GIGABYTES),
    "another way of packing": packed_otherwise,
    "members that overlap": quoted,
    "a member of a petabyte": sparse_tar,
}
