"""A damaged file of MP-100 or SOCO is read, or is one sentence that names it: never another error."""

import json
import random
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest
from random_damage import damage, refusal, spoil_tree
from test_mp100 import TEST, mp100, write_mp100
from test_soco import soco, write_soco

LIST = "pairs/pairs_furniture.json"
PAIR = "PairAnnotations/intra/car/00001.json"


def read_mp100(root: Path) -> None:
    mp100(root, subset="furniture").pairs("test")


def read_soco(root: Path) -> None:
    soco(root).pairs("intra")


def outcomes(path: Path, contents: Iterable[bytes], read: Callable[[], None]) -> tuple[int, int]:
    """How often a file of these contents is read, and how often refused."""
    messages = []
    for content in contents:
        path.write_bytes(content)
        messages.append(refusal(read))
    assert all(len(message) < 900 for message in messages)
    return messages.count(""), sum(map(bool, messages))


@pytest.mark.parametrize(
    ("write", "read", "file", "least"),
    [(write_mp100, read_mp100, TEST, 20), (write_mp100, read_mp100, LIST, 1), (write_soco, read_soco, PAIR, 20)],
)
def test_damaged_fields_and_bytes_are_read_or_refused(tmp_path, write, read, file, least):
    root, draw = write(tmp_path), random.Random(file)
    original = (root / file).read_bytes()
    fields = [json.dumps(spoil_tree(json.loads(original), draw)).encode() for _ in range(200)]

    are_read, refused = outcomes(root / file, fields, partial(read, root))
    assert are_read + refused == 200
    assert are_read >= least
    assert refused >= 100

    are_read, refused = outcomes(root / file, [damage(original, seed) for seed in range(140)], partial(read, root))
    assert are_read >= 1
    assert refused >= 100


def change_tree(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].append(c["images"][0] | {"file_name": "bed/b.jpg"}), "two of `images` have the id 0"),
        (lambda c: c["images"][0].pop("id"), "images[0]: no field `id`"),
        (lambda c: c["images"][0].update(file_name=5), "annotations[0]: the `file_name` of its image names 5"),
        (lambda c: c.update(images={}), "field `images` is {}; it must be a list"),
        (lambda c: c["categories"][0].update(name=None), "category 7: `name` is null; it must be a text"),
        (lambda c: c["annotations"][1].pop("category_id"), "annotations[1]: no field `category_id`"),
        (lambda c: c["annotations"][0].update(image_id=True), "annotations[0]: `image_id` is true"),
        (lambda c: c["annotations"][0].update(keypoints=0), "annotations[0]: `keypoints` must be finite numbers"),
        (lambda c: c["annotations"][0].update(bbox=[9, 9, -1, 4]), "width, height; correct it."),
    ],
)
def test_what_is_wrong_with_an_object_of_mp100_is_named(tmp_path, change, message):
    root = write_mp100(tmp_path)
    change_tree(root / TEST, change)
    assert message in refusal(lambda: read_mp100(root))


def test_ids_of_mp100_may_be_texts_and_an_entry_may_be_there_twice(tmp_path):
    root = write_mp100(tmp_path)
    (expected,) = mp100(root, subset="furniture").pairs("test")

    def rewrite(content):
        content["images"].append(dict(content["images"][0]))
        content["annotations"][0].update(image_id="0", category_id="7")

    change_tree(root / TEST, rewrite)
    (found,) = mp100(root, subset="furniture").pairs("test")
    assert (found.name, found.category) == (expected.name, expected.category)
    assert found.source.keypoints.equal(expected.source.keypoints)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c.update(semantic_overlap=None), "field `semantic_overlap` is None; it must be a list"),
        (lambda c: c.update(src_keypoints=7), "field `src_keypoints` is 7; it must be a list"),
        (lambda c: c.update(src_imsize=[True, True]), "`src_imsize` must be [width, height]"),
        (lambda c: c.update(trg_bndbox=False), "box False of car/car_2 must be x1 y1 x2 y2"),
        (lambda c: c["trg_keypoints"][0].update(pos=None), "names 'rear_wheel', which is not in both"),
        (lambda c: c["trg_keypoints"][0].update(concept_id=[1]), "`concept_id` is [1]"),
    ],
)
def test_what_is_wrong_with_a_pair_of_soco_is_named(tmp_path, change, text):
    root = write_soco(tmp_path)
    change_tree(root / PAIR, change)
    message = refusal(lambda: read_soco(root))
    assert text in message
    assert message.startswith(str(root / PAIR))


def test_a_concept_of_soco_is_one_whether_its_id_is_a_number_or_a_text(tmp_path):
    root = write_soco(tmp_path)
    change_tree(root / PAIR, lambda content: content["src_keypoints"][0].update(concept_id="10"))
    (found,) = soco(root).pairs("intra")
    assert found.groups == ((0, 2),)
