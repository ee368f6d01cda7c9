"""The one way to open a user's image: in formats that Pillow decodes itself, and within bounds.

Pillow knows fifty formats. Some it has decoded by other programs (EPS: Ghostscript), others are read by few
people and tested by fewer. Which one a file is follows from its bytes; its name may say anything.
"""

import importlib
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from semcorr.core.errors import UserError
from semcorr.core.paths import open_plain

log = logging.getLogger(__name__)

REPLACE, RESTORE = "Replace the file.", "Restore the image, or drop the pairs that name it."
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF")
PLUGINS = ("Jpeg", "Png", "WebP", "Tiff", "Bmp", "Gif", "Ppm", "Avif")  # Pillow's modules that read them
MAX_JPEG_PIXELS = 178_956_970  # pixels of a JPEG: twice Pillow's own limit, above which it refuses, too
MAX_PIXELS = MAX_JPEG_PIXELS // 2  # pixels of any other image: only a JPEG can be decoded at a fraction of its sides
MAX_SCANS = 5_000_000_000  # pixels times scans of a progressive JPEG: each scan costs a pass over all pixels
TILE = (322, 323)  # TIFF's tags of a tile's sides
KIND_OF_IMAGE, DNG_VERSION = 254, 50706  # TIFF's tags; of a camera's raw file the first image is a preview
PREVIEW = 1  # the first tag's bit for one
DAMAGE_ERRORS = (  # what Pillow raises for bytes that make no sense
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    OverflowError,
    MemoryError,
    AttributeError,
    AssertionError,
    ZeroDivisionError,
    RuntimeError,
    struct.error,
    zlib.error,
)
ADDRESS = re.compile(r"(https?|ftp|s3|gs|file|data):/+(.*)", re.DOTALL)  # a path has one slash where it had two
CONVERT_REMEDY = "Save it as JPEG or PNG."  # what to do about an image of another format
REMEDIES = {  # what to do about what is not an image, where that is known
    "a pointer of Git LFS": "Run `git lfs pull`.",
    "a ZIP archive": "Unpack it.",
    "a gzip archive": "Unpack it.",
    "a web page": "Download the image itself.",
}
KINDS = {  # the first bytes of what people take for an image
    b"%!PS": "PostScript (EPS)", b"\xc5\xd0\xd3\xc6": "PostScript (EPS)", b"%PDF": "a PDF", b"8BPS": "a Photoshop file",
    b"\xd7\xcd\xc6\x9a": "a Windows metafile", b"\x01\x00\x00\x00": "a Windows metafile",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive", b"\xd0\xcf\x11\xe0": "an old Office file or a FlashPix image",
    b"\x00\x00\x01\x00": "an icon", b"\x00\x00\x02\x00": "a cursor or a TGA image", b"icns": "an icon",
    b"v/1\x01": "OpenEXR", b"#?RADIANCE": "Radiance HDR", b"#?RGBE": "Radiance HDR", b"P7\n": "a PAM image",
    b"gimp xcf": "a GIMP file", b"DDS ": "a DDS texture", b"SIMPLE  =": "FITS", b"BPG\xfb": "a BPG image",
    b"\x1aE\xdf\xa3": "a video",
    b"\xff\x4f\xff\x51": "JPEG 2000", b"\x00\x00\x00\x0cjP  ": "JPEG 2000", b"<svg": "an SVG drawing",
    b"<?xml": "XML or an SVG drawing", b"<!DOCTYPE": "a web page", b"<html": "a web page", b"<HTML": "a web page",
    b"<!doctype": "a web page", b"\x89HDF": "HDF5",
    b"II*\x00": "a TIFF of a depth, colours or compression that is not read",
    b"MM\x00*": "a TIFF of a depth, colours or compression that is not read", b"FUJIFILMCCD": "a camera's raw file",
    b"IIRO": "a camera's raw file", b"IIU\x00": "a camera's raw file", b"\xff\xd8\xff": "a damaged JPEG",
    b"\x89PNG": "a damaged PNG", b"GIF8": "a damaged GIF", b"\xff\x0a": "JPEG XL", b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"\x93NUMPY": "a NumPy array", b"RIFF": "audio or video", b"version https://git-lfs": "a pointer of Git LFS",
}  # fmt: skip
IMAGES = (  # those of KINDS and BRANDS that another program can save otherwise
    "HEIC", "AVIF", "JPEG 2000", "JPEG XL", "PostScript (EPS)", "a PDF", "a Photoshop file", "a Windows metafile",
    "an icon", "a cursor or a TGA image", "OpenEXR", "Radiance HDR", "a PAM image", "a GIMP file", "a DDS texture",
    "FITS", "a BPG image", "DICOM", "an SVG drawing", "XML or an SVG drawing", "a camera's raw file",
    "a TIFF of a depth, colours or compression that is not read",
)  # fmt: skip
BRANDS = {b"hei": "HEIC", b"hev": "HEIC", b"mif": "HEIC", b"avi": "AVIF", b"crx": "a camera's raw file"}  # after ftyp


