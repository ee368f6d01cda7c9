"""Damaged and cut videos: what is left out is told, what remains keeps its number, and whole files raise no alarm."""

import logging
from pathlib import Path

import numpy as np
import pytest
from drawn_clips import SIDE, draw_frames
from encoded_clips import damage_packet, encode_clip
from PIL import Image

from semcorr.core.errors import UserError
from semcorr.data.pictures import load_picture
from semcorr.data.video import read_frames, read_or_explain

SHIFTS = [(2 * i, i) for i in range(24)]
UNEVEN = [0, 100, 150, 400, *range(500, 2400, 100), 9000]


@pytest.fixture(scope="module")
def frames() -> list[Image.Image]:
    return draw_frames(SHIFTS)


def thin(image: Image.Image) -> np.ndarray:
    """Some of its pixels, by which frames are told apart."""
    return np.asarray(image)[::6, ::6].astype(int)


def read_pattern(path: Path, frames: list[Image.Image]) -> str:
    """A dot for each frame, which is that of its number, and an x for each that is left out."""
    pattern = ""
    for number, frame in enumerate(read_or_explain(path)):
        if isinstance(frame, UserError):
            pattern += "x"
            continue
        pattern += "."
        assert frame.name == f"{path}, frame {number}"
        off = [np.abs(thin(frame.image) - thin(each)).mean() for each in frames]
        assert int(np.argmin(off)) == number
    return pattern


WHOLE = [
    ("clip.mp4", {"between": 2}),
    ("clip.avi", {"between": 2}),
    ("clip.mkv", {"times": UNEVEN}),
    ("clip.ts", {"codec": "mpeg2video", "between": 2}),
    ("clip.mpg", {"codec": "mpeg1video"}),
    ("clip.mkv", {"codec": "mjpeg", "pixels": "yuvj420p"}),
    ("clip.mov", {"codec": "png", "pixels": "rgb24"}),
    (
        "clip.mov",
        {"codec": "tiff", "pixels": "rgb24"},
    ),  # has data that PyAV does not know, and tags that libav does not
    ("clip.mkv", {"codec": "ffv1"}),
    ("clip.webm", {"codec": "libvpx-vp9"}),
    ("clip.flv", {"codec": "libx264"}),
    ("clip.mp4", {"codec": "libx264", "times": UNEVEN}),
    ("clip.mkv", {"codec": "libx264", "options": {"x264-params": "open-gop=1:keyint=8:min-keyint=8"}}),
]


@pytest.mark.parametrize(("name", "options"), WHOLE)
def test_a_whole_video_raises_no_alarm(tmp_path, caplog, frames, name, options):
    path = encode_clip(tmp_path / name, frames, **options)

    with caplog.at_level(logging.WARNING):
        assert read_pattern(path, frames) == "." * 24
    assert not caplog.messages


def test_a_recording_may_begin_between_two_key_frames(tmp_path, caplog, frames):
    """As one of a broadcast does; players begin with the first key frame, too."""
    options = {"x264-params": "keyint=6:min-keyint=6:scenecut=0:bframes=2"}
    content = encode_clip(tmp_path / "clip.ts", frames, codec="libx264", options=options).read_bytes()
    start = len(content) * 2 // 5 // 188 * 188  # a packet of a transport stream has 188 bytes
    (tmp_path / "late.ts").write_bytes(content[: 3 * 188] + content[start:])  # the first say what the streams are

    assert len(list(read_frames(tmp_path / "late.ts"))) in (6, 12, 18)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("name", "options", "pattern"),
    [
        ("clip.mkv", {"codec": "mjpeg", "pixels": "yuvj420p"}, "............x..........."),
        ("clip.mov", {"codec": "png", "pixels": "rgb24"}, "............x..........."),
        # what builds on a damaged frame is left out up to the next key frame, whose number is known by its time
        ("clip.mp4", {"options": {"g": "8"}}, "............xxxx........"),
        ("clip.mkv", {"options": {"g": "8"}, "times": UNEVEN}, "............xxxx........"),
    ],
)
def test_a_damaged_frame_is_told_and_does_not_move_the_others(tmp_path, frames, name, options, pattern):
    """All of them were labelled without a word, or everything after it was left out."""
    path = encode_clip(tmp_path / name, frames, **options)
    damage_packet(path, 12)

    assert read_pattern(path, frames) == pattern
    with pytest.raises(UserError, match=f"{name}, after frame 11 is damaged or no video"):
        list(read_frames(path))


