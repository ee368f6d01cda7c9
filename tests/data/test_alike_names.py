"""Names of images as another system writes them: the one file that is meant is found and said, or none is guessed."""

import unicodedata
from pathlib import Path

import pytest
from test_image_names import write_coco, write_rows
from tiny_benchmarks import picture

from semcorr.core.errors import UserError
from semcorr.core.paths import find_inside
from semcorr.data.pairs_csv import PairsCSV


def composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def apart(name: str) -> str:
    """As macOS's older file systems and its archives have it."""
    return unicodedata.normalize("NFD", name)


FOUND = {  # what lies there, and what a file calls it
    "apart on disk": (apart("Zürich.jpg"), composed("Zürich.jpg")),
    "apart in the file": (composed("Zürich.jpg"), apart("Zürich.jpg")),
    "folders apart": (apart("Möwen/é/a.jpg"), composed("Möwen/é/a.jpg")),
    "Hangul": (apart("한국.png"), composed("한국.png")),
    "capitals": ("IMG_1.JPG", "img_1.jpg"),
    "an ending in capitals": ("sub/a.JPG", "sub/a.jpg"),
    "a folder in capitals": ("Dogs/a.jpg", "dogs/a.jpg"),
    "backslashes, too": ("Dogs/a.jpg", "dogs\\A.jpg"),
    "escaped, too": (apart("ü b.jpg"), "%C3%BC%20b.jpg"),
    "the folder before it": ("A.jpg", "images/a.jpg"),
    "a blank at the end": ("a.jpg", "a.jpg "),
}


@pytest.mark.parametrize(("file", "name"), FOUND.values(), ids=FOUND)
def test_the_file_is_found_that_is_meant(tmp_path, file, name):
    picture(tmp_path / "images" / file)
    picture(tmp_path / "images/other.png")

    assert find_inside(tmp_path / "images", name, "a.json", "--images") == file


NOT_FOUND = {
    "several": (["A.jpg", "a.JPG"], "a.jpg"),
    "another ending": (["a.jpeg"], "a.jpg"),
    "another accent": ([composed("á.jpg")], composed("à.jpg")),
    "another folder": (["sub/a.jpg"], "a.jpg"),
    "a folder of this name": (["A.jpg/b.jpg"], "a.jpg"),
    "no folder": (["a.jpg"], "A.jpg/b.jpg"),
}


@pytest.mark.parametrize(("files", "name"), NOT_FOUND.values(), ids=NOT_FOUND)
def test_no_file_is_guessed_from_a_similar_name(tmp_path, files, name):
    for file in files:
        picture(tmp_path / file)

    try:
        found = find_inside(tmp_path, name, "a.json", "--images")
    except UserError as error:
        assert "folder" in str(error)  # noqa: PT017
    else:
        assert found == name
        assert not (tmp_path / found).is_file()


def test_an_exact_name_comes_first_and_a_new_file_is_seen(tmp_path):
    picture(tmp_path / "A.jpg")
    assert find_inside(tmp_path, "a.jpg", "a.json", "--images") == "A.jpg"

    picture(tmp_path / "a.jpg")
    assert find_inside(tmp_path, "a.jpg", "a.json", "--images") == "a.jpg"


def test_a_link_that_leads_out_is_refused_under_any_spelling(tmp_path):
    picture(tmp_path / "outside.jpg")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/A.jpg").symlink_to(tmp_path / "outside.jpg")

    with pytest.raises(UserError, match="leads out"):
        find_inside(tmp_path / "images", "a.jpg", "a.json", "--images")


def test_benchmarks_say_which_names_they_read_otherwise(tmp_path, caplog):
    files = ["A.JPG", apart("ö.jpg"), "c.jpg"]
    pairs = write_coco(tmp_path, files, ["a.jpg", composed("ö.jpg"), "c.jpg"]).pairs("test")
    assert len(pairs) == 6
    assert '2 names of images are read as their files are called ("a.jpg" as "A.JPG", ' in caplog.text

    caplog.clear()
    write_rows(tmp_path / "images/pairs.csv", ("a.jpg", composed("ö.jpg")), ("./c.jpg", "a.jpg"))
    rows = PairsCSV(root=str(tmp_path / "images"), size=32).pairs("test")
    assert [Path(row.source.path).name for row in rows] == ["A.JPG", "c.jpg"]
    assert '2 names of images are read as their files are called ("a.jpg" as "A.JPG", ' in caplog.text
