"""The command: COCO comes out as COCO, mistakes on the line are sentences, and nothing is written over."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from partly_labelled import alone, coco, typed, write

from semcorr import Matcher
from semcorr.data.coco_keypoints import read_images
from semcorr.errors import UserError
from semcorr.transfer.carry import check_rule


@pytest.fixture
def written(tmp_path: Path) -> Callable[[dict], Path]:
    """written(content) is the file's path."""
    return partial(write, tmp_path)


# -- files --


def test_coco_comes_out_as_coco(creatures, written, tmp_path):
    content = coco(creatures, ("cat", "dog"))
    annotations, out = written(content), tmp_path / "labels.json"

    code, said = typed(
        annotations, creatures / "JPEGImages", "--out", out, "--draw", tmp_path / "drawn", "--category=cat"
    )

    assert code == 0, said
    assert "dog: 6 labelled by 2, also mirrored" in said
    labels = json.loads(out.read_text())
    assert labels["categories"] == content["categories"]
    given = [one["id"] for one in content["annotations"] if "keypoints" not in one]
    assert set(given) <= {one["id"] for one in labels["annotations"]}
    assert not {one["id"] for one in content["annotations"] if "keypoints" in one} & {
        one["id"] for one in labels["annotations"]
    }
    sizes = {image["id"]: (image["width"], image["height"]) for image in labels["images"]}
    for one in labels["annotations"]:
        count = len(content["categories"][one["category_id"] - 1]["keypoints"])
        rows = np.array(one["keypoints"]).reshape(count, 3)
        assert set(rows[:, 2]) <= {0, 2}
        assert one["num_keypoints"] == (rows[:, 2] > 0).sum() > 0
        assert len(one["scores"]) == count
        assert all(
            0 <= score <= 1 and (score > 0) == (v > 0) for score, v in zip(one["scores"], rows[:, 2], strict=True)
        )
        assert not rows[rows[:, 2] == 0].any()
        assert (rows[:, :2] <= np.array(sizes[one["image_id"]]) - 0.5).all()
        assert sum(each["weight"] for each in one["sources"]) == pytest.approx(1, abs=1e-3)
    images, names = read_images(tmp_path, "labels.json", str(creatures / "JPEGImages"), "xywh")
    assert len(images["dog"]) == 6
    assert names["cat"] == content["categories"][0]["keypoints"]
    assert len(list((tmp_path / "drawn").glob("*.png"))) == len(labels["annotations"])


def test_labels_label_again_what_is_left(creatures, written, tmp_path):
    """What comes out is read by the command that wrote it."""
    annotations = written(coco(creatures, sources=1))
    folder = alone(creatures, tmp_path)
    assert typed(annotations, folder, "--out", tmp_path / "first.json")[0] == 0

    code, said = typed(tmp_path / "first.json", folder, "--out", tmp_path / "second.json")

    assert code == 0, said
    (one,) = json.loads((tmp_path / "second.json").read_text())["annotations"]  # the source of before
    assert len({each["annotation_id"] for each in one["sources"]}) == 7


def test_images_that_only_the_folder_has_are_labelled_whole(creatures, written, tmp_path):
    content = coco(creatures, sources=1)
    content = {**content, "images": content["images"][:2], "annotations": content["annotations"][:1]}

    code, said = typed(written(content), creatures / "JPEGImages", "--out", tmp_path / "o.json")

    assert code == 0, said
    labels = json.loads((tmp_path / "o.json").read_text())
    files = {path.relative_to(creatures / "JPEGImages").as_posix() for path in creatures.glob("JPEGImages/*/*.jpg")}
    assert {image["file_name"] for image in labels["images"]} == files - {content["images"][0]["file_name"]}
    ids = [image["id"] for image in labels["images"]]
    assert len(set(ids)) == len(ids)
    assert content["images"][1]["id"] in ids
    every = [one["id"] for one in labels["annotations"]]
    assert len(set(every)) == len(every)
    assert content["annotations"][0]["id"] not in every


# -- mistakes --


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--use", "all"], "--use must be vote or best"),
        (["--min-score", "1"], "--min-score must be"),
        (["--place", "-1"], "--place must be 0 or more"),
        (["--box", "cxcywh"], "--box must be one of"),
        (["--category", "yak"], "has no category 'yak'; it has cat, dog"),
        ([], "Name theirs with --category"),
        (["--category", "cat", "--out", "nowhere/o.json"], "Give the name of a JSON file"),
        (["--category", "cat", "--model", "backbone=tiny localise=bilinear_nn"], "Choose another"),
    ],
)
def test_a_mistake_on_the_line_is_a_sentence(creatures, written, options, told):
    annotations = written(coco(creatures, ("cat", "dog")))

    code, said = typed(annotations, creatures / "JPEGImages", "--out", annotations.with_name("o.json"), *options)

    assert code == 2
    assert told in said
    assert not annotations.with_name("o.json").exists()


def test_the_annotations_are_not_written_over(creatures, written):
    annotations = written(coco(creatures))
    before = annotations.read_text()

    assert typed(annotations, creatures / "JPEGImages", "--out", annotations)[0] == 2
    assert annotations.read_text() == before


def test_a_broken_picture_is_refused_or_left_out_by_name(creatures, written, tmp_path):
    content = coco(creatures)
    folder = alone(creatures, tmp_path)
    broken = folder / content["images"][-1]["file_name"]
    broken.write_bytes(broken.read_bytes()[:300])
    line = (written(content), folder, "--out", tmp_path / "o.json")

    code, said = typed(*line)
    assert code == 2
    assert broken.name in said
    assert "--skip-broken" in said
    assert not (tmp_path / "o.json").exists()

    code, said = typed(*line, "--skip-broken")
    assert code == 0
    assert f"left out: cat/{broken.name}" in said
    labels = json.loads((tmp_path / "o.json").read_text())
    assert [one["file_name"] for one in labels["skipped"]] == [f"cat/{broken.name}"]
    assert len(labels["annotations"]) == 5


def test_a_read_out_that_asks_again_cannot_vote():
    with pytest.raises(UserError, match="Choose another"):
        check_rule(Matcher.load("backbone=tiny localise=bilinear_nn", device="cpu"))


def test_help_brings_no_torch():
    code = "import sys, semcorr.transfer; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
