"""What a file that was given for weights is, told by its bytes, whatever its name: a sentence where it is none."""

import re
import zipfile
from pathlib import Path

from semcorr.core.paths import open_plain

AGAIN = "Download the weights file itself"
UNPACK = "Unpack it, and give the weights file that is in it"
EXPORT = "Give the model's PyTorch file (.pth) or safetensors file"
STARTS = (  # first bytes, what that is, what to do
    (b"version https://git-lfs", "a Git LFS pointer, not the weights it stands for", "Run `git lfs pull` where it is"),
    (b"\x1f\x8b", "compressed by gzip", UNPACK),
    (b"BZh", "compressed by bzip2", UNPACK),
    (b"\xfd7zXZ\0", "compressed by xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"\x89HDF", "an HDF5 file, as Keras writes them", EXPORT),
    (b"GGUF", "a GGUF file of llama.cpp", EXPORT),
    (b"\x93NUMPY", "an array of NumPy", EXPORT),
    (b"\x89PNG", "a PNG image", AGAIN),
    (b"\xff\xd8\xff", "a JPEG image", AGAIN),
    (b"%PDF", "a PDF document", AGAIN),
)
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
        start = file.read(2048)
    if not start:
        return f"is empty (0 bytes). {AGAIN} again."
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
        text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
        if text.startswith((b"<!doctype html", b"<html", b"<head", b"<!--")) or b"<html" in text:
            return f"is an HTML page, such as a page to log in or an error. {AGAIN}, logged in where it asks for that."
        if text.startswith(b"<"):
            return f"is an XML text, such as a server's error. {AGAIN}."
        if text.startswith(b"{") or re.match(rb"\[\s*[\"{\[\]]", text):
            return f"is a JSON text, such as a server's error or a configuration. {AGAIN}."
        if ending := next((each for each in ENDINGS if path.name.lower().endswith(each)), None):
            return f"is {ENDINGS[ending]}. {EXPORT}."
    return None


def describe_unreadable(path: Path) -> str | None:
    """Say what a file is that could not be read: a text has no bytes of its own to tell it by."""
    with open_plain(path) as file:
        start = file.read(256)
    try:
        text = start.decode().strip()
    except UnicodeDecodeError:
        return None
    if not all(character.isprintable() or character.isspace() for character in text):
        return None
    return f"is a text, which begins with {' '.join(text.split())[:40]!r}. {AGAIN}."


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
    shown = ", ".join(ascii(name)[1:61].rstrip("'") for name in names[:2])
    return f"is a ZIP archive of {len(names)} files{f' ({shown})' if names else ''}. {UNPACK}."
