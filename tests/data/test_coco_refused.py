"""What contradicts itself is refused: the annotation by its id, the field, the file's own value, and what to do."""

import json

import pytest
from coco_forms import NAMES, changed, content, read, write
from test_coco_file import put, triple
from tiny_benchmarks import picture

from semcorr.core.errors import UserError
from semcorr.inference.transfer.annotations import read_annotations


def first(*values: object):
    """Change what the first annotation says of its first keypoint."""
    return lambda c: c["annotations"][0]["keypoints"].__setitem__(slice(0, len(values)), values)


def scale(c: dict, points: bool = True, boxes: bool = True) -> None:
    """Fractions of the sides instead of pixels."""
    for one in c["annotations"]:
        if points:
            one["keypoints"] = [v if i % 3 == 2 else v / (40, 30)[i % 3] for i, v in enumerate(one["keypoints"])]
        if boxes:
            one["bbox"] = [value / 40 for value in one["bbox"]]


def nameless(c: dict) -> None:
    c["categories"].append({"id": 4, "name": "sofa"})
    c["annotations"][0]["category_id"] = 4


def twin(c: dict) -> None:
    c["categories"].append({"id": 4, "name": "dog", "keypoints": NAMES[::-1]})


ANNOTATION = 'annotation 11 of "a.jpg"'
REFUSED = {
    "ids of images": (lambda c: c["images"][1].update(id=1), ["two images have the id 1", "its own"]),
    "ids of images as text": (
        lambda c: c.update(images=[image | {"id": "7"} for image in c["images"]]), ['two images have the id "7"'],
    ),
    "ids of annotations": (lambda c: c["annotations"][1].update(id=11), ["two annotations have the id 11", "its own"]),
    "ids of categories": (lambda c: c["categories"].append(c["categories"][0]), ["two categories have the id 3"]),
    "an id that is a list": (put("images", id=[1]), ["images[0]: `id` is [1]", "whole number or a text"]),
    "an id that is true": (put("annotations", id=True), ["annotations[0]: `id` is true"]),
    "an id that is half": (put("annotations", image_id=1.5), ["annotation 11: `image_id` is 1.5"]),
    "an id beyond all": (put("annotations", id=1e300), ["annotations[0]: `id` is 1e+300", "whole number"]),
    "an id that is infinite": (put("annotations", id=float("inf")), ["annotations[0]: `id` is Infinity"]),
    "an id that is null": (put("categories", id=None), ["categories[0]: `id` is null"]),
    "an unknown image": (put("annotations", image_id="x"), ['annotation 11 names image_id "x"', "Drop or correct"]),
    "an unknown category": (put("annotations", category_id=7), ["annotation 11 names category_id 7"]),
    "no image_id": (lambda c: c["annotations"][0].pop("image_id"), ["annotations[0]: no field `image_id`"]),
    "no category_id": (lambda c: c["annotations"][0].pop("category_id"), ["annotation 11: no field `category_id`"]),
    "twins": (twin, ["the categories 3 and 4 are both called \"dog\"", "Rename one"]),
    "no names": (lambda c: c["categories"][0].pop("keypoints"), ["no `keypoints`, their names", "Add them"]),
    "no names of one": (nameless, [ANNOTATION, 'its category "sofa" has no `keypoints`, their names']),
    "names twice": (put("categories", keypoints=["a", "b", "a"]), ['category 3: two of its `keypoints`', '"a"']),
    "names as a text": (put("categories", keypoints="nose"), ['category 3: `keypoints` is "nose"', "a list of names"]),
    "names as numbers": (put("categories", keypoints=[1, 2, 3]), ["`keypoints` is [1, 2, 3]"]),
    "fewer names": (put("categories", keypoints=NAMES[:2]), [ANNOTATION, "9 numbers", "2 keypoints", "are 6 numbers"]),
    "more names": (put("categories", keypoints=[*NAMES, "tail"]), [ANNOTATION, "4 keypoints", "12 numbers"]),
    "a number less": (lambda c: c["annotations"][0]["keypoints"].pop(), [ANNOTATION, "8 numbers", "9 numbers"]),
    "pairs": (put("annotations", keypoints=[[1, 2], [3, 4], [5, 6]]), [ANNOTATION, "6 numbers in `keypoints`"]),
    "keypoints as text": (put("annotations", keypoints="1 2 2"), [ANNOTATION, '"1 2 2"']),
    "keypoints as objects": (put("annotations", keypoints=[{"x": 1}]), [ANNOTATION, '{"x": 1}']),
    "NaN": (first(float("nan")), [ANNOTATION, '"nose" is [NaN, 5, 2]', "finite", "Correct"]),
    "infinite": (first(1, float("-inf")), [ANNOTATION, "[1, -Infinity, 2]", "finite"]),
    "null": (first(None, None, 2), [ANNOTATION, "[null, null, 2]", "finite"]),
    "text": (first("10.5"), [ANNOTATION, '["10.5", 5, 2]', "finite"]),
    "true": (first(True), [ANNOTATION, "[true, 5, 2]"]),
    "no place": (first(-1, -1, 2), [ANNOTATION, "[-1, -1, 2]", "not a place", "v = 0"]),
    "no place, hidden": (first(-1.0, -1.0, 1), [ANNOTATION, "[-1.0, -1.0, 1]", "v = 0"]),
    "beyond all": (first(1e30), [ANNOTATION, "[1e+30, 5, 2]"]),
    "text, v = 0": (triple("x", 0, 0), [ANNOTATION, '"right_ear" is ["x", 0, 0]']),
    **{f"v = {json.dumps(v)}": (first(1, 2, v), [ANNOTATION, f"[1, 2, {json.dumps(v)}]", "v must be 0"])
       for v in (3, "2", True, None, -2, 0.87, float("nan"))},
    "iscrowd yes": (put("annotations", iscrowd="yes"), [ANNOTATION, '`iscrowd` is "yes"', "0 or 1"]),
    "iscrowd 2": (put("annotations", iscrowd=2), [ANNOTATION, "`iscrowd` is 2"]),
    "a box backwards": (put("annotations", bbox=[8, 3, -1, 12]), [ANNOTATION, "[8, 3, -1, 12]", "data.box"]),
    "a box of three": (put("annotations", bbox=[8, 3, 10]), [ANNOTATION, "[8, 3, 10]", "four finite numbers"]),
    "a box with NaN": (put("annotations", bbox=[8, 3, float("nan"), 1]), [ANNOTATION, "[8, 3, NaN, 1]"]),
    "a box with null": (put("annotations", bbox=[8, 3, 4, None]), [ANNOTATION, "[8, 3, 4, null]"]),
    "a box as text": (put("annotations", bbox="8 3 10 12"), [ANNOTATION, '"8 3 10 12"']),
    "fractions": (scale, ["keypoints are from 0 to 1", "annotation 11", "Multiply"]),
    "fractions of points": (lambda c: scale(c, boxes=False), ["keypoints are from 0 to 1", "Multiply"]),
    "fractions of boxes": (lambda c: scale(c, points=False), ["boxes are from 0 to 1", "Multiply"]),
    "another width": (put("images", width=80, height=60), ["a.jpg is 40 x 30 pixels", "80 x 60", "Give the image"]),
    "another height": (put("images", height=31), ["a.jpg is 40 x 30 pixels", "40 x 31"]),
    "a width as text": (put("images", width="40"), ['image 1: `width` is "40"', "whole number of pixels"]),
    "a width alone": (lambda c: c["images"][0].pop("height"), ["image 1 says only its `width`", "or none of them"]),
    "a height alone": (put("images", width=None), ["image 1 says only its `height`"]),
    "a width of 0": (put("images", width=0), ["image 1: `width` is 0 beside its `height`. Give `width`"]),
    "a height of 0": (put("images", height=0), ["image 1: `height` is 0 beside its `width`"]),
    "a width below 0": (put("images", width=-40), ["image 1: `width` is -40"]),
    "a URL": (put("images", file_name="http://a.org/a.jpg"), ["image 1, field `file_name`", "URL", "must be on disk"]),
    "a file URL": (put("images", file_name="file:///x/a.jpg"), ["image 1", "URL", "must be on disk"]),
    "a bucket": (put("images", file_name="s3://b/a.jpg"), ["image 1", "URL"]),
    "a drive": (put("images", file_name="C:\\dogs\\a.jpg"), ["image 1", "names a drive"]),
    "above": (put("images", file_name="..\\a.jpg"), ["image 1", "leads to a folder above"]),
    "above, escaped": (put("images", file_name="%2e%2e/images/a.jpg"), ["image 1", "does not exist"]),
    "absolute": (put("images", file_name="/elsewhere/a.jpg"), ["image 1", "is an absolute path"]),
    "no file": (put("images", file_name="c.jpg"), ["image 1", "c.jpg does not exist", "Restore"]),
    "no file_name": (lambda c: c["images"][0].pop("file_name"), ["image 1: no field `file_name`"]),
    "images null": (lambda c: c.update(images=None), ["`images` must be a list, got null", "Give a COCO"]),
    "annotations null": (lambda c: c.update(annotations=None), ["`annotations` must be a list, got null"]),
    "annotations as a map": (lambda c: c.update(annotations={}), ["`annotations` must be a list, got {}"]),
    "no categories": (lambda c: c.update(categories=[]), ["no category that has keypoints", "Add them"]),
    "no annotations": (lambda c: c.update(annotations=[]), ["no annotated keypoint (v > 0)", "Annotate"]),
    "an annotation null": (lambda c: c["annotations"].append(None), ["annotations[2] is null"]),
    "an image as text": (lambda c: c["images"].append("c.jpg"), ['images[2] is "c.jpg"']),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_a_damaged_file_is_a_user_error_for_the_benchmark_and_for_transfer(tmp_path, change, words):
    write(tmp_path, changed(change))
    picture(tmp_path / "images/new.jpg")

    with pytest.raises(UserError) as error:
        read(tmp_path)

    message = str(error.value)
    assert all(word in message for word in words), message
    assert message.startswith(str(tmp_path))
    assert len(message.splitlines()) == 1
    assert "official" not in message
    if "pixels" not in message or "COCO counts pixels" in message:  # transfer looks at sizes when it opens images
        with pytest.raises(UserError):
            read_annotations(tmp_path / "keypoints.json", tmp_path / "images")


TEXTS = {
    "nothing": (b"", "is empty"),
    "blanks": (b" \n\n", "is empty"),
    "a list": (b"[1, 2]", "holds a list and no object"),
    "a number": (b"7", "holds a int and no object"),
    "JSON Lines": (b'{"a": 1}\n{"a": 2}\n', "not valid JSON"),
    "half a file": (json.dumps(content()).encode()[:200], "not valid JSON"),
    "a key twice": (b'{"images": [], "images": []}', "one object has the key"),
    "UTF-16 without its mark": (json.dumps(content()).encode("utf-16-le"), "NUL byte"),
    "another encoding": ('{"é": 1}'.encode("cp1252"), "not UTF-8 text"),
    "a number beyond all": (b'{"images": [{"id": 1e999}]}', "cannot be computed with"),
}


@pytest.mark.parametrize(("text", "words"), TEXTS.values(), ids=TEXTS)
def test_what_is_no_such_file_is_a_user_error(tmp_path, text, words):
    write(tmp_path)
    (tmp_path / "keypoints.json").write_bytes(text)

    with pytest.raises(UserError, match=r"keypoints\.json") as error:
        read(tmp_path)

    assert words in str(error.value)
    assert "Give a COCO keypoint file" in str(error.value)


def test_an_image_that_an_animal_pose_file_names_twice_is_refused(tmp_path):
    write(tmp_path)
    text = json.dumps(content() | {"images": {"1": "a.jpg", "2": "b.jpg"}}).replace('"2": "b.jpg"', '"1": "b.jpg"')
    (tmp_path / "keypoints.json").write_text(text)

    with pytest.raises(UserError, match="the key '1' twice"):
        read(tmp_path)
