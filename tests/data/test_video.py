"""Frames of videos: in order, upright, one at a time; what is no video is a sentence."""

import logging
import os
import struct
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from random_damage import damage, refusal

from semcorr.core.errors import UserError
from semcorr.data.video import list_frames, read_frames, require_video

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


class FFmpegError(Exception):
    """PyAV's base of errors."""


class StoredFrame:
    """A frame of PyAV: 4 x 2 pixels, red on the left, and how it is turned when it is shown."""

    def __init__(self, colour: tuple[int, int, int], rotation: float = 0) -> None:
        self.colour, self.rotation = colour, rotation

    def to_image(self) -> Image.Image:
        image = Image.new("RGB", (4, 2), self.colour)
        image.paste((255, 0, 0), (0, 0, 1, 2))
        return image


class Container:
    """A container of PyAV with one stream at most."""

    def __init__(self, frames: list[object], codec: object) -> None:
        self.frames = frames
        self.streams = ModuleType("streams")
        self.stream = ModuleType("stream")
        self.stream.codec_context, self.stream.frames = codec, 0
        self.streams.video = [self.stream] if codec is not False else []

    def __enter__(self) -> "Container":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def decode(self, stream: object):
        assert stream is self.stream
        for frame in self.frames:
            if isinstance(frame, Exception):
                raise frame
            yield frame


@pytest.fixture
def decoder(monkeypatch, tmp_path):
    """decoder(frames) is a file that a stand-in of PyAV decodes to these frames."""

    def install(frames: list[object], codec: object = True) -> Path:
        module = ModuleType("av")
        module.__spec__ = ModuleSpec("av", None, origin="here")
        module.FFmpegError = FFmpegError
        module.open = lambda path, **options: Container(frames, codec)
        monkeypatch.setitem(sys.modules, "av", module)
        (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypisom")
        return tmp_path / "clip.mp4"

    return install


def pixels(picture) -> np.ndarray:
    return np.asarray(picture.image)


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_frames_of_an_animation_come_in_order(tmp_path, ending):
    frames = [Image.new("RGB", (6, 4), colour) for colour in COLOURS]
    path = tmp_path / f"clip.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)

    read = list(read_frames(path))

    assert [picture.size for picture in read] == [(6, 4)] * 3
    assert [tuple(pixels(picture)[2, 3]) for picture in read] == COLOURS
    assert read[1].name == f"{path}, frame 1"


def test_a_picture_is_a_video_of_one_frame(tmp_path):
    Image.new("RGB", (6, 4), COLOURS[0]).save(tmp_path / "a.png")

    assert len(list(read_frames(tmp_path / "a.png"))) == 1


def test_frames_of_a_file_are_decoded_as_they_are_asked_for(decoder):
    path = decoder([StoredFrame(COLOURS[1]), StoredFrame(COLOURS[2]), FFmpegError("Invalid data")])
    frames = read_frames(path)

    assert [tuple(pixels(next(frames))[0, -1]) for _ in range(2)] == COLOURS[1:]
    with pytest.raises(UserError, match=r"clip.mp4, after frame 1 is damaged or no video \(Invalid data\)"):
        next(frames)


@pytest.mark.parametrize(
    ("rotation", "size", "red"),
    [
        (0, (4, 2), "left"),
        (-90, (2, 4), "top"),  # a phone held upright: turned clockwise, what was left is on top
        (90, (2, 4), "bottom"),
        (180, (4, 2), "right"),
        (-180.0, (4, 2), "right"),
    ],
)
def test_frames_are_turned_upright(decoder, rotation, size, red):
    (picture,) = read_frames(decoder([StoredFrame((0, 0, 0), rotation)]))

    assert picture.size == picture.image.size == size
    side = {"left": (slice(None), 0), "right": (slice(None), -1), "top": (0,), "bottom": (-1,)}[red]
    assert (pixels(picture)[side] == (255, 0, 0)).all()
    assert (pixels(picture)[..., 0] == 255).sum() == 2


@pytest.mark.parametrize(
    ("frames", "codec", "message"),
    [
        ([], True, "has no frames"),
        ([StoredFrame(COLOURS[0])], None, "no stream of video that can be decoded"),  # PyAV would end the process
        ([], False, "no stream of video that can be decoded"),
        ([StoredFrame(COLOURS[0], 45)], True, "frame 0 is shown turned by 45 degrees"),
        ([FFmpegError("")], True, r"clip.mp4 is damaged or no video \(FFmpegError\)"),
    ],
)
def test_what_cannot_be_decoded_is_a_user_error(decoder, frames, codec, message):
    with pytest.raises(UserError, match=message) as error:
        list(read_frames(decoder(frames, codec)))
    assert "folder of frames" in str(error.value)


def test_without_a_decoder_a_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("semcorr.core.extras.find_spec", lambda name: None)
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypisom")

    with pytest.raises(UserError, match=r"needs av, .*: pip install 'semcorr\[video\]'. Or give a folder"):
        require_video(tmp_path / "clip.mp4")
    with pytest.raises(UserError, match=r"does not exist\. Give a video file, or a folder"):
        require_video(tmp_path / "absent.mp4")


def test_a_damaged_animation_is_a_user_error(tmp_path):
    frames = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)) for i in range(3)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "clip.gif").write_bytes((tmp_path / "clip.gif").read_bytes()[:2500])

    with pytest.raises(UserError, match=r"clip\.gif is damaged"):
        list(read_frames(tmp_path / "clip.gif"))


