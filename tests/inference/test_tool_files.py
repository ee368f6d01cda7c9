"""Files of annotation tools, written by hand in their layouts, are read with known answers."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tool_files import CVAT, DEEPLABCUT, LABEL_STUDIO, NAMES, POINTS, SEVERAL, write_images, write_tool_files

from semcorr.core.errors import UserError
from semcorr.inference.transfer.annotations import read_annotations, read_objects
from semcorr.inference.transfer.formats.kinds import detect_format
from semcorr.inference.transfer.objects import AnnotatedObject

KINDS = ("cvat", "label-studio", "deeplabcut")


def changed(change: Callable[[list], object]) -> str:
    content = json.loads(json.dumps(LABEL_STUDIO))
    change(content)
    return json.dumps(content)


def edited(tmp_path: Path, text: str, name: str) -> Path:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def known(item: AnnotatedObject, names: list[str]) -> dict[str, tuple[float, ...]]:
    """Annotated keypoints by name."""
    rows = zip(names, item.points.tolist(), item.keypoint_mask.tolist(), strict=True)
    return {name: tuple(point) for name, point, annotated in rows if annotated}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_annotations_are_read_from_every_tool(tmp_path, kind):
    """A pixel's centre is a whole number, wherever the tool has its origin."""
    folder, path = write_images(tmp_path), write_tool_files(tmp_path)[kind]

    content = read_annotations(path, folder)

    assert detect_format(path) == kind
    (category,) = content.categories
    (source,) = content.sources[category["id"]]
    (target,) = content.targets
    assert source.photo.name == "cats/1.jpg"
    assert target.photo.name == "cats/2.jpg"
    assert set(category["keypoints"]) == set(POINTS) | ({"ear"} if kind != "label-studio" else set())
    for name, point in known(source, category["keypoints"]).items():
        assert point == pytest.approx(POINTS[name], abs=1e-5)
    assert len(known(source, category["keypoints"])) == 2
    assert source.box == (None if kind == "deeplabcut" else pytest.approx((5, 2, 30, 23)))
    assert target.box == (pytest.approx((6, 3, 30, 23)) if kind == "cvat" else None)
    assert category["name"] == ("object" if kind == "deeplabcut" else "cat")


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_is_not_there_is_named(tmp_path, kind):
    folder, path = write_images(tmp_path), write_tool_files(tmp_path)[kind]
    (folder / "cats/2.jpg").unlink()

    with pytest.raises(UserError, match=r"2\.jpg.*is not in .*images"):
        read_annotations(path, folder)


def test_what_is_no_annotation_file_is_refused_with_what_there_is(tmp_path):
    for name, text, message in (
        ("a.csv", "a,b\n1,2\n", "does not begin with `scorer`"),
        ("a.txt", "hello", "begins as no known annotation file"),
        ("a.zip", "PK\3\4", "Unpack it"),
        ("a.xml", "<svg></svg>", "not of `annotations`|no annotation|'svg'"),
    ):
        with pytest.raises(UserError, match=message):
            read_annotations(edited(tmp_path, text, name), write_images(tmp_path))


def test_box_is_coco_s(tmp_path):
    with pytest.raises(UserError, match="--box is of COCO's boxes"):
        read_objects(write_tool_files(tmp_path)["cvat"], write_images(tmp_path), "xyxy")


# -- CVAT --


def test_a_skeleton_of_cvat_has_its_edges(tmp_path):
    content = read_annotations(write_tool_files(tmp_path)["cvat"], write_images(tmp_path))

    assert content.categories[0]["keypoints"] == list(NAMES)
    assert content.categories[0]["skeleton"] == [[1, 3]]


PLAIN = """<annotations><version>1.1</version>
  <image id="0" name="cats/1.jpg" width="40" height="30">{}</image>
  <image id="1" name="cats/2.jpg" width="40" height="30"></image>
</annotations>"""


