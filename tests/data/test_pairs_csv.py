import csv

import pytest
from tiny_benchmarks import picture

from semcorr.core.errors import UserError
from semcorr.data.dataset import PairDataset
from semcorr.data.pairs_csv import PairsCSV

HEADER = ["source_image", "target_image", "XA", "YA", "XB", "YB", "category", "box"]
ROWS = [
    ["a/one.png", "a/two.png", "1;2.5;;4", "5;6;;8", "9;;11;12", "13;;15;16", "cup", "2;3;32;23"],
    ["a/two.png", "a/one.png", "7", "8", "9", "10", "shoe", "0;0;10;12"],
]


def write(root, rows=ROWS, header=HEADER, name="pairs.csv", encoding="utf-8"):
    for stem in ("one", "two"):
        picture(root / "a" / f"{stem}.png")
    with (root / name).open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([header, *rows])
    return str(root)


def test_a_row_is_a_pair_and_an_empty_number_a_point_not_visible(tmp_path):
    first, second = PairsCSV(root=write(tmp_path), size=32).pairs("test")

    assert (first.source.name, first.target.name, first.category) == ("a/one", "a/two", "cup")
    assert first.source.visible.tolist() == [True, True, False, True]
    assert first.target.visible.tolist() == [True, False, True, True]
    assert first.source.keypoints[1].tolist() == [2.5, 6]
    assert second.source.visible.tolist() == [True, False, False, False]  # padded: batches are rectangular


EXTENTS = {"image": 40, "box": 30, "keypoints": 3}


@pytest.mark.parametrize(("extent", "expected"), EXTENTS.items())
def test_alpha_is_a_fraction_of_what_the_option_says(tmp_path, extent, expected):
    assert PairsCSV(root=write(tmp_path, ROWS[:1]), size=32, extent=extent).pairs("test")[0].extent == expected


def test_category_and_box_may_be_left_out(tmp_path):
    root = write(tmp_path, [row[:6] for row in ROWS], HEADER[:6])

    pair = PairsCSV(root=root, size=32).pairs("test")[0]

    assert pair.category == "object"
    assert pair.extent == 40


def test_domains_are_read_where_they_are_given(tmp_path):
    header = [*HEADER, "source_domain", "target_domain"]
    root = write(tmp_path, [[*ROWS[0], "photo", " oil painting "], [*ROWS[1], "photo", ""]], header)

    first, second = PairsCSV(root=root, size=32).pairs("test")

    assert first.details == {"source_domain": "photo", "target_domain": "oil painting"}
    assert second.details == {"source_domain": "photo", "target_domain": None}


def test_a_spreadsheets_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    assert len(PairsCSV(root=write(tmp_path, encoding="utf-8-sig"), size=32).pairs("test")) == 2


def test_each_split_has_its_file(tmp_path):
    write(tmp_path)
    root = write(tmp_path, ROWS[:1], name="train.csv")
    data = PairsCSV(root=root, size=32, train="train.csv")

    assert [len(data.pairs(split)) for split in ("train", "test")] == [1, 2]
    with pytest.raises(UserError, match="must be one of train, test, got 'val'"):
        data.pairs("val")


def test_pairs_of_training_and_validation_may_be_limited_and_those_of_the_test_are_not(tmp_path):
    write(tmp_path, ROWS * 3)
    files = {"train": "pairs.csv", "val": "pairs.csv", "test": "pairs.csv"}
    data = PairsCSV(root=str(tmp_path), size=32, train_per_category=2, val_per_category=1, **files)

    counts = {split: [pair.category for pair in data.pairs(split)] for split in files}

    assert {split: (names.count("cup"), names.count("shoe")) for split, names in counts.items()} == {
        "train": (2, 2),
        "val": (1, 1),
        "test": (3, 3),
    }


def test_samples_are_loaded_from_the_table(tmp_path):
    sample = PairDataset(PairsCSV(root=write(tmp_path), size=32).pairs("test"), 32, "squash")[0]
    assert sample.shared.tolist() == [True, False, False, True]
    assert sample.source.image.shape == (3, 32, 32)


def test_a_pair_of_a_picture_with_itself_is_scored_and_told(tmp_path, caplog):
    same = ["a/one.png", "a/one.png", "7", "8", "7", "8", "shoe", "0;0;10;12"]
    assert len(PairsCSV(root=write(tmp_path, [*ROWS, same]), size=32).pairs("test")) == 3
    assert "pairs_csv test: 1 pairs are of a picture with itself (000003-a/one-a/one), where" in caplog.text


def test_a_repeated_row_is_scored_twice_and_reported_with_both_lines(tmp_path, caplog):
    rows = [[str(i), *row] for i, row in enumerate([*ROWS, ROWS[0]])]  # with the index of a data frame

    assert len(PairsCSV(root=write(tmp_path, rows, ["", *HEADER]), size=32).pairs("test")) == 3

    assert "1 rows are there before, and are scored each time (line 4 as line 2)" in caplog.text


def test_an_accent_is_one_letter_or_two(tmp_path):
    rows = [[*ROWS[0][:6], word, ROWS[0][7]] for word in ("caf\u00e9", "cafe\u0301")]

    assert {pair.category for pair in PairsCSV(root=write(tmp_path, rows), size=32).pairs("test")} == {"caf\u00e9"}


def changed(column: str, value: str) -> list[list[str]]:
    row = list(ROWS[0])
    row[HEADER.index(column)] = value
    return [row, ROWS[1]]


BROKEN = {
    "more x than y": (changed("YA", "5;6;;8;9"), {}, ["line 2", "XA has 4 numbers, YA 5"]),
    "more points in one image": (changed("XB", "1;2"), {}, ["line 2", "XB has 2 numbers"]),
    "half a point": (changed("XA", "1;2.5;3;4"), {}, ["line 2", "point 3 has only a number in XA"]),
    "a word": (changed("XA", "1;x;;4"), {}, ["line 2", "XA holds 'x'"]),
    "a box of three": (changed("box", "1;2;3"), {"extent": "box"}, ["line 2", "'1;2;3'", "must be x1;y1;x2;y2"]),
    "no box": (changed("box", ""), {"extent": "box"}, ["line 2", "needs the target's box", "this row has none in its"]),
    "a missing image": (changed("source_image", "a/three.png"), {}, ["three.png does not exist"]),
    "nothing shared": ([[*ROWS[0][:2], "1;", "2;", ";3", ";4", "cup", ""]], {}, ["line 2: there is no keypoint"]),
    "no row": ([], {}, ["pairs.csv has a header and no row"]),
    "a short row": ([ROWS[0][:3]], {}, ["line 2", "not as many columns"]),
    "a single point": (ROWS, {"extent": "keypoints"}, ["line 3", "a single one has no extent"]),
    "an unknown extent": (ROWS, {"extent": "boxes"}, ["`data.extent` must be one of image, box, keypoints"]),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "options", "words"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path, rows, options, words):
    with pytest.raises(UserError) as caught:
        PairsCSV(root=write(tmp_path, rows), size=32, **options).pairs("test")
    for word in words:
        assert word in str(caught.value)


def test_a_missing_column_and_a_missing_file_are_named(tmp_path):
    root = write(tmp_path, [row[:5] for row in ROWS], HEADER[:5])
    with pytest.raises(UserError, match="has no column YB"):
        PairsCSV(root=root, size=32).pairs("test")
    with pytest.raises(UserError, match=r"mine\.csv does not exist"):
        PairsCSV(root=root, size=32, test="mine.csv").pairs("test")
