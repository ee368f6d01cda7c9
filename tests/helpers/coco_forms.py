"""A valid COCO keypoint file of two dogs in pictures of their own, and the forms in which annotation tools write it."""

import copy
from collections.abc import Callable
from pathlib import Path

from tiny_benchmarks import dump, picture

from semcorr.data.coco_keypoints import read_images
from semcorr.data.record import ImageRecord

NAMES = ["nose", "left_ear", "right_ear"]
SIZE = (40, 30)
FILES = ("a.jpg", "b.jpg")
POINTS = [[10.5, 5, 2, 12, 6, 1, 0, 0, 0], [20, 8, 2, 22.25, 9, 2, 18, 9, 2]]
BOXES = [[8, 3, 10, 12], [15.5, 4, 12, 20]]


def content() -> dict:
    """As the COCO format is described."""
    return {
        "images": [
            {"id": 1 + i, "file_name": name, "width": SIZE[0], "height": SIZE[1]} for i, name in enumerate(FILES)
        ],
        "categories": [
            {"id": 3, "name": "dog", "supercategory": "animal", "keypoints": [*NAMES], "skeleton": [[1, 2]]},
        ],
        "annotations": [
            {
                "id": 11 + i, "image_id": 1 + i, "category_id": 3, "bbox": list(BOXES[i]), "keypoints": list(POINTS[i]),
                "area": 120.0, "iscrowd": 0, "num_keypoints": sum(v > 0 for v in POINTS[i][2::3]), "segmentation": [],
            }
            for i in range(2)
        ],
    }  # fmt: skip


def write(root: Path, changed: dict | list | None = None, files: tuple[str, ...] = FILES) -> Path:
    """The pictures, and a file that names them."""
    for name in files:
        picture(root / "images" / name, SIZE)
    dump(root / "keypoints.json", content() if changed is None else changed)
    return root


def read(root: Path, box: str = "xywh") -> dict[str, list[ImageRecord]]:
    """Records by category, as the benchmark has them."""
    return read_images(root, "keypoints.json", "images", box)[0]


def list_scored(records: dict[str, list[ImageRecord]]) -> list[tuple]:
    """What is scored, of each record, whatever images and categories are called."""
    return [
        (one.path.name, one.size, one.keypoints.tolist(), one.visible.tolist(), one.box)
        for of_category in records.values()
        for one in of_category
    ]


EXPECTED = [
    ("a.jpg", SIZE, [[10.5, 5.0], [12.0, 6.0], [0.0, 0.0]], [True, True, False], (8.0, 3.0, 18.0, 15.0)),
    ("b.jpg", SIZE, [[20.0, 8.0], [22.25, 9.0], [18.0, 9.0]], [True, True, True], (15.5, 4.0, 27.5, 24.0)),
]


# -- tools --


def cvat() -> dict:
    """`COCO Keypoints 1.0`: labels without a skeleton are categories, too; names of points may be numbers."""
    form = content()
    form |= {"licenses": [{"name": "", "id": 0, "url": ""}], "info": {"contributor": "", "year": "", "version": ""}}
    for image in form["images"]:
        image |= {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}
    form["categories"] = [
        {"id": 3, "name": "dog", "supercategory": "", "keypoints": ["1", "2", "3"], "skeleton": [[2, 1], [3, 1]]},
        {"id": 4, "name": "sofa", "supercategory": "", "keypoints": [], "skeleton": []},
    ]
    for one in form["annotations"]:
        one["attributes"] = {"occluded": False, "keyframe": True}
    sofa = {"id": 90, "image_id": 1, "category_id": 4, "segmentation": [[1, 1, 9, 1, 9, 9]], "area": 64.0,
            "bbox": [1.0, 1.0, 8.0, 8.0], "iscrowd": 0, "attributes": {"occluded": False}}  # fmt: skip
    form["annotations"].append(sofa)
    return form


