"""Which annotation format a file has, by its content, and which one is to be written."""

from pathlib import Path
from typing import Literal, get_args

from semcorr.core.errors import UserError
from semcorr.core.paths import open_plain
from semcorr.core.text_files import MARKS
from semcorr.inference.transfer.formats.deeplabcut_table import find_separator

Format = Literal["coco", "cvat", "label-studio", "deeplabcut"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[Format, tuple[str, ...]] = {  # of files that are written
    "coco": (".json",),
    "cvat": (".xml",),
    "label-studio": (".json",),
    "deeplabcut": (".csv", ".h5"),
}
HDF5 = b"\x89HDF\r\n\x1a\n"
HEAD = 4096  # bytes that tell
REMEDY = "Give COCO or Label Studio (JSON), CVAT for images 1.1 (XML), or DeepLabCut's CollectedData (CSV, H5)."


def detect_format(path: Path) -> Format:
    """Return the format of an annotation file.

    Raises:
        UserError: It is absent, or begins as none of them does.
    """
    head = read_head(path)
    if head.startswith(HDF5):
        return "deeplabcut"
    if head.startswith(b"PK\3\4"):
        raise UserError(f"{path} is a ZIP archive, as CVAT exports it. Unpack it, and give the annotation file in it.")
    encoding = next((name for mark, name in MARKS.items() if head.startswith(mark)), "utf-8")
    text = head.decode(encoding, errors="ignore").lstrip("\ufeff \t\r\n")
    if text.startswith("<"):
        return "cvat"
    if text.startswith("["):
        return "label-studio"
    if find_separator(text):
        return "deeplabcut"
    if text.startswith("{") or not text:  # of an empty file, its reader says so
        return "coco"
    if path.suffix.lower() == ".csv":
        raise UserError(f"{path} is not a table of DeepLabCut: its first line does not begin with `scorer`. {REMEDY}")
    raise UserError(f"{path} begins as no known annotation file. {REMEDY}")


def read_head(path: Path) -> bytes:
    """Return the first bytes of a file, which tell its format."""
    try:
        with open_plain(path) as file:
            return file.read(HEAD)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. {REMEDY}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). {REMEDY}") from None


def resolve_output(out: Path | None, name: str | None, annotations: Path) -> tuple[Path, Format]:
    """Return the file to write and its format: the one of that name, otherwise that of the annotations.

    Args:
        out: The file; None: `labels` with the ending of its format.
        name: One of FORMATS, or None.
        annotations: The annotation file.

    Raises:
        UserError: There is no such format, or the name ends as that of a file in another one.
    """
    if name is not None and name not in FORMATS:
        raise UserError(f"--format must be one of {', '.join(FORMATS)}, got {name!r}")
    kind = next((kind for kind in FORMATS if kind == name), None) or detect_format(annotations)
    suffixes = SUFFIXES[kind]
    if out is None:
        return Path(f"labels{suffixes[0]}"), kind
    foreign = {suffix for other in FORMATS for suffix in SUFFIXES[other]} - set(suffixes)
    if (suffix := out.suffix.lower()) in foreign or (kind == "deeplabcut" and suffix not in suffixes):
        reason = "" if name else ", the format of the annotations"
        raise UserError(
            f"--out: {out} would be written as {kind}{reason}, and its name must end in {' or '.join(suffixes)}. "
            f"Change it, or choose another --format: {', '.join(FORMATS)}"
        )
    return out, kind
