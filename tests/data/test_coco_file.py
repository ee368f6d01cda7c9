"""What annotation tools write is read as they mean it, and what is left out or supposed is said with counts."""

import json
import logging

import pytest
from coco_forms import EXPECTED, FILES, NAMES, SIZE, TOOLS, changed, content, list_scored, read, write
from tiny_benchmarks import picture

from semcorr.inference.transfer.annotations import read_annotations
from semcorr.inference.transfer.labels import skeleton_edges


@pytest.mark.parametrize("tool", TOOLS)
def test_the_form_of_each_tool_gives_the_same_records(tmp_path, tool):
    assert list_scored(read(write(tmp_path, TOOLS[tool]()))) == EXPECTED


@pytest.mark.parametrize("tool", TOOLS)
def test_transfer_reads_the_form_of_each_tool_with_the_ids_of_its_file(tmp_path, tool):
    form = TOOLS[tool]()
    write(tmp_path, form)
    picture(tmp_path / "images/new.jpg", SIZE)

    sheet = read_annotations(tmp_path / "keypoints.json", tmp_path / "images")

    (sources,) = sheet.sources.values()
    assert [target.photo.name for target in sources] == [*FILES]
    assert [target.photo.id for target in sources] == [image["id"] for image in form["images"]]
    assert [target.points.tolist() for target in sources] == [points for _, _, points, _, _ in EXPECTED]
    assert "new.jpg" in [target.photo.name for target in sheet.targets]
    assert all(isinstance(bone, tuple) for kind in sheet.categories for bone in skeleton_edges(kind))


def put(key: str, **fields: object):
    """Change the first entry of a list."""
    return lambda c: c[key][0].update(fields)


def triple(*values: object):
    """Change what the first annotation says of its third keypoint, which is not annotated."""
    return lambda c: c["annotations"][0]["keypoints"].__setitem__(slice(6, 9), values)


def rows(c: dict) -> None:
    for one in c["annotations"]:
        one["keypoints"] = [one["keypoints"][i : i + 3] for i in (0, 3, 6)]


HARMLESS = {
    "ids as text": lambda c: [image.update(id=str(image["id"])) for image in c["images"]],
    "image_id as text": put("annotations", image_id="1"),
    "category_id as text": put("annotations", category_id="3"),
    "the category's id as text": put("categories", id="3"),
    "ids as floats": put("annotations", id=11.0, image_id=1.0, category_id=3.0),
    "iscrowd '0'": put("annotations", iscrowd="0"),
    "iscrowd false": put("annotations", iscrowd=False),
    "iscrowd null": put("annotations", iscrowd=None),
    "NaN, v = 0": triple(float("nan"), float("nan"), 0),
    "null, v = 0": triple(None, None, 0),
    "infinite, v = 0": triple(float("inf"), 3, 0),
    "v = 0.0": triple(0.0, 0.0, 0.0),
    "v = 2.0": lambda c: c["annotations"][1]["keypoints"].__setitem__(2, 2.0),
    "rows": rows,
    "few fields": lambda c: [c["annotations"][0].pop(key) for key in ("area", "iscrowd", "segmentation")],
    "segmentation null": put("annotations", segmentation=None),
    "segmentation RLE": put("annotations", segmentation={"counts": [1, 2], "size": [30, 40]}),
    "num_keypoints absent": lambda c: c["annotations"][0].pop("num_keypoints"),
    "num_keypoints null": put("annotations", num_keypoints=None),
    "no ids of annotations": lambda c: [one.pop("id") for one in c["annotations"]],
    "no sizes": lambda c: [image.pop(key) for image in c["images"] for key in ("width", "height")],
    "sizes of 0": put("images", width=0, height=0),
    "sizes as floats": put("images", width=40.0, height=30.0),
    "a skeleton of names": put("categories", skeleton=[["nose", "left_ear"]]),
    "a skeleton from 0": put("categories", skeleton=[[0, 1], [1, 2]]),
    "a skeleton beyond": put("categories", skeleton=[[7, 99], [-3, 1], ["x", "y"], [1], "no", None]),
    "a skeleton null": put("categories", skeleton=None),
    "a category without keypoints": lambda c: c["categories"].append({"id": 4, "name": "sofa"}),
    "a category with keypoints null": lambda c: c["categories"].append({"id": 4, "name": "sofa", "keypoints": None}),
    "an image without annotation": lambda c: c["images"].append({"id": 9, "file_name": "b.jpg"}),
    "keys of its own": lambda c: c.update(licenses=None, info="x", videos=[], skipped=[{"a": 1}]),
    "a name by a dot": put("images", file_name="./a.jpg"),
    "a name with the folder": put("images", file_name="images/a.jpg"),
    "a name with the folder and backslashes": put("images", file_name="images\\a.jpg"),
    "a name escaped": put("images", file_name="%61.jpg"),
}  # fmt: skip


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_says_the_same_otherwise_is_read_the_same(tmp_path, change):
    assert list_scored(read(write(tmp_path, changed(change)))) == EXPECTED


