"""Every reader that takes the name of a file from a file: how one name in it is replaced, and how it is read."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import quoteattr

from tiny_benchmarks import dump, edit, picture, write_coco, write_spair, write_willow
from tiny_pascal import write_pascal

from semcorr.data.ap10k_pairs import read_animals
from semcorr.data.coco_keypoints import COCOKeypoints
from semcorr.data.pairs_csv import PairsCSV
from semcorr.data.proposal_flow import PFPascal, PFWillow
from semcorr.data.spair import SPair
from semcorr.inference.transfer.annotations import read_annotations
from semcorr.models.weights.checkpoints import read_weights


class Reader(NamedTuple):
    """A file that names others."""

    write: Callable[[Path, str], object]  # below a folder, with this name in it
    read: Callable[[Path], object]
    file: str  # which file the message must name
    folder: str = ""  # where the names are looked for
    json: bool = True  # can hold any character
    links: bool = False  # links out of the folder are refused
    folders: bool = False  # names may be paths below the folder


def write_sheet(root: Path, name: str) -> None:
    """Two images, of which the first is annotated."""
    picture(root / "images/a.jpg")
    picture(root / "images/b.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": name}],
        "categories": [{"id": 3, "name": "dog", "keypoints": ["nose"]}],
        "annotations": [{"id": 5, "image_id": 1, "category_id": 3, "keypoints": [4, 5, 2]}],
    }
    dump(root / "sheet.json", content)


def write_cvat(root: Path, name: str) -> None:
    """Two images, of which the first is annotated."""
    picture(root / "images/a.jpg")
    picture(root / "images/b.jpg")
    points = '<points label="nose" points="4.5,5.5"/>'
    images = [
        f'<image id="{i}" name={quoteattr(each)} width="40" height="30">{shapes}</image>'
        for i, (each, shapes) in enumerate((("a.jpg", points), (name, "")))
    ]
    text = f"<annotations>{''.join(images)}</annotations>"
    (root / "sheet.xml").write_text(text, encoding="utf-8", errors="surrogatepass")


def write_animal_pose(root: Path, name: str) -> None:
    write_coco(root)
    edit(root / "keypoints.json", lambda content: content.update(images={str(100 + k): name for k in range(10)}))


def write_named_coco(root: Path, name: str) -> None:
    write_coco(root)
    edit(root / "keypoints.json", lambda content: content["images"][0].update(file_name=name))


def write_rows(root: Path, name: str) -> None:
    picture(root / "a.jpg")
    with (root / "pairs.csv").open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        csv.writer(file).writerows(
            [["source_image", "target_image", "XA", "YA", "XB", "YB"], ["a.jpg", name, "1", "2", "3", "4"]]
        )


def write_layout(root: Path, name: str) -> None:
    write_spair(root)
    (root / "Layout/large/test.txt").write_text(f"000001-{name}-two:cat\n")


def write_filename(root: Path, name: str) -> None:
    write_spair(root)
    edit(root / "ImageAnnotation/cat/one.json", lambda entry: entry.update(filename=name))


def write_list(root: Path, name: str) -> None:
    """Change a name in the list of PF-WILLOW, or of PF-PASCAL."""
    path = next(path for path in (root / "test_pairs.csv", root / "test_pairs_pf_pascal.csv") if path.exists())
    with path.open(newline="") as file:
        header, row, *rest = csv.reader(file)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, [name, *row[1:]], *rest])


def write_animal(root: Path, name: str) -> None:
    image = {"id": 1, "file_name": name, "width": 40, "height": 30}
    kind = {"id": 2, "name": "dog", "supercategory": "Canidae"}
    entry = {"id": 3, "image_id": 1, "category_id": 2, "keypoints": [4, 5, 2] * 17, "bbox": [1, 2, 9, 9]}
    dump(root / "animals.json", {"images": [image], "categories": [kind], "annotations": [entry]})


def write_index(root: Path, name: str) -> None:
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))


READERS = {
    "coco_keypoints": Reader(
        write_named_coco, lambda root: COCOKeypoints(root=str(root), size=32, val=0, test=1).pairs("test"),
        "keypoints.json", "images", links=True, folders=True,
    ),
    "AnimalPose's dialect": Reader(
        write_animal_pose, lambda root: COCOKeypoints(root=str(root), size=32, val=0, test=1).pairs("test"),
        "keypoints.json", "images", links=True, folders=True,
    ),
    "pairs_csv": Reader(
        write_rows, lambda root: PairsCSV(root=str(root), size=32).pairs("test"),
        "pairs.csv", json=False, links=True, folders=True,
    ),
    "transfer": Reader(
        write_sheet, lambda root: read_annotations(root / "sheet.json", root / "images"),
        "sheet.json", "images", links=True, folders=True,
    ),
    "transfer, CVAT": Reader(
        write_cvat, lambda root: read_annotations(root / "sheet.xml", root / "images"),
        "sheet.xml", "images", json=False, links=True, folders=True,
    ),
    "SPair's annotation": Reader(
        write_filename, lambda root: SPair(root=str(root), size=32).pairs("test"),
        "one.json", "JPEGImages/cat",
    ),
    "SPair's list": Reader(
        write_layout, lambda root: SPair(root=str(root), size=32).pairs("test"),
        "test.txt", "ImageAnnotation/cat", json=False,
    ),
    "PF-WILLOW's list": Reader(
        lambda root, name: write_list(write_willow(root), name),
        lambda root: PFWillow(root=str(root), size=32).pairs("test"),
        "test_pairs.csv", json=False, folders=True,
    ),
    "PF-PASCAL's list": Reader(
        lambda root, name: write_list(write_pascal(root), name),
        lambda root: PFPascal(root=str(root), size=32).pairs("test"),
        "test_pairs_pf_pascal.csv", json=False, folders=True,
    ),
    "AP-10K's annotation": Reader(
        write_animal, lambda root: read_animals([root / "animals.json"]), "animals.json", "data",
    ),
    "the index of weights": Reader(write_index, read_weights, "model.safetensors.index.json"),
}  # fmt: skip
