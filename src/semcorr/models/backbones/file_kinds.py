"""What a file that was given for weights is, told by its bytes, whatever its name: a sentence where it is none."""

import bz2
import codecs
import gzip
import json
import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

from semcorr.core.paths import open_plain

AGAIN = "Download the weights file itself"
UNPACK = "Unpack it, and give the weights file that is in it"
EXPORT = "Give the model's PyTorch file (.pth) or safetensors file"
STARTS = (  # first bytes, what that is, what to do
    (b"\xfd7zXZ\0", "compressed by xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"\x89HDF", "an HDF5 file, as Keras writes them", EXPORT),
    (b"GGUF", "a GGUF file of llama.cpp", EXPORT),
    (b"lmgg", "a GGML file of llama.cpp", EXPORT),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file", EXPORT),
    (b"ftrt", "an engine of TensorRT", EXPORT),
    (b"SQLite format 3", "a database of SQLite", AGAIN),
    (b"\x7fELF", "a program", AGAIN),
    (b"MZ", "a program", AGAIN),
    (b"\x93NUMPY", "an array of NumPy", EXPORT),
    (b"\x89PNG", "a PNG image", AGAIN),
    (b"\xff\xd8\xff", "a JPEG image", AGAIN),
    (b"%PDF", "a PDF document", AGAIN),
)
POINTER = b"version https://git-lfs"
TAGS = re.compile(rb"<(!doctype html|html|head|body|title|meta|script|style|!--)")
PACKED: tuple[tuple[bytes, str, Any], ...] = ((b"\x1f\x8b", "gzip", gzip.open), (b"BZh", "bzip2", bz2.open))
MEMBERS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".pkl", ".tar")  # what weights in an archive are called
LOOK = 1 << 16  # bytes from the start, by which a file is told
ENDINGS = {  # of formats whose bytes begin with nothing of their own
    ".onnx": "an ONNX graph", ".tflite": "a TensorFlow Lite file", ".pb": "a TensorFlow graph",
    ".msgpack": "a Flax file", ".h5": "a Keras file", ".index": "a part of a TensorFlow checkpoint",
    ".data-00000-of-00001": "a part of a TensorFlow checkpoint", ".meta": "a part of a TensorFlow checkpoint",
}  # fmt: skip
HEADER = 100 << 20  # bytes of a safetensors header, at most: the library's own bound


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a header, and its brace."""
    with open_plain(path) as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= HEADER


def describe_other(path: Path) -> str | None:
    """Say what a file is and what to do where it can be no file of PyTorch or safetensors; None if it may be one.

    Returns:
        A predicate and a sentence, as "is empty (0 bytes). Download ... again."
    """
    with open_plain(path) as file:
        start = file.read(LOOK)
    if not start:
        return f"is empty (0 bytes). {AGAIN} again."
    if not start.strip(b"\0"):
        return f"holds zeros where its content should begin, as a download does that never finished. {AGAIN} again."
    for first, kind, opened in PACKED:
        if start.startswith(first):
            return _describe_packed(path, kind, opened)
    for first, kind, remedy in STARTS:
        if start.startswith(first):
            return f"is {kind}. {remedy}."
    if start[257:262] == b"ustar":
        return f"is a tar archive. {UNPACK}."
    if start[4:8] == b"TFL3":
        return f"is a TensorFlow Lite file. {EXPORT}."
    if start.startswith(b"PK"):
        return _describe_zip(path)
    if not is_safetensors(path):
        if told := _describe_answer(start):
            return told
        if ending := next((each for each in ENDINGS if path.name.lower().endswith(each)), None):
            return f"is {ENDINGS[ending]}. {EXPORT}."
    return None


def describe_placed(path: Path) -> str | None:
    """Say what Git or a server has put in the place of a JSON file; None if it may be one."""
    with open_plain(path) as file:
        told = _describe_answer(file.read(LOOK))
    return None if told is None or told.startswith("is a JSON text") else told


def describe_unreadable(path: Path) -> str | None:
    """Say what a file is that could not be read: cut short, a text, or by what it begins with; None if it is a pickle.

    Returns:
        As `describe_other` does.
    """
    with open_plain(path) as file:
        start, size = file.read(LOOK), os.fstat(file.fileno()).st_size
    if is_safetensors(path):
        return _describe_cut(path, size)
    if (text := _as_text(start)) is not None:
        shown = " ".join(text.split())[:40]
        return f"is a text, which begins with {shown!r}. {AGAIN}." if shown else f"holds only blanks. {AGAIN} again."
    if start.startswith((b"PK", b"\x80")):
        return None
    if re.match(rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]", start):
        return f"is a protocol buffer, as ONNX's, TensorFlow's and Core ML's files are. {EXPORT}."
    return f"is no file of PyTorch or safetensors, by its first bytes ({start[:8].hex(' ')}). {EXPORT}."


def _describe_answer(start: bytes) -> str | None:
    """Say what a server or Git has put in a file's place: a pointer, a page, an error."""
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        start = start[: len(start) // 2 * 2].decode("utf-16", "replace").encode().lstrip()
    text = start.lower()
    if text.startswith(POINTER):
        return "is a Git LFS pointer, not the weights it stands for. Run `git lfs pull` where it is."
    if TAGS.match(text) or (text.startswith(b"<") and b"<html" in text):
        return f"is an HTML page, such as a page to log in or an error. {AGAIN}, logged in where it asks for that."
    if text.startswith(b"<"):
        return f"is an XML text, such as a server's error. {AGAIN}."
    if text.startswith(b"{") or re.match(rb"\[\s*[\"{\[\]]", text):
        return f"is a JSON text, such as a server's error or a configuration. {AGAIN}."
    return None


def _describe_packed(path: Path, kind: str, opened: Any) -> str:
    """Look into what is compressed: unpacking a page would not help."""
    try:
        with open_plain(path) as file, opened(file) as unpacked:
            start = unpacked.read(LOOK)
    except (OSError, EOFError, ValueError, zlib.error):
        return f"is compressed by {kind}, and damaged or cut short. {AGAIN} again."
    if told := _describe_answer(start):
        return f"is compressed by {kind}, and what is in it {told}"
    return f"is compressed by {kind}. {UNPACK}."


def _describe_cut(path: Path, size: int) -> str | None:
    """Compare the size of a safetensors file with what its header says."""
    with open_plain(path) as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            whole = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            whole = 8 + length
    if size < whole:
        return f"is cut short: a safetensors file of {size} bytes, of at least {whole} by its header. {AGAIN} again."
    return None


def _as_text(start: bytes) -> str | None:
    """The first characters of a text in one of the encodings that servers write; None where it is none."""
    wide = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if wide else ("utf-8", "cp1252"):
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(start[:256])
        except UnicodeDecodeError:
            continue
        plain = encoding != "cp1252" or sum(each.isascii() for each in text) > 0.8 * len(text)
        if plain and all(each.isprintable() or each.isspace() for each in text):
            return text
    return None


def _describe_zip(path: Path) -> str | None:
    if not zipfile.is_zipfile(path):
        return f"is cut short: it is a ZIP archive without an end. {AGAIN} again."
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return None  # damaged, which the reader says
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return f"is an archive of NumPy arrays (.npz). {EXPORT}."
    if any(name.endswith(".h5") for name in names):
        return f"is a Keras archive. {EXPORT}."
    if any(name.rpartition("/")[2] == "archive_format" for name in names):
        return f"is a program of torch.export (.pt2). {EXPORT}."
    if any("com.apple.CoreML" in name for name in names):
        return f"is a package of Core ML. {EXPORT}."
    shown = ", ".join(ascii(name)[1:61].rstrip("'") for name in names[:2])
    remedy = UNPACK if any(name.lower().endswith(MEMBERS) for name in names) else AGAIN
    return f"is a ZIP archive of {len(names)} files{f' ({shown})' if names else ''}. {remedy}."
