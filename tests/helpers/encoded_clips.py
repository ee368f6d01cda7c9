"""Videos as PyAV encodes them, and what happens to files."""

import random
import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

UNTURNED = (65536, 0, 0, 0, 65536, 0, 0, 0, 2**30)


def encode_clip(
    path: Path,
    frames: Sequence[Image.Image | np.ndarray],
    codec: str = "mpeg4",
    pixels: str = "yuv420p",
    between: int = 0,
    times: Sequence[int] | None = None,
    options: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Encode frames, 25 a second or at times in milliseconds, with at most so many B-frames between two others."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=25, options=dict(options or {}))
        stream.height, stream.width = np.asarray(frames[0]).shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.max_b_frames = between
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, image in enumerate(frames):
            array = np.asarray(image)
            frame = av.VideoFrame.from_ndarray(array, format={3: "rgb24", 4: "rgba"}[array.shape[2]])
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def damage_packet(path: Path, number: int, first: float = 0.25, last: float = 0.75) -> None:
    """Overwrite the shares of a video's packet between two, in the order of the file; its container is still whole."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        packet = bytes(next(p for i, p in enumerate(container.demux(video=0)) if i == number))
    content = bytearray(path.read_bytes())
    assert content.count(packet) == 1
    start, size = content.index(packet), len(packet)
    for place in range(start + int(size * first), start + int(size * last)):
        content[place] = random.Random(place).randrange(256)
    path.write_bytes(content)


def write_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Write into an MP4 by which matrix its frames are shown."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44  # ISO/IEC 14496-12, 8.3.2, version 0
    assert struct.unpack(">9i", content[place : place + 36]) == UNTURNED
    content[place : place + 36] = struct.pack(">9i", a * 65536, b * 65536, 0, c * 65536, d * 65536, 0, 0, 0, 2**30)
    path.write_bytes(content)
