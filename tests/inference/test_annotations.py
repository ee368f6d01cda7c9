"""A COCO file is read in every dialect, and a mistake in it is a sentence."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from partly_labelled import alone, coco, typed, write

from semcorr.core.errors import UserError
from semcorr.inference.transfer.annotations import read_annotations
from semcorr.inference.transfer.labels import skeleton_edges
from semcorr.inference.transfer.objects import category_name


@pytest.fixture
def written(tmp_path: Path) -> Callable[[dict], Path]:
    """written(content) is the file's path."""
    return partial(write, tmp_path)


# -- files --


def test_a_category_without_a_name_is_called_by_its_id(creatures, tmp_path):
    content = coco(creatures, ("cat", "dog"))
    content["categories"][0]["name"] = None
    del content["categories"][1]["name"]
    targets = [one["id"] for one in content["annotations"] if "keypoints" not in one]
    content["annotations"] = [one for one in content["annotations"] if one["id"] not in targets]
    path = write(tmp_path, content)

    annotations = read_annotations(path, creatures / "JPEGImages", category="1")

    assert {target.category for target in annotations.targets} == {1}
    assert [category_name(category) for category in annotations.categories] == ["1", "2"]
    with pytest.raises(UserError, match="no category 'None'; it has 1, 2"):
        read_annotations(path, creatures / "JPEGImages", category="None")


def test_animal_poses_dialect_is_read(creatures, written):
    content = coco(creatures)
    plain = read_annotations(written(content), creatures / "JPEGImages")
    content["images"] = {str(image["id"]): image["file_name"] for image in content["images"]}
    for one in content["annotations"]:
        x, y, w, h = one["bbox"]
        one["bbox"] = [x, y, x + w, y + h]
        if "keypoints" in one:
            one["keypoints"] = [one["keypoints"][i : i + 3] for i in range(0, len(one["keypoints"]), 3)]

    dialect = read_annotations(written(content), creatures / "JPEGImages", "xyxy")

    assert [target.box for target in dialect.targets] == [target.box for target in plain.targets]
    for one, other in zip(dialect.sources[1], plain.sources[1], strict=True):
        assert torch.equal(one.points, other.points)
        assert one.photo.id == other.photo.id


def test_a_crowd_neither_labels_nor_is_labelled(creatures, written):
    content = coco(creatures)
    content["annotations"][0]["iscrowd"] = content["annotations"][-1]["iscrowd"] = 1

    sheet = read_annotations(written(content), creatures / "JPEGImages", category="cat")

    assert len(sheet.sources[1]) == 1
    assert content["images"][-1]["file_name"] not in [target.photo.name for target in sheet.targets]


def test_a_skeleton_counts_from_one_or_from_zero():
    names = {"keypoints": ["a", "b", "c"]}
    assert skeleton_edges({**names, "skeleton": [[1, 2], [2, 3]]}) == skeleton_edges(
        {**names, "skeleton": [[0, 1], [1, 2]]}
    )


# -- mistakes --


def _orphan(content: dict) -> None:
    content["categories"].append({"id": 9, "name": "yak", "keypoints": ["a"]})
    content["annotations"][-1]["category_id"] = 9


MISTAKES = {
    "no annotated image of yak": _orphan,
    r"names image_id 77, which the file does not define": lambda c: c["annotations"][0].update(image_id=77),
    r"names category_id 77": lambda c: c["annotations"][0].update(category_id=77),
    r"gone.jpg, which is not in": lambda c: c["images"][3].update(file_name="gone.jpg"),
    r"has 43 numbers in `keypoints`; .* which are 45": lambda c: c["annotations"][0]["keypoints"].__delitem__(slice(2)),
    r"must be finite numbers": lambda c: c["annotations"][0]["keypoints"].__setitem__(0, "x"),
    r"`bbox` .* has no area. It is read as xywh": lambda c: c["annotations"][-1].update(bbox=[5, 5, 0, 3]),
    r"must be four finite numbers": lambda c: c["annotations"][0].update(bbox=[5, 5]),
    r"has no `keypoints`, their names": lambda c: c["categories"][0].pop("keypoints"),
    r"two images have the id 1": lambda c: c["images"][0].update(id=1),
    r"keypoints. must be finite numbers": lambda c: c["annotations"][0].update(keypoints=7),
    r"`images` must be a list": lambda c: c.update(images=None),
    r"no field `annotations`": lambda c: c.pop("annotations"),
    r"no annotated keypoint": lambda c: [one.pop("keypoints", None) for one in c["annotations"]],
    r"none to be labelled": lambda c: [
        one.update(keypoints=c["annotations"][0]["keypoints"]) for one in c["annotations"]
    ],
    r"annotation 1 .* outside .* keypoint 1 of its category is at \(4000, ": lambda c: c["annotations"][0][
        "keypoints"
    ].__setitem__(0, 4000),
    r"annotations are of 7 x": lambda c: c["images"][0].update(width=7),
    r"the box \[5000.0.* lies outside .* pixels. Correct it": lambda c: c["annotations"][-1].update(
        bbox=[5000, 5, 20, 20]
    ),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("message", "spoil"), MISTAKES.items(), ids=list(MISTAKES))
def test_a_mistake_in_the_file_is_a_user_error_and_nothing_is_written(creatures, tmp_path, message, spoil):
    content = coco(creatures)
    spoil(content)
    (tmp_path / "a.json").write_text(json.dumps(content))
    folder = alone(creatures, tmp_path)

    line = (tmp_path / "a.json", folder, "--out", tmp_path / "o.json", "--draw", tmp_path / "drawn")
    code, output = typed(*line)

    assert code == 2
    assert output.startswith("Error: ") or "\nError: " in output
    assert re.search(message, output), output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "images"]
