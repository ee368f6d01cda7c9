"""Frames of videos: in order, upright, one at a time; what is no video is a sentence."""

import logging
import os
import sys
from collections.abc import Iterator
from enum import Enum
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from encoded_clips import encode_clip, write_matrix
from PIL import Image
from random_damage import damage, refusal

from semcorr.core.errors import UserError
from semcorr.data.video import list_frames, read_frames, read_or_explain, require_video

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


class FFmpegError(Exception):
    """PyAV's base of errors."""


def display_matrix(a: float, b: float, c: float, d: float) -> np.ndarray:
    """ISO/IEC 14496-12, 6.2.2: (x, y) is shown at (ax + cy, bx + dy)."""
    return np.array([a * 65536, b * 65536, 0, c * 65536, d * 65536, 0, 0, 0, 2**30]).round().astype(np.int32)


class StoredFrame:
    """A frame of PyAV: 4 x 2 pixels, red on the left, and the matrix by which it is shown."""

    is_corrupt, key_frame, pts = False, True, None

    def __init__(self, colour: tuple[int, int, int], matrix: np.ndarray | None = None) -> None:
        self.colour = colour
        self.side_data = {} if matrix is None else {"DISPLAYMATRIX": matrix}
        self.format = SimpleNamespace(has_palette=False, components=())

    def to_image(self) -> Image.Image:
        image = Image.new("RGB", (4, 2), self.colour)
        image.paste((255, 0, 0), (0, 0, 1, 2))
        return image


class Packet(SimpleNamespace):
    """A packet of PyAV with one frame, or an error."""

    is_corrupt, is_discard, is_keyframe = False, False, True
    pts, time_base, duration, size = None, None, None, 1

    def decode(self) -> list[StoredFrame]:
        if isinstance(self.frame, Exception):
            raise self.frame
        return [self.frame]


class Container:
    """A container of PyAV with one stream at most."""

    def __init__(self, frames: list[object], codec: bool | None) -> None:
        self.frames = frames
        context = SimpleNamespace(name="mpeg4") if codec else None
        self.stream = SimpleNamespace(codec_context=context, frames=0, index=0, metadata={})
        self.streams = SimpleNamespace(video=[] if codec is False else [self.stream])
        self.format, self.duration = SimpleNamespace(name="mp4"), None

    def __enter__(self) -> "Container":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def demux(self) -> Iterator[Packet]:
        return (Packet(frame=frame, stream=self.stream) for frame in self.frames)


@pytest.fixture
def decoder(monkeypatch, tmp_path):
    """decoder(frames) is a file that a stand-in of PyAV decodes to these frames."""

    def install(frames: list[object], codec: bool | None = True) -> Path:
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


TURNS = {  # by matrix, where (x, y) of a frame of 3 x 2 pixels is shown
    (1, 0, 0, 1): ["abc", "def"],
    (0, 0, 0, 0): ["abc", "def"],  # left empty
    (-1, 0, 0, 1): ["cba", "fed"],  # a selfie
    (1, 0, 0, -1): ["def", "abc"],
    (-1, 0, 0, -1): ["fed", "cba"],
    (0, 1, -1, 0): ["da", "eb", "fc"],  # a phone held upright: turned clockwise, what was left is on top
    (0, -1, 1, 0): ["cf", "be", "ad"],
    (0, 1, 1, 0): ["ad", "be", "cf"],
    (0, -1, -1, 0): ["fc", "eb", "da"],
    (2, 0.001, 0, 1): ["abc", "def"],  # stretched, as pixels that are not square are
}


@pytest.mark.parametrize("matrix", TURNS)
def test_frames_are_turned_and_mirrored_as_players_do(decoder, monkeypatch, matrix):
    stored = Image.fromarray(np.array([[*b"abc"], [*b"def"]], np.uint8))
    monkeypatch.setattr(StoredFrame, "to_image", lambda self: stored)

    (picture,) = read_frames(decoder([StoredFrame((0, 0, 0), display_matrix(*matrix))]))

    assert picture.size == picture.image.size
    assert [bytes(row).decode() for row in pixels(picture)[..., 0]] == TURNS[matrix]


class KindOfData(Enum):
    """Those that PyAV knows."""

    DISPLAYMATRIX = 6


class UnknownData:
    """Data of a frame of which one kind is newer than PyAV."""

    def __getitem__(self, name: str) -> object:
        return KindOfData(31)


@pytest.mark.parametrize(("rotation", "rows"), [(0, TURNS[1, 0, 0, 1]), (-90, TURNS[0, 1, -1, 0])])
def test_frames_are_turned_where_pyav_does_not_know_their_data(decoder, monkeypatch, rotation, rows):
    stored = Image.fromarray(np.array([[*b"abc"], [*b"def"]], np.uint8))
    monkeypatch.setattr(StoredFrame, "to_image", lambda self: stored)
    frame = StoredFrame((0, 0, 0))
    frame.side_data, frame.rotation = UnknownData(), rotation

    (picture,) = read_frames(decoder([frame]))

    assert [bytes(row).decode() for row in pixels(picture)[..., 0]] == rows


def test_where_the_numbers_of_frames_are_not_known_a_damaged_one_is_the_last(decoder):
    """Packets have no times here, so it is not known how many frames one was."""
    path = decoder([StoredFrame(COLOURS[0]), FFmpegError("Invalid data"), StoredFrame(COLOURS[1])])

    frame, error = read_or_explain(path)

    assert frame.size == (4, 2)
    assert "clip.mp4, after frame 0 is damaged or no video (Invalid data); it is the last that is read" in str(error)


@pytest.mark.parametrize(
    ("frames", "codec", "message"),
    [
        ([], True, "has no frames"),
        ([StoredFrame(COLOURS[0])], None, "no stream of video that can be decoded"),  # PyAV would end the process
        ([], False, "no stream of video that can be decoded"),
        (
            [StoredFrame(COLOURS[0], display_matrix(0.7, 0.7, -0.7, 0.7))],
            True,
            "frame 0 is shown turned or distorted by",
        ),
        (
            [StoredFrame(COLOURS[0], display_matrix(1, 0, 0.2, 1))],
            True,
            "only quarter turns and mirror images are read",
        ),
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


@pytest.mark.parametrize(
    ("matrix", "size", "white"),
    [
        ((0, 1, -1, 0), (48, 64), (slice(0, 12), slice(None))),  # a phone held upright: its left side is on top
        ((-1, 0, 0, 1), (64, 48), (slice(None), slice(52, None))),  # a selfie: its left side is on the right
        ((1, 0, 0, -1), (64, 48), (slice(None), slice(0, 12))),
        ((0, -1, -1, 0), (48, 64), (slice(52, None), slice(None))),
    ],
)
def test_a_video_is_turned_and_mirrored_as_its_track_says(encoded_video, tmp_path, matrix, size, white):
    (tmp_path / "phone.mp4").write_bytes(encoded_video.read_bytes())
    write_matrix(tmp_path / "phone.mp4", *matrix)

    frame = next(read_frames(tmp_path / "phone.mp4"))

    assert frame.size == size
    assert pixels(frame)[white].min() > 225
    assert pixels(frame)[..., 1].mean() < 80  # red elsewhere


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
    path = encode_clip(tmp_path / f"clip.{ending}", paint_frames(3), metadata={"title": "ZZZZZZ"})
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
