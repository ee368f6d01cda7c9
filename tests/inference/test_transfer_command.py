"""The command: COCO comes out as COCO, mistakes on the line are sentences, and nothing is written over."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from partly_labelled import alone, coco, typed, write

from semcorr import Matcher
from semcorr.core.errors import UserError
from semcorr.data.coco_keypoints import read_images
from semcorr.inference.transfer.propagate import check_readout

pytestmark = pytest.mark.integration


@pytest.fixture
def written(tmp_path: Path) -> Callable[[dict], Path]:
    """written(content) is the file's path."""
    return partial(write, tmp_path)


# -- files --


def test_coco_comes_out_as_coco(creatures, written, tmp_path):
    content = coco(creatures, ("cat", "dog"))
    annotations, out = written(content), tmp_path / "labels.json"

    code, output = typed(
        annotations, creatures / "JPEGImages", "--out", out, "--draw", tmp_path / "drawn", "--category=cat"
    )

    assert code == 0, output
    assert "dog: 6 labelled by 2, also mirrored" in output
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

    code, output = typed(tmp_path / "first.json", folder, "--out", tmp_path / "second.json")

    assert code == 0, output
    (one,) = json.loads((tmp_path / "second.json").read_text())["annotations"]  # the source of before
    assert len({each["annotation_id"] for each in one["sources"]}) == 7


def test_images_that_only_the_folder_has_are_labelled_whole(creatures, written, tmp_path):
    content = coco(creatures, sources=1)
    content = {**content, "images": content["images"][:2], "annotations": content["annotations"][:1]}

    code, output = typed(written(content), creatures / "JPEGImages", "--out", tmp_path / "o.json")

    assert code == 0, output
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
    ("options", "message"),
    [
        (["--use", "all"], "--use must be vote or best"),
        (["--min-score", "1"], "--min-score must be"),
        (["--place", "-1"], "--place must be 0 or more"),
        (["--box", "cxcywh"], "--box must be one of"),
        (["--category", "yak"], "has no category 'yak'; it has cat, dog"),
        ([], "Name theirs with --category"),
        (["--category", "cat", "--out", "nowhere/o.json"], "--out: nowhere is not a folder"),
        (["--category", "cat", "--model", "backbone=tiny localise=bilinear_nn"], "Choose another"),
    ],
)
def test_a_mistake_on_the_line_is_a_user_error(creatures, written, options, message):
    annotations = written(coco(creatures, ("cat", "dog")))

    code, output = typed(annotations, creatures / "JPEGImages", "--out", annotations.with_name("o.json"), *options)

    assert code == 2
    assert message in output
    assert not annotations.with_name("o.json").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--place", "5"], "--place 5 has no effect: it compares places in boxes"),
        (["--place", "0.2"], "--place 0.2 has no effect"),  # its value when it is left out
        (["--box", "xyxy"], "--box xyxy has no effect: no object of"),
        (["--box", "xyxy", "--video", "IMAGES"], "--box xyxy has no effect: no object of"),
    ],
)
def test_an_option_for_boxes_is_refused_where_there_are_none(creatures, written, tmp_path, options, told):
    """The labels were those without it, unsaid."""
    content = coco(creatures, boxes=False)
    content["annotations"] = [one for one in content["annotations"] if "keypoints" in one]
    folder = alone(creatures, tmp_path)
    options = [option.replace("IMAGES", str(folder / "cat")) for option in options]

    code, said = typed(written(content), folder, "--out", tmp_path / "o.json", *options)

    assert code == 2
    assert told in said
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize(("boxless", "code"), [("sources", 2), ("targets", 2), ("one source", 0)])
def test_a_place_needs_boxes_around_sources_and_around_what_is_labelled(creatures, written, tmp_path, boxless, code):
    content = coco(creatures)
    sources = [one for one in content["annotations"] if "keypoints" in one]
    for one in sources[:1] if boxless == "one source" else content["annotations"]:
        if ("keypoints" in one) == (boxless != "targets"):
            del one["bbox"]
    if boxless == "targets":
        content["annotations"] = sources

    line = written(content), alone(creatures, tmp_path), "--out", tmp_path / "o.json"

    assert typed(*line, "--place", "0.3")[0] == code
    assert typed(*line)[0] == typed(*line, "--place", "0")[0] == 0


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

    code, output = typed(*line)
    assert code == 2
    assert broken.name in output
    assert "--skip-broken" in output
    assert not (tmp_path / "o.json").exists()

    code, output = typed(*line, "--skip-broken")
    assert code == 0
    assert f"left out: cat/{broken.name}" in output
    labels = json.loads((tmp_path / "o.json").read_text())
    assert [one["file_name"] for one in labels["skipped"]] == [f"cat/{broken.name}"]
    assert len(labels["annotations"]) == 5


