"""SOCO in its official layout, and what it does that others do not."""

import pytest
from tiny_benchmarks import dump, edit, picture

from semcorr.core.errors import UserError
from semcorr.data.soco import SOCO


def point(name: str, key: int, position: list, concept: int = 10) -> dict:
    return {
        "id": key,
        "name": name,
        "pos": position,
        "concept_id": concept,
        "concept_name": "wheel",
        "kind": "structural",
    }


CAR = [point("front_wheel", 1, [2, 6]), point("rear_wheel", 2, [8, 6]), point("roof", 3, [5.5, 1], 11)]
OTHER = [point("rear_wheel", 2, [9, 6]), point("front_wheel", 1, [3, 6]), point("mirror", 4, [6, 3], 12)]


def pair(**changes) -> dict:
    return {
        "pair_id": 1, "pair_group": "car", "src_category": "car", "trg_category": "car",
        "src_image": "car_1.JPEG", "trg_image": "car_2.JPEG", "src_imsize": [40, 30], "trg_imsize": [24, 36],
        "src_bndbox": [1, 1, 39, 28], "trg_bndbox": [2, 1, 22, 35], "src_keypoints": CAR, "trg_keypoints": OTHER,
        "semantic_overlap": ["front_wheel", "rear_wheel"],
        "concept_matches": [{"concept_name": "wheel", "src_keypoints": ["front_wheel", "rear_wheel"],
                             "trg_keypoints": ["front_wheel", "rear_wheel"]}],
    } | changes  # fmt: skip


def write_soco(root):
    """Two cars, and a bus that is paired with one of them across categories."""
    for name, size in (("car/car_1", (40, 30)), ("car/car_2", (24, 36)), ("bus/bus_1", (40, 30))):
        picture(root / "Images" / f"{name}.JPEG", size)
    for folder in ("intra", "trainsplits/test"):
        dump(root / "PairAnnotations" / folder / "car" / "00001.json", pair())
    for number in range(1, 21):
        dump(root / f"PairAnnotations/trainsplits/train/car/{number:05d}.json", pair(pair_id=number))
    across = pair(pair_group="vehicle", src_category="bus", src_image="bus_1.JPEG")
    dump(root / "PairAnnotations/cross/vehicle/00001.json", across)
    return root


def soco(root, **options) -> SOCO:
    return SOCO(root=str(root), size=32, workers=0, **options)


def test_points_are_joined_by_their_names_whatever_their_order(tmp_path):
    (found,) = soco(write_soco(tmp_path)).pairs("test")

    assert (found.name, found.category, found.extent) == ("car/00001", "car", 34)
    assert (found.source.name, found.target.size) == ("car/car_1", (24, 36))
    names = ["front_wheel", "mirror", "rear_wheel", "roof"]  # sorted, of all pairs of the group
    rows = (found.source.visible & found.target.visible).nonzero().flatten().tolist()
    assert [names[row] for row in rows] == ["front_wheel", "rear_wheel"]
    assert found.source.keypoints[rows].tolist() == [[2, 6], [8, 6]]
    assert found.target.keypoints[rows].tolist() == [[3, 6], [9, 6]]


def test_points_of_one_concept_are_the_group_that_may_be_confused(tmp_path):
    (found,) = soco(write_soco(tmp_path)).pairs("intra")
    assert found.groups == ((0, 2),)


def test_a_keypoint_that_is_held_out_has_one_row_in_training_and_test(tmp_path):
    root = write_soco(tmp_path)
    more = point("antenna", 9, [7, 7], 13)
    edit(root / "PairAnnotations/trainsplits/train/car/00007.json", lambda entry: entry["src_keypoints"].append(more))

    data = soco(root, heldout_keypoints=[3])

    rows = {"train": [1], "val": [1], "test": [1, 3]}  # of antenna, front_wheel, mirror, rear_wheel, roof
    for split, expected in rows.items():
        pair = data.pairs(split)[0]
        assert (pair.source.visible & pair.target.visible).nonzero().flatten().tolist() == expected
        assert pair.groups == ((1, 3),)


def test_held_out_rows_of_all_pairs_are_those_of_training_and_pairs_across_categories_have_none(tmp_path):
    root = write_soco(tmp_path)
    new = point("aerial", 9, [7, 7], 13)  # in none of the trained or tested pairs
    edit(root / "PairAnnotations/intra/car/00001.json", lambda entry: entry["src_keypoints"].append(new))
    data = soco(root, heldout_keypoints="half")

    (pair,), trained = data.pairs("intra"), data.pairs("test")[0]
    shared = [(each.source.visible & each.target.visible).nonzero().flatten().tolist() for each in (pair, trained)]
    assert shared[0] == shared[1]
    with pytest.raises(UserError, match=r"`data.heldout_keypoints`: the pairs of data.split=cross are of other groups"):
        data.pairs("cross")


def test_across_categories_images_are_of_their_own_and_the_group_is_what_scores_are_averaged_by(tmp_path):
    (found,) = soco(write_soco(tmp_path)).pairs("cross")
    assert (found.source.name, found.target.name, found.category) == ("bus/bus_1", "car/car_2", "vehicle")