def test_points_of_cvat_without_a_skeleton_are_one_object(tmp_path):
    shapes = (
        '<points label="nose" occluded="0" points="9.50,4.50"></points>'
        '<points label="wheel" occluded="0" points="1.5,2.5;3.5,4.5"></points><polygon label="x" points="1,2;3,4;5,6"/>'
    )
    content = read_annotations(edited(tmp_path, PLAIN.format(shapes), "a.xml"), write_images(tmp_path))

    (category,) = content.categories
    assert category["keypoints"] == ["nose", "wheel 1", "wheel 2"]
    (source,) = content.sources[1]
    assert known(source, category["keypoints"]) == {"nose": (9, 4), "wheel 1": (1, 2), "wheel 2": (3, 4)}


def test_several_objects_of_cvat_are_told_apart_by_group_or_by_box(tmp_path):
    shapes = (
        '<points label="nose" points="9.5,4.5" group_id="1"/><points label="nose" points="30.5,4.5" group_id="2"/>'
        '<points label="tail" points="1.5,2.5" group_id="2"/><points label="tail" points="5.5,25.5"/>'
        '<box label="cat" xtl="0" ytl="20" xbr="10" ybr="30"/>'
        '<box label="cat" xtl="20" ytl="0" xbr="40" ybr="10" group_id="2"/>'
        '<box label="cat" xtl="0" ytl="0" xbr="20" ybr="10" group_id="1"/>'
    )
    content = read_annotations(edited(tmp_path, PLAIN.format(shapes), "a.xml"), write_images(tmp_path))

    names = content.categories[0]["keypoints"]
    found = {item.box: known(item, names) for item in content.sources[1]}
    assert found == {
        (0, 20, 10, 10): {"tail": (5, 25)},
        (20, 0, 20, 10): {"nose": (30, 4), "tail": (1, 2)},
        (0, 0, 20, 10): {"nose": (9, 4)},
    }


@pytest.mark.parametrize("empty_first", [True, False])
def test_a_skeleton_of_cvat_without_a_point_is_in_no_box(tmp_path, empty_first):
    start, end = CVAT.index("    <skeleton"), CVAT.index("    <box")
    skeleton = CVAT[start:end]
    empty = skeleton.replace('outside="0"', 'outside="1"')
    text = CVAT.replace(skeleton, empty + skeleton if empty_first else skeleton + empty)

    content = read_objects(edited(tmp_path, text, "a.xml"), write_images(tmp_path))

    boxes = {bool(item.keypoint_mask.any()): item.box for item in content.objects if item.photo.name == "cats/1.jpg"}
    assert boxes == {True: (5, 2, 30, 23), False: None}


def test_two_names_of_cvat_are_never_one_file(tmp_path):
    text = PLAIN.format('<points label="nose" points="9.5,4.5"/>').replace("cats/2.jpg", "dogs/1.jpg")

    with pytest.raises(UserError, match=r"'dogs/1\.jpg' and 'cats/1\.jpg' are two images.* 'cats/1\.jpg' for both"):
        read_objects(edited(tmp_path, text, "a.xml"), write_images(tmp_path))


def test_an_image_with_a_shape_that_is_left_out_is_annotated(tmp_path):
    path, folder = tmp_path / "a.xml", write_images(tmp_path)
    for shape, annotated in (
        ('<box label="car" xtl="0" ytl="20" xbr="10" ybr="30"/>', {1, 2}),
        ('<polygon label="car" points="1,2;3,4;5,6"/>', {1, 2}),
        ('<tag label="cat"/>', {1}),
    ):
        path.write_text(CVAT[: CVAT.index("    <box", CVAT.index('<image id="1"'))] + shape + "</image></annotations>")

        content = read_objects(path, folder)

        assert content.annotated == annotated
        assert [item.photo.name for item in content.objects] == ["cats/1.jpg"]


