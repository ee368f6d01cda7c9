import json
import logging
import random
import re
from itertools import permutations
from pathlib import Path

import pytest
from hydra.utils import instantiate
from tiny_benchmarks import edit, write_coco

from semcorr.core.errors import UserError
from semcorr.data.coco_keypoints import COCOKeypoints
from semcorr.data.image_variants import unique_images


def coco(root: Path, **options: object) -> COCOKeypoints:
    return COCOKeypoints(root=str(root), size=32, **({"val": 0.3, "test": 0.3, "min_shared": 2} | options))


def names(pairs) -> list[tuple[str, str]]:
    return [(pair.source.name, pair.target.name) for pair in pairs]


def test_keypoints_boxes_and_groups_of_coco_are_read(tmp_path):
    pairs = coco(write_coco(tmp_path), val=0, test=0).pairs("train")

    pair = next(pair for pair in pairs if names([pair]) == [("01", "04")])
    assert pair.name == "01-04:dog"
    assert pair.source.keypoints.tolist() == [[1, 5], [1, 6], [0, 0]]
    assert pair.source.visible.tolist() == [True, True, False]  # v = 0 is not annotated
    assert pair.target.visible.tolist() == [True, True, True]
    assert pair.target.box == (2, 3, 26, 13)  # 2 + 24, 3 + 10
    assert pair.extent == 24
    assert pair.groups == ((0, 1),)
    assert names(pairs) == list(permutations([f"{k:02d}" for k in range(10)], 2))


def test_animal_pose_reads_like_coco(tmp_path):
    """`images` a plain map, boxes by their corners, keypoints in rows."""
    expected = coco(write_coco(tmp_path / "coco")).pairs("train")

    def as_animal_pose(content: dict) -> None:
        content["images"] = {str(image["id"]): image["file_name"] for image in content["images"]}
        for entry in content["annotations"]:
            x, y, width, height = entry["bbox"]
            flat = entry["keypoints"]
            entry |= {"bbox": [x, y, x + width, y + height], "keypoints": [flat[:3], flat[3:6], flat[6:]]}

    edit(write_coco(tmp_path / "animal") / "keypoints.json", as_animal_pose)
    pairs = coco(tmp_path / "animal", box="xyxy").pairs("train")

    assert names(pairs) == names(expected)
    for pair, other in zip(pairs, expected, strict=True):
        assert pair.target.box == other.target.box
        assert pair.target.keypoints.tolist() == other.target.keypoints.tolist()
        assert pair.target.visible.tolist() == other.target.visible.tolist()


def test_coco_splits_have_no_image_in_common_and_leave_none_out(tmp_path):
    data = coco(write_coco(tmp_path))

    parts = {split: {name for pair in names(data.pairs(split)) for name in pair} for split in ("train", "val", "test")}

    assert {split: len(part) for split, part in parts.items()} == {"train": 4, "val": 3, "test": 3}
    assert len(set.union(*parts.values())) == 10


def test_a_picture_of_two_categories_is_in_one_split_only(tmp_path):
    """Every picture shows a dog and a cat: the cats follow the dogs' split."""

    def with_cats(content: dict) -> None:
        content["categories"].append(content["categories"][0] | {"id": 4, "name": "cat"})
        content["annotations"] += [entry | {"category_id": 4} for entry in content["annotations"]]

    edit(write_coco(tmp_path) / "keypoints.json", with_cats)
    data = coco(tmp_path)

    parts = {split: {name for pair in names(data.pairs(split)) for name in pair} for split in ("train", "val", "test")}

    assert sum(len(part) for part in parts.values()) == len(set.union(*parts.values())) == 10


def with_a_cup(content: dict, keypoints: list[str], images: int = 10) -> None:
    """Add a category of other keypoints, annotated in the first images."""
    content["categories"].append({"id": 9, "name": "cup", "keypoints": keypoints})
    for entry in content["annotations"][:images]:
        x, y, _ = entry["keypoints"][:3]
        points = [value for i in range(len(keypoints)) for value in (x + i, y, 2)]
        content["annotations"].append(entry | {"category_id": 9, "keypoints": points})


def test_categories_may_have_different_numbers_of_keypoints(tmp_path):
    """Batches are rectangular: rows that a category lacks are not visible, and keep their places in the mirror."""
    edit(write_coco(tmp_path) / "keypoints.json", lambda content: with_a_cup(content, ["left_a", "right_a", "b", "c"]))

    pairs = coco(tmp_path, val=0, test=0).pairs("train")

    assert {(pair.category, len(pair.source.visible), pair.flip) for pair in pairs} == {
        ("dog", 4, (1, 0, 2, 3)),
        ("cup", 4, (1, 0, 2, 3)),
    }
    assert not any(pair.source.visible[3] for pair in pairs if pair.category == "dog")


