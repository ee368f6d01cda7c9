"""PASCAL-Part: the official annotations, as MATLAB writes them, and what is refused."""

import numpy as np
import pytest
from scipy.io import savemat
from tiny_dense import save, texture

from semcorr.core.errors import UserError
from semcorr.data.pascal_parts import PascalParts


def mask(top: int, left: int, height: int, width: int) -> np.ndarray:
    result = np.zeros((96, 96), np.uint8)
    result[top : top + height, left : left + width] = 1
    return result


def animal(kind: str, body: np.ndarray, **parts: np.ndarray) -> dict:
    named = np.zeros(len(parts), dtype=[("part_name", object), ("mask", object)])
    for i, (name, part) in enumerate(parts.items()):
        named[i] = (name, part)
    return {"class": kind, "class_ind": 8.0, "mask": body, "parts": named if parts else np.array([])}


def write_annotation(path, *objects: dict) -> None:
    array = np.zeros(len(objects), dtype=[(key, object) for key in ("class", "class_ind", "mask", "parts")])
    for i, each in enumerate(objects):
        array[i] = tuple(each.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"anno": {"imname": path.stem, "objects": array}}, do_compression=True)


def write_parts(root, row: str = "a.jpg,b.jpg,cat"):
    """A cat with a head and a torso that overlap, beside a smaller cat and a dog; another with a tail."""
    for k, name in enumerate("ab"):
        save(root / "JPEGImages" / f"{name}.png", texture(96, 96, k))
        (root / "JPEGImages" / f"{name}.png").rename(root / "JPEGImages" / f"{name}.jpg")
    big = animal("cat", mask(0, 0, 40, 60), torso=mask(0, 0, 40, 40), head=mask(0, 30, 20, 20))
    small, dog = animal("cat", mask(50, 50, 9, 9), head=mask(50, 50, 3, 3)), animal("dog", mask(60, 0, 30, 90))
    write_annotation(root / "Annotations_Part" / "a.mat", dog, small, big)
    other = animal(
        "cat", mask(8, 8, 40, 60), head=mask(8, 38, 20, 20), tail=mask(60, 8, 4, 4), torso=mask(8, 8, 40, 40)
    )
    write_annotation(root / "Annotations_Part" / "b.mat", other)
    (root / "pairs.csv").write_text(f"source_image,target_image,class\n{row}\n")
    return root


def parts(root) -> PascalParts:
    return PascalParts(root=str(root), size=96, workers=0)


def test_the_largest_object_s_common_parts_are_labels_in_the_order_of_their_names(tmp_path):
    data = parts(write_parts(tmp_path))
    (pair,) = data.cases("test")
    assert (pair.source.path.name, pair.target.path.name, pair.category) == ("b.jpg", "a.jpg", "cat")
    truth, labels = data.labels(pair)
    assert np.array_equal(labels == 1, mask(0, 30, 20, 20))  # the head, which is smaller, lies on the torso
    assert np.array_equal(labels == 2, mask(0, 0, 40, 40) & ~mask(0, 30, 20, 20).astype(bool))
    assert sorted(truth.unique().tolist()) == [0, 1, 2]  # only one image has a tail


def test_an_object_with_one_part_is_read(tmp_path):
    """MATLAB's lists of one are no lists when they are read."""
    write_parts(tmp_path)
    for name in "ab":
        write_annotation(
            tmp_path / "Annotations_Part" / f"{name}.mat", animal("cat", mask(0, 0, 9, 9), head=mask(0, 0, 4, 4))
        )
    data = parts(tmp_path)
    truth, _ = data.labels(data.cases("test")[0])
    assert truth.sum() == 16


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: write_parts(root, "a.jpg,b.jpg,dog"), r"b\.mat has no object of the class 'dog'"),
        (lambda root: write_parts(root, "a.jpg,c.jpg,cat"), r"c\.jpg, which does not exist"),
        (lambda root: write_parts(root, "../a.jpg,b.jpg,cat"), "line 2, source_image,.*folder above"),
        (lambda root: (root / "Annotations_Part/a.mat").unlink(), r"a\.mat does not exist"),
        (
            lambda root: (root / "Annotations_Part/a.mat").write_bytes(b"no"),
            "is not an annotation of PASCAL-Part",
        ),
        (lambda root: savemat(root / "Annotations_Part/a.mat", {"anno": 3}), "no object of the class 'cat'"),
        (
            lambda root: write_annotation(root / "Annotations_Part/a.mat", animal("cat", np.ones((3, 3), np.uint8))),
            "not of 96 x 96 pixels",
        ),
        (
            lambda root: write_annotation(root / "Annotations_Part/a.mat", animal("cat", mask(0, 0, 9, 9))),
            "no part of a 'cat' in common",
        ),
        (lambda root: (root / "pairs.csv").unlink(), r"pairs\.csv does not exist"),
    ],
)
def test_damage_is_reported_before_anything_runs(tmp_path, damage, message):
    write_parts(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        parts(tmp_path).setup("test")
