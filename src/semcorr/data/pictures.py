"""Reading any image of a user to upright RGB: files, PIL images, arrays and tensors, of any depth.

Annotations of the official benchmarks mean the pixels as they are stored, which are read here, too, but not turned.
"""

import logging
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.plain_values import require_unmasked, to_plain_tensor
from semcorr.core.terminal import escape_controls
from semcorr.data.colours import image_from_array, is_converted, to_array, to_rgb
from semcorr.data.open_image import DAMAGE_ERRORS, list_decoders, open_image

log = logging.getLogger(__name__)

MIN_REDUCED_PIXELS = 2**24  # pixels of a JPEG from which it is decoded at a half, a quarter or an eighth of its sides
MIN_REDUCED_SIDE = 1024  # pixels of the shorter side that are left then, at least: of one below 2048 nothing is reduced
STEPS = {"L;2": 85, "L;4": 17}  # of 8 bits between greys of fewer, by Pillow's name for them
ORIENTATION = 0x0112  # EXIF's
TRANSPOSES = {  # its values, and what turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDE_SWAPPING = [TRANSPOSES[value] for value in (5, 6, 7, 8)]
INVERSE_TRANSPOSES = {
    Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
    Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
}
ORIENTATION_CHUNKS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # a PNG's chunks that may hold an orientation
KEYWORDS = (b"Raw profile type", b"XML:com.adobe.xmp")  # with which those of these chunks that are texts begin
SUFFIXES = {  # of files, by the format that Pillow must know for them
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
}
IGNORED_SUFFIXES = (  # files that lie beside images and are not taken for any
    ".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".md", ".html", ".log", ".mat", ".npy", ".npz",
    ".pt", ".xlsx", ".db", ".ini", ".py", ".h5",
)  # fmt: skip
MAX_EXAMPLES = 3  # names in a warning
# Folders of copies that operating systems make.
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
FRAME_FILES: ContextVar[dict[Path, None] | None] = ContextVar("FRAME_FILES", default=None)  # of `warn_about_frames`
Source = str | Path | Image.Image | np.ndarray | Tensor


class Picture(NamedTuple):
    """An upright image, and its name."""

    image: Image.Image  # RGB; of a huge JPEG a smaller rendering
    size: tuple[int, int]  # width, height in original pixels, upright
    name: str


class PictureSize(NamedTuple):
    """The size of a picture, in the orientation in which it is read."""

    size: tuple[int, int]  # width, height
    upright: bool  # turned as its EXIF orientation says; False: as it is stored


def load_picture(source: Source, name: str = "image") -> Picture:
    """Read a file, PIL image, array (H W), (H W 1), (H W 3) or (H W 4), or tensor (H W) or (C H W).

    Upright means as viewers show it: EXIF orientation is applied, to files and PIL images alike. Integers
    count from 0 to the largest of their type, floats from 0 to 1. What is transparent is laid on white. Of
    several frames or pages the first is taken.

    Args:
        source: The picture.
        name: Name for messages, where the source has none.

    Raises:
        UserError: The source is not an image, or damaged, or too large to be decoded.
    """
    if isinstance(source, str) and not source:
        raise UserError(f"`{name}` is an empty path. Give the path of an image")
    if isinstance(source, str | Path):
        return read_picture(Path(source))
    if isinstance(source, Image.Image):
        return _decode_given(source, str(getattr(source, "filename", "") or name))
    if isinstance(source, Tensor):
        source = to_array(to_plain_tensor(source, name), name)
    if not isinstance(source, np.ndarray):
        raise UserError(
            f"`{name}` must be a path, a PIL image, an array or a tensor, got {type(source).__name__}. "
            "Give the file's path, for instance"
        )
    require_unmasked(source, name)
    image = to_rgb(image_from_array(source, name), name)
    return Picture(image, image.size, name)


def _decode_given(image: Image.Image, name: str) -> Picture:
    """Decode a PIL image, which its caller may have opened from a damaged file, or closed."""
    if 0 in image.size:
        raise UserError(f"{name} is {image.width} x {image.height} pixels: there is nothing to see. Give another image")
    try:
        return _decode(image, name)
    except UserError:
        raise
    except DAMAGE_ERRORS as error:
        reason = f"{error}".rstrip(".") or type(error).__name__
        raise UserError(f"{name} is a PIL image that cannot be decoded ({reason}). Open a whole file again") from error


def read_picture(path: Path) -> Picture:
    """Read a file, upright; a huge JPEG at a fraction of its sides."""
    with open_image(path, "Replace the file", "Give the path of an image") as image:
        _note_frames(path, image)
        return _decode(image, str(path), reduced=_draft_huge_jpeg(image))


def read_annotated(path: Path, annotated_size: tuple[int, int] | None) -> tuple[Picture, bool]:
    """Read a file in the orientation of its annotated size.

    Args:
        path: The file.
        annotated_size: Width and height that the annotations give; None: they give none, and it is read upright.

    Returns:
        The picture, and whether it was read upright rather than as stored.

    Raises:
        UserError: The file is not an image, or its size is not the annotated one, upright or as stored.
    """
    with open_image(path, "Replace the file", "Give the path of an image") as image:
        upright = _measure_size(image, path, annotated_size).upright
        return _decode(image, str(path), upright, _draft_huge_jpeg(image)), upright


def read_whole(path: Path, upright: bool) -> Image.Image:
    """Read a benchmark's picture at full size, however large: RGB, upright or as stored."""
    with open_image(path) as image:
        return _decode(image, str(path), upright).image


def measure_picture(path: Path, annotated_size: tuple[int, int] | None = None) -> PictureSize:
    """Read a picture's size from its header alone, and whether its annotations mean it upright.

    They do, unless the annotated size fits the stored pixels alone.

    Args:
        path: The file.
        annotated_size: Width and height that the annotations give; None: they give none.

    Raises:
        UserError: The file is not an image, or its size is not the annotated one, upright or as stored.
    """
    with open_image(path) as image:
        return _measure_size(image, path, annotated_size)


def _measure_size(image: Image.Image, path: Path, annotated_size: tuple[int, int] | None) -> PictureSize:
    _note_frames(path, image)
    turn, stored = _upright_transpose(image, str(path)), stored_size(image)
    upright = stored[::-1] if turn in SIDE_SWAPPING else stored
    if annotated_size is None or tuple(annotated_size) == upright:
        return PictureSize(upright, True)
    if tuple(annotated_size) == stored:
        return PictureSize(stored, False)
    as_stored = "" if upright == stored else f" (stored as {stored[0]} x {stored[1]})"
    raise UserError(
        f"{path} is {upright[0]} x {upright[1]} pixels{as_stored}, and its annotations are of {annotated_size[0]} x "
        f"{annotated_size[1]}. Give the image that was annotated, or correct the annotated width and height"
    )


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an open file as stored: for a TIFF, Pillow reports those of the upright picture."""
    swaps = image.format == "TIFF" and image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    return image.size[::-1] if swaps else image.size


def warn_stored_orientation(origin: str, names: Sequence[str]) -> None:
    """Warn of pictures that are read as stored, because their annotated size fits no other way round."""
    if names:
        log.warning(
            "%s: the annotated width and height of %d images (%s) fit their pixels as stored, and not as viewers show "
            "them: their EXIF orientation is not applied",
            origin,
            len(names),
            _format_examples(names),
        )


@cache
def reading_key(path: Path, upright: bool, changed: int, size: int) -> str:
    """Return how the reading of a file differs from plain `convert("RGB")`, empty if it does not.

    Cached features of earlier versions were read by `convert("RGB")` and stay valid where the key is empty.

    Args:
        path: The file.
        upright: Whether the file is read upright.
        changed: Time of the last change, for the cache.
        size: Size in bytes, for the cache.
    """
    try:
        with open_image(path) as image:
            turn, tiff = _upright_transpose(image, str(path)), image.format == "TIFF"
            differences = ["turned"] * (turn is not None and tiff != upright) + ["converted"] * is_converted(image)
    except UserError:  # the decoder reports it
        return ""
    return "".join(f" {word}" for word in differences)


def list_pictures(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name, at least one.

    Raises:
        UserError: There are none, or the folder cannot be listed.
    """
    if not (files := list_image_files(folder)):
        raise UserError(
            f"{folder} has no images ({', '.join(readable_suffixes())}). Give a folder of images, or a file"
        )
    return files


def readable_suffixes() -> tuple[str, ...]:
    """Return the endings of image files that the installed Pillow can read."""
    kinds = list_decoders()
    return tuple(ending for kind, endings in SUFFIXES.items() if kind in kinds for ending in endings)


def list_image_files(folder: Path, recursive: bool = False, known: Collection[Path] = ()) -> list[Path]:
    """List image files by their endings, in order; a warning names what else there is.

    The warning omits hidden files, as macOS's ._a.jpg, folders that systems make (SYSTEM_FOLDERS), and texts, tables
    and labels (IGNORED_SUFFIXES).

    Args:
        folder: The folder of the files.
        recursive: Whether to list files in the folders below, too.
        known: Resolved paths of files that are known already; they are left out.

    Raises:
        UserError: A folder cannot be listed.
    """
    files, others, suffixes = [], [], readable_suffixes()
    for parent, folders, names in os.walk(folder, onerror=_refuse_folder):
        visible_folders = sorted(name for name in folders if not name.startswith(".") and name not in SYSTEM_FOLDERS)
        folders[:] = visible_folders if recursive else []
        others += [Path(parent, name) for name in visible_folders if not recursive or Path(parent, name).is_symlink()]
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            if known and path.resolve() in known:
                continue
            if path.suffix.lower() in suffixes and path.is_file():
                files.append(path)
            elif path.suffix.lower() not in IGNORED_SUFFIXES:
                others.append(path)
    if others:
        unread = [path.relative_to(folder).as_posix() + "/" * path.is_dir() for path in sorted(others)]
        log.warning(
            "%s: %d not read as images: %s. Read are %s",
            folder,
            len(unread),
            _format_examples(unread),
            ", ".join(suffixes),
        )
    return sorted(files)


@contextmanager
def warn_about_frames(origin: Path | None) -> Iterator[None]:
    """Warn once of all files read within the context of which only the first frame or page is read.

    Args:
        origin: The source of the files, for the message; None: no warning, as they are read again.
    """
    files: dict[Path, None] = {}
    token = FRAME_FILES.set(files)
    try:
        yield
    finally:
        FRAME_FILES.reset(token)
    if files and origin is not None:
        log.warning(
            "%s: %d images (%s) hold several frames or pages, of which the first is read",
            origin,
            len(files),
            _format_examples([path.name for path in files]),
        )


def _note_frames(path: Path, image: Image.Image) -> None:
    """Count an animation or a file of several pages; outside `warn_about_frames`, warn of it."""
    if image.format == "MPO" or not getattr(image, "is_animated", False):  # an MPO's other images are the camera's
        return
    files = FRAME_FILES.get()
    if files is None:
        _warn_frames(path)
    else:
        files[path] = None


@cache
def _warn_frames(path: Path) -> None:
    """Warn of several frames, once for each file."""
    log.warning("%s holds several frames or pages, of which the first is read", path)


def _draft_huge_jpeg(image: Image.Image) -> tuple[int, int] | None:
    """Have a huge JPEG, unless it is a strip, decoded at a fraction of its sides; return its true size then."""
    size = width, height = image.size
    if image.format not in ("JPEG", "MPO") or width * height <= MIN_REDUCED_PIXELS:
        return None
    share = min(1.0, MIN_REDUCED_SIDE / min(size))
    image.draft(None, (max(1, int(width * share)), max(1, int(height * share))))
    return size


def _decode(image: Image.Image, name: str, upright: bool = True, reduced: tuple[int, int] | None = None) -> Picture:
    size_before, turn = image.size, _upright_transpose(image, name) if upright or image.format == "TIFF" else None
    _scale_key(image)
    image.load()
    size = reduced or image.size
    if image.format == "TIFF":  # PIL turns it while it decodes
        if size_before != size:  # it says so, and did not, as of some that it opened by their path
            raise UserError(f"{name} is a TIFF that could not be turned upright. Save it as PNG or JPEG")
        turn = None if upright or turn is None else INVERSE_TRANSPOSES.get(turn, turn)
    rgb = to_rgb(image, name)
    return Picture(rgb if turn is None else rgb.transpose(turn), size[::-1] if turn in SIDE_SWAPPING else size, name)


def _scale_key(image: Image.Image) -> None:
    """Scale a PNG's transparent grey of 2 or 4 bits to 8, before it is decoded: Pillow scales the pixels alone."""
    tiles, key = getattr(image, "tile", None), image.info.get("transparency")
    if image.format == "PNG" and tiles and isinstance(key, int):
        image.info["transparency"] = key * STEPS.get(tiles[0][3], 1)


def _upright_transpose(image: Image.Image, name: str) -> Image.Transpose | None:
    """Return what turns the stored pixels upright; decode only if the EXIF may come after them."""
    if image.format == "PNG" and "exif" not in image.info and not _has_late_orientation(image):
        exif = Image.Image.getexif  # PngImageFile's own decodes first
    else:
        exif = type(image).getexif
    try:
        value = exif(image).get(ORIENTATION)
    except UserError:
        raise
    except DAMAGE_ERRORS as error:
        _warn_exif(name, str(error))
        return None
    if isinstance(value, bytes) and len(value) == 1:  # written as a byte, where EXIF has a short number
        value = value[0]
    if isinstance(value, int):
        return TRANSPOSES.get(value)
    if value is not None:
        _warn_exif(name, f"its orientation is {value!r}, and no number")
    return None


def _has_late_orientation(image: Image.Image) -> bool:
    """Return whether a PNG has a chunk after its pixels that may hold an orientation."""
    file = getattr(image, "fp", None)
    if file is None:  # decoded already
        return True
    position = file.tell()
    try:
        return any(_iterate_late_chunks(file))
    finally:
        file.seek(position)


def _iterate_late_chunks(file: BinaryIO) -> Iterator[bool]:
    after = False
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        after |= kind == b"IDAT"
        if after and kind in ORIENTATION_CHUNKS:
            yield kind == b"eXIf" or file.read(min(length, 80)).startswith(KEYWORDS)
            file.seek(-min(length, 80) if kind != b"eXIf" else 0, os.SEEK_CUR)
        file.seek(length + 4, os.SEEK_CUR)


@cache
def _warn_exif(name: str, error: str) -> None:
    """Warn of unreadable EXIF, once for each file."""
    log.warning("%s: its EXIF cannot be read (%s), so it is not turned", name, error.strip() or "damaged")


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be listed ({error.strerror}). Give a folder that you may read")


def _format_examples(names: Sequence[str]) -> str:
    ellipsis = f" and {len(names) - MAX_EXAMPLES} more" if len(names) > MAX_EXAMPLES else ""
    return ", ".join(map(escape_controls, names[:MAX_EXAMPLES])) + ellipsis