def test_categories_without_a_pair_are_reported_and_no_pair_at_all_is_refused(tmp_path, caplog):
    edit(write_coco(tmp_path) / "keypoints.json", lambda content: with_a_cup(content, ["a", "b"], images=2))

    data = coco(tmp_path, val=0, test=0.5)

    assert {pair.category for pair in data.pairs("test")} == {"dog"}
    assert "no pair in split test" in caplog.text
    assert re.search(r"cup \(\d of 2 images\)", caplog.text)
    with pytest.raises(UserError, match=r"data.split=val has no pair .*dog \(0 of 10 images\).*data.val=0 share"):
        data.pairs("val")
    with pytest.raises(UserError, match=r"must be at most 1 together, got 0.6 and 0.6"):
        coco(tmp_path, val=0.6, test=0.6)


def test_shares_are_typed_as_they_are_called(tmp_path, config):
    cfg = config("evaluate", "data=animal_pose", f"data.root={write_coco(tmp_path)}", "data.test=0.2", "data.val=0.3")

    assert instantiate(cfg.data, size=32, resize="squash").shares == {"test": 0.2, "val": 0.3}


def test_coco_pairs_do_not_depend_on_the_order_of_the_file(tmp_path):
    write_coco(tmp_path)
    before = {split: names(coco(tmp_path).pairs(split)) for split in ("train", "val", "test")}

    content = json.loads((tmp_path / "keypoints.json").read_text())
    for key in ("images", "annotations"):
        random.Random(1).shuffle(content[key])
    (tmp_path / "keypoints.json").write_text(json.dumps(content))

    assert {split: names(coco(tmp_path).pairs(split)) for split in before} == before


def test_another_seed_gives_other_splits(tmp_path):
    write_coco(tmp_path)

    assert names(coco(tmp_path, pairs_seed=1).pairs("test")) != names(coco(tmp_path).pairs("test"))


def test_the_cap_on_pairs_is_a_seeded_choice_in_order(tmp_path):
    write_coco(tmp_path)
    whole = names(coco(tmp_path, val=0, test=0).pairs("train"))
    chosen = names(coco(tmp_path, val=0, test=0, pairs_per_category=7).pairs("train"))
    again = names(coco(tmp_path, val=0, test=0, pairs_per_category=7).pairs("train"))

    assert len(chosen) == 7
    assert chosen == again == sorted(set(chosen) & set(whole))
    assert chosen != whole[:7]


def test_pairs_that_share_too_few_keypoints_are_left_out(tmp_path):
    pairs = names(coco(write_coco(tmp_path), val=0, test=0, min_shared=3).pairs("train"))

    assert pairs == list(permutations(["00", "02", "04", "06", "08"], 2))  # the odd ones have two points


def test_an_image_with_two_dogs_is_left_out_with_a_warning(tmp_path, caplog):
    write_coco(tmp_path)
    edit(tmp_path / "keypoints.json", lambda c: c["annotations"].append(c["annotations"][4]))

    with caplog.at_level(logging.WARNING):
        pairs = coco(tmp_path, val=0, test=0).pairs("train")

    assert "04" not in {name for pair in names(pairs) for name in pair}
    assert "dog: 1 images hold several objects and are left out" in caplog.text


def test_images_of_one_name_in_two_folders_stay_apart(tmp_path):
    write_coco(tmp_path, names=["a/1.jpg", "b/1.jpg", "c/1.jpg"])

    pairs = coco(tmp_path, val=0, test=0).pairs("train")

    assert names(pairs) == list(permutations(["a/1", "b/1", "c/1"], 2))
    assert [image.path.parent.name for image in unique_images(pairs)] == ["a", "b", "c"]


def test_categories_without_keypoints_are_passed_over(tmp_path):
    write_coco(tmp_path)
    edit(tmp_path / "keypoints.json", lambda c: c["categories"].append({"id": 4, "name": "sofa"}))

    assert {pair.category for pair in coco(tmp_path, val=0, test=0).pairs("train")} == {"dog"}


def test_one_image_may_hold_objects_of_two_categories(tmp_path):
    write_coco(tmp_path)

    def add_cats(content: dict) -> None:
        content["categories"].append({"id": 5, "name": "cat", "keypoints": ["nose", "tail"]})
        for k in (1, 2):
            cat = {"image_id": 100 + k, "category_id": 5, "bbox": [1, 1, 9, 9], "keypoints": [k, 2, 2, k, 3, 2]}
            content["annotations"].append(cat)

    edit(tmp_path / "keypoints.json", add_cats)
    pairs = coco(tmp_path, val=0, test=0).pairs("train")

    assert names(pairs[:2]) == [("01", "02"), ("02", "01")]
    assert [pair.category for pair in pairs[:3]] == ["cat", "cat", "dog"]
    assert pairs[0].source.keypoints[:2].tolist() == [[1, 2], [1, 3]]
