"""DAVIS 2017: the official tree, and what is refused of another."""

import numpy as np
import pytest
from PIL import Image
from tiny_davis import drifting, still, write_davis, write_list, write_mask

from semcorr.core.errors import UserError
from semcorr.data.davis import DAVIS, read_mask
from semcorr.data.download.verify import verify_benchmark


def davis(root, **options) -> DAVIS:
    return DAVIS(root=str(root), size=96, split="val", workers=0, **options)


@pytest.mark.parametrize("folder", [".", "DAVIS"])
def test_videos_come_in_the_order_of_the_list(tmp_path, folder):
    write_davis(tmp_path / folder, zebra=drifting(), ant=still())
    write_list(tmp_path / folder, "val", {"zebra": 0, "ant": 0})
    videos = davis(tmp_path).cases("val")
    assert [video.name for video in videos] == ["zebra", "ant"]
    assert [(len(video.frames), len(video.masks), video.size, video.objects) for video in videos] == [
        (5, 5, (96, 96), 2),
        (4, 4, (96, 96), 1),
    ]
    assert [path.name for path in videos[0].frames] == [f"0000{t}.jpg" for t in range(5)]


def test_a_mask_holds_indices_and_its_void_is_background(tmp_path):
    values = np.array([[0, 1, 2], [255, 2, 1]], np.uint8)
    write_mask(tmp_path / "mask.png", values)
    assert read_mask(tmp_path / "mask.png", (3, 2)).tolist() == [[0, 1, 2], [0, 2, 1]]
    Image.fromarray(values).save(tmp_path / "grey.png")
    assert read_mask(tmp_path / "grey.png", (3, 2)).tolist() == [[0, 1, 2], [0, 2, 1]]


def test_objects_count_to_the_largest_value_whatever_is_missing(tmp_path):
    """As released: an object that the first frame lacks is scored, too, and void is none."""
    frames, masks = still()
    masks[0][masks[0] == 1] = 3
    masks[0, 0, 0] = 255
    write_davis(tmp_path, hole=(frames, masks))
    assert davis(tmp_path).cases("val")[0].objects == 3


def test_hidden_files_are_no_frames(tmp_path):
    write_davis(tmp_path, a=still())
    (tmp_path / "JPEGImages/480p/a/._00000.jpg").write_bytes(b"macOS")
    assert len(davis(tmp_path).cases("val")[0].frames) == 4


def test_verify_counts_videos_frames_and_objects(tmp_path):
    write_davis(tmp_path, split="val", a=drifting(), b=still())
    write_davis(tmp_path, split="train", c=still())
    checks = {(check.what, check.where): check for check in verify_benchmark(davis(tmp_path)).checks}
    found = {key: (check.found, check.official, check.verdict) for key, check in checks.items()}
    assert found == {
        ("videos", "val"): (2, 30, "differs"), ("frames", "val"): (9, None, "ok"), ("objects", "val"): (3, None, "ok"),
        ("videos", "train"): (1, 60, "differs"), ("frames", "train"): (4, None, "ok"),
        ("objects", "train"): (1, None, "ok"),
    }  # fmt: skip


def break_list(root, text):
    (root / "ImageSets/2017/val.txt").write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: break_list(root, "a\na\n"), r"val\.txt names the video a twice"),
        (lambda root: break_list(root, "\n"), r"val\.txt names no video"),
        (lambda root: break_list(root, "../a\n"), r"val\.txt, names .*folder above"),
        (lambda root: break_list(root, "nothing\n"), r"nothing does not exist\. Unpack DAVIS-2017-trainval-480p\.zip"),
        (lambda root: (root / "ImageSets/2017/val.txt").unlink(), r"val\.txt does not exist"),
        (lambda root: (root / "Annotations/480p/a/00002.png").unlink(), "a mask for each frame .*00002 is in one only"),
        (lambda root: (root / "Annotations/480p/a/00000.png").write_bytes(b"no"), r"00000\.png is damaged"),
        (lambda root: write_mask(root / "Annotations/480p/a/00000.png", np.zeros((96, 96), np.uint8)), "no object"),
        (lambda root: write_mask(root / "Annotations/480p/a/00000.png", np.ones((9, 9), np.uint8)), "is 9 x 9 pixels"),
        (
            lambda root: Image.new("RGB", (96, 96)).save(root / "Annotations/480p/a/00000.png"),
            "must be an indexed or a grey picture of object numbers, got RGB",
        ),
    ],
)
def test_damage_is_reported_before_anything_runs(tmp_path, damage, message):
    write_davis(tmp_path, a=still())
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        davis(tmp_path).setup("test")


def test_two_frames_leave_nothing_to_score(tmp_path):
    write_davis(tmp_path, a=still(2))
    with pytest.raises(UserError, match="has 2 frames; the first and the last are not scored"):
        davis(tmp_path).setup("test")


def test_a_missing_folder_and_a_training_are_refused_with_a_way_out(tmp_path):
    with pytest.raises(UserError, match=r"semcorr\.prepare davis.*data\.root=DIR"):
        davis(tmp_path / "nowhere").setup("test")
    with pytest.raises(UserError, match=r"nothing to train on.*data=davis"):
        davis(tmp_path).setup("fit")
    with pytest.raises(UserError, match=r"`data\.split` must be one of val, train, got 'test'"):
        DAVIS(root=".", size=96)
