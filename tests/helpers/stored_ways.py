"""One photograph, drawn, stored in many ways; and files written byte by byte, as Pillow does not write them."""

import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # what a camera does before it writes
    1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: lambda x: np.rot90(x, -1),
}  # fmt: skip


def photograph(width: int = 120, height: int = 90, seed: int = 0) -> np.ndarray:
    """Blotches of at most 216 colours, so that a palette holds them all; (height width 3) of uint8."""
    random = np.random.default_rng(seed)
    layers = [random.normal(0, 60, (side * 3, side * 4, 3)).astype(np.float32) for side in (2, 5, 12)]
    whole = np.full((height, width, 3), 128, np.float32)
    for layer in layers:
        planes = [Image.fromarray(layer[..., i]).resize((width, height), Image.Resampling.BICUBIC) for i in range(3)]
        whole += np.stack([np.asarray(plane) for plane in planes], axis=-1)
    return (np.round(whole.clip(0, 255) / 51) * 51).astype(np.uint8)


def turned(pixels: np.ndarray, path: Path, orientation: int, **options: object) -> Path:
    """Stored as a camera held so does, with the orientation in EXIF."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(TURNS[orientation](pixels))).save(path, exif=exif, **options)
    return path


def write_png(
    path: Path, values: np.ndarray, colour: int, depth: int = 8, before: Sequence[tuple[bytes, bytes]] = (),
    after: Sequence[tuple[bytes, bytes]] = (),
) -> Path:  # fmt: skip
    """A PNG of 1 to 16 bits, with chunks before and after its pixels."""
    height, width = values.shape[:2]
    rows = values.astype(">u2" if depth == 16 else "u1")
    if depth < 8:
        rows = np.packbits(np.unpackbits(rows[..., None], axis=-1)[..., -depth:].reshape(height, -1), axis=1)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [(b"IHDR", header), *before, (b"IDAT", data), *after, (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def write_tiff(path: Path, data: bytes, size: tuple[int, int], bits: int, **tags: int) -> Path:
    """A grey TIFF of little-endian bytes; more tags by their numbers, as t262=0."""
    width, height = size
    known = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    known |= {int(tag[1:]): value for tag, value in tags.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(known.items()))
    data += bytes(len(data) % 2)
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    path.write_bytes(head + data + struct.pack("<H", len(known)) + entries + bytes(4))
    return path


def exif_chunk(orientation: int) -> bytes:
    """The content of a PNG's chunk eXIf."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes().removeprefix(b"Exif\0\0")


def cmyk(pixels: np.ndarray) -> Image.Image:
    """Without black: nothing is lost."""
    return Image.fromarray(pixels).convert("CMYK")


def palette(pixels: np.ndarray) -> Image.Image:
    """Of the colours that there are: nothing is lost."""
    colours, places = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    image = Image.fromarray(places.reshape(pixels.shape[:2]).astype(np.uint8))
    image.putpalette(colours.astype(np.uint8).tobytes())
    return image


def with_alpha(pixels: np.ndarray, opaque: int = 255) -> Image.Image:
    """Opaque everywhere."""
    return Image.fromarray(np.dstack([pixels, np.full(pixels.shape[:2], opaque, np.uint8)]))


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def frames(pixels: np.ndarray) -> list[Image.Image]:
    """What comes after the first."""
    return [Image.fromarray(255 - pixels), Image.fromarray(pixels[::-1].copy())]


WAYS: dict[str, Callable[[np.ndarray, Path], Path]] = {  # which lose nothing
    "upright": lambda x, to: turned(x, to.with_suffix(".png"), 1),
    **{
        f"orientation {o}": lambda x, to, o=o: turned(x, to.with_suffix(".png"), o)  # type: ignore[misc]
        for o in range(2, 9)
    },
    "orientation after the pixels": lambda x, to: write_png(
        to.with_suffix(".png"), TURNS[6](x), 2, after=[(b"eXIf", exif_chunk(6))]
    ),
    "orientation in a TIFF": lambda x, to: turned(x, to.with_suffix(".tif"), 8),
    "orientation in a WebP": lambda x, to: turned(x, to.with_suffix(".webp"), 5, lossless=True),
    "16 bits": lambda x, to: write_png(to.with_suffix(".png"), x.astype(np.uint16) * 257, 2, 16),
    "16 bits with alpha": lambda x, to: write_png(
        to.with_suffix(".png"), np.asarray(with_alpha(x)).astype(np.uint16) * 257, 6, 16
    ),
    "CMYK": lambda x, to: saved(cmyk(x), to.with_suffix(".tif")),
    "palette": lambda x, to: saved(palette(x), to.with_suffix(".png")),
    "palette of a GIF": lambda x, to: saved(palette(x), to.with_suffix(".gif")),
    "alpha": lambda x, to: saved(with_alpha(x), to.with_suffix(".png")),
    "animated PNG": lambda x, to: saved(
        Image.fromarray(x), to.with_suffix(".apng"), format="PNG", save_all=True, append_images=frames(x)
    ),
    "animated WebP": lambda x, to: saved(
        Image.fromarray(x), to.with_suffix(".webp"), lossless=True, save_all=True, append_images=frames(x)
    ),
    "pages": lambda x, to: saved(Image.fromarray(x), to.with_suffix(".tiff"), save_all=True, append_images=frames(x)),
    "a wrong ending": lambda x, to: saved(Image.fromarray(x), to.with_suffix(".jpg"), format="PNG"),
}
LOSSY: dict[str, Callable[[np.ndarray, Path], Path]] = {
    "JPEG": lambda x, to: turned(x, to.with_suffix(".jpg"), 1, quality=98, subsampling=0),
    "JPEG, orientation 6": lambda x, to: turned(x, to.with_suffix(".jpeg"), 6, quality=98, subsampling=0),
    "CMYK JPEG": lambda x, to: saved(cmyk(x), to.with_suffix(".jfif"), format="JPEG", quality=98, subsampling=0),
}
