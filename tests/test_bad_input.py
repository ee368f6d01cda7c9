"""Every bad input ends in a sentence that names the file or the pair, the field and a remedy."""

import json
import logging
import math
import threading
from pathlib import Path

import pytest
import torch
from tiny_benchmarks import edit, write_coco, write_spair, write_willow
from torch import nn

from semcorr.backbones.timm_model import TimmModel
from semcorr.backbones.weights import fill, read_weights
from semcorr.data.coco_keypoints import COCOKeypoints
from semcorr.data.dataset import ImageDataset, PairDataset, unique_images
from semcorr.data.pf_willow import PFWillow
from semcorr.data.spair import SPair
from semcorr.errors import UserError
from semcorr.finetune.last_blocks import last_blocks

IMAGE, OTHER = "ImageAnnotation/cat/one.json", "ImageAnnotation/cat/two.json"
PAIR, LAYOUT = "PairAnnotation/test/000001-one-two:cat.json", "Layout/large/test.txt"
TINY = {"name": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}


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
    "nothing shared": (nothing_shared, ["000001-one-two:cat", "one.jpg", "two.jpg", "Drop it"]),
    "empty layout": (lambda root: (root / LAYOUT).write_text("\n"), ["spair test", "no pair", "Check its pair list"]),
}


def first_annotation(root: Path, **fields: object) -> None:
    edit(root / "keypoints.json", lambda content: content["annotations"][0].update(fields))


COCO = {
    "no file": (lambda root: (root / "keypoints.json").unlink(), ["keypoints.json", "does not exist"]),
    "no image": (lambda root: (root / "images/03.jpg").unlink(), ["03.jpg", "does not exist", "Restore"]),
    "no list": (lambda root: edit(root / "keypoints.json", drop("images")), ["keypoints.json", "`images`", "Restore"]),
    "unknown image": (lambda root: first_annotation(root, image_id=7), ["keypoints.json", "image_id 7", "Drop"]),
    "unknown category": (lambda root: first_annotation(root, category_id=9), ["category_id 9", "Drop"]),
    "short keypoints": (
        lambda root: first_annotation(root, keypoints=[1, 2, 2]),
        ["keypoints.json", "`keypoints` of image 100", "1 points, its category 3", "Correct"],
    ),
    "NaN": (
        lambda root: first_annotation(root, keypoints=[1, math.nan, 2, 1, 2, 2, 1, 2, 0]),
        ["keypoints.json", "keypoint 0 of 00", "finite", "Correct"],
    ),
    "flat box": (lambda root: first_annotation(root, bbox=[2, 3, 0, 5]), ["keypoints.json", "of 00", "Correct"]),
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


def said(error: pytest.ExceptionInfo, parts: list[str]) -> bool:
    return all(part in str(error.value) for part in parts)


@pytest.mark.parametrize("case", SPAIR)
def test_a_damaged_spair_tree_is_refused(tmp_path, case):
    damage, parts = SPAIR[case]
    damage(write_spair(tmp_path))

    with pytest.raises(UserError) as error:
        SPair(root=str(tmp_path), size=32).pairs("test")

    assert said(error, parts), error.value


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

    assert said(error, parts), error.value


@pytest.mark.parametrize("case", WILLOW)
def test_a_damaged_willow_list_is_refused(tmp_path, case):
    damage, parts = WILLOW[case]
    damage(write_willow(tmp_path))

    with pytest.raises(UserError) as error:
        PFWillow(root=str(tmp_path), size=32).pairs("test")

    assert said(error, parts), error.value


@pytest.mark.parametrize("benchmark", [SPair, PFWillow, COCOKeypoints])
def test_a_missing_benchmark_points_to_the_synthetic_one(tmp_path, benchmark):
    with pytest.raises(UserError) as error:
        benchmark(root=str(tmp_path / "nowhere"), size=32).pairs("test")

    assert said(error, ["nowhere", "data.root=DIR", "data=synthetic"])


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

    for dataset in (PairDataset(pairs, 32, "squash"), ImageDataset(unique_images(pairs), 32, "squash")):
        with pytest.raises(UserError) as error:
            dataset[0]
        assert said(error, parts), error.value


def test_a_cut_png_is_named_where_its_size_is_read(tmp_path):
    (write_willow(tmp_path) / "PF-dataset/duck(S)/c.png").write_bytes(b"\x89PNG")

    with pytest.raises(UserError) as error:
        PFWillow(root=str(tmp_path), size=32).pairs("test")

    assert said(error, ["c.png", "cannot be read as an image", "Replace the file"])


def test_an_image_of_another_size_than_annotated_is_refused(tmp_path):
    edit(write_spair(tmp_path) / IMAGE, put(image_width=41))
    pairs = SPair(root=str(tmp_path), size=32).pairs("test")

    with pytest.raises(UserError) as error:
        PairDataset(pairs, 32, "squash")[0]

    assert said(error, ["one.jpg", "40 x 30", "41 x 30", "Restore"])


def test_keypoints_outside_their_image_are_kept_and_reported(tmp_path, caplog):
    write_spair(tmp_path)
    edit(tmp_path / IMAGE, lambda entry: entry["kps"].update({"0": [-7, 50], "9": [40, 3]}))
    edit(tmp_path / PAIR, put(src_kps=[[-7, 50], [10, 6]]))

    with caplog.at_level(logging.WARNING):
        pair, _ = SPair(root=str(tmp_path), size=32).pairs("test")

    assert "spair test: 2 keypoints lie outside their image (cat/one); they are kept as annotated" in caplog.text
    assert pair.source.keypoints[0].tolist() == [-7, 50]
    assert pair.source.visible[[0, 9]].tolist() == [True, True]


SMALL = {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(3)}


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ({"0.weight": SMALL["0.weight"]}, ["1 missing: 0.bias"]),
        (SMALL | {"9.weight": torch.zeros(1)}, ["1 not known to this backbone: 9.weight"]),
        (SMALL | {"0.bias": torch.zeros(4)}, ["1 of another shape: 0.bias (4,) for (3,)"]),
        ({}, ["2 missing: 0.weight, 0.bias"]),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(weights, parts):
    module = nn.Sequential(nn.Linear(2, 3))
    before = module[0].weight.clone()

    with pytest.raises(UserError) as error:
        fill(module, weights, "some/file.pth")

    assert said(error, ["`backbone.weights`", "some/file.pth", "same model", *parts]), error.value
    assert torch.equal(module[0].weight, before)  # nothing was loaded


def test_a_classifier_in_the_weights_is_no_misfit():
    module = nn.Sequential(nn.Linear(2, 3))

    fill(module, SMALL | {"head.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, "file.pth")

    assert not module[0].weight.any()


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 a cut archive"])
def test_a_file_without_weights_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(UserError) as error:
        read_weights(tmp_path / name)

    assert said(error, ["`backbone.weights`", name, "safetensors", "Give one that is"]), error.value


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"epoch": 3}, nn.Linear(1, 1)])
def test_a_pickle_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")

    with pytest.raises(UserError) as error:
        fill(nn.Linear(1, 1), read_weights(tmp_path / "model.pth"), tmp_path / "model.pth")

    assert said(error, ["`backbone.weights`", "model.pth", "Give"]), error.value