CVAT_MISTAKES = {
    "twice": ('label="nose" source="manual"', 'label="tail" source="manual"'),
    "`outside` is 'maybe'": ('outside="1"', 'outside="maybe"'),
    "`occluded` is '2'": ('occluded="1"', 'occluded="2"'),
    "`points` is '30.75'": ("30.75,21.00", "30.75"),
    "`points` is 'nan'": ("30.75,21.00", "nan,21"),
    "`points` is '1e99'": ("30.75,21.00", "1e99,21"),
    "`points` is '\uff13'": ("30.75,21.00", "\uff13,21"),
    "has 2 points, not one": ("30.75,21.00", "30.75,21.00;1,2"),
    "has no area": ('xbr="35.00"', 'xbr="4.00"'),
    "`width` is '-40'": ('name="cats/1.jpg" width="40"', 'name="cats/1.jpg" width="-40"'),
    "`height` is None": ('name="cats/1.jpg" width="40" height="30"', 'name="cats/1.jpg" width="40"'),
    "give this skeleton no keypoint 'paw'": ('<points label="tail"', '<points label="paw"'),
    "has tracks": ("<version>", '<track id="0" label="cat"></track><version>'),
    "document type": ("<annotations>", '<!DOCTYPE a [<!ENTITY e "x">]><annotations>'),
    "is there twice, as of two tasks": ("cats/2.jpg", "cats/1.jpg"),
    "leads to a folder above": ("cats/2.jpg", "../2.jpg"),
    "contains no skeleton, and a skeleton": ('xtl="5.00"', 'xtl="12.00"'),
    "not a shape with a `label`": ("<box ", "<bax "),
    "is not valid XML": ("</annotations>", ""),
    "in an encoding": ("utf-8", "nonsense"),
}


@pytest.mark.parametrize(("message", "change"), CVAT_MISTAKES.items(), ids=list(CVAT_MISTAKES))
def test_a_mistake_in_a_file_of_cvat_is_a_user_error(tmp_path, message, change):
    old, new = change
    assert old in CVAT
    text = CVAT.replace(old, new).replace("</box" if new == "<bax " else "\0", "</bax")
    if message.startswith("contains"):  # the other image pairs the labels
        image = CVAT[CVAT.index("  <image id") : CVAT.index('  <image id="1"')].replace("1.jpg", "2.jpg")
        text = text[: text.index('  <image id="1"')] + image + "</annotations>"

    with pytest.raises(UserError, match=message) as error:
        read_annotations(edited(tmp_path, text, "annotations.xml"), write_images(tmp_path))
    assert len(str(error.value).splitlines()) == 1


def test_entities_and_depth_of_xml_are_refused_before_they_grow(tmp_path):
    laughs = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><annotations>&b;</annotations>'
    for text in (laughs, '<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotations/>', "<a>" * 9999):
        with pytest.raises(UserError, match=r"document type|within each other"):
            read_annotations(edited(tmp_path, text, "annotations.xml"), write_images(tmp_path))


# -- Label Studio --


def results(content: list) -> list:
    return content[0]["annotations"][0]["result"]


LABEL_STUDIO_MISTAKES = {
    "has the keypoint 'nose' twice": lambda c: results(c)[2]["value"].update(keypointlabels=["nose"]),
    "must have one label": lambda c: results(c)[2]["value"].update(keypointlabels=["nose", "tail"]),
    "`x` is nan": lambda c: results(c)[2]["value"].update(x=float("nan")),
    "`x` is None": lambda c: results(c)[2]["value"].pop("x"),
    "has no area": lambda c: results(c)[0]["value"].update(width=-3),
    "`original_width` is 0": lambda c: results(c)[1].update(original_width=0),
    "images of several sizes": lambda c: results(c)[1].update(original_width=50),
    "turned in Label Studio": lambda c: results(c)[1].update(image_rotation=90),
    "has 2 annotations": lambda c: c[0]["annotations"].append(c[0]["annotations"][0]),
    r"task 11 of 'cats/1\.jpg' is there twice": lambda c: c.append(json.loads(json.dumps(c[0]))),
    "is unclear which is the image": lambda c: c[0].update(data={"a": "x.jpg", "b": "y.jpg"}),
    "there is no `data`": lambda c: c[0].pop("data"),
    r"no annotated keypoint\. Annotate": lambda c: c[0].update(annotations=[], predictions=c[0]["annotations"]),
    "in 0 of 2 boxes": lambda c: (
        results(c).append({**results(c)[0], "id": "r2"}), results(c)[2]["value"].update(x=99, y=99),
    ),
    "data` holds NaN": lambda c: c[1]["data"].update(depth=float("nan")),
    "`from_name` is None, and no name": lambda c: results(c)[2].pop("from_name"),
    "of several|Use one control": lambda c: results(c)[2].update(from_name="other"),
}  # fmt: skip


