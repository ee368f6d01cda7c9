"""Every damaged benchmark ends in a sentence that names the file or the pair, the field and a remedy."""

import json
import logging
import math
import threading
from pathlib import Path

import pytest
from tiny_benchmarks import edit, write_coco, write_spair, write_willow

from semcorr.core.errors import UserError
from semcorr.data.coco_keypoints import COCOKeypoints
from semcorr.data.dataset import ImageDataset, PairDataset
from semcorr.data.image_variants import list_variants, unique_images
from semcorr.data.proposal_flow import PFWillow
from semcorr.data.spair import CLASSES, SPair
from semcorr.metrics.breakdown import LABELS

IMAGE, OTHER = "ImageAnnotation/cat/one.json", "ImageAnnotation/cat/two.json"
PAIR, LAYOUT = "PairAnnotation/test/000001-one-two:cat.json", "Layout/large/test.txt"


def put(**fields: object):
    """Set fields of an entry."""
    return lambda entry: entry.update(fields)


def drop(field: str):
    return lambda entry: entry.pop(field)


def nothing_shared(root: Path) -> None:
    for path, ids in ((IMAGE, (5,)), (OTHER, (6,))):
        edit(root / path, put(kps={str(i): [3, 4] if i in ids else None for i in range(30)}))
    edit(root / PAIR, put(kps_ids=[], src_kps=[], trg_kps=[]))
    (root / LAYOUT).write_text("000001-one-two:cat\n")


