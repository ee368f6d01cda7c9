"""Recognition of files that are not weights, by their bytes whatever their names, with a sentence for the user."""

import bz2
import codecs
import gzip
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

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
Opener = Callable[[BinaryIO], gzip.GzipFile | bz2.BZ2File]
PACKED: tuple[tuple[bytes, str, Opener], ...] = ((b"\x1f\x8b", "gzip", gzip.open), (b"BZh", "bzip2", bz2.open))
MEMBERS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".pkl", ".tar")  # suffixes of weights files in an archive
INSPECTED_BYTES = 1 << 16  # bytes from the start, by which a file is recognised
ENDINGS = {  # suffixes of formats that have no signature in their first bytes
    ".onnx": "an ONNX graph",
    ".tflite": "a TensorFlow Lite file",
    ".pb": "a TensorFlow graph",
    ".msgpack": "a Flax file",
    ".h5": "a Keras file",
    ".index": "a part of a TensorFlow checkpoint",
    ".data-00000-of-00001": "a part of a TensorFlow checkpoint",
    ".meta": "a part of a TensorFlow checkpoint",
}
HEADER = 100 << 20  # most bytes of a safetensors header: the library's own limit


def is_safetensors(path: Path) -> bool:
    """Tell whether a file begins as safetensors do: with the length of a header, and its brace."""
    with open_plain(path) as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= HEADER


def describe_other(path: Path) -> str | None:
    """Describe a file that cannot be of PyTorch or safetensors, and say what to do; None if it may be one.

    Returns:
        A predicate and a sentence, as "is empty (0 bytes). Download ... again."
    """
    with open_plain(path) as file:
        start = file.read(INSPECTED_BYTES)
    if not start:
        return f"is empty (0 bytes). {AGAIN} again."
    if not start.strip(b"\0"):
        return f"holds zeros where its content should begin, as a download does that never finished. {AGAIN} again."
    for signature, kind, open_compressed in PACKED:
        if start.startswith(signature):
            return _describe_compressed(path, kind, open_compressed)
    for signature, kind, remedy in STARTS:
        if start.startswith(signature):
            return f"is {kind}. {remedy}."
    if start[257:262] == b"ustar":
        return f"is a tar archive. {UNPACK}."
    if start[4:8] == b"TFL3":
        return f"is a TensorFlow Lite file. {EXPORT}."
    if start.startswith(b"PK"):
        return _describe_zip(path)
    if not is_safetensors(path):
        if message := _describe_replacement(start):
            return message
        if suffix := next((candidate for candidate in ENDINGS if path.name.lower().endswith(candidate)), None):
            return f"is {ENDINGS[suffix]}. {EXPORT}."
    return None


def describe_placed(path: Path) -> str | None:
    """Describe what Git or a server has put in the place of a JSON file; None if it may be one."""
    with open_plain(path) as file:
        message = _describe_replacement(file.read(INSPECTED_BYTES))
    return None if message is None or message.startswith("is a JSON text") else message


def describe_unreadable(path: Path) -> str | None:
    """Describe a file that could not be read: cut short, a text, or by its first bytes; None if it is a pickle.

    Returns:
        A predicate and a sentence, as `describe_other` returns them.
    """
    with open_plain(path) as file:
        start, size = file.read(INSPECTED_BYTES), os.fstat(file.fileno()).st_size
    if is_safetensors(path):
        return _describe_truncated(path, size)
    if (text := _decode_text(start)) is not None:
        excerpt = " ".join(text.split())[:40]
        return (
            f"is a text, which begins with {excerpt!r}. {AGAIN}." if excerpt else f"holds only blanks. {AGAIN} again."
        )
    if start.startswith((b"PK", b"\x80")):
        return None
    if re.match(rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]", start):
        return f"is a protocol buffer, as ONNX's, TensorFlow's and Core ML's files are. {EXPORT}."
    return f"is not a file of PyTorch or safetensors, by its first bytes ({start[:8].hex(' ')}). {EXPORT}."


def _describe_replacement(start: bytes) -> str | None:
    """Describe what a server or Git has put in the place of a file: a pointer, a page, an error."""
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


def _describe_compressed(path: Path, kind: str, open_compressed: Opener) -> str:
    """Describe a compressed file by what is in it: unpacking a page would not help."""
    try:
        with open_plain(path) as file, open_compressed(file) as unpacked:
            start = unpacked.read(INSPECTED_BYTES)
    except (OSError, EOFError, ValueError, zlib.error):
        return f"is compressed by {kind}, and damaged or cut short. {AGAIN} again."
    if message := _describe_replacement(start):
        return f"is compressed by {kind}, and what is in it {message}"
    return f"is compressed by {kind}. {UNPACK}."


def _describe_truncated(path: Path, size: int) -> str | None:
    """Describe a safetensors file that is shorter than its header says; None if it is not."""
    with open_plain(path) as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            expected = 8 + length
    if size < expected:
        return f"is cut short: a safetensors file of {size} bytes, of at least {expected} by its header. {AGAIN} again."
    return None


def _decode_text(start: bytes) -> str | None:
    """Decode the first characters of a text in one of the encodings that servers write; None if it is not text."""
    is_utf16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if is_utf16 else ("utf-8", "cp1252"):
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(start[:256])
        except UnicodeDecodeError:
            continue
        is_likely_text = encoding != "cp1252" or sum(character.isascii() for character in text) > 0.8 * len(text)
        if is_likely_text and all(character.isprintable() or character.isspace() for character in text):
            return text
    return None


def _describe_zip(path: Path) -> str | None:
    """Describe a ZIP archive by the names in it; None if it is one of PyTorch, or damaged."""
    if not zipfile.is_zipfile(path):
        return f"is cut short: it is a ZIP archive without an end. {AGAIN} again."
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return None  # damaged, which the reader reports
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
    listed = ", ".join(ascii(name)[1:61].rstrip("'") for name in names[:2])
    remedy = UNPACK if any(name.lower().endswith(MEMBERS) for name in names) else AGAIN
    return f"is a ZIP archive of {len(names)} files{f' ({listed})' if names else ''}. {remedy}."