@contextmanager
def open_image(path: Path, remedy: str = REPLACE, missing_remedy: str = RESTORE) -> Iterator[Image.Image]:
    """Open an image; it is decoded within the context, where damage becomes a `UserError`, too.

    Args:
        path: The file, whatever its suffix.
        remedy: What to do about a damaged file; ends the message.
        missing_remedy: What to do about an absent file; ends the message.

    Raises:
        UserError: The file is absent, no regular file, of no format of FORMATS, too large to be decoded, or damaged.
    """
    try:
        with open_plain(path) as file, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with _identify(path, file, remedy) as image:
                _require_bounded(path, file, image)
                yield image
    except UserError:
        raise
    except FileNotFoundError:
        if address := ADDRESS.match(str(path)):
            raise UserError(
                f"{address[1]}://{address[2]} is an address, and nothing is fetched. Download it first, and give "
                "the file's path"
            ) from None
        raise UserError(f"{path} does not exist. {missing_remedy}") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or MAX_JPEG_PIXELS // 2) / 1e6
        raise UserError(f"{path} has more than {most:.0f} million pixels, which are not decoded. Reduce it") from None
    except DAMAGE_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is damaged or not an image ({reason}). {remedy}") from None
    for warning in caught:
        if not issubclass(warning.category, Image.DecompressionBombWarning | DeprecationWarning):
            _warn(path, str(warning.message))


def list_decoders() -> list[str]:
    """List those of FORMATS that the installed Pillow can read: one by one, as its `init` loads fifty."""
    for name in PLUGINS:
        importlib.import_module(f"PIL.{name}ImagePlugin")
    return [name for name in FORMATS if name in Image.OPEN]


def _identify(path: Path, file: BinaryIO, remedy: str) -> Image.Image:
    try:
        return Image.open(file, formats=list_decoders())
    except Image.UnidentifiedImageError:
        kind = _guess_kind(file)
        if kind in IMAGES:
            remedy = CONVERT_REMEDY
        raise UserError(
            f"{path} is damaged or not an image: it seems to be {kind}, and read are {', '.join(FORMATS)}. "
            f"{REMEDIES.get(kind, remedy)}"
        ) from None


def _guess_kind(file: BinaryIO) -> str:
    """Guess from its first bytes what a file is that is not an image."""
    file.seek(0)
    start = file.read(512)
    if not start:
        return "empty"
    if start[4:8] == b"ftyp":
        return BRANDS.get(start[8:11], "a video")
    if start[128:132] == b"DICM":
        return "DICOM"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if kind := next((kind for magic, kind in KINDS.items() if start.startswith(magic) or text.startswith(magic)), None):
        return kind
    return "a text" if all(byte in b"\t\r\n" or byte >= 32 for byte in start) else "none of a known kind"


def _require_bounded(path: Path, file: BinaryIO, image: Image.Image) -> None:
    """Refuse, before anything is decoded, what would take gigabytes or minutes."""
    (width, height), kind = image.size, image.format
    jpeg = kind in ("JPEG", "MPO")
    most = min(
        MAX_JPEG_PIXELS if jpeg else MAX_PIXELS, (Image.MAX_IMAGE_PIXELS or MAX_JPEG_PIXELS) * (2 if jpeg else 1)
    )
    if width * height > most:
        raise UserError(
            f"{path} has {width} x {height} pixels, and a {kind} is decoded whole: at most {most / 1e6:.0f} "
            "million are. Reduce it, or save it as JPEG, which need not be"
        )
    if image.info.get("progressive") and (scans := _count_markers(file, b"\xff\xda")) * width * height > MAX_SCANS:
        raise UserError(f"{path} is a JPEG of {width} x {height} pixels in {scans} scans, too many. Save it again")
    if kind == "TIFF":
        tags: Mapping = getattr(image, "tag_v2", {})
        file.seek(8)
        if tags.get(KIND_OF_IMAGE, 0) & PREVIEW or DNG_VERSION in tags or file.read(2) == b"CR":
            raise UserError(
                f"{path} is a camera's raw file, of which the preview alone could be read. Export it as JPEG or PNG"
            )
        tile = [tags.get(tag, 0) for tag in TILE]
        if tile[0] * tile[1] > MAX_PIXELS:
            raise UserError(f"{path} is a TIFF in tiles of {tile[0]} x {tile[1]} pixels, too large. Save it again")


def _count_markers(file: BinaryIO, marker: bytes) -> int:
    position = file.tell()
    file.seek(0)
    count = file.read().count(marker)
    file.seek(position)
    return count


@cache
def _warn(path: Path, message: str) -> None:
    """Warn once for each file: it is opened in every epoch."""
    log.warning("%s: %s. The image is used all the same", path, message.strip().rstrip("."))