def test_a_broken_source_is_left_out_while_another_remains(creatures, written, tmp_path):
    content = coco(creatures)
    folder = alone(creatures, tmp_path)
    line = (written(content), folder, "--out", tmp_path / "o.json")
    first, second = (image["file_name"] for image in content["images"][:2])

    (folder / first).write_text("no picture")
    code, output = typed(*line)
    assert code == 2
    assert "--skip-broken" in output

    code, output = typed(*line, "--skip-broken")
    assert code == 0, output
    assert "cat: 6 labelled by 1, also mirrored" in output
    assert f"left out: {first}: " in output
    labels = json.loads((tmp_path / "o.json").read_text())
    assert [one["file_name"] for one in labels["skipped"]] == [first]
    used = {each["annotation_id"] for one in labels["annotations"] for each in one["sources"]}
    assert used == {content["annotations"][1]["id"]}

    (folder / second).write_text("no picture")
    code, output = typed(*line, "--skip-broken")
    assert code == 2
    assert "None of the annotated images of cat can be read" in output


def test_a_category_without_a_name_is_reported_by_its_id(creatures, written, tmp_path):
    content = coco(creatures)
    del content["categories"][0]["name"]

    code, output = typed(written(content), alone(creatures, tmp_path), "--out", tmp_path / "o.json")

    assert code == 0, output
    assert "1: 6 labelled by 2" in output


# -- pictures of labels --


@pytest.mark.slow
def test_every_label_has_a_picture_of_its_own_whatever_its_image_and_its_id_are_called(creatures, written, tmp_path):
    content = coco(creatures)
    folder = alone(creatures, tmp_path)
    shutil.copytree(folder / "cat", folder / "c")
    for name in ("c/d.jpg", "c_d.jpg", "C_d.jpg.png"):
        shutil.copy(folder / content["images"][3]["file_name"], folder / name)
    content["annotations"][-1]["id"] = "b/1:2"
    content["annotations"][-2]["id"], content["annotations"][-3]["id"] = 7, "7"
    content["annotations"][-3]["image_id"] = content["annotations"][-2]["image_id"]

    code, output = typed(
        written(content), folder, "--out", tmp_path / "o.json", "--draw", tmp_path / "drawn", "--category=cat"
    )

    assert code == 0, output
    labels = json.loads((tmp_path / "o.json").read_text())
    assert len(list((tmp_path / "drawn").iterdir())) == len(labels["annotations"])


def test_pictures_of_labels_lie_over_no_image(creatures, written, tmp_path):
    content = coco(creatures)
    folder = alone(creatures, tmp_path)
    target = content["annotations"][-1]
    clash = f"{content['images'][-1]['file_name']}.{target['id']}.png".replace("/", "_")
    shutil.copy(folder / content["images"][-1]["file_name"], folder / clash)
    before = (folder / clash).read_bytes()

    code, output = typed(written(content), folder, "--out", tmp_path / "o.json", "--draw", folder, "--model", "nothing")

    assert code == 2
    assert "--draw: " in output
    assert f"lies in {folder}" in output
    assert (folder / clash).read_bytes() == before


def test_an_error_in_the_folder_of_pictures_names_the_option_draw(creatures, written, tmp_path):
    (tmp_path / "file").touch()
    folder = alone(creatures, tmp_path)
    line = (written(coco(creatures)), folder, "--out", tmp_path / "o.json")

    code, output = typed(*line, "--draw", tmp_path / "file")
    assert code == 2
    assert "Error: --draw: " in output
    assert not (tmp_path / "o.json").exists()


@pytest.mark.slow
def test_a_higher_min_score_labels_and_draws_less(creatures, written, tmp_path):
    """What scores not more has v = 0, and no disc; the rest is as it was."""
    line = (written(coco(creatures)), alone(creatures, tmp_path))
    found = {}
    for name, options in (("all", ()), ("few", ("--min-score", "0.3"))):
        out, drawn = tmp_path / f"{name}.json", tmp_path / name
        assert typed(*line, "--out", out, "--draw", drawn, *options)[0] == 0
        found[name] = json.loads(out.read_text())["annotations"]

    dropped = 0
    for every, few in zip(found["all"], found["few"], strict=True):
        rows, left = (np.array(one["keypoints"]).reshape(-1, 3) for one in (every, few))
        kept = np.array(every["scores"]) > 0.3
        assert few["scores"] == every["scores"]
        np.testing.assert_array_equal(left, rows * kept[:, None])
        assert few["num_keypoints"] == kept.sum()
        dropped += int((rows[~kept, 2] > 0).sum())
        (name,) = (path.name for path in (tmp_path / "all").iterdir() if f".{every['id']}." in path.name)
        same = (tmp_path / "all" / name).read_bytes() == (tmp_path / "few" / name).read_bytes()
        assert same == (few["num_keypoints"] == every["num_keypoints"])
    assert 0 < dropped < sum(one["num_keypoints"] for one in found["all"])


def test_a_readout_that_asks_again_cannot_vote():
    with pytest.raises(UserError, match="Choose another"):
        check_readout(Matcher.load("backbone=tiny localise=bilinear_nn", device="cpu"))


def test_help_brings_no_torch():
    code = "import sys, semcorr.transfer; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
