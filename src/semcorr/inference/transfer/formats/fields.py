"""Numbers and names of images in annotation files, each read or refused."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from semcorr.core.errors import UserError
from semcorr.core.paths import find_inside, name_fault, quote_value, resolve_inside
from semcorr.data.record import MAX_EXTENT, is_number

FOLDER_OPTION = "the folder of images"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")


def read_number(value: object, field: str, location: str) -> float:
    """Return a finite number of pixels or percent: a number, or a text that is one.

    Args:
        value: The number as in the file.
        field: Name of its field, for the message.
        location: File and place in it, for the message.

    Raises:
        UserError: It is none, or beyond all bounds.
    """
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        value = float(value)
    if not is_number(value) or not math.isfinite(value) or abs(value) > MAX_EXTENT:
        raise UserError(f"{location}: `{field}` is {quote_value(value)}; it must be a finite number. Correct it.")
    return float(value)


def read_side(value: object, field: str, location: str) -> int:
    """Return a width or a height of an image: a whole number of pixels above 0."""
    number = read_number(value, field, location)
    if number != int(number) or number < 1:
        raise UserError(
            f"{location}: `{field}` is {quote_value(value)}; it must be a whole number of pixels. Correct it."
        )
    return int(number)


def find_image(folder: Path, names: Sequence[str], location: str) -> str:
    """Return the path below a folder of an image that a file names by a path or URL of another place.

    Of each name the longest ending counts that is a file of the folder: of `project/labeled-data/a/img1.png` first
    all, then `labeled-data/a/img1.png`, and `img1.png` at last.

    Args:
        folder: Folder of the images.
        names: Names that the image may have; the first that is found counts.
        location: File and place in it, for messages.

    Raises:
        UserError: No file of the folder has any of these names, or a link leads out of the folder.
    """
    for name in names:
        for spelling in dict.fromkeys((name, unquote(name))):
            parts = [part for part in spelling.replace("\\", "/").split("/") if part not in ("", ".")]
            for ending in ("/".join(parts[start:]) for start in range(len(parts))):
                if name_fault(ending, folders=True) is None:
                    found = find_inside(folder, ending, location, FOLDER_OPTION)
                    if resolve_inside(folder, found, location, FOLDER_OPTION).is_file():
                        return found
    raise UserError(
        f"{location} names the image {quote_value(names[0])}, which is not in {folder}. Restore it, or drop the entry."
    )