SAID = {
    "a crowd": (put("annotations", iscrowd=1), "1 annotations of crowds are left out (11)"),
    "a crowd, as text": (put("annotations", iscrowd="1"), "1 annotations of crowds"),
    "a crowd, as truth": (put("annotations", iscrowd=True), "1 annotations of crowds"),
    "a crowd, with no box": (put("annotations", iscrowd=1, bbox=None, keypoints=None), "1 annotations of crowds"),
    "no keypoints": (lambda c: c["annotations"][0].pop("keypoints"), "1 annotations show no keypoint and are left out"),
    "keypoints null": (put("annotations", keypoints=None), "1 annotations show no keypoint"),
    "keypoints empty": (put("annotations", keypoints=[]), "1 annotations show no keypoint"),
    "v = 0": (put("annotations", keypoints=[0] * 9), "1 annotations show no keypoint"),
    "of no keypoints": (
        lambda c: (c["categories"].append({"id": 4, "name": "sofa"}),
                   c["annotations"][0].update(category_id=4, keypoints=[])),
        "1 annotations of categories without keypoints are left out",
    ),
    "a single keypoint without box": (
        put("annotations", bbox=None, keypoints=[10, 5, 2, 0, 0, 0, 0, 0, 0]), "a single keypoint has no extent",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), SAID.values(), ids=SAID)
def test_what_is_left_out_is_counted_and_the_rest_is_read(tmp_path, caplog, change, words):
    with caplog.at_level(logging.WARNING):
        assert list_scored(read(write(tmp_path, changed(change)))) == EXPECTED[1:]
    assert words in caplog.text


SUPPOSED = {
    "absent": None,
    "null": None,
    "empty": [],
    "all 0": [0, 0, 0, 0],
    "no width": [10, 5, 0, 3],
    "no height": [1, 2, 3, 0.0],
}


@pytest.mark.parametrize("case", SUPPOSED)
def test_the_box_of_the_keypoints_serves_where_there_is_none_and_is_reported(tmp_path, caplog, case):
    drop = (lambda c: c["annotations"][0].pop("bbox")) if case == "absent" else put("annotations", bbox=SUPPOSED[case])

    with caplog.at_level(logging.WARNING):
        first, second = list_scored(read(write(tmp_path, changed(drop))))

    assert first == (*EXPECTED[0][:4], (10.5, 5.0, 12.0, 6.0))
    assert second == EXPECTED[1]
    assert "1 annotations have no `bbox`, and the box around their keypoints serves (11)" in caplog.text


def test_a_box_that_holds_none_of_its_keypoints_is_reported(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        first, second = list_scored(read(write(tmp_path, changed(put("annotations", bbox=[30, 20, 5, 5])))))

    assert first == (*EXPECTED[0][:4], (30.0, 20.0, 35.0, 25.0))
    assert second == EXPECTED[1]
    assert "1 annotations have a `bbox` that holds none of their keypoints, and is used as it is (11)" in caplog.text


TOLD = {
    "num_keypoints": (put("annotations", num_keypoints=1), "1 annotations have a `num_keypoints` that contradicts"),
    "v = -1": (triple(-1, -1, -1), "1 annotations have keypoints of v = -1"),
    "another name": (
        put("images", file_name="images/a.jpg"),
        '1 names of images are read as their files are called ("images/a.jpg" as "a.jpg")',
    ),
    "two of one name": (
        lambda c: (c["categories"].append(c["categories"][0] | {"id": 4}), c["annotations"][1].update(category_id=4)),
        "1 categories are those of the same name before (4 is 3)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), TOLD.values(), ids=TOLD)
def test_what_is_supposed_is_reported_and_read(tmp_path, caplog, change, words):
    with caplog.at_level(logging.WARNING):
        assert list_scored(read(write(tmp_path, changed(change)))) == EXPECTED
    assert words in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_file_with_a_byte_order_mark_is_read(tmp_path, encoding):
    write(tmp_path)
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (tmp_path / "keypoints.json").write_bytes((mark + json.dumps(content())).encode(encoding))

    assert list_scored(read(tmp_path)) == EXPECTED


def test_ids_that_are_there_as_number_and_as_text_are_two(tmp_path):
    form = content()
    form["images"][1]["id"] = form["annotations"][1]["image_id"] = "1"
    assert list_scored(read(write(tmp_path, form))) == EXPECTED


def test_names_of_folders_and_files_made_on_windows_and_by_label_studio_are_found(tmp_path):
    files = ("sub/a b.jpg", "sub/deep/b.jpg")
    for names in (("sub\\a b.jpg", "sub\\deep\\b.jpg"), ("sub/a%20b.jpg", "images/sub/deep/b.jpg"),
                  ("images\\sub\\a%20b.jpg", "sub%2Fdeep/b.jpg")):  # fmt: skip
        form = content()
        for image, name in zip(form["images"], names, strict=True):
            image["file_name"] = name
        records = read(write(tmp_path, form, files))["dog"]
        assert [one.name for one in records] == ["sub/a b", "sub/deep/b"]


def test_a_name_that_is_there_as_it_stands_is_not_read_otherwise(tmp_path):
    form = content()
    form["images"][0]["file_name"], form["images"][1]["file_name"] = "a%20b.jpg", "images/b.jpg"
    records = read(write(tmp_path, form, ("a%20b.jpg", "a b.jpg", "images/b.jpg", "b.jpg")))["dog"]
    assert [one.path.relative_to(tmp_path).as_posix() for one in records] == ["images/a%20b.jpg", "images/images/b.jpg"]


def test_a_skeleton_of_names_is_drawn_as_one_of_numbers():
    assert skeleton_edges({"keypoints": NAMES, "skeleton": [["nose", "left_ear"]]}) == skeleton_edges(
        {"keypoints": NAMES, "skeleton": [[1, 2]]}
    )