SPAIR = {  # what is done to the tree: what the message must say
    "no image": (lambda root: (root / "JPEGImages/cat/one.jpg").unlink(), ["one.jpg", "does not exist", "Restore"]),
    "no layout": (lambda root: (root / LAYOUT).unlink(), [LAYOUT, "Unpack it again"]),
    "bad layout line": (lambda root: (root / LAYOUT).write_text("one-two\n"), [LAYOUT, "'one-two'", "Restore"]),
    "absent annotation": (lambda root: (root / OTHER).unlink(), [OTHER, "does not exist", "drop"]),
    "absent pair file": (lambda root: (root / PAIR).unlink(), [PAIR, "does not exist", "drop"]),
    "bad JSON": (lambda root: (root / IMAGE).write_text('{"kps": '), [IMAGE, "not valid JSON", "Unpack"]),
    "no keypoints": (lambda root: edit(root / IMAGE, drop("kps")), [IMAGE, "`kps`", "Restore"]),
    "no width": (lambda root: edit(root / IMAGE, drop("image_width")), [IMAGE, "`image_width`", "Restore"]),
    "no box": (lambda root: edit(root / IMAGE, drop("bndbox")), [IMAGE, "`bndbox`", "Restore"]),
    "no pair box": (lambda root: edit(root / PAIR, drop("trg_bndbox")), [PAIR, "`trg_bndbox`", "Restore"]),
    "no ids": (lambda root: edit(root / PAIR, drop("kps_ids")), [PAIR, "`kps_ids`", "Restore"]),
    "too few slots": (lambda root: edit(root / IMAGE, put(kps={"0": None})), [IMAGE, "`kps`", "30 ids", "got 1"]),
    "a slot amiss": (
        lambda root: edit(root / IMAGE, lambda e: e["kps"].update({"x": e["kps"].pop("7")})),
        [IMAGE, "`7`", "Restore"],
    ),
    "other ids": (lambda root: edit(root / PAIR, put(kps_ids=["0", "3"])), [PAIR, "`kps_ids`", "[0, 3]", "[0, 2]"]),
    "too few points": (
        lambda root: edit(root / PAIR, put(src_kps=[[4, 5]])),
        [PAIR, "`src_kps`", "1 points for 2 ids", "Unpack"],
    ),
    "other points": (
        lambda root: edit(root / PAIR, put(trg_kps=[[8, 9], [12, 11]])),
        [PAIR, "`trg_kps`", "cat/two", "Unpack"],
    ),
    "another box": (
        lambda root: edit(root / PAIR, put(src_bndbox=[2, 3, 30, 21])),
        [PAIR, "`src_bndbox`", "cat/one", "Unpack"],
    ),
    "NaN": (
        lambda root: edit(root / IMAGE, lambda e: e["kps"].update({"2": [math.nan, 6]})),
        [IMAGE, "keypoint 2", "cat/one", "finite", "Correct"],
    ),
    "flat box": (
        lambda root: edit(root / IMAGE, put(bndbox=[2, 3, 2, 20])),
        [IMAGE, "box [2, 3, 2, 20]", "cat/one", "Correct"],
    ),
    "slots of no kind": (lambda root: edit(root / IMAGE, put(kps=None)), [IMAGE, "`kps`", "30 ids", "got None"]),
    "a class by its name": (
        lambda root: edit(root / PAIR, put(viewpoint_variation="hard")),
        [PAIR, "`viewpoint_variation`", "'hard'", "whole number", "Correct"],
    ),
    "no such class": (lambda root: edit(root / PAIR, put(truncation=7)), [PAIR, "`truncation` is 7", "0 to 3", "null"]),
    "a class below 0": (lambda root: edit(root / PAIR, put(occlusion=-1)), [PAIR, "`occlusion` is -1", "0 to 3"]),
    "a domain that is no text": (
        lambda root: edit(root / PAIR, put(trg_domain=["photo"])),
        [PAIR, "`trg_domain`", "['photo']", "text", "Correct"],
    ),
    "ids of no kind": (lambda root: edit(root / PAIR, put(kps_ids=None)), [PAIR, "`kps_ids` is None", "list"]),
    "an id that is no number": (
        lambda root: edit(root / PAIR, put(kps_ids=["0", "x"])),
        [PAIR, "entry 1 of field `kps_ids` is 'x'", "whole number", "Correct"],
    ),
    "points of no kind": (lambda root: edit(root / PAIR, put(src_kps=None)), [PAIR, "`src_kps` is None", "list"]),
    "points that are numbers": (
        lambda root: edit(root / PAIR, put(trg_kps=[8, None])),
        [PAIR, "`trg_kps` differs", "cat/two", "Unpack"],
    ),
    "points of one number": (
        lambda root: edit(root / PAIR, put(src_kps=[[4], [10, "6"]])),
        [PAIR, "`src_kps` differs", "cat/one", "Unpack"],
    ),
    "a pair box of no kind": (lambda root: edit(root / PAIR, put(trg_bndbox=None)), [PAIR, "`trg_bndbox`", "list"]),
    "a pair box of no numbers": (
        lambda root: edit(root / PAIR, put(src_bndbox=[2, 3, None, "x"])),
        [PAIR, "`src_bndbox` differs", "cat/one", "Unpack"],
    ),
    "nothing shared": (nothing_shared, ["000001-one-two:cat", "one.jpg", "two.jpg", "Drop it"]),
    "empty layout": (lambda root: (root / LAYOUT).write_text("\n"), ["spair test", "no pair", "Check its pair list"]),
}


def first_annotation(root: Path, **fields: object) -> None:
    edit(root / "keypoints.json", lambda content: content["annotations"][0].update(fields))


