"""What features are held by is one name for each image file, whatever its ending, case, folder and spelling."""

import csv
import os
import random
from pathlib import Path

import pytest
from coco_forms import NAMES
from tiny_benchmarks import dump, picture

from semcorr.data.coco_keypoints import COCOKeypoints
from semcorr.data.image_names import name_images
from semcorr.data.image_variants import ImageVariant, unique_images
from semcorr.data.pairs_csv import PairsCSV

CASES = {
    "plain": (["b/1.jpg", "a/1.jpg", "c.png"], {"b/1.jpg": "b/1", "a/1.jpg": "a/1", "c.png": "c"}),
    "endings": (["a.jpg", "a.png", "b.jpg"], {"a.jpg": "a.jpg", "a.png": "a.png", "b.jpg": "b"}),
    "endings of a case": (["a.jpg", "a.JPG"], {"a.jpg": "a.jpg", "a.JPG": "a.JPG"}),
    "case": (["A.jpg", "a.jpg"], {"A.jpg": "A", "a.jpg": "a"}),
    "two endings": (["a.jpg", "a.png", "a.jpg.png"], {"a.jpg": "a.jpg", "a.png": "a.png", "a.jpg.png": "a.jpg.png"}),
    "no ending": (["a", "a.jpg"], {"a": "a", "a.jpg": "a.jpg"}),
    "spellings": (["./a.jpg", "a.jpg", "b//c.jpg"], {"./a.jpg": "a", "a.jpg": "a", "b//c.jpg": "b/c"}),
    "mirrored": (["a.jpg", "a mirrored.jpg"], {"a.jpg": "a", "a mirrored.jpg": "a mirrored.jpg"}),
    "turned": (["a.jpg", "a turned 90.jpg"], {"a.jpg": "a", "a turned 90.jpg": "a turned 90.jpg"}),
    "mirrored, no ending": (["a", "a mirrored"], {"a": "a", "a mirrored": "a mirrored."}),
    "folders alike": (["a/b.jpg", "a-b.jpg"], {"a/b.jpg": "a/b", "a-b.jpg": "a-b"}),
}


@pytest.mark.parametrize(("files", "names"), CASES.values(), ids=CASES)
def test_a_name_is_the_path_without_its_ending_where_that_is_enough(tmp_path, files, names):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(file)

    assert name_images(tmp_path, files) == names
    assert name_images(tmp_path, files[::-1]) == names


@pytest.mark.parametrize("link", ["symbolic", "hard", "of the folder"])
def test_a_link_is_its_file(tmp_path, link):
    picture(tmp_path / "sub/b.jpg")
    if link == "hard":
        os.link(tmp_path / "sub/b.jpg", tmp_path / "a.jpg")
    elif link == "symbolic":
        (tmp_path / "a.jpg").symlink_to("sub/b.jpg")
    else:
        (tmp_path / "also").symlink_to("sub")
    other = "also/b.jpg" if link == "of the folder" else "a.jpg"

    names = name_images(tmp_path, ["sub/b.jpg", other])

    assert len(set(names.values())) == 1


def names_by_hand(files: list[str], seed: int) -> None:
    """Distinct files have distinct names, and none is that of a variant of another."""
    names = name_images(Path("nowhere"), random.Random(seed).sample(files, len(files)))
    every = [ImageVariant(None, *how)._replace(record=Record(name)).name for name in names.values()
             for how in ((False, 0), (True, 0), (False, 90), (True, 270))]  # fmt: skip
    assert len(set(every)) == 4 * len(files), names


class Record:
    """All that an `ImageVariant` looks at."""

    corruption = None

    def __init__(self, name: str) -> None:
        self.name = name


@pytest.mark.parametrize("seed", range(30))
def test_no_two_files_share_a_name_with_each_other_or_with_a_variant(seed):
    draw = random.Random(seed)
    parts = ["a", "A", "a.jpg", "a mirrored", "a turned 90", "a.", "b"]
    endings = ["", ".jpg", ".JPG", ".png", ".", ".jpg.png", " mirrored", " turned 90"]
    files = {draw.choice(parts) + draw.choice(endings) + draw.choice(endings) for _ in range(12)}
    names_by_hand(sorted(files), seed)


def write_coco(root: Path, files: list[str], entries: list[str] | None = None) -> COCOKeypoints:
    entries = entries or files
    for i, file in enumerate(files):
        picture(root / "images" / file, (40 + i, 30))
    flat = [5, 6, 2, 9, 9, 2, 12, 4, 2]
    content = {
        "images": [{"id": i, "file_name": file} for i, file in enumerate(entries)],
        "categories": [{"id": 1, "name": "dog", "keypoints": NAMES}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 20, 20], "keypoints": flat}
            for i in range(len(entries))
        ],
    }
    dump(root / "keypoints.json", content)
    return COCOKeypoints(root=str(root), size=32, val=0, test=1, min_shared=2)


@pytest.mark.parametrize("files", [["a.jpg", "a.png"], ["s/a.jpg", "s/a.JPG", "a.jpg"], ["a.jpg", "a mirrored.png"]])
def test_every_image_of_a_coco_file_is_told_apart(tmp_path, files):
    pairs = write_coco(tmp_path, files).pairs("test")

    assert len(pairs) == len(files) * (len(files) - 1)
    assert sorted(str(image.path.relative_to(tmp_path / "images")) for image in unique_images(pairs)) == sorted(files)
    assert len({pair.name for pair in pairs}) == len(pairs)


def test_pairs_of_names_with_dashes_are_told_apart(tmp_path):
    pairs = write_coco(tmp_path, ["a-b.jpg", "c.jpg", "a.jpg", "b-c.jpg"]).pairs("test")

    assert len({pair.name for pair in pairs}) == len(pairs) == 12


def test_two_entries_of_one_file_are_one_image_with_several_objects(tmp_path, caplog):
    pairs = write_coco(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], ["a.jpg", "b.jpg", "c.jpg", "./a.jpg"]).pairs("test")

    assert {image.name for image in unique_images(pairs)} == {"b", "c"}
    assert "1 images hold several objects" in caplog.text


def write_rows(path: Path, *pairs: tuple[str, str]) -> None:
    with path.open("w", newline="") as file:
        header = ["source_image", "target_image", "XA", "YA", "XB", "YB"]
        csv.writer(file).writerows([header, *([*pair, "1", "2", "3", "4"] for pair in pairs)])


def test_images_of_all_lists_have_one_name_each(tmp_path):
    """Features are kept from training to validation: the same name must be the same image there."""
    for file in ("a.jpg", "a.png", "b.jpg"):
        picture(tmp_path / file)
    write_rows(tmp_path / "train.csv", ("a.jpg", "b.jpg"))
    write_rows(tmp_path / "val.csv", ("a.png", "./b.jpg"))
    data = PairsCSV(root=str(tmp_path), size=32, train="train.csv", val="val.csv", test=None, split="val")

    (train,), (val,) = data.pairs("train"), data.pairs("val")

    assert (train.source.name, train.target.name) == ("a.jpg", "b")
    assert (val.source.name, val.target.name) == ("a.png", "b")


def test_a_row_of_a_jpeg_and_a_png_of_one_name_is_of_two_images(tmp_path):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "a.png", (50, 20))
    write_rows(tmp_path / "pairs.csv", ("a.jpg", "a.png"))

    (pair,) = PairsCSV(root=str(tmp_path), size=32).pairs("test")

    assert pair.source.name != pair.target.name
    assert len(unique_images([pair])) == 2
