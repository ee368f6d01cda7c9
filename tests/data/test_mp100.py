"""MP-100 in MARCO's pairs: its layout, and what it does that others do not."""

import pytest
from tiny_benchmarks import dump, edit, picture

from semcorr.core.errors import UserError
from semcorr.data.mp100 import MP100, SUBSETS

TEST = "annotations/mp100_split1_test.json"


def write_mp100(root):
    """Two beds and a sofa in one annotation file, a face in another whose images have the same ids."""
    beds = ["bed/a.jpg", "bed/b.jpg", "sofa/c.jpg"]
    flat = [[1, 2, 2, 5, 6, 1, 0, 0, 0], [3, 4, 2, 7, 8, 2, 9, 9, 2], [1, 1, 2, 2, 2, 2]]
    for name in [*beds, "face/d.jpg", "face/e.jpg"]:
        picture(root / "mp100" / name)
    content = {
        "images": [{"id": i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(beds)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 7 if i < 2 else 8, "keypoints": flat[i], "num_keypoints": 2,
             "bbox": [0, 0, 30, 10 + i]} for i in range(3)
        ],
        "categories": [{"id": 7, "name": "bed"}, {"id": 8, "name": "sofa"}],
    }  # fmt: skip
    dump(root / TEST, content)
    faces = {
        "images": [{"id": i, "file_name": f"face/{n}.jpg", "width": 40, "height": 30} for i, n in enumerate("de")],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 9, "keypoints": [4, 4, 2], "bbox": [1, 1, 9, 9]} for i in range(2)
        ],
        "categories": [{"id": 9, "name": "face"}],
    }
    dump(root / "annotations/mp100_split2_test.json", faces)
    dump(root / "annotations/mp100_split1_train.json", {"not": "read"})
    for subset in SUBSETS:
        dump(root / f"pairs/pairs_{subset}.json", [])
    dump(root / "pairs/pairs_furniture.json", [{"src_file": beds[0], "trg_file": beds[1], "category_id": 7}])
    face = {"src_file": "face/d.jpg", "trg_file": "face/e.jpg", "category_id": 9}
    dump(root / "pairs/pairs_human_face.json", [face])
    return root


def mp100(root, **options) -> MP100:
    return MP100(root=str(root), size=32, workers=0, **options)


def test_a_list_gives_the_pairs_and_the_test_annotations_their_points(tmp_path):
    (found,) = mp100(write_mp100(tmp_path), subset="furniture").pairs("test")
    assert (found.name, found.category, found.extent) == ("furniture-000000", "furniture/bed", 30)
    assert (found.source.name, found.target.name) == ("bed/a", "bed/b")
    assert found.source.keypoints.tolist() == [[1, 2], [5, 6], [0, 0]]
    assert found.target.keypoints.tolist() == [[3, 4], [7, 8], [9, 9]]


def test_without_a_subset_all_lists_are_one_and_ids_of_images_are_those_of_their_file(tmp_path):
    pairs = mp100(write_mp100(tmp_path)).pairs("test")
    assert [pair.category for pair in pairs] == ["human_face/face", "furniture/bed"]
    assert pairs[0].source.keypoints[0].tolist() == [4, 4]


def test_points_are_joined_by_their_number_not_by_their_order_among_the_visible(tmp_path):
    root = write_mp100(tmp_path)
    edit(root / TEST, lambda content: content["annotations"][0].update(keypoints=[0, 0, 0, 5, 6, 2, 7, 7, 2]))
    (found,) = mp100(root, subset="furniture").pairs("test")
    assert (found.source.visible & found.target.visible).tolist() == [False, True, True]


def test_pairs_of_several_objects_or_no_common_point_are_left_out_and_counted(tmp_path, caplog):
    root = write_mp100(tmp_path)
    ends = {"src_file": "bed/a.jpg", "trg_file": "bed/b.jpg", "category_id": 7}
    dump(root / "pairs/pairs_furniture.json", [ends, ends | {"trg_file": "bed/a.jpg"}])
    again = {"image_id": 1, "category_id": 7, "keypoints": [3, 3, 2] * 3, "bbox": [0, 0, 5, 5]}
    edit(root / TEST, lambda content: content["annotations"].append(again))
    assert len(mp100(root, subset="furniture").pairs("test")) == 1
    assert "1 pairs have an image with several objects" in caplog.text


def test_an_object_without_a_visible_point_is_none(tmp_path):
    root = write_mp100(tmp_path)
    nothing = {"image_id": 1, "category_id": 7, "keypoints": [0] * 9, "num_keypoints": 0, "bbox": [0, 0, 5, 5]}
    edit(root / TEST, lambda content: content["annotations"].append(nothing))
    assert len(mp100(root, subset="furniture").pairs("test")) == 1