COCO = {
    "no file": (lambda root: (root / "keypoints.json").unlink(), ["keypoints.json", "does not exist"]),
    "no image": (lambda root: (root / "images/03.jpg").unlink(), ["03.jpg", "does not exist", "Restore"]),
    "no list": (
        lambda root: edit(root / "keypoints.json", drop("images")),
        ["keypoints.json", "`images`", "Give a COCO"],
    ),
    "unknown image": (lambda root: first_annotation(root, image_id=7), ["keypoints.json", "image_id 7", "Drop"]),
    "unknown category": (lambda root: first_annotation(root, category_id=9), ["category_id 9", "Drop"]),
    "short keypoints": (
        lambda root: first_annotation(root, keypoints=[1, 2, 2]),
        ["keypoints.json, annotations[0]", "3 numbers in `keypoints`", "which are 9", "Correct"],
    ),
    "NaN": (
        lambda root: first_annotation(root, keypoints=[1, math.nan, 2, 1, 2, 2, 1, 2, 0]),
        ["keypoints.json, annotations[0]", '"left_paw" is [1, NaN, 2]', "finite", "Correct"],
    ),
    "a box backwards": (
        lambda root: first_annotation(root, bbox=[2, 3, -4, 5]),
        ["annotations[0]", "00.jpg", "[2, 3, -4, 5]", "below 0", "data.box"],
    ),
    "short box": (lambda root: first_annotation(root, bbox=[2, 3, 5]), ["keypoints.json", "[2, 3, 5]", "Correct"]),
}


def change_row(root: Path, old: str, new: str) -> None:
    path = root / "test_pairs.csv"
    path.write_text(path.read_text().replace(old, new, 1))


WILLOW = {
    "no list": (lambda root: (root / "test_pairs.csv").unlink(), ["test_pairs.csv", "Put the benchmark's pair list"]),
    "no image": (
        lambda root: (root / "PF-dataset/duck(S)/c.png").unlink(),
        ["duck(S)/c.png", "does not exist", "Restore"],
    ),
    "a column more": (lambda root: change_row(root, "duck(S)/a.png", "duck(S)/a.png,1"), ["line 3", "43 columns"]),
    "no number": (lambda root: change_row(root, "a.png,2.0", "a.png,x"), ["test_pairs.csv, line 3", "'x'", "Restore"]),
    "NaN": (lambda root: change_row(root, "a.png,2.0", "a.png,nan"), ["test_pairs.csv, line 3", "finite", "Restore"]),
}


def names_parts(error: pytest.ExceptionInfo, parts: list[str]) -> bool:
    return all(part in str(error.value) for part in parts)


@pytest.mark.parametrize("case", SPAIR)
def test_a_damaged_spair_tree_is_refused(tmp_path, case):
    damage, parts = SPAIR[case]
    damage(write_spair(tmp_path))

    with pytest.raises(UserError) as error:
        SPair(root=str(tmp_path), size=32).pairs("test")

    assert names_parts(error, parts), error.value


def test_the_reader_takes_the_classes_that_are_scored(tmp_path):
    assert {key: len(names) for key, names in LABELS.items() if key != "azimuth_difference"} == CLASSES
    edit(write_spair(tmp_path) / PAIR, put(viewpoint_variation="2", scale_variation=1.0, truncation=3, occlusion=None))

    details = SPair(root=str(tmp_path), size=32).pairs("test")[0].details

    assert [details[key] for key in CLASSES] == [2, 1, 3, None]


def test_a_refused_tree_leaves_no_progress_bar_running(tmp_path):
    """A bar that outlives its error holds a lock that the next bar may wait for."""
    (write_spair(tmp_path) / PAIR).unlink()
    before = set(threading.enumerate())

    with pytest.raises(UserError) as error:
        SPair(root=str(tmp_path), size=32).pairs("test")

    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=1)
        assert not thread.is_alive(), f"{thread} after {error.value}"  # `error` keeps the frames that hold it


@pytest.mark.parametrize("case", COCO)
def test_a_damaged_coco_file_is_refused(tmp_path, case):
    damage, parts = COCO[case]
    damage(write_coco(tmp_path))

    with pytest.raises(UserError) as error:
        COCOKeypoints(root=str(tmp_path), size=32, val=0, test=0).pairs("train")

    assert names_parts(error, parts), error.value


