"""What visitors leave behind is bounded: in memory and on the disk, in number, bytes and time."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semcorr import Matcher
from semcorr.app import render as pictures
from semcorr.app import session
from semcorr.app.bounded import BoundedCache
from semcorr.app.folder import evict_files, make_private_folder, remove_abandoned
from semcorr.app.inference import MAX_ENCODED_BYTES, LoadedModel, match_session, session_to_dict
from semcorr.app.session import PIXELS, POINTS, Session, reduce_picture, session_bytes
from semcorr.core.errors import UserError
from semcorr.data.pictures import Picture, load_picture

pytestmark = pytest.mark.integration


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


# -- memory --


def test_the_entry_that_was_used_longest_ago_goes_when_there_are_too_many():
    kept: BoundedCache[str, int] = BoundedCache(3, 100, lambda size: size)
    for key in "abc":
        kept.put(key, 1)
    assert kept.get("a") == 1
    kept.put("d", 1)
    assert [kept.get(key) for key in "abcd"] == [1, None, 1, 1]


def test_entries_go_until_the_bytes_fit_and_the_newest_stays():
    kept: BoundedCache[str, int] = BoundedCache(10, 100, lambda size: size)
    for key, size in (("a", 40), ("b", 40), ("c", 40)):
        kept.put(key, size)
    assert [kept.get(key) for key in "abc"] == [None, 40, 40]
    kept.put("c", 10)
    assert kept.bytes() == 50
    kept.put("d", 500)
    assert (len(kept), kept.get("d")) == (1, 500)


def test_an_entry_unused_for_its_time_is_removed():
    clock = Clock()
    kept: BoundedCache[str, int] = BoundedCache(10, 100, lambda size: size, idle=60, clock=clock)
    kept.put("a", 1)
    kept.put("b", 1)
    clock.now = 50
    assert kept.get("a") == 1
    clock.now = 70
    kept.drop_idle()
    assert (len(kept), kept.get("a"), kept.get("b")) == (1, 1, None)
    clock.now = 1000
    assert kept.get("a") is None


@pytest.mark.sampled(4)
@pytest.mark.parametrize("size", [(5000, 5000), (20000, 500), (1, 9_000_000), (1601, 1600)])
def test_a_picture_is_kept_small_and_measured_in_its_own_pixels(size):
    kept = reduce_picture(Picture(Image.new("RGB", size), size, "a"))
    assert kept.size == size
    assert kept.image.width * kept.image.height <= PIXELS
    assert session_bytes(Session("tiny", kept, kept)) <= 8 * PIXELS + 2**20


def test_points_of_a_reduced_picture_are_in_the_pixels_of_the_file(creatures, monkeypatch):
    cats = sorted((creatures / "JPEGImages/cat").glob("*.jpg"))
    large = [one._replace(image=one.image.resize((960, 960)), size=(960, 960)) for one in map(load_picture, cats[:2])]
    monkeypatch.setattr(session, "PIXELS", 480 * 480)
    small = [reduce_picture(one) for one in large]
    assert small[0].image.size == (480, 480)

    begun = session.open_pictures(Session("tiny"), *small)
    clicked = session.add_point(begun, pictures.click_to_pixel((450, 300), begun.a.size))
    output = session_to_dict(clicked, match_session(LoadedModel("cpu"), clicked), "image")
    (match,) = output["matches"]
    expected = Matcher.load("tiny", device="cpu").match(*large, [[479.5, 319.5]])
    assert output["source"]["size"] == [960, 960]
    assert match["source"] == [479.5, 319.5]
    assert match["target"] == pytest.approx(expected.points[0].tolist(), abs=8)  # of 960; the same cell
    assert output["pck"]["extent"] == "image"


def test_features_are_bounded_by_their_bytes():
    models = LoadedModel("cpu")
    matcher = models.matcher("tiny")
    rng = np.random.default_rng(0)
    for i in range(30):
        image = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
        models.encode(matcher, Picture(image, image.size, str(i)))
    assert len(models.known) == 16
    assert 0 < models.known.bytes() <= MAX_ENCODED_BYTES
    one = models.known.bytes() // 16
    models.known.size = 4 * one
    image = Image.new("RGB", (32, 32), "red")
    models.encode(matcher, Picture(image, image.size, "last"))
    assert len(models.known) == 4


def test_points_are_bounded():
    state = session.open_pictures(Session("tiny"), *[Picture(Image.new("RGB", (10**4, 10)), (10**4, 10), "a")] * 2)
    reach = 0.03 * 10**4
    state = state._replace(marks=session.SessionPoints(((-10.0 * reach, 0.0),) * POINTS, (None,) * POINTS, 0))
    with pytest.raises(UserError, match="100 points, the most"):
        session.add_point(state, (5.0, 5.0))


@pytest.mark.parametrize(
    "index",
    [None, "450", "ab", 3, [], [1], [1, 2, 3], [None, 1], ["x", 1], [float("nan"), 1], [1, float("inf")], [-1, 5],
     [901, 5], [10**400, 1], {"x": 1, "y": 2}, [[1], [2]], {}],
    ids=str,
)  # fmt: skip
def test_a_click_is_a_place_in_the_picture(index):
    with pytest.raises(UserError, match="a place in the picture"):
        pictures.click_to_pixel(index, (100, 50))


# -- the disk --


def test_old_files_go_and_the_oldest_until_there_is_room(tmp_path):
    for age, name in enumerate(("new", "newer", "old", "older")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"x" * 10)
        changed = time.time() - 1000 * age
        os.utime(tmp_path / name / "a.png", (changed, changed))

    evict_files(tmp_path, idle=2500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "newer", "old"]
    evict_files(tmp_path, size=10, room=30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "newer"]
    (tmp_path / "loose.png").write_bytes(b"x" * 10)
    evict_files(tmp_path, size=100, room=30)
    assert list(tmp_path.iterdir()) == []  # and the folder itself stays


def test_the_folder_is_private_and_gone_at_the_end_whatever_happens():
    with pytest.raises(KeyboardInterrupt), make_private_folder() as folder:  # noqa: PT012
        (folder / "x").write_text("x")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        raise KeyboardInterrupt
    assert not folder.exists()


def test_what_a_killed_page_left_is_removed_by_the_next_one_and_a_living_ones_is_not(tmp_path):
    code = (
        "import sys, time; from semcorr.app.folder import make_private_folder\n"
        "with make_private_folder() as folder:\n print(folder, flush=True); time.sleep(600)"
    )
    pages = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for _ in range(2)
    ]  # fmt: skip
    killed, living = (Path(page.stdout.readline().strip()) for page in pages)
    pages[0].send_signal(signal.SIGKILL)
    pages[0].wait()
    (tmp_path / "semcorr-app-notes").mkdir()
    (tmp_path / f"{killed.name}x").symlink_to(living)
    remove_abandoned(tmp_path)
    assert not killed.exists()
    assert living.is_dir()
    assert (tmp_path / "semcorr-app-notes").is_dir()
    pages[1].kill()
    pages[1].communicate()
    pages[0].communicate()
