"""Small files that would become large ones, or would take for ever."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

GIGABYTES = 3 << 30


def deflated_zeros(size: int) -> bytes:
    """Zeros, packed a thousandfold: a block of them, over and over. `size` is a multiple of the block's."""
    block = 1 << 20
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    one = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    return one * (size // block) + packer.flush(zlib.Z_FINISH)


def zipped(path: Path, name: str, packed: bytes, size: int, claimed_size: int | None = None) -> None:
    """An archive of one deflated member of `size` bytes, which the archive says are `claimed_size`."""
    written_size = size if claimed_size is None else claimed_size
    head = (20, 0, 8, 0, 33, 0, len(packed), written_size, len(name), 0)
    local = b"PK\3\4" + struct.pack("<HHHHHIIIHH", *head) + name.encode()
    central = b"PK\1\2" + struct.pack("<H", 20) + struct.pack("<HHHHHIIIHH", *head)
    central += struct.pack("<HHHII", 0, 0, 0, 0, 0) + name.encode()
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(packed), 0)
    path.write_bytes(local + packed + central + end)


def sparse(path: Path) -> None:
    """A file of 3 GB that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(b"[")
        file.truncate(GIGABYTES)


# -- images --


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(path: Path, width: int, height: int, *chunks: bytes) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = zlib.compress(bytes(2000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def text_png(path: Path, kind: bytes) -> None:
    packed = b"\x78\xda" + deflated_zeros(200 << 20)
    png(path, 8, 8, chunk(kind, b"profile\0\0" + packed))


def resized(path: Path, kind: str, size: tuple[int, int], **options: object) -> bytearray:
    """The bytes of an image, to have other sides written into."""
    Image.new("RGB", size, "red").save(path, format=kind, **options)
    return bytearray(path.read_bytes())


def jpeg(path: Path) -> None:
    content = resized(path, "JPEG", (16, 16))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)


def scans(path: Path) -> None:
    """A progressive JPEG whose last scan comes 5000 times."""
    content = resized(path, "JPEG", (16, 16), progressive=True)
    place = content.index(b"\xff\xc2") + 5
    content[place : place + 4] = struct.pack(">HH", 9000, 9000)
    last = content.rindex(b"\xff\xda")
    path.write_bytes(content[:last] + content[last:-2] * 5000 + content[-2:])


def tiff(path: Path, fields: dict[int, int]) -> None:
    """A TIFF of 16 x 16 grey pixels, deflated, with other numbers in its directory."""
    pixels = zlib.compress(bytes(256))
    usual = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 278: 16}
    tiled = 322 in fields
    places = {324: 0, 325: len(pixels)} if tiled else {273: 0, 279: len(pixels)}
    tags = dict(sorted((usual | places | fields).items()))
    end = 8 + 2 + 12 * len(tags) + 4
    tags[324 if tiled else 273] = end
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4) + pixels)


def gif(path: Path) -> None:
    content = resized(path, "GIF", (16, 16))
    content[6:10] = b"\xff\xff\xff\xff"
    path.write_bytes(content)


def bmp(path: Path) -> None:
    content = resized(path, "BMP", (16, 16))
    content[18:26] = struct.pack("<II", 65535, 65535)
    path.write_bytes(content)


IMAGES: dict[str, Callable[[Path], object]] = {
    "PNG, 65,535 a side": lambda path: png(path, 65535, 65535),
    "PNG, 2 billion a side": lambda path: png(path, 2**31 - 1, 2**31 - 1),
    "PNG, a strip": lambda path: png(path, 2**31 - 1, 1),
    "PNG with text of 200 MB": lambda path: text_png(path, b"zTXt"),
    "JPEG, 65,535 a side": jpeg,
    "JPEG in 5000 scans": scans,
    "TIFF, 65,535 a side": lambda path: tiff(path, {256: 65535, 257: 65535}),
    "TIFF in tiles of 60,000": lambda path: tiff(path, {322: 60000, 323: 60000}),
    "GIF, 65,535 a side": gif,
    "BMP, 65,535 a side": bmp,
    "PPM, a billion a side": lambda path: path.write_bytes(b"P6 1000000000 1000000000 255\n" + bytes(100)),
}

# -- texts --

DEEP = 100_000
JSON: dict[str, Callable[[Path], object]] = {
    "lists of depth 100,000": lambda path: path.write_text("[" * DEEP + "]" * DEEP),
    "objects of depth 100,000": lambda path: path.write_text('{"a":' * DEEP + "1" + "}" * DEEP),
    "an open bracket 100,000 times": lambda path: path.write_text("[" * DEEP),
    "3 GB": sparse,
    "NUL bytes": lambda path: path.write_bytes(bytes(1000)),
    "no text": lambda path: path.write_bytes(b'{"a": "\xff\xfe"}'),
    "10^400": lambda path: path.write_text('{"images": 1' + "0" * 400 + "}"),
    "5000 digits": lambda path: path.write_text('{"images": ' + "7" * 5000 + "}"),
    "1e999": lambda path: path.write_text('{"images": 1e999}'),
    "another kind": lambda path: path.write_text('"a"'),
}
HEADER = "source_image,target_image,XA,YA,XB,YB,class\n"
CSV: dict[str, Callable[[Path], object]] = {
    "a field of 200,000": lambda path: path.write_text(HEADER + "a" * 200_000 + ",b,1,2,3,4,1\n"),
    "a million columns": lambda path: path.write_text(HEADER + "," * 1_000_000 + "\n"),
    "a header of a million columns": lambda path: path.write_text("a," * 1_000_000 + "\n" + HEADER),
    "a quote that is not closed": lambda path: path.write_text(HEADER + 'a,"' + "b\n" * 300_000),
    "20 million columns": lambda path: path.write_text(HEADER + "," * 20_000_000 + "\n"),
    "a row of many lines": lambda path: path.write_text(HEADER + '"\n",' * 5_000_000),
    "NUL bytes": lambda path: path.write_bytes(HEADER.encode() + b"a\0b,c,1,2,3,4,1\n"),
    "3 GB": sparse,
    "no text": lambda path: path.write_bytes(HEADER.encode() + b"\xff\xfe,b,1,2,3,4,1\n"),
}

LAUGHS = "".join(
    f'<!ENTITY {after} "{f"&{before};" * 10}">' for before, after in zip("abcdefghi", "bcdefghij", strict=True)
)
XML: dict[str, Callable[[Path], object]] = {
    "a billion laughs": lambda path: path.write_text(
        f'<!DOCTYPE annotations [<!ENTITY a "ha">{LAUGHS}]><annotations>&j;</annotations>'
    ),
    "an external entity": lambda path: path.write_text(
        '<!DOCTYPE annotations [<!ENTITY a SYSTEM "file:///dev/zero">]><annotations>&a;</annotations>'
    ),
    "elements of depth 100,000": lambda path: path.write_text("<annotations>" + "<a>" * DEEP),
    "ten million elements": lambda path: path.write_text(f"<annotations>{'<a/>' * 10_000_000}</annotations>"),
    "3 GB of one element": lambda path: sparse(path),
}