@pytest.mark.parametrize(("message", "change"), LABEL_STUDIO_MISTAKES.items(), ids=list(LABEL_STUDIO_MISTAKES))
def test_a_mistake_in_a_file_of_label_studio_is_a_user_error(tmp_path, message, change):
    with pytest.raises(UserError, match=message) as error:
        read_annotations(edited(tmp_path, changed(change), "p.json"), write_images(tmp_path))
    assert len(str(error.value).splitlines()) == 1


def test_of_several_annotations_the_ground_truth_counts(tmp_path):
    def change(content: list) -> None:
        other = json.loads(json.dumps(content[0]["annotations"][0]))
        other["result"][1]["value"]["x"] = 1
        content[0]["annotations"].append({**other, "ground_truth": True})

    content = read_annotations(edited(tmp_path, changed(change), "p.json"), write_images(tmp_path))

    assert known(content.sources[1][0], content.categories[0]["keypoints"])["nose"][0] == pytest.approx(-0.1)


def test_a_turned_rectangle_is_the_box_around_it(tmp_path):
    """A quarter turn clockwise about the left upper corner, at (5, 2) pixels."""
    content = read_annotations(
        edited(tmp_path, changed(lambda c: results(c)[0]["value"].update(rotation=90)), "p.json"),
        write_images(tmp_path),
    )

    assert content.sources[1][0].box == pytest.approx((5 - 23, 2, 23, 30))


def test_uploads_that_cannot_be_told_apart_are_refused(tmp_path):
    folder = write_images(tmp_path)
    path = edited(tmp_path, changed(lambda c: c[1].update(data={"img": "/data/upload/3/99999999-1.jpg"})), "p.json")

    with pytest.raises(UserError, match="for both"):
        read_annotations(path, folder)


@pytest.mark.parametrize("url", ["/data/local-files/?d=../outside.jpg", "file:///etc/../outside.jpg", "outside.jpg"])
def test_a_url_leads_to_files_of_the_folder_alone(tmp_path, url):
    folder = write_images(tmp_path)
    (folder / "cats/2.jpg").rename(tmp_path / "outside.jpg")
    path = edited(tmp_path, changed(lambda c: c[1].update(data={"img": url})), "p.json")

    with pytest.raises(UserError, match="is not in"):
        read_annotations(path, folder)
    (folder / "outside.jpg").symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(UserError, match="which a link leads out of"):
        read_annotations(path, folder)


def test_a_name_that_several_subfolders_have_is_refused(tmp_path):
    folder = write_images(tmp_path)
    (folder / "dogs").mkdir()
    (folder / "cats/2.jpg").rename(folder / "dogs/1.jpg")

    with pytest.raises(UserError, match=r"names the image '1\.jpg', and .* has 2 of that name"):
        read_annotations(write_tool_files(tmp_path)["label-studio"], folder)


def test_what_has_no_id_is_under_nothing(tmp_path):
    def change(content: list) -> None:
        results(content)[0].pop("id")
        results(content)[1].pop("parentID")

    (item,) = read_objects(edited(tmp_path, changed(change), "p.json"), write_images(tmp_path)).objects

    assert item.box == pytest.approx((5, 2, 30, 23))
    assert int(item.keypoint_mask.sum()) == 2


def test_a_task_with_a_region_that_is_left_out_is_annotated(tmp_path):
    path, folder = tmp_path / "p.json", write_images(tmp_path)
    region = {**results(LABEL_STUDIO)[0], "value": {**results(LABEL_STUDIO)[0]["value"], "rectanglelabels": ["car"]}}
    for result, annotated in (
        (region, {1, 2}),
        ({**region, "type": "polygonlabels"}, {1, 2}),
        ({"type": "choices", "value": {"choices": ["good"]}}, {1}),
    ):
        path.write_text(changed(lambda c, result=result: c[1].update(annotations=[{"result": [result]}])))

        content = read_objects(path, folder)

        assert content.annotated == annotated
        assert [item.photo.name for item in content.objects] == ["cats/1.jpg"]