FACE = {"src_file": "face/d.jpg", "trg_file": "face/e.jpg", "category_id": 9}


@pytest.mark.parametrize(
    ("changes", "notes"),
    [
        ({"bbox": [0, 0, 0, 0]}, ["1 annotations have a `bbox` without area, which is none ([1])", "the box around"]),
        ({"bbox": None}, ["mp100_split1_test.json: 1 annotations have no `bbox`, and the box around their keypoints"]),
        ({"keypoints": [3, 4, 2, 7, 8, -1, 9, 9, -1]}, ["1 annotations have keypoints of v = -1, which are not ann"]),
    ],
)
def test_what_is_assumed_of_an_annotation_is_counted(tmp_path, caplog, changes, notes):
    root = write_mp100(tmp_path)
    edit(root / TEST, lambda content: content["annotations"][1].update(changes))
    assert len(mp100(root, subset="furniture").pairs("test")) == 1
    assert all(note in caplog.text for note in notes)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        (
            {"keypoints": [1, 2, 2]},
            "pairs: 1 pairs have annotations of different numbers of keypoints, and are left out",
        ),
        ({"keypoints": [0, 0, 0, 5, 6, 1, 0, 0, 0], "bbox": None}, "1 pairs have a target without a `bbox`, whose"),
    ],
)
def test_pairs_that_cannot_be_scored_are_left_out_and_counted_by_what_they_lack(tmp_path, caplog, changes, note):
    root = write_mp100(tmp_path)
    edit(root / TEST, lambda content: content["annotations"][1].update(changes))
    (pair,) = mp100(root).pairs("test")
    assert pair.category == "human_face/face"
    assert f"{note}" in caplog.text
    assert "(furniture 0)" in caplog.text
    assert "no visible point in common" not in caplog.text


def test_a_pair_of_a_picture_with_itself_is_scored_and_told(tmp_path, caplog):
    root = write_mp100(tmp_path)
    dump(root / "pairs/pairs_human_face.json", [FACE, FACE | {"trg_file": "face/d.jpg"}])
    assert len(mp100(root, subset="human_face").pairs("test")) == 2
    assert "mp100 test: 1 pairs are of a picture with itself (human_face-000001), where each point" in caplog.text


def test_files_that_macos_puts_beside_annotations_are_passed_over(tmp_path):
    root = write_mp100(tmp_path)
    (root / "annotations/._mp100_split1_test.json").write_bytes(b"\0\5\26\7")
    assert len(mp100(root, subset="furniture").pairs("test")) == 1


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "pairs/pairs_furniture.json",
            lambda pairs: pairs[0].update(category_id=8),
            r"furniture\.json, pair 0, names 'bed/a\.jpg' as category 8, which no annotation in .*annotations has",
        ),
        (
            TEST,
            lambda content: content["annotations"][0].update(keypoints=[]),
            r"pair 0, names 'bed/a\.jpg' as category 7, whose annotation in .*annotations shows no keypoint",
        ),
        (
            TEST,
            lambda content: content["annotations"][0].pop("keypoints"),
            r"pair 0, names 'bed/a\.jpg' as category 7, whose annotation in .*annotations shows no keypoint",
        ),
        (TEST, lambda content: content["images"][0].update(width=0), "its image: `width` is 0 beside its `height`"),
        ("pairs/pairs_furniture.json", lambda pairs: pairs[0].pop("trg_file"), "no field `trg_file`"),
        ("pairs/pairs_furniture.json", lambda pairs: pairs[0].update(src_file="../a.jpg"), "pair 0, src_file"),
        (TEST, lambda content: content["annotations"][0].update(image_id=99), "image_id 99, which the file does not"),
        (TEST, lambda content: content.pop("images"), "no field `images`"),
    ],
)
def test_the_error_names_the_problem_in_a_file(tmp_path, file, change, message):
    root = write_mp100(tmp_path)
    edit(root / file, change)
    with pytest.raises(UserError, match=message):
        mp100(root, subset="furniture").pairs("test")


def test_what_is_not_there_is_named_with_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"data\.root=DIR"):
        mp100(tmp_path / "nowhere").pairs("test")
    root = write_mp100(tmp_path)
    (root / "mp100/bed/b.jpg").unlink()
    with pytest.raises(UserError, match=r"bed.b\.jpg does not exist.*data\.subset"):
        mp100(root, subset="furniture").pairs("test")
    (root / "pairs/pairs_clothing.json").unlink()
    with pytest.raises(UserError, match=r"pairs_clothing\.json does not exist.*mp100_pairs\.zip"):
        mp100(root).pairs("test")
    with pytest.raises(UserError, match=r"`data\.subset` must be null or one of clothing"):
        mp100(root, subset="cars")