def label_studio() -> dict:
    """Its converter counts from 0, puts `images/` before names, escapes blanks, and leaves sizes open."""
    form = content()
    for i, image in enumerate(form["images"]):
        image |= {"id": i, "file_name": f"images/{FILES[i]}", "width": None, "height": None}
    for i, one in enumerate(form["annotations"]):
        one |= {"id": i, "image_id": i, "category_id": 0, "ignore": 0, "score": None}
    form["categories"] = [{"id": 0, "name": "dog", "keypoints": NAMES, "skeleton": []}]
    return form | {"info": {"year": 2026, "version": "1.0", "contributor": "Label Studio"}}


def x_anylabeling() -> dict:
    """Made on Windows: backslashes; its boxes are floats; keys of its own."""
    form = content()
    for image in form["images"]:
        image |= {"file_name": f".\\{image['file_name']}", "license": 0, "flickr_url": "", "date_captured": ""}
    for one in form["annotations"]:
        one |= {"bbox": [float(value) for value in one["bbox"]], "ignore": 0, "segmentation": []}
    return form | {"type": "instances", "licenses": [{"id": 0, "name": ""}]}


def deep_lab_cut() -> dict:
    """Converted: NaN where nothing is labelled, with v = 0; -1 where a data set has no such point; individuals."""
    form = content()
    form["annotations"][0]["keypoints"][6:] = [float("nan"), float("nan"), 0]
    form["categories"] = [{"id": 3, "name": "mouse", "supercategory": "animal", "keypoints": NAMES}]
    for one in form["annotations"]:
        one |= {"individual": "single", "individual_id": -1, "keypoints": [float(value) for value in one["keypoints"]]}
    form["annotations"][0]["keypoints"][6:] = [-1.0, -1.0, -1.0]
    return form


def fifty_one() -> dict:
    """COCODetectionDataset: ids as text may occur, skeletons from 0, scores, RLE in segmentations."""
    form = content()
    form["categories"][0] |= {"supercategory": None, "skeleton": [[0, 1], [1, 2]]}
    for image in form["images"]:
        image |= {"license": None, "coco_url": None}
    for one in form["annotations"]:
        one |= {"image_id": str(one["image_id"]), "segmentation": {"counts": "a1b2", "size": [30, 40]}, "score": 0.9}
    return form | {"info": {"year": "", "url": "https://voxel51.com/fiftyone"}, "licenses": []}


def coco_annotator() -> dict:
    """Colours, paths on its server, truth values, and annotations that were begun and left."""
    form = content()
    for image in form["images"]:
        image |= {"dataset_id": 1, "path": f"/datasets/dogs/{image['file_name']}", "deleted": False, "annotating": []}
    form["categories"][0] |= {"color": "#3de5d6", "metadata": {}, "keypoint_colors": ["#bf5c4d", "#d99100", "#4d8068"]}
    for one in form["annotations"]:
        one |= {"iscrowd": False, "isbbox": False, "color": "#aa0000", "metadata": {}}
    left = {"id": 95, "image_id": 2, "category_id": 3, "segmentation": [], "area": 0, "bbox": [0, 0, 0, 0],
            "iscrowd": False, "keypoints": [], "num_keypoints": 0}  # fmt: skip
    form["annotations"].append(left)
    return form


def roboflow() -> dict:
    """A parent category without keypoints, ids from 0, names of its own, text in `year`."""
    form = content()
    parent = {"id": 0, "name": "dogs", "supercategory": "none"}
    form["categories"] = [parent, form["categories"][0] | {"id": 1, "supercategory": "dogs"}]
    for i, one in enumerate(form["annotations"]):
        form["images"][i] |= {"id": i, "license": 1, "date_captured": "2026-01-01", "extra": {"name": "IMG 1.jpg"}}
        one |= {"id": i, "image_id": i, "category_id": 1, "segmentation": []}
    return form


TOOLS: dict[str, Callable[[], dict]] = {
    "cvat": cvat, "Label Studio": label_studio, "X-AnyLabeling": x_anylabeling, "DeepLabCut": deep_lab_cut,
    "FiftyOne": fifty_one, "COCO Annotator": coco_annotator, "Roboflow": roboflow,
}  # fmt: skip


def changed(change: Callable[[dict], object]) -> dict:
    """The valid content with one thing changed."""
    other = copy.deepcopy(content())
    change(other)
    return other