# -- DeepLabCut --


def test_individuals_of_deeplabcut_are_objects_of_their_body_parts(tmp_path):
    content = read_objects(edited(tmp_path, SEVERAL, "CollectedData_me.csv"), write_images(tmp_path))

    assert [entry["keypoints"] for entry in content.categories.values()] == [["nose", "tail"], ["corner"]]
    found = [known(item, content.categories[item.category]["keypoints"]) for item in content.objects]
    assert found == [{"nose": (9, 4), "tail": (30.25, 20.5)}, {"nose": (11, 12)}, {"corner": (0, 0)}]
    assert content.annotated == {1}


SAVED_AGAIN = {
    "semicolons and decimal commas": lambda text: text.replace(",", ";").replace("30.25;20.5", "30,25;20,5"),
    "tabs": lambda text: text.replace(",", "\t"),
    "an empty column at the end": lambda text: text.replace("\n", ",\n"),
    "blanks": lambda text: text.replace(",", ", "),
    "line ends of an old Mac": lambda text: text.replace("\n", "\r"),
    "capitals in the header": lambda text: text.replace("scorer", "Scorer").replace("x,y", "X,Y"),
    "words for nothing": lambda text: text.replace("4.0,,,", "4.0,NA,NA,"),
}


@pytest.mark.parametrize("way", SAVED_AGAIN)
def test_a_table_of_deeplabcut_may_be_saved_by_a_spreadsheet(tmp_path, way):
    text = SAVED_AGAIN[way](DEEPLABCUT)
    assert text != DEEPLABCUT

    content = read_objects(edited(tmp_path, text, "CollectedData_me.csv"), write_images(tmp_path))

    assert [known(item, content.categories[item.category]["keypoints"]) for item in content.objects] == [POINTS]


DEEPLABCUT_MISTAKES = {
    "only its x is there": ("30.25,20.5", "30.25,"),
    "`x` is 'inf'": ("30.25,20.5", "inf,20.5"),
    "`x` is 'a'": ("30.25,20.5", "a,20.5"),
    "two columns of its x": ("coords,,,x,y,x,y", "coords,,,x,x,x,y"),
    "several scorers": ("scorer,,,me", "scorer,,,you"),
    "line of bodyparts": ("bodyparts,,,nose", "parts,,,nose"),
    "line 4 has 8 cells": (",30.25,20.5", ",30.25"),
    "line 4 has 10 cells": (",30.25,20.5", ",30.25,20.5,7"),
    "has two rows": ("cats,2.jpg", "cats,1.jpg"),
    "two lines of coords": ("coords,,,x,y,x,y,x,y\n", "coords,,,x,y,x,y,x,y\n" * 2),
    "line 6 has 8 cells": ("labeled-data,cats,2.jpg,,,,,,", "\nlabeled-data,cats,2.jpg,,,,,"),
    "be x, y or likelihood": ("coords,,,x,y", "coords,,,x,z"),
}


@pytest.mark.parametrize(("message", "change"), DEEPLABCUT_MISTAKES.items(), ids=list(DEEPLABCUT_MISTAKES))
def test_a_mistake_in_a_table_of_deeplabcut_is_a_user_error(tmp_path, message, change):
    assert change[0] in DEEPLABCUT
    with pytest.raises(UserError, match=message) as error:
        read_annotations(edited(tmp_path, DEEPLABCUT.replace(*change), "CollectedData_me.csv"), write_images(tmp_path))
    assert len(str(error.value).splitlines()) == 1


def test_a_table_in_hdf5_names_the_extra_where_it_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("semcorr.core.extras.find_spec", lambda name: None)
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n")

    with pytest.raises(UserError, match=r"needs h5py, .*: pip install 'semcorr\[deeplabcut\]'"):
        read_annotations(tmp_path / "a.h5", write_images(tmp_path))


