"""Boxes of people's own: of another layout they are refused, and outside of their images they are used and counted."""

import random

import pytest
import torch
from coco_forms import NAMES, SIZE, content, list_scored, read, write
from tiny_benchmarks import picture

from semcorr.core.errors import UserError
from semcorr.data.coco_fields import is_plausible_box
from semcorr.data.pairs_csv import read_csv_pairs
from semcorr.data.record import build_image_record
from semcorr.inference.transfer.annotations import read_annotations


def test_an_image_without_keypoints_has_none_that_is_visible(tmp_path):
    path = picture(tmp_path / "a.png")
    record = build_image_record("a", path, (40, 30), [], (0, 0, 4, 4), path)
    assert record.visible.dtype == torch.bool
    assert record.keypoints.shape == (0, 2)


def objects(seed: int, count: int = 12) -> list[tuple[list[float], list[float]]]:
    """Boxes by their corners, anywhere in the image, and three keypoints in each."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        x1, y1 = draw.uniform(0, SIZE[0] - 8), draw.uniform(0, SIZE[1] - 8)
        x2, y2 = draw.uniform(x1 + 6, SIZE[0]), draw.uniform(y1 + 6, SIZE[1])
        points = [value for _ in NAMES for value in (draw.uniform(x1, x2), draw.uniform(y1, y2), 2)]
        found.append(([x1, y1, x2, y2], points))
    return found


def file_of(boxes: list[list[float]], points: list[list[float]], sizes: bool) -> dict:
    whole = content()
    size = {"width": SIZE[0], "height": SIZE[1]} if sizes else {}
    whole["images"] = [{"id": i, "file_name": f"{i}.jpg", **size} for i in range(len(boxes))]
    whole["annotations"] = [
        {"id": 50 + i, "image_id": i, "category_id": 3, "bbox": box, "keypoints": flat}
        for i, (box, flat) in enumerate(zip(boxes, points, strict=True))
    ]
    return whole


def xywh(corners: list[float]) -> list[float]:
    return [*corners[:2], corners[2] - corners[0], corners[3] - corners[1]]


@pytest.mark.parametrize("sizes", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_boxes_are_read_in_their_layout_and_refused_in_the_other(tmp_path, seed, sizes):
    corners, points = map(list, zip(*objects(seed), strict=True))
    files = tuple(f"{i}.jpg" for i in range(len(corners)))
    write(tmp_path / "xyxy", file_of(corners, points, sizes), files)
    write(tmp_path / "xywh", file_of([xywh(box) for box in corners], points, sizes), files)

    right = [[one[-1] for one in list_scored(read(tmp_path / layout, layout))] for layout in ("xyxy", "xywh")]
    assert [list(box) for box in right[0]] == corners
    assert [pytest.approx(box) for box in right[0]] == right[1]

    for layout, other in (("xyxy", "xywh"), ("xywh", "xyxy")):
        root = tmp_path / layout
        picture(root / "images/new.jpg", SIZE)
        with pytest.raises(UserError, match=r"keypoints\.json.*data\.box") as error:
            read(root, other)
        with pytest.raises(UserError, match="--box"):
            read_annotations(root / "keypoints.json", root / "images", other)
        assert "below 0" in str(error.value) or f"Give data.box={layout}" in str(error.value)


def test_xyxy_boxes_are_known_by_the_few_that_reach_outside(tmp_path):
    """Of objects above and to the left nothing can be told; of one at the right it can."""
    corners = [[1.0, 1.0, 9.0, 9.0]] * 5 + [[25.0, 12.0, 38.0, 28.0]]
    points = [[3, 3, 2, 4, 4, 2, 5, 5, 2]] * 5 + [[27, 14, 2, 30, 20, 2, 33, 25, 2]]
    write(tmp_path, file_of(corners, points, True), tuple(f"{i}.jpg" for i in range(6)))

    with pytest.raises(UserError, match=r"1 of 6 boxes, as that of annotation 55, .* Give data\.box=xyxy; if they"):
        read(tmp_path)


OUTSIDE = {
    "a crop's": [-5.0, -5.0, 50.0, 45.0], "to the right": [8.0, 3.0, 60.0, 20.0], "above": [8.0, -9.0, 10.0, 30.0],
    "below": [5.0, 3.0, 10.0, 90.0], "everywhere": [-100.0, -100.0, 300.0, 300.0],
}  # fmt: skip


@pytest.mark.parametrize("box", OUTSIDE.values(), ids=OUTSIDE)
def test_a_box_that_reaches_outside_is_used_as_it_is_and_reported(tmp_path, caplog, box):
    form = content()
    form["annotations"][0]["bbox"] = box

    records = list_scored(read(write(tmp_path, form)))

    assert records[0][-1] == (box[0], box[1], box[0] + box[2], box[1] + box[3])
    assert "1 annotations have a `bbox` that reaches outside its image, and is used as it is (11)" in caplog.text


@pytest.mark.parametrize("stray", [0.0, 0.5, 1.0])
def test_within_a_pixel_nothing_is_reported(tmp_path, caplog, stray):
    form = content()
    form["annotations"][0]["bbox"] = [-stray, -stray, SIZE[0] + 2 * stray, SIZE[1] + 2 * stray]

    read(write(tmp_path, form))

    assert "outside" not in caplog.text


def test_a_right_file_with_a_stray_keypoint_is_read(tmp_path):
    corners, points = map(list, zip(*objects(9), strict=True))
    points[3][:2] = [0.0, 0.0]
    files = tuple(f"{i}.jpg" for i in range(len(corners)))

    assert len(read(write(tmp_path / "a", file_of(corners, points, True), files), "xyxy")["dog"]) == 12
    boxes = [xywh(box) for box in corners]
    assert len(read(write(tmp_path / "b", file_of(boxes, points, True), files))["dog"]) == 12


@pytest.mark.parametrize(
    ("corners", "points", "sense"),
    [
        ((0, 0, 10, 10), [], True), ((0, 0, 11, 10), [], True), ((0, 0, 11.5, 10), [], False),
        ((-2, 0, 9, 9), [], False),
        ((2, 2, 8, 8), [(9, 1)], True), ((2, 2, 8, 8), [(9.5, 5)], False), ((8, 2, 2, 8), [], False),
        ((2, 2, 8, 8), [None], True),
    ],
)  # fmt: skip
def test_a_box_makes_sense_by_its_image_and_its_keypoints(corners, points, sense):
    assert is_plausible_box(corners, points, (10, 10)) is sense


@pytest.mark.parametrize(("box", "output"), [("-5;-5;100;100", True), ("0;0;40;30", False), ("5;5;60;9", True)])
def test_boxes_of_a_table_that_reach_outside_are_counted(tmp_path, caplog, box, output):
    for name in "ab":
        picture(tmp_path / f"{name}.png", SIZE)
    (tmp_path / "pairs.csv").write_text(f"source_image,target_image,XA,YA,XB,YB,box\na.png,b.png,1,2,7,8,{box}\n")

    (pair,) = read_csv_pairs(tmp_path, "pairs.csv", "box")

    x1, y1, x2, y2 = map(float, box.split(";"))
    assert pair.extent == max(x2 - x1, y2 - y1)
    assert ("1 boxes reach outside their image, and are used as they are" in caplog.text) is output