def test_absent_weights_are_named(tmp_path):
    with pytest.raises(UserError) as error:
        TimmModel(size=64, weights=str(tmp_path / "absent.pth"), **TINY)

    assert said(error, ["`backbone.weights`", "absent.pth", "does not exist", "Give the path"])


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (
            lambda: last_blocks(TimmModel(size=64, pretrained=False, **TINY), 5),
            "`finetune.blocks` must be between 0 and 4, the depth of this backbone, got 5",
        ),
        (
            lambda: last_blocks(TimmModel(size=64, pretrained=False, **TINY), -1),
            "`finetune.blocks` must be between 0 and 4, the depth of this backbone, got -1",
        ),
        (
            lambda: TimmModel(size=64, pretrained=False, layers=[4], **TINY),
            "`backbone.layers` must be between -4 and 3 here, got [4]",
        ),
        (
            lambda: TimmModel(size=64, pretrained=False, layers=[], **TINY),
            "`backbone.layers` must be between -4 and 3 here, got []",
        ),
        (
            lambda: TimmModel(size=60, pretrained=False, **TINY),
            "`backbone.size` must be a multiple of 8 for vit_tiny_patch16_224, got 60",
        ),
        (lambda: SPair(root=".", size=32, split="trian"), "`spair` has no split 'trian'; it has train, val, test"),
        (lambda: PFWillow(root=".", size=32, split="val"), "`pf_willow` has no split 'val'; it has test"),
        (
            lambda: SPair(root=".", size=32, resize="stretch"),
            "`data.resize` must be one of squash, letterbox, got 'stretch'",
        ),
        (lambda: SPair(root=".", size=32, batch_size=0), "`data.batch_size` must be at least 1, got 0"),
        (lambda: COCOKeypoints(root=".", size=32, box="cxcywh"), "`data.box` must be one of xywh, xyxy, got 'cxcywh'"),
    ],
)
def test_an_option_out_of_range_is_told_its_range(attempt, message):
    with pytest.raises(UserError) as error:
        attempt()

    assert str(error.value) == message


def test_json_that_is_a_list_is_refused(tmp_path):
    (write_spair(tmp_path) / IMAGE).write_text(json.dumps([1, 2]))

    with pytest.raises(UserError) as error:
        SPair(root=str(tmp_path), size=32).pairs("test")

    assert said(error, [IMAGE, "`kps`", "Restore"])
