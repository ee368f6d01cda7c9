"""TAP-Vid-DAVIS's official pickle: read as it is, runs nothing, and names what is wrong with it."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from tiny_tapvid import moving_square, static, write

from semcorr.core.errors import UserError
from semcorr.data.tapvid import TapVid, read_videos


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("folder", [".", "tapvid_davis"])
def test_the_official_layout_is_read(tmp_path, protocol, folder):
    entry = moving_square()
    write(tmp_path / folder, protocol, b=entry, a=static())

    data = TapVid(str(tmp_path), size=64)
    data.setup("test")

    assert list(data.videos()) == ["a", "b"]
    video = data.videos()["b"]
    assert np.array_equal(video.frames, entry["video"])
    assert video.points.tolist() == (entry["points"] * 256).tolist()
    assert video.occluded.tolist() == entry["occluded"].tolist()


def test_a_pickle_of_numpy_1_is_read(tmp_path):
    write(tmp_path, 2, a=moving_square())
    path = tmp_path / "tapvid_davis.pkl"
    content = path.read_bytes()
    assert b"numpy._core" in content

    path.write_bytes(content.replace(b"numpy._core", b"numpy.core"))

    assert read_videos(path)["a"].frames.shape == (6, 48, 64, 3)


def test_points_outside_the_frame_are_kept_and_reported(tmp_path, caplog):
    entry = moving_square()
    entry["points"][3, 2] = 1.5
    write(tmp_path, a=entry)
    assert read_videos(tmp_path / "tapvid_davis.pkl")["a"].points[3, 2].tolist() == [384, 384]
    assert "1 visible points lie outside their frame (a)" in caplog.text


# -- mistakes --


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("deep", [True, False])
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path, protocol, deep):
    bomb = Malicious(tmp_path / "ran")
    write(tmp_path, protocol, a=moving_square() | {"points": np.array([bomb])} if deep else bomb)

    with pytest.raises(UserError, match=r"wants to call .* not.*trust"):
        read_videos(tmp_path / "tapvid_davis.pkl")

    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"a": moving_square()})[:-400], b"\x80\x05N."])
def test_a_damaged_pickle_is_named(tmp_path, content):
    (tmp_path / "tapvid_davis.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"tapvid_davis\.pkl.*Restore the official file"):
        TapVid(str(tmp_path), size=64).setup("test")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("video", None, "`video`.*uint8.*NoneType"),
        ("video", np.zeros((6, 48, 64), np.uint8), r"uint8 \(any, any, any, 3\), got uint8 \(6, 48, 64\)"),
        ("video", np.zeros((6, 48, 64, 3)), "got float64"),
        ("points", np.zeros((4, 5, 2), np.float32), r"float.*\(any, 6, 2\), got float32 \(4, 5, 2\)"),
        ("points", np.zeros((4, 6, 2), int), "got int64"),
        ("points", np.full((4, 6, 2), np.nan, np.float32), "not finite"),
        ("occluded", np.zeros((3, 6), bool), r"bool \(4, 6\), got bool \(3, 6\)"),
        ("occluded", np.zeros((4, 6), np.uint8), "got uint8"),
    ],
)
def test_a_field_of_another_shape_or_kind_is_named_with_its_video(tmp_path, field, value, message):
    write(tmp_path, fine=moving_square(), dogs=moving_square() | {field: value})
    with pytest.raises(UserError, match=f"video dogs.*{message}"):
        TapVid(str(tmp_path), size=64).setup("test")


def test_a_missing_field_is_named_with_its_video(tmp_path):
    entry = moving_square()
    del entry["occluded"]
    write(tmp_path, dogs=entry)
    with pytest.raises(UserError, match="video dogs has no field `occluded`"):
        read_videos(tmp_path / "tapvid_davis.pkl")


def test_a_missing_root_or_pickle_says_where_it_is_to_be_had(tmp_path):
    with pytest.raises(UserError, match=r"semcorr\.prepare tapvid_davis.*data\.root=DIR"):
        TapVid(str(tmp_path / "nowhere"), size=64).setup("test")
    with pytest.raises(UserError, match=r"neither tapvid_davis\.pkl nor tapvid_davis/tapvid_davis\.pkl"):
        TapVid(str(tmp_path), size=64).setup("test")


def test_videos_in_which_nothing_is_visible_cannot_be_scored(tmp_path):
    write(tmp_path, a=moving_square() | {"occluded": np.ones((4, 6), bool)})
    with pytest.raises(UserError, match="nothing to follow"):
        TapVid(str(tmp_path), size=64).setup("test")