def test_a_damaged_slice_of_a_frame_is_told(tmp_path, frames):
    """Where several threads decode the slices of a frame, libav passes over their errors."""
    path = encode_clip(tmp_path / "clip.mkv", frames, codec="libx264", options={"g": "1", "slices": "2"})
    damage_packet(path, 12, 0.2, 0.25)

    assert read_pattern(path, frames) == "............x..........."


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip.mkv", {"codec": "ffv1"}),
        ("clip.mkv", {"codec": "mjpeg", "pixels": "yuvj420p"}),
        ("clip.mkv", {"times": UNEVEN}),
        ("clip.flv", {"codec": "flv"}),
    ],
)
def test_a_video_that_was_cut_off_is_told(tmp_path, caplog, frames, name, options):
    """As its head says how long it is, and not how many frames it has."""
    path = encode_clip(tmp_path / name, frames, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])

    pattern = read_pattern(path, frames)

    assert 3 <= len(pattern) <= 18
    assert f"{path} says that it lasts" in caplog.text
    assert f"with {len(pattern)} frames: the rest is cut off or damaged" in caplog.text


def test_a_part_that_is_missing_at_the_end_is_told(tmp_path, caplog, frames):
    """Of a codec that does not notice: the last frame was half of one."""
    path = encode_clip(tmp_path / "clip.avi", frames, codec="huffyuv", pixels="rgb24")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])

    assert set(read_pattern(path, frames)[:-1]) == {"."}
    assert read_pattern(path, frames).endswith(".x")
    assert "says that it has 24 frames" in caplog.text


# -- transparency --


@pytest.mark.parametrize(
    ("name", "codec", "layout"),
    [
        ("clip.mov", "png", "rgba"),
        ("clip.mov", "png", "rgba64be"),
        ("clip.mov", "qtrle", "argb"),
        ("clip.mkv", "ffv1", "bgra"),
    ],
)
def test_what_is_transparent_in_a_video_is_laid_on_white_as_in_a_picture(tmp_path, frames, name, codec, layout):
    array = np.dstack([np.asarray(frames[0]), np.full((SIDE, SIDE), 255, np.uint8)])
    array[:, 96:, 3] = 0
    array[:40, :, 3] = 128
    Image.fromarray(array).save(tmp_path / "frame.png")

    (frame,) = read_frames(encode_clip(tmp_path / name, [array], codec, layout))

    expected = np.asarray(load_picture(tmp_path / "frame.png").image).astype(int)
    assert np.abs(np.asarray(frame.image) - expected).max() <= 1
    assert (expected[40:, 96:] == 255).all()


@pytest.mark.parametrize("layout", ["rgb48be", "gray", "gray16be", "ya8"])
def test_grey_and_deep_frames_are_read_as_they_were(tmp_path, frames, layout):
    (frame,) = read_frames(encode_clip(tmp_path / "clip.mov", frames[:1], "png", layout))

    stored = frames[0] if layout == "rgb48be" else frames[0].convert("L").convert("RGB")
    assert np.abs(np.asarray(frame.image).astype(int) - np.asarray(stored)).max() <= 3


def test_transparency_that_is_not_read_is_told(tmp_path, caplog, frames):
    av = pytest.importorskip("av")
    path = tmp_path / "clip.webm"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=10)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuva420p"
        for image in frames[:2]:
            container.mux(stream.encode(av.VideoFrame.from_image(image).reformat(format="yuva420p")))
        container.mux(stream.encode())

    assert len(list(read_frames(path))) == 2
    assert f"{path}: its transparency is not read" in caplog.text
