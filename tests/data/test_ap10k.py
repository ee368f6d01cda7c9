import json
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import pytest
import torch
from tiny_ap10k import COUNTS, CROWD, NO_IMAGES, edit_coco, species, write_ap10k, write_released

from semcorr.core.errors import UserError
from semcorr.data.ap10k import AP10K, HELD_OUT
from semcorr.data.ap10k_pairs import (
    ANNOTATIONS,
    build_manifest,
    build_pairs,
    keep_single_animals,
    read_animals,
    split_images,
    write_pairs,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    return write_ap10k(tmp_path_factory.mktemp("ap10k") / "ap-10k")


@pytest.fixture(scope="module")
def animals(official):
    return read_animals([official / file for file in ANNOTATIONS])


@pytest.fixture(scope="module")
def pairs(animals):
    return build_pairs(animals)


@pytest.fixture(scope="module")
def by_id(animals):
    return {a.id: a for a in animals}


def mutual(a, b) -> int:
    return sum(map(all, zip(a.keypoints, b.keypoints, strict=True)))


# -- which images --


def test_the_first_annotation_of_an_image_counts_in_the_order_train_test_val(tmp_path):
    write_ap10k(tmp_path, usual=2)
    first = {"id": 1, "image_id": 999_999, "category_id": 8, "bbox": [1, 1, 9, 9], "keypoints": [3, 4, 2] * 17}
    image = {"id": 999_999, "file_name": "000000999999.jpg", "width": 60, "height": 40}
    for part, category in (("val", 9), ("test", 8)):  # the test file is read before val
        edit_coco(tmp_path, part, lambda c, k=category: c["annotations"].append({**first, "category_id": k}))
        edit_coco(tmp_path, part, lambda c: c["images"].append(image))

    read = {a.id: a for a in read_animals([tmp_path / file for file in ANNOTATIONS])}

    assert read[999_999].species == "dog"  # 8; fox is 9


def set_keypoint(content: dict, number: int, values: list) -> None:
    content["annotations"][0]["keypoints"][3 * number : 3 * number + 3] = values


MALFORMED = {
    "`images` is None": lambda c: c.update(images=None),
    "`categories` is 7": lambda c: c.update(categories=7),
    "`annotations` is None": lambda c: c.update(annotations=None),
    r"images: field `id` is \[1\]": lambda c: c["images"][0].update(id=[1]),
    r"images: no field `id`": lambda c: c["images"].insert(0, None),
    r"categories: field `id` is \{\}": lambda c: c["categories"][0].update(id={}),
    r"annotations: field `image_id` is \[1\]": lambda c: c["annotations"][0].update(image_id=[1]),
    r"annotations: field `category_id` is None": lambda c: c["annotations"][0].update(category_id=None),
    "`keypoints` is 'abc'": lambda c: c["annotations"][0].update(keypoints="abc"),
    "`bbox` is '1234'": lambda c: c["annotations"][0].update(bbox="1234"),
    r"`bbox` \[1, None": lambda c: c["annotations"][0].update(bbox=[1, None, 2, 3]),
    r"`bbox` \[nan, 2": lambda c: c["annotations"][0].update(bbox=[float("nan"), 2, 3, 4]),
    r"`bbox` \[1e\+300, 2": lambda c: c["annotations"][0].update(bbox=[1e300, 2, 3, 4]),
    r"`bbox` \['1_0'": lambda c: c["annotations"][0].update(bbox=["1_0", 2, 2, 3]),
    r"keypoint 0 of image 3 is \['1', 2, 2\]": lambda c: set_keypoint(c, 0, ["1", 2, 2]),
    r"keypoint 4 of image 3 is \[5, 5, nan\]": lambda c: set_keypoint(c, 4, [5, 5, float("nan")]),
    r"keypoint 16 of image 3 is \[5, 5, 3\]; .* v 0, 1 or 2": lambda c: set_keypoint(c, 16, [5, 5, 3]),
    r"keypoint 1 of image 3 is \[nan, 5, 2\]": lambda c: set_keypoint(c, 1, [float("nan"), 5, 2]),
    "image 3 are not x, y, v of each of the 17": lambda c: c["annotations"][0].update(keypoints=[5, 5, 2] * 15),
    "images: two have the id 3": lambda c: c["images"].append({**c["images"][0], "file_name": "other.jpg"}),
    "categories: two have the id 1": lambda c: c["categories"].append({**c["categories"][0], "name": "other"}),
    "images 3 and 6 both name '000000000003.jpg'": lambda c: c["images"][1].update(
        file_name=c["images"][0]["file_name"]
    ),
    "image_id -4 of annotation 5003 is not": lambda c: c["annotations"][0].update(image_id=-4),
    "category_id 99 of annotation 5003 is not": lambda c: c["annotations"][0].update(category_id=99),
    "image 3 is 0 x 40 pixels": lambda c: c["images"][0].update(width=0),
    r"`keypoints` of 'antelope' are \['right_back_paw'": lambda c: c["categories"][0]["keypoints"].reverse(),
    "field `width` is '\uff14\uff10'": lambda c: [entry.update(width="\uff14\uff10") for entry in c["images"]],
    "field `name` names 7, which is not text": lambda c: [entry.update(name=7) for entry in c["categories"]],
    r"field `supercategory` names \[\], which": lambda c: [entry.update(supercategory=[]) for entry in c["categories"]],
    "field `file_name` names None": lambda c: [entry.update(file_name=None) for entry in c["images"]],
    "field `width` is 'w'": lambda c: [entry.update(width="w") for entry in c["images"]],
}


@pytest.mark.parametrize(("message", "spoil"), MALFORMED.items(), ids=list(MALFORMED))
def test_a_malformed_file_is_named_with_its_field(tmp_path, message, spoil):
    edit_coco(write_ap10k(tmp_path, usual=2), "train", spoil)

    with pytest.raises(UserError, match=rf"ap10k-train-split1\.json.*{message}"):
        write_pairs(tmp_path)


def test_every_image_is_read_once_although_some_have_two_animals(animals):
    assert len({a.id for a in animals}) == len(animals)
    assert Counter(a.species for a in animals)["dog"] == 159 + 2


def test_images_listed_as_multi_instance_and_those_with_two_keypoints_are_dropped(animals):
    kept = keep_single_animals(animals)

    assert not {a.id for a in kept} & set(CROWD)
    assert {a.id for a in animals} & set(CROWD)
    assert min(sum(p is not None for p in a.keypoints) for a in kept) >= 3
    assert Counter(a.species for a in kept)["dog"] == 159


def test_visibility_is_no_factor_of_the_coordinates(tmp_path):
    write_ap10k(tmp_path, usual=2)
    edit_coco(tmp_path, "train", lambda c: c["annotations"][0].update(keypoints=[30, 20, 1] + [0] * 48))
    key = json.loads((tmp_path / ANNOTATIONS[0]).read_text())["annotations"][0]["image_id"]

    (one,) = [a for a in read_animals([tmp_path / ANNOTATIONS[0]]) if a.id == key]

    assert one.keypoints[0] == (30, 20)  # times v / 2, as published, it would be (15, 10)
    assert one.bits == 1


def test_the_box_is_given_as_corner_and_size(animals):
    assert animals[0].box == (5, 6, 45, 36)


# -- the splits --


def test_the_last_30_images_of_a_species_test_and_the_20_before_validate(animals):
    splits = split_images(keep_single_animals(animals))
    ids = {split: sorted(a.id for a in splits[split]["dog"]) for split in splits}

    assert {split: len(ids[split]) for split in ids} == {"train": 159 - 50, "val": 20, "test": 30}
    assert ids["train"][-1] < ids["val"][0] < ids["val"][-1] < ids["test"][0]


def test_small_species_have_no_training_images_and_the_smallest_none_to_validate(animals):
    splits = split_images(keep_single_animals(animals))

    assert set(species()) - set(splits["test"]) == set(NO_IMAGES)
    assert set(splits["test"]) - set(splits["train"]) == {"king cheetah", "argali sheep", "black bear"}
    assert set(splits["test"]) - set(splits["val"]) == {"king cheetah"}
    assert len(splits["val"]["argali sheep"]) == COUNTS["argali sheep"] - 30
    assert len(splits["test"]["king cheetah"]) == COUNTS["king cheetah"]


@pytest.mark.slow
def test_no_image_is_in_two_splits(pairs):
    used = {split: {i for a, b, _ in split_pairs for i in (a, b)} for split, split_pairs in pairs.items()}
    assert not used["train"] & used["val"]
    assert not used["train"] & used["test"]
    for one in ("val", "val_cross_species", "val_cross_family"):
        assert not used[one] & used["train"]
        for other in ("test", "test_cross_species", "test_cross_family"):
            assert not used[one] & used[other]
            assert not used[other] & used["train"]


# -- the pairs --


def test_every_pair_shares_three_keypoints_and_comes_once_in_one_direction(pairs, by_id):
    for split_pairs in pairs.values():
        assert min(mutual(by_id[a], by_id[b]) for a, b, _ in split_pairs) >= 3
        assert len({frozenset((a, b)) for a, b, _ in split_pairs}) == len(split_pairs)


def test_labels_say_what_the_two_images_have_in_common(pairs, by_id):
    for split in ("train", "val", "test"):
        assert all(by_id[a].species == by_id[b].species == label for a, b, label in pairs[split])
    for split in ("val_cross_species", "test_cross_species"):
        assert all(by_id[a].family == by_id[b].family == label for a, b, label in pairs[split])
        assert all(by_id[a].species != by_id[b].species for a, b, _ in pairs[split])
    for split in ("val_cross_family", "test_cross_family"):
        assert all(by_id[a].family != by_id[b].family and label == "all" for a, b, label in pairs[split])


def test_all_admissible_pairs_test_and_training_pairs_are_capped_at_50_per_image(animals, pairs):
    splits = split_images(keep_single_animals(animals))
    for split in ("train", "val", "test"):
        found = Counter(label for _, _, label in pairs[split])
        for name, images in splits[split].items():
            admissible = sum(mutual(a, b) >= 3 for a, b in combinations(images, 2))
            assert found[name] == (min(admissible, 50 * len(images)) if split == "train" else admissible)
    assert Counter(label for _, _, label in pairs["train"])["dog"] == 50 * 109  # the cap at work


@pytest.mark.parametrize(("split", "most"), [("test", 900), ("val", 400)])
def test_cross_species_pairs_are_900_and_400_per_family(animals, pairs, split, most):
    families = defaultdict(dict)
    for name, images in split_images(keep_single_animals(animals))[split].items():
        families[images[0].family][name] = images
    found = Counter(label for _, _, label in pairs[f"{split}_cross_species"])
    for family, members in families.items():
        admissible = sum(
            mutual(a, b) >= 3 for one, other in combinations(members.values(), 2) for a in one for b in other
        )
        assert found[family] == min(admissible, most)
    assert found["Felidae"] == most
    assert "Castoridae" not in found  # one species
    assert len(found) == 11


@pytest.mark.parametrize(("split", "each"), [("test", 30), ("val", 20)])
def test_cross_family_pairs_are_30_and_20_for_each_of_210_family_pairs(pairs, by_id, split, each):
    found = Counter(frozenset((by_id[a].family, by_id[b].family)) for a, b, _ in pairs[f"{split}_cross_family"])
    assert len(found) == 210
    assert set(found.values()) == {each}


def test_either_image_may_be_the_source(pairs):
    forward = sum(a < b for a, b, _ in pairs["test_cross_family"]) / len(pairs["test_cross_family"])
    assert 0.45 < forward < 0.55


# -- the same everywhere --

HASH = """
import sys
from pathlib import Path
from semcorr.data.ap10k_pairs import ANNOTATIONS, build_manifest, build_pairs, read_animals
print(build_manifest(build_pairs(read_animals([Path(sys.argv[1]) / file for file in ANNOTATIONS])))["sha256"])
"""


def shuffled_listing(monkeypatch, seed: int) -> None:
    scandir, listdir = os.scandir, os.listdir

    class Scan(list):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def close(self):
            pass

    def mixed(entries):
        return Scan(random.Random(seed).sample(entries, len(entries)))

    monkeypatch.setattr(os, "scandir", lambda *a: mixed(list(scandir(*a))))
    monkeypatch.setattr(os, "listdir", lambda *a: mixed(list(listdir(*a))))


def test_the_manifest_is_the_same_in_any_directory_order(tmp_path, monkeypatch):
    hashes = set()
    for order in (0, 1):
        root = write_ap10k(tmp_path / str(order), usual=4, order=order)
        with monkeypatch.context() as patch:
            shuffled_listing(patch, order)
            write_pairs(root)
        hashes.add((root / "pairs" / "manifest.json").read_text())
    assert len(hashes) == 1


@pytest.mark.slow
def test_the_manifest_is_the_same_in_two_processes_with_other_hash_seeds(tmp_path):
    root = write_ap10k(tmp_path, usual=8)
    ours = build_manifest(build_pairs(read_animals([root / file for file in ANNOTATIONS])))["sha256"]
    for seed in ("1", "2"):
        done = subprocess.run([sys.executable, "-c", HASH, str(root)], env=os.environ | {"PYTHONHASHSEED": seed},
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert done.stdout.strip() == ours


def test_the_manifest_of_these_made_up_animals_never_changes(pairs):
    """A change of the construction changes everybody's benchmark: it must be meant."""
    assert build_manifest(pairs)["sha256"] == "c03808d1c346cbf672b61e82e45954a615b46ba75dd141daefac8e667ff1d8aa"


def test_the_manifest_says_when_one_pair_is_another(pairs):
    other = {**pairs, "test": [(b, a, label) for a, b, label in pairs["test"][:1]] + pairs["test"][1:]}
    assert build_manifest(other)["sha256"] != build_manifest(pairs)["sha256"]
    assert build_manifest(other)["lists"]["train"] == build_manifest(pairs)["lists"]["train"]


# -- reading --


def test_the_built_tree_reads_in_all_seven_splits(tmp_path):
    root = write_ap10k(tmp_path, usual=4, pictures=True)
    write_pairs(root)
    counts = json.loads((root / "pairs" / "manifest.json").read_text())["pairs"]

    data = AP10K(root=str(root), size=32)

    for split in counts:
        assert len(data.records(split)) == counts[split]
    pair = data.pairs("test_cross_species")[0]
    assert pair.extent == 40
    assert pair.groups == ((5, 8), (6, 9, 12, 15), (7, 10, 13, 16), (11, 14))
    assert pair.flip[:2] == (1, 0)
    assert pair.source.path == root / "data" / f"{int(pair.source.name.rpartition('/')[2]):012d}.jpg"


def test_the_held_out_species_are_those_of_the_test_that_no_training_image_shows(pairs):
    assert {label for *_, label in pairs["test"]} - {label for *_, label in pairs["train"]} == {*HELD_OUT}


def test_the_held_out_pairs_are_those_of_the_test(tmp_path):
    root = write_ap10k(tmp_path, usual=4, pictures=True)
    write_pairs(root)
    data = AP10K(root=str(root), size=32)

    held_out = data.pairs("test_held_out")

    assert {pair.category for pair in held_out} == {*HELD_OUT}
    assert [pair.name for pair in held_out] == [pair.name for pair in data.pairs("test") if pair.category in HELD_OUT]


def test_a_list_without_those_species_is_reported(tmp_path):
    with pytest.raises(UserError, match="has no pair of argali sheep, black bear, king cheetah"):
        AP10K(root=str(write_released(tmp_path)), size=32).pairs("test_held_out")


def test_without_its_pair_lists_the_official_tree_says_what_makes_them(tmp_path):
    write_ap10k(tmp_path, usual=2)
    with pytest.raises(UserError, match=r"python -m semcorr\.prepare ap10k"):
        AP10K(root=str(tmp_path), size=32).pairs("test")


def test_the_released_tree_reads_in_the_same_order_on_every_file_system(tmp_path, monkeypatch):
    names = []
    for order in (0, 1):
        root = write_released(tmp_path / str(order), order)
        with monkeypatch.context() as patch:
            shuffled_listing(patch, order)
            names.append([pair.name for pair in AP10K(root=str(root), size=32).pairs("test")])
    assert names == [["7-101:zebra", "101-7:zebra"]] * 2


def test_the_released_tree_is_read_under_a_folder_called_json(tmp_path):
    root = write_released(tmp_path)
    (root / "ImageAnnotation/Equidae/zebra/._000000000007.json").touch()  # as macOS leaves them
    data = AP10K(root=str(root), size=32)

    pair = data.pairs("test_cross_species")[0]
    assert (pair.source.name, pair.target.name) == ("Equidae/zebra/000000000007", "Equidae/horse/000000000030")
    assert pair.category == "Equidae"
    assert pair.source.visible.all()
    assert [len(data.pairs(split)) for split in ("train", "val", "test_cross_family")] == [1, 1, 1]
    assert data.pairs("test_cross_family")[0].category == "all"


def test_a_pair_of_the_released_tree_that_lost_its_name_is_not_left_out(tmp_path):
    root = write_released(tmp_path)
    pair = root / "PairAnnotation/test/7-101:zebra.json"
    pair.rename(pair.with_name("7-101_zebra.json"))  # as systems unpack it that allow no colon

    with pytest.raises(UserError, match=r"7-101_zebra\.json is not called <id>-<id>:<category>\.json, as 1 of 2 files"):
        AP10K(root=str(root), size=32).pairs("test")


def test_an_annotation_of_the_released_tree_is_of_the_image_of_its_name(tmp_path):
    root = write_released(tmp_path)
    path = root / "ImageAnnotation/Equidae/zebra/000000000007.json"
    path.write_bytes((path.parent / "000000000101.json").read_bytes())

    with pytest.raises(UserError, match=r"000000000007\.json: `id` is 101, and the file's name says 7"):
        AP10K(root=str(root), size=32).pairs("test")


def test_a_box_without_area_is_refused_with_its_file(tmp_path):
    root = write_ap10k(tmp_path, usual=2, pictures=True)
    edit_coco(root, "train", lambda c: [entry.update(bbox=[5, 6, 0, 0]) for entry in c["annotations"]])
    write_pairs(root)

    with pytest.raises(UserError, match=r"ap10k-train-split1\.json: box \[5\.0, 6\.0, 5\.0, 6\.0\] of "):
        AP10K(root=str(root), size=32).pairs("test")


def test_both_trees_give_an_image_the_same_name_and_numbers(tmp_path):
    released = AP10K(root=str(write_released(tmp_path)), size=32).pairs("test")[0].source
    annotation = json.loads((released.path.parents[3] / "ImageAnnotation" / f"{released.name}.json").read_text())

    expected = torch.tensor(annotation["keypoints"]).reshape(17, 3)[:, :2].float()
    torch.testing.assert_close(released.keypoints, expected)


def test_a_list_that_names_an_unknown_image_is_refused(tmp_path):
    root = write_ap10k(tmp_path, usual=2, pictures=True)
    (root / "pairs").mkdir()
    for line, words in (("12-bad dog", "is not <id>-<id>:<category>"), ("888-889:dog", "names image 888")):
        (root / "pairs" / "test.txt").write_text(f"{line}\n")
        with pytest.raises(UserError, match=words):
            AP10K(root=str(root), size=32).pairs("test")
