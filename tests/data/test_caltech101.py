"""Caltech-101: the published list of outlines, and what is refused."""

import pytest
from tiny_dense import write_caltech

from semcorr.core.errors import UserError
from semcorr.data.caltech101 import Caltech101, fill_outline


def caltech(root) -> Caltech101:
    return Caltech101(root=str(root), size=96, workers=0)


def test_the_list_s_target_takes_the_labels_of_its_source(tmp_path):
    pair, same = caltech(write_caltech(tmp_path)).cases("test")
    assert (pair.source.path.name, pair.target.path.name) == ("image_0002.png", "image_0001.png")
    assert (pair.name, pair.category) == ("0001-crab-image_0001-image_0002", "crab")
    assert same.source == same.target
    truth, labels = caltech(tmp_path).labels(pair)
    assert truth.sum() == labels.sum() == 48 * 48
    assert truth[24:72, 24:72].all()
    assert labels[24:72, 16:64].all()


@pytest.mark.parametrize("separator", [",", ";", ", ", " "])
@pytest.mark.parametrize("prefix", ["", "caltech-101/"])
def test_numbers_and_paths_come_in_the_spellings_that_are_passed_on(tmp_path, separator, prefix):
    pair = caltech(write_caltech(tmp_path, separator, prefix)).cases("test")[0]
    assert pair.truth.target == ((16, 24), (63, 24), (63, 71), (16, 71))


def test_an_outline_beyond_its_image_is_cut_off():
    assert fill_outline(((-5, -5), (1, -5), (1, 9), (-5, 9)), (3, 2)).tolist() == [[1, 1, 0], [1, 1, 0]]


def edit(root, old, new):
    path = root / "test_pairs_caltech_with_category.csv"
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: edit(root, '"16,63,63,16"', '"16,x,63,16"'), "line 2: XA holds 'x'; it must hold finite numbers"),
        (lambda root: edit(root, '"16,63,63,16"', '"16,6_3,63,16"'), "line 2: XA holds '6_3'"),
        (lambda root: edit(root, '"16,63,63,16"', '"16,63,63"'), "line 2: XA and YA must be an outline.*got 3 and 4"),
        (lambda root: edit(root, '"16,63,63,16"', '"16,nan,63,16"'), "line 2: XA holds 'nan'"),
        (lambda root: edit(root, "XA", "Xa"), "XA"),
        (lambda root: edit(root, '"16,63,63,16"', '"96,99,99,96"'), "line 2: the outline of XA and YA lies outside"),
        (lambda root: edit(root, '"24,71,71,24"', '"-9,-1,-1,-9"'), "line 2: the outline of XB and YB lies outside"),
        (lambda root: edit(root, "crab/image_0001", "../image_0001"), "line 2, source_image,.*folder above"),
        (lambda root: edit(root, "101_ObjectCategories/crab/image_0001.png", "image.png"), "not CATEGORY/FILE"),
        (lambda root: (root / "101_ObjectCategories/crab/image_0001.png").unlink(), "which does not exist"),
        (lambda root: (root / "test_pairs_caltech_with_category.csv").unlink(), "holds none of test_pairs_caltech"),
    ],
)
def test_damage_is_reported_before_anything_runs(tmp_path, damage, message):
    write_caltech(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        caltech(tmp_path).setup("test")