def test_frames_of_a_folder_are_in_the_order_of_their_numbers(tmp_path, caplog):
    for name in ("img10.png", "img2.png", "img1.png", "img²3.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    (tmp_path / "labels.csv").write_text("")

    with caplog.at_level(logging.WARNING):
        assert [path.name for path in list_frames(tmp_path)] == ["img1.png", "img2.png", "img10.png", "img²3.png"]
    assert not caplog.messages


def paint_frames(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (64, 48), COLOURS[index % 3]) for index in range(count)]


def encode_clip(path: Path, frames: list[Image.Image], **metadata: str) -> Path:
    """A video as PyAV encodes it: MPEG-4."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata)
        stream = container.add_stream("mpeg4", rate=10)
        (stream.width, stream.height), stream.pix_fmt = frames[0].size, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def encoded_video(tmp_path_factory):
    """Three frames of one colour each, white on the left."""
    frames = paint_frames(3)
    for frame in frames:
        frame.paste((255, 255, 255), (0, 0, 16, 48))
    return encode_clip(tmp_path_factory.mktemp("video") / "clip.mp4", frames)


def test_a_video_is_decoded_frame_by_frame(encoded_video):
    frames = list(read_frames(encoded_video))

    assert [frame.size for frame in frames] == [(64, 48)] * 3
    for frame, colour in zip(frames, COLOURS, strict=True):
        assert np.abs(pixels(frame)[24, 40].astype(int) - colour).max() < 25  # the codec loses a little
        assert pixels(frame)[24, 4].min() > 225


def test_a_video_of_an_upright_phone_is_turned(encoded_video, tmp_path):
    """Its track says by a matrix that a player turns the frames a quarter, clockwise: the left side is on top then."""
    content = bytearray(encoded_video.read_bytes())
    matrix = content.index(b"tkhd") + 44  # ISO/IEC 14496-12, 8.3.2, version 0
    assert struct.unpack(">9i", content[matrix : matrix + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 2**30)
    quarter = (0, 65536, 0, -65536, 0, 0, 48 * 65536, 0, 2**30)
    content[matrix : matrix + 36] = struct.pack(">9i", *quarter)
    (tmp_path / "phone.mp4").write_bytes(content)

    frame = next(read_frames(tmp_path / "phone.mp4"))

    assert frame.size == (48, 64)
    assert pixels(frame)[4, 24].min() > 225


NAMES = [
    "take 12:30.mp4",
    "take12:30.mp4",
    "concat:other.mp4",
    "%03d.mp4",
    "-x.mp4",
    "\u00fc.mp4",
    os.fsdecode(b"\xff.mp4"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_video_is_found_by_its_name_whatever_it_holds(tmp_path, monkeypatch, name):
    encode_clip(tmp_path / "other.mp4", paint_frames(2))
    (tmp_path / name).write_bytes(encode_clip(tmp_path / "three.mp4", paint_frames(3)).read_bytes())
    monkeypatch.chdir(tmp_path)

    assert len(list(read_frames(Path(name)))) == len(list(read_frames(tmp_path / name))) == 3


@pytest.mark.parametrize("ending", ["avi", "mp4"])
def test_a_title_may_be_in_any_encoding(tmp_path, ending):
    path = encode_clip(tmp_path / f"clip.{ending}", paint_frames(3), title="ZZZZZZ")
    content = path.read_bytes()
    assert b"ZZZZZZ" in content
    path.write_bytes(content.replace(b"ZZZZZZ", b"Z\xfcrich"))

    assert len(list(read_frames(path))) == 3


def test_a_video_of_one_frame_is_read(tmp_path):
    assert len(list(read_frames(encode_clip(tmp_path / "clip.mp4", paint_frames(1))))) == 1


def test_a_video_with_fewer_frames_than_it_says_is_reported(tmp_path, caplog):
    path = encode_clip(tmp_path / "clip.avi", paint_frames(3))
    content = path.read_bytes()
    last = content.rindex(b"00dc", 0, content.index(b"idx1"))
    path.write_bytes(content[:last])

    assert len(list(read_frames(path))) == 2
    assert f"{path} says that it has 3 frames, and 2 are decoded" in caplog.text


@pytest.mark.parametrize("ending", ["avi", "mkv", "mp4", "gif", "webp", "png"])
def test_a_damaged_video_is_read_or_is_a_user_error(tmp_path, ending):
    path = tmp_path / f"clip.{ending}"
    frames = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)) for i in range(3)]
    if ending in ("avi", "mkv", "mp4"):
        encode_clip(path, paint_frames(3))
    else:
        frames[0].save(path, save_all=True, append_images=frames[1:])
    content = path.read_bytes()
    refused = 0
    for seed in range(42):
        path.write_bytes(damage(content, seed))
        refused += bool(refusal(lambda: list(read_frames(path))))
    assert refused >= 3


def test_a_video_that_was_cut_off_is_a_user_error(encoded_video, tmp_path):
    (tmp_path / "cut.mp4").write_bytes(encoded_video.read_bytes()[:600])

    with pytest.raises(UserError, match=r"cut\.mp4 (is damaged or no video|has no stream of video)"):
        list(read_frames(tmp_path / "cut.mp4"))
