"""What is written for a tool is read again as it was; and the command takes and gives every format."""

import csv
import json
import os
import pickle
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from partly_labelled import coco, typed, write
from tool_files import CVAT, SEVERAL, write_images, write_tool_files
from written_labels import accept, make_labels

from semcorr.core.errors import UserError
from semcorr.inference.transfer.annotations import read_annotations, read_objects
from semcorr.inference.transfer.formats.kinds import FORMATS, SUFFIXES, resolve_output
from semcorr.inference.transfer.formats.write import require_writer, write_labels
from semcorr.inference.transfer.objects import AnnotationFile

TOOLS = ("cvat", "label-studio", "deeplabcut")


def points_of(content: AnnotationFile) -> dict[str, dict[str, tuple[float, ...]]]:
    """Annotated keypoints by image and name."""
    found: dict[str, dict[str, tuple[float, ...]]] = {}
    for item in content.objects:
        names = content.categories[item.category]["keypoints"]
        for name, point, annotated in zip(names, item.points.tolist(), item.keypoint_mask.tolist(), strict=True):
            if annotated:
                found.setdefault(item.photo.name, {})[name] = tuple(point)
    return found


@pytest.mark.parametrize("written", FORMATS)
@pytest.mark.parametrize("kind", TOOLS)
def test_what_is_written_is_read_again(tmp_path, kind, written):
    """To the hundredth of a pixel, which is what is written."""
    folder = write_images(tmp_path)
    annotations = read_annotations(write_tool_files(tmp_path)[kind], folder)
    labels = make_labels(annotations)
    out = tmp_path / f"out{SUFFIXES[written][0]}"

    write_labels(out, written, annotations, labels)

    content = read_objects(accept(out), folder)
    names = annotations.categories[0]["keypoints"]
    expected = {
        name: tuple(round(value, 2) for value in point)
        for name, point, valid in zip(names, labels[0].points.tolist(), labels[0].valid.tolist(), strict=True)
        if valid
    }
    (found,) = points_of(content).values()
    assert {name: pytest.approx(point, abs=1e-5) for name, point in expected.items()} == found
    if written == "label-studio" or (written, kind) == ("cvat", "cvat"):
        assert [item.box for item in content.objects] == [
            None if target.box is None else pytest.approx(target.box) for target in annotations.targets
        ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("written", TOOLS)
def test_any_point_of_a_picture_of_any_size_comes_back(tmp_path, written, seed):
    draw = torch.Generator().manual_seed(seed)
    size = tuple(torch.randint(7, 5000, (2,), generator=draw).tolist())
    folder = write_images(tmp_path)
    annotations = read_annotations(write_tool_files(tmp_path)["cvat"], folder)
    (label,) = make_labels(annotations, size)
    points = torch.rand(3, 2, generator=draw) * torch.tensor(size) - 0.5
    label = label._replace(points=points, valid=torch.tensor([True, True, True]))
    out = tmp_path / f"out{SUFFIXES[written][0]}"

    write_labels(out, written, annotations, [label])

    (item,) = [item for item in read_objects(accept(out), folder).objects if bool(item.keypoint_mask.any())]
    rounded = torch.tensor([[round(value, 2) for value in point] for point in points.tolist()])
    torch.testing.assert_close(item.points, rounded, rtol=0, atol=6e-4 if max(size) > 4000 else 3e-4)


def test_cvat_is_given_the_place_of_what_was_not_found_and_scores_as_attributes(tmp_path):
    annotations = read_annotations(write_tool_files(tmp_path)["cvat"], write_images(tmp_path))
    write_labels(tmp_path / "o.xml", "cvat", annotations, make_labels(annotations))

    root = ElementTree.parse(tmp_path / "o.xml").getroot()
    (image,) = root.iter("image")
    assert image.attrib == {"id": "0", "name": "cats/2.jpg", "width": "40", "height": "30"}
    (skeleton,) = image.iter("skeleton")
    elements = skeleton.findall("points")
    assert [(each.get("label"), each.get("outside"), each.get("points")) for each in elements] == [
        ("nose", "0", "3.75,3.00"), ("ear", "1", "8.75,10.33"), ("tail", "0", "13.75,17.66"),
    ]  # fmt: skip
    assert [each.findtext("attribute") for each in elements] == ["0.9000", "0.8000", "0.7000"]
    assert image.find("box").get("label") == "cat box"
    assert image.find("box").get("group_id") == skeleton.get("group_id")


def test_points_of_cvat_come_out_as_points(tmp_path):
    image = '<image id="{}" name="cats/{}.jpg" width="40" height="30">{}</image>'
    shapes = '<points label="nose" points="9.5,4.5"/><points label="wheel" points="1,2;3,4"/>'
    text = f"<annotations>{image.format(0, 1, shapes)}{image.format(1, 2, '')}</annotations>"
    (tmp_path / "a.xml").write_text(text)
    annotations = read_annotations(tmp_path / "a.xml", write_images(tmp_path))
    (label,) = make_labels(annotations)
    for valid, wheels in ([True, True, True], ["8.75,10.33;13.75,17.66"]), ([True, False, True], []):
        write_labels(tmp_path / "o.xml", "cvat", annotations, [label._replace(valid=torch.tensor(valid))])

        found = ElementTree.parse(tmp_path / "o.xml").getroot().findall("image/points")
        assert [each.get("points") for each in found if each.get("label") == "nose"] == ["3.75,3.00"]
        assert [each.get("points") for each in found if each.get("label") == "wheel"] == wheels


def test_label_studio_is_given_scores_and_its_own_names(tmp_path):
    annotations = read_annotations(write_tool_files(tmp_path)["label-studio"], write_images(tmp_path))
    write_labels(tmp_path / "o.json", "label-studio", annotations, make_labels(annotations), config_line="backbone=x")

    (task,) = json.loads((tmp_path / "o.json").read_text())
    assert task["data"] == {"img": "/data/local-files/?d=store/cats/2.jpg"}
    (prediction,) = task["predictions"]
    assert prediction["model_version"] == "semcorr backbone=x"
    assert prediction["score"] == 0.85
    (nose,) = prediction["result"]
    assert (nose["from_name"], nose["to_name"], nose["type"], nose["score"]) == ("kp", "img", "keypointlabels", 0.9)
    assert nose["value"]["keypointlabels"] == ["nose"]
    assert nose["value"]["x"] == pytest.approx(100 * 3.75 / 40)
    assert nose["value"]["y"] == pytest.approx(100 * 3.0 / 30)


def test_deeplabcut_is_given_machine_labels(tmp_path):
    annotations = read_annotations(write_tool_files(tmp_path)["deeplabcut"], write_images(tmp_path))
    write_labels(tmp_path / "o.csv", "deeplabcut", annotations, make_labels(annotations))

    assert list(csv.reader((tmp_path / "o.csv").read_text().splitlines())) == [
        ["scorer", "", "", *["semcorr"] * 9],
        ["bodyparts", "", "", *["nose"] * 3, *["ear"] * 3, *["tail"] * 3],
        ["coords", "", "", *["x", "y", "likelihood"] * 3],
        ["labeled-data", "cats", "2.jpg", "3.25", "2.5", "0.9", "", "", "0.8", "13.25", "17.16", "0.7"],
    ]


def test_individuals_of_deeplabcut_stay_what_they_are(tmp_path):
    (tmp_path / "c.csv").write_text(SEVERAL)
    folder = write_images(tmp_path)
    annotations = read_annotations(tmp_path / "c.csv", folder, category="single")
    write_labels(tmp_path / "o.csv", "deeplabcut", annotations, make_labels(annotations))

    rows = list(csv.reader((tmp_path / "o.csv").read_text().splitlines()))
    assert rows[1][3:] == ["one"] * 6 + ["two"] * 6 + ["single"] * 3
    assert rows[4][3:] == [""] * 12 + ["3.25", "2.5", "0.9"]
    assert points_of(read_objects(tmp_path / "o.csv", folder)) == {"cats/2.jpg": {"corner": (3.25, 2.5)}}


def test_several_objects_of_an_image_are_individuals(tmp_path, creatures):
    content = coco(creatures)
    content["annotations"][-1]["image_id"] = content["annotations"][-2]["image_id"]
    annotations = read_annotations(write(tmp_path, content), creatures / "JPEGImages", category="cat")
    labels = make_labels(annotations, (96, 96))
    write_labels(tmp_path / "o.csv", "deeplabcut", annotations, labels)

    rows = list(csv.reader((tmp_path / "o.csv").read_text().splitlines()))
    assert set(rows[1][3:]) == {"individual1", "individual2"}
    again = read_objects(tmp_path / "o.csv", creatures / "JPEGImages")
    assert len(again.objects) == len(labels)


def test_a_table_of_deeplabcut_has_no_place_for_several_categories(tmp_path, creatures):
    annotations = read_annotations(
        write(tmp_path, coco(creatures, ("cat", "dog"))), creatures / "JPEGImages", category="cat"
    )

    with pytest.raises(UserError, match="is of one category, and 'cat', 'dog' are to be labelled"):
        write_labels(tmp_path / "o.csv", "deeplabcut", annotations, make_labels(annotations))
    assert not (tmp_path / "o.csv").exists()


def test_any_other_name_comes_back_with_its_edges(tmp_path, creatures):
    content = coco(creatures)
    names = ['a"<b>&amp;', "d'é", "\u6771 x"]
    content["categories"][0].update(keypoints=names, skeleton=[[1, 2], [3, 1]])
    for one in content["annotations"]:
        one["keypoints"] = [5, 6, 2] * 3 if "keypoints" in one else [0, 0, 0] * 3
    annotations = read_annotations(write(tmp_path, content), creatures / "JPEGImages", category="cat")
    for written in TOOLS:
        out = tmp_path / f"o{SUFFIXES[written][0]}"
        write_labels(out, written, annotations, make_labels(annotations))

        (category,) = read_objects(accept(out), creatures / "JPEGImages").categories.values()
        assert category["keypoints"] == (names if written != "label-studio" else [names[0], names[2]])
        assert category["skeleton"] == ([[1, 2], [3, 1]] if written == "cvat" else [])


def test_a_name_that_xml_cannot_hold_is_refused(tmp_path, creatures):
    content = coco(creatures)
    content["categories"][0]["keypoints"][0] = "a\x01b"
    annotations = read_annotations(write(tmp_path, content), creatures / "JPEGImages", category="cat")

    with pytest.raises(UserError, match="XML cannot hold"):
        write_labels(tmp_path / "o.xml", "cvat", annotations, make_labels(annotations))


def test_a_table_in_hdf5_is_written_and_read(tmp_path):
    for name in ("h5py", "pandas", "tables"):
        pytest.importorskip(name)
    folder = write_images(tmp_path)
    for text in (None, SEVERAL):
        path = write_tool_files(tmp_path)["deeplabcut"]
        if text is not None:
            path.write_text(text)
        annotations = read_annotations(path, folder, category="single" if text else None)
        for ending in ("csv", "h5"):
            write_labels(tmp_path / f"o.{ending}", "deeplabcut", annotations, make_labels(annotations))

        one, other = (read_objects(tmp_path / f"o.{ending}", folder) for ending in ("csv", "h5"))
        assert points_of(one) == points_of(other)
        assert one.categories == other.categories
        assert one.tool == other.tool


def test_a_table_in_hdf5_of_pandas_format_table_is_read_and_runs_nothing(tmp_path):
    pandas = pytest.importorskip("pandas")
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("tables")
    folder, path = write_images(tmp_path), tmp_path / "a.h5"
    columns = pandas.MultiIndex.from_product(
        [["me"], ["nose", "tail"], ["x", "y"]], names=["scorer", "bodyparts", "coords"]
    )
    index = ["labeled-data/cats/1.jpg", "labeled-data/cats/2.jpg"]
    table = pandas.DataFrame([[9.0, 4.0, 30.25, 20.5], [float("nan")] * 4], index=index, columns=columns)
    table.to_hdf(path, key="df_with_missing", mode="w", format="table")

    assert points_of(read_objects(path, folder)) == {"cats/1.jpg": {"nose": (9, 4), "tail": (30.25, 20.5)}}

    for names in ([("me", "nose", "x"), ("me", "nose")], [("me", "nose", "x"), ("me", "nose", "y")]):
        with h5py.File(path, "a") as file:
            file["df_with_missing/table"].attrs["values_block_0_kind"] = pickle.dumps(names, protocol=0)
        with pytest.raises(UserError, match="cannot be read as a table of DeepLabCut"):
            read_objects(path, folder)

    with h5py.File(path, "a") as file:
        file["df_with_missing/table"].attrs["values_block_0_kind"] = b"cos\nsystem\n(S'touch ran'\ntR."
    with pytest.raises(UserError, match=r"names os\.system, which is not read"):
        read_objects(path, folder)


# -- from one tool to another --


def read_rows(path: Path) -> list[str]:
    """Names of the rows of a table of one animal."""
    return ["/".join(line[:3]) for line in csv.reader(path.read_text().splitlines())][3:]


def test_a_name_of_one_tool_is_none_of_another(tmp_path):
    folder = write_images(tmp_path)
    annotations = read_annotations(write_tool_files(tmp_path)["deeplabcut"], folder)
    write_labels(tmp_path / "o.xml", "cvat", annotations, make_labels(annotations))
    (image,) = ElementTree.parse(tmp_path / "o.xml").getroot().iter("image")
    assert image.get("name") == "cats/2.jpg"

    write_labels(tmp_path / "o.json", "label-studio", annotations, make_labels(annotations))
    assert json.loads((tmp_path / "o.json").read_text())[0]["data"] == {"image": "/data/local-files/?d=cats/2.jpg"}

    (tmp_path / "a.xml").write_text(CVAT.replace("cats/", "store/old/cats/"))
    annotations = read_annotations(tmp_path / "a.xml", folder)
    write_labels(tmp_path / "o.csv", "deeplabcut", annotations, make_labels(annotations))
    assert read_rows(tmp_path / "o.csv") == ["labeled-data/cats/2.jpg"]
    write_labels(tmp_path / "o.xml", "cvat", annotations, make_labels(annotations))
    (image,) = ElementTree.parse(tmp_path / "o.xml").getroot().iter("image")
    assert image.get("name") == "store/old/cats/2.jpg"


def test_any_name_of_a_file_comes_back_from_label_studio(tmp_path):
    folder = write_images(tmp_path)
    names = ["a&b.jpg", "a+b.jpg", "a#b.jpg", "a%20b.jpg", "a b;c?.jpg", "\u00e9.jpg"]
    for name in names:
        (folder / name).write_bytes((folder / "cats/2.jpg").read_bytes())
    annotations = read_annotations(write_tool_files(tmp_path)["deeplabcut"], folder)
    write_labels(tmp_path / "o.json", "label-studio", annotations, make_labels(annotations))

    content = read_objects(accept(tmp_path / "o.json"), folder)

    assert {item.photo.name for item in content.objects} == {"cats/2.jpg", *names}


def test_a_box_that_is_called_object_comes_back_with_its_points(tmp_path):
    points = '<points label="nose" points="9.5,4.5"/>'
    box = '<box label="object" xtl="1" ytl="2" xbr="30" ybr="20"/>'
    image = '<image id="1" name="cats/{}.jpg" width="40" height="30">{}</image>'  # two of one id, as of two tasks
    (tmp_path / "a.xml").write_text(f"<annotations>{image.format(1, points + box)}{image.format(2, box)}</annotations>")
    annotations = read_annotations(tmp_path / "a.xml", write_images(tmp_path))
    write_labels(tmp_path / "o.xml", "cvat", annotations, make_labels(annotations))

    (item,) = read_objects(tmp_path / "o.xml", tmp_path / "images").objects

    assert item.box == (1, 2, 29, 18)
    assert item.points.tolist() == [[3.25, 2.5]]


def test_images_and_groups_of_cvat_have_numbers_of_their_own(tmp_path):
    """Objects with skeletons beside objects with points, in two images of one id."""
    shapes = (
        '<points label="wheel" points="1.5,2.5"/>'
        '<box label="car" xtl="0" ytl="0" xbr="5" ybr="5"/><box label="car" xtl="20" ytl="0" xbr="25" ybr="5"/>'
    )
    text = CVAT.replace("</skeleton>", f"</skeleton>{shapes}").replace('<image id="1"', '<image id="0"')
    free = shapes[shapes.index("<box") :]
    (tmp_path / "a.xml").write_text(text.replace("</image>\n</annotations>", f"{free}</image></annotations>"))
    annotations = read_annotations(tmp_path / "a.xml", write_images(tmp_path))
    write_labels(tmp_path / "o.xml", "cvat", annotations, make_labels(annotations))

    images = ElementTree.parse(tmp_path / "o.xml").getroot().findall("image")
    assert [image.get("id") for image in images] == ["0", "1"]
    for image in images:
        groups = [shape.get("group_id") for shape in image if shape.tag != "points"]
        skeletons = [shape.get("group_id") for shape in image if shape.tag == "skeleton"]
        assert len(set(groups)) == len(groups) - len(skeletons)
        assert None not in groups


def test_a_table_without_a_label_is_one_without_rows(tmp_path):
    folder = write_images(tmp_path)
    annotations = read_annotations(write_tool_files(tmp_path)["cvat"], folder)

    write_labels(tmp_path / "o.csv", "deeplabcut", annotations, [])

    content = read_objects(tmp_path / "o.csv", folder)
    assert content.categories[1]["keypoints"] == ["nose", "ear", "tail"]
    assert not content.images

    pandas = pytest.importorskip("pandas")
    pytest.importorskip("tables")
    write_labels(tmp_path / "o.h5", "deeplabcut", annotations, [])
    assert pandas.read_hdf(tmp_path / "o.h5").shape == (0, 9)


def test_what_a_format_cannot_hold_is_refused_before_any_work(tmp_path, creatures):
    content = coco(creatures, ("cat", "dog"))
    content["categories"][0]["keypoints"][0] = "a\x01b"
    annotations = read_annotations(write(tmp_path, content), creatures / "JPEGImages", category="cat")

    require_writer(tmp_path / "o.json", "coco", annotations)
    with pytest.raises(UserError, match=r"The keypoint 'a\\x01b' of 'cat' holds the character"):
        require_writer(tmp_path / "o.xml", "cvat", annotations)
    with pytest.raises(UserError, match="is of one category"):
        require_writer(tmp_path / "o.csv", "deeplabcut", annotations)

    content = coco(creatures)
    content["categories"][0]["keypoints"][0] = "a\ud800"
    annotations = read_annotations(write(tmp_path, content), creatures / "JPEGImages", category="cat")
    with pytest.raises(UserError, match=r"The keypoint 'a\\ud800' of 'cat' .* a table of DeepLabCut cannot hold"):
        require_writer(tmp_path / "o.csv", "deeplabcut", annotations)

    folder = write_images(tmp_path)
    name = os.fsdecode(b"\xe4.jpg")  # not UTF-8
    (folder / name).write_bytes((folder / "cats/2.jpg").read_bytes())
    annotations = read_annotations(write_tool_files(tmp_path)["cvat"], folder, category="cat")
    for suffix, kind in ((".json", "label-studio"), (".xml", "cvat"), (".csv", "deeplabcut")):
        with pytest.raises(UserError, match=r"The image '\\udce4\.jpg' holds the character '\\udce4', which .* cannot"):
            require_writer(tmp_path / f"o{suffix}", kind, annotations)
    (folder / name).unlink()

    for parent in ("a", "b"):
        (folder / parent / "cats").mkdir(parents=True)
        (folder / parent / "cats/3.jpg").write_bytes((folder / "cats/2.jpg").read_bytes())
    annotations = read_annotations(write_tool_files(tmp_path)["cvat"], folder, category="cat")
    with pytest.raises(UserError, match=r"'a/cats/3\.jpg' and 'b/cats/3\.jpg' would both be"):
        require_writer(tmp_path / "o.csv", "deeplabcut", annotations)


def test_nan_in_what_is_written_as_it_is_read_is_refused(tmp_path, creatures):
    content = coco(creatures)
    content["categories"][0]["size"] = float("nan")

    with pytest.raises(UserError, match=r"category 1 holds NaN"):
        read_objects(write(tmp_path, content), creatures / "JPEGImages")


# -- the command --


@pytest.mark.integration
@pytest.mark.parametrize("kind", TOOLS)
def test_the_command_gives_back_what_it_was_given(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, path = write_images(tmp_path), write_tool_files(tmp_path)[kind]

    code, output = typed(path, folder)

    assert code == 0, output
    out = Path(f"labels{SUFFIXES[kind][0]}")
    assert f"Wrote {out}" in output
    found = points_of(read_objects(accept(out), folder))
    assert set(found) == {"cats/2.jpg"}
    assert typed(path, folder, "--format", "coco", "--out", "coco.json")[0] == 0
    expected = points_of(read_objects(tmp_path / "coco.json", folder))
    for name, point in expected["cats/2.jpg"].items():
        assert found["cats/2.jpg"][name] == pytest.approx(point, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("written", TOOLS)
def test_coco_comes_out_for_every_tool(tmp_path, creatures, written):
    out = tmp_path / f"o{SUFFIXES[written][0]}"
    line = (write(tmp_path, coco(creatures)), creatures / "JPEGImages", "--category", "cat")

    code, output = typed(*line, "--format", written, "--out", out)

    assert code == 0, output
    assert typed(*line, "--out", tmp_path / "o.json2")[0] == 0
    expected = json.loads((tmp_path / "o.json2").read_text())
    found = points_of(read_objects(accept(out), creatures / "JPEGImages"))
    names = {image["id"]: image["file_name"] for image in expected["images"]}
    keypoints = expected["categories"][0]["keypoints"]
    assert set(found) == set(names.values())
    for one in expected["annotations"]:
        rows = [one["keypoints"][i : i + 3] for i in range(0, len(one["keypoints"]), 3)]
        points = {name: (x, y) for name, (x, y, v) in zip(keypoints, rows, strict=True) if v}
        assert found[names[one["image_id"]]] == {name: pytest.approx(point, abs=1e-4) for name, point in points.items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "a.json"], "would be written as cvat, the format of the annotations, and its name must end in .xml"),
        (["--format", "coco", "--out", "a.xml"], r"would be written as coco, and its name must end in .json"),
        (["--format", "deeplabcut", "--out", "a.txt"], "must end in .csv or .h5"),
        (["--format", "yolo"], "yolo"),
        (["--box", "xyxy"], "--box is of COCO's boxes"),
    ],
)
def test_a_name_that_does_not_fit_the_format_is_refused(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    folder, path = write_images(tmp_path), write_tool_files(tmp_path)["cvat"]

    code, output = typed(path, folder, *options)

    assert code == 2
    assert message in " ".join(output.split())
    assert not list(tmp_path.glob("labels*"))


def test_the_name_of_what_is_written_follows_its_format(tmp_path):
    path = write_tool_files(tmp_path)["cvat"]

    assert resolve_output(None, None, path) == (Path("labels.xml"), "cvat")
    assert resolve_output(None, "deeplabcut", path) == (Path("labels.csv"), "deeplabcut")
    assert resolve_output(Path("a.H5"), "deeplabcut", path) == (Path("a.H5"), "deeplabcut")