@pytest.mark.parametrize("case", WILLOW)
def test_a_damaged_willow_list_is_refused(tmp_path, case):
    damage, parts = WILLOW[case]
    damage(write_willow(tmp_path))

    with pytest.raises(UserError) as error:
        PFWillow(root=str(tmp_path), size=32).pairs("test")

    assert names_parts(error, parts), error.value


@pytest.mark.parametrize("has_header", [True, False])
def test_the_first_row_of_willows_list_is_a_pair_unless_it_is_a_header(tmp_path, has_header):
    path = write_willow(tmp_path) / "test_pairs.csv"
    path.write_text(path.read_text() if has_header else path.read_text().split("\n", 1)[1])

    assert [pair.category for pair in PFWillow(root=str(tmp_path), size=32).pairs("test")] == ["car(G)", "duck(S)"]


@pytest.mark.parametrize("benchmark", [SPair, PFWillow, COCOKeypoints])
def test_a_missing_benchmark_points_to_the_synthetic_one(tmp_path, benchmark):
    with pytest.raises(UserError) as error:
        benchmark(root=str(tmp_path / "nowhere"), size=32).pairs("test")

    assert names_parts(error, ["nowhere", "data.root=DIR", "data=synthetic"])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (cut, ["one.jpg", "damaged", "Replace the file"]),
        (lambda path: path.write_text("not an image"), ["one.jpg", "damaged", "Replace the file"]),
        (lambda path: path.write_bytes(b""), ["one.jpg", "damaged", "Replace the file"]),
        (Path.unlink, ["one.jpg", "does not exist", "Restore"]),
    ],
)
def test_an_image_that_cannot_be_decoded_is_named(tmp_path, damage, parts):
    pairs = SPair(root=str(write_spair(tmp_path)), size=32).pairs("test")
    damage(tmp_path / "JPEGImages/cat/one.jpg")

    for dataset in (PairDataset(pairs, 32, "squash"), ImageDataset(list_variants(unique_images(pairs)), 32, "squash")):
        with pytest.raises(UserError) as error:
            dataset[0]
        assert names_parts(error, parts), error.value


def test_a_cut_png_is_named_where_its_size_is_read(tmp_path):
    (write_willow(tmp_path) / "PF-dataset/duck(S)/c.png").write_bytes(b"\x89PNG")

    with pytest.raises(UserError) as error:
        PFWillow(root=str(tmp_path), size=32).pairs("test")

    assert names_parts(error, ["c.png", "is damaged or not an image", "Replace the file"])


def test_an_image_of_another_size_than_annotated_is_refused(tmp_path):
    edit(write_spair(tmp_path) / IMAGE, put(image_width=41))
    pairs = SPair(root=str(tmp_path), size=32).pairs("test")

    with pytest.raises(UserError) as error:
        PairDataset(pairs, 32, "squash")[0]

    assert names_parts(error, ["one.jpg", "40 x 30", "41 x 30", "Restore"])


def test_keypoints_outside_their_image_are_kept_and_reported(tmp_path, caplog):
    write_spair(tmp_path)
    edit(tmp_path / IMAGE, lambda entry: entry["kps"].update({"0": [-7, 50], "9": [40, 3]}))
    edit(tmp_path / PAIR, put(src_kps=[[-7, 50], [10, 6]]))

    with caplog.at_level(logging.WARNING):
        pair, _ = SPair(root=str(tmp_path), size=32).pairs("test")

    assert "spair test: 2 keypoints lie outside their image (cat/one); they are kept as annotated" in caplog.text
    assert pair.source.keypoints[0].tolist() == [-7, 50]
    assert pair.source.visible[[0, 9]].tolist() == [True, True]


def test_json_that_is_a_list_is_refused(tmp_path):
    (write_spair(tmp_path) / IMAGE).write_text(json.dumps([1, 2]))

    with pytest.raises(UserError) as error:
        SPair(root=str(tmp_path), size=32).pairs("test")

    assert names_parts(error, [IMAGE, "holds a list", "must hold a JSON object", "Unpack"])