def test_points_are_floats_of_the_file(tmp_path):
    content = read_annotations(write_tool_files(tmp_path)["deeplabcut"], write_images(tmp_path))

    assert torch.equal(content.sources[1][0].points[2], torch.tensor([30.25, 20.5]))


def test_an_image_of_another_folder_is_noted(tmp_path, caplog):
    folder, path = write_images(tmp_path), write_tool_files(tmp_path)["deeplabcut"]
    read_objects(path, folder / "cats")
    assert "2 names of images are read as their files are called ('labeled-data/cats/1.jpg' as '1.jpg'" in caplog.text
    caplog.clear()
    folder.rename(tmp_path / "labeled-data")

    read_objects(path, tmp_path / "labeled-data" / "cats")

    assert not caplog.text

    read_objects(write_tool_files(tmp_path)["label-studio"], tmp_path / "labeled-data")
    assert "('data/upload/3/0a1b2c3d-1.jpg' as 'cats/1.jpg', 'store/cats/2.jpg' as 'cats/2.jpg')" in caplog.text


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table in HDF5 of pandas' format `fixed`."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("tables")
    pytest.importorskip("h5py")
    columns = pandas.MultiIndex.from_product([["me"], ["nose"], ["x", "y"]], names=["scorer", "bodyparts", "coords"])
    index = [f"labeled-data/cats/{i}.jpg" for i in (1, 2)]
    path = tmp_path / "a.h5"
    pandas.DataFrame([[9.0, 4.0], [1, 2]], index=index, columns=columns).to_hdf(path, key="df_with_missing", mode="w")
    return path


@pytest.mark.parametrize("shape", [(2, 1), (2, 3), (1, 2), (2,)])
def test_values_of_hdf5_that_do_not_fit_its_names_are_refused(tmp_path, table, shape):
    import h5py

    with h5py.File(table, "a") as file:
        group = file["df_with_missing"]
        del group["block0_values"]
        group["block0_values"] = np.zeros(shape)

    with pytest.raises(UserError, match="2 rows of 2 columns have values"):
        read_objects(table, write_images(tmp_path))


def test_an_array_of_hdf5_is_bounded_and_lies_in_the_file(tmp_path, table):
    import h5py

    folder = write_images(tmp_path)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["values"] = np.zeros((2, 2))
    layout = h5py.VirtualLayout((2, 2), float)
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "values", (2, 2))
    raw = [(str(tmp_path / "other.h5"), 0, 32)]
    for make, message in (
        (lambda group: group.create_dataset("block0_values", (10**6, 100), float, chunks=(10, 10)), "more than"),
        (lambda group: group.create_dataset("block0_values", (2, 2), float, external=raw), "not an array of this file"),
        (lambda group: group.create_virtual_dataset("block0_values", layout), "not an array of this file"),
        (
            lambda group: group.__setitem__("block0_values", h5py.ExternalLink("other.h5", "values")),
            "not an array of this file",
        ),
        (lambda group: group.__setitem__("block0_values", h5py.SoftLink("/nowhere")), "not an array of this file"),
    ):
        with h5py.File(table, "a") as file:
            del file["df_with_missing/block0_values"]
            make(file["df_with_missing"])

        with pytest.raises(UserError, match=message):
            read_objects(table, folder)


def test_a_table_of_hdf5_that_would_not_fit_into_memory_is_refused(tmp_path, table):
    import h5py

    with h5py.File(table, "a") as file:
        group = file["df_with_missing"]
        del group["axis1"], group["axis0_label1"], group["axis0_label0"], group["axis0_label2"]
        group.create_dataset("axis1", (50_000,), "S1")
        for i in range(3):
            group[f"axis0_label{i}"] = np.zeros(400, int)

    with pytest.raises(UserError, match="50000 rows of 400 columns are not read"):
        read_objects(table, write_images(tmp_path))

    with h5py.File(table, "a") as file:
        del file["df_with_missing/axis1"]
        file.create_dataset("df_with_missing/axis1", (10**9,), "S1", chunks=(10**6,))

    with pytest.raises(UserError, match="axis1 has more than"):
        read_objects(table, write_images(tmp_path))