def test_every_tenth_training_pair_validates_and_is_not_trained_on(tmp_path):
    data = soco(write_soco(tmp_path))
    names = {split: [pair.name for pair in data.pairs(split)] for split in ("train", "val")}
    assert names["val"] == ["car/00001", "car/00011"]
    assert len(names["train"]) == 18
    assert not set(names["train"]) & set(names["val"])


def test_a_point_of_both_images_that_is_no_semantic_overlap_is_not_scored(tmp_path):
    root = write_soco(tmp_path)
    edit(root / "PairAnnotations/intra/car/00001.json", lambda entry: entry.update(semantic_overlap=["rear_wheel"]))
    (found,) = soco(root).pairs("intra")
    assert int((found.source.visible & found.target.visible).sum()) == 1
    assert int(found.target.visible.sum()) == 3  # it may still be confused with


@pytest.mark.parametrize("name", ["car/._00001.json", "__MACOSX/1.json", ".cache/1.json"])
def test_files_that_a_system_puts_beside_annotations_are_passed_over(tmp_path, name):
    root = write_soco(tmp_path)
    path = root / "PairAnnotations/intra" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\0\5\26\7")
    assert len(soco(root).pairs("intra")) == 1


def test_a_pair_of_a_picture_with_itself_is_scored_and_told(tmp_path, caplog):
    root = write_soco(tmp_path)
    same = {"trg_image": "car_1.JPEG", "trg_imsize": [40, 30], "trg_bndbox": [1, 1, 39, 28], "trg_keypoints": CAR}
    edit(root / "PairAnnotations/intra/car/00001.json", lambda entry: entry.update(same))
    assert len(soco(root).pairs("intra")) == 1
    assert "soco intra: 1 pairs are of a picture with itself (car/00001), where each point" in caplog.text


def test_a_group_that_is_not_said_is_the_folder(tmp_path):
    root = write_soco(tmp_path)
    edit(root / "PairAnnotations/intra/car/00001.json", lambda entry: entry.update(pair_group=None))
    assert soco(root).pairs("intra")[0].category == "car"


def test_pairs_without_a_common_point_are_left_out_and_counted(tmp_path, caplog):
    root = write_soco(tmp_path)
    dump(root / "PairAnnotations/intra/car/00002.json", pair(semantic_overlap=[]))
    assert len(soco(root).pairs("intra")) == 1
    assert "1 of 2 pairs share no point" in caplog.text


def test_without_a_box_the_image_is_the_extent(tmp_path):
    root = write_soco(tmp_path)
    edit(root / "PairAnnotations/intra/car/00001.json", lambda entry: entry.update(trg_bndbox=None))
    (found,) = soco(root).pairs("intra")
    assert found.extent == 36


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda entry: entry.update(semantic_overlap=["roof"]),
            r"`semantic_overlap` names 'roof', which is not in both",
        ),
        (lambda entry: entry["src_keypoints"].append(CAR[0]), "two of `src_keypoints` have one name"),
        (lambda entry: entry.update(src_imsize=40), r"`src_imsize` must be \[width, height\], got 40"),
        (lambda entry: entry.pop("trg_image"), "no field `trg_image`"),
        (lambda entry: entry.pop("trg_category"), "no field `trg_category`"),
        (lambda entry: entry.update(pair_group=["a"]), r"field `pair_group` is \['a'\]; it must be a text"),
        (lambda entry: entry.update(pair_group=" "), "field `pair_group` is ' '; it must be a text that is not blank"),
        (lambda entry: entry["src_keypoints"][1].update(name=5), r"src_keypoints\[1\]: field `name` is 5; it must be"),
        (lambda entry: entry["trg_keypoints"][0].update(name=None), r"trg_keypoints\[0\]: field `name` is None"),
        (lambda entry: entry["trg_keypoints"][2].pop("pos"), r"trg_keypoints\[2\]: no field `pos`"),
        (lambda entry: entry.update(semantic_overlap=[5]), "a name of `semantic_overlap` is 5; it must be a text"),
        (lambda entry: entry.update(trg_image="../x.JPEG"), "trg_image"),
        (lambda entry: entry.update(trg_image="car_9.JPEG"), r"car_9\.JPEG, which does not exist"),
    ],
)
def test_the_error_names_the_problem_in_a_pair(tmp_path, change, message):
    root = write_soco(tmp_path)
    edit(root / "PairAnnotations/intra/car/00001.json", change)
    with pytest.raises(UserError, match=message) as error:
        soco(root).pairs("intra")
    assert "00001.json" in str(error.value)


@pytest.mark.parametrize(("content", "kind"), [([1], "a list"), ("a", "a text"), (None, "null"), (7, "a number")])
def test_a_file_that_holds_no_object_says_what_it_holds(tmp_path, content, kind):
    root = write_soco(tmp_path)
    dump(root / "PairAnnotations/intra/car/00001.json", content)
    with pytest.raises(UserError, match=rf"00001\.json holds {kind}, and must hold a JSON object"):
        soco(root).pairs("intra")


def test_a_tree_that_is_not_whole_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"semcorr\.prepare soco"):
        soco(tmp_path / "nowhere").pairs("test")
    with pytest.raises(UserError, match=r"intra holds no <group>/\*\.json"):
        soco(tmp_path).pairs("intra")
