import json
import shutil

import pytest
from tiny_benchmarks import CATS, dump, edit, write_spair

from semcorr.core.errors import UserError
from semcorr.data.spair import SPairU

NEW = {
    "one": {0: [5.0, 5.0], 1: [9.0, 9.0], 3: [12.0, 3.0]},
    "two": {0: [7.0, 5.0], 3: [2.0, 8.0]},
    "three": {2: [1.0, 1.0]},
}
FIRST = "000001-one-two:cat"


def write_spair_u(root, prefix: str = "") -> None:
    """Four new keypoints per image; of SPair-71k's two pairs only the first shares one."""
    for stem, kps in NEW.items():
        entry = {"filename": f"{stem}.jpg", "image_width": 40, "image_height": 30, "bndbox": CATS[stem][1],
                 "kps": {str(i): kps.get(i) for i in range(4)}}  # fmt: skip
        dump(root / f"{prefix}ImageAnnotation" / "cat" / f"{stem}.json", entry)
    entry = {"kps_ids": ["0", "3"], "src_bndbox": CATS["one"][1], "trg_bndbox": CATS["two"][1],
             "src_kps": [[5, 5], [12, 3]], "trg_kps": [[7, 5], [2, 8]]}  # fmt: skip
    dump(root / f"{prefix}PairAnnotation" / "test" / f"{FIRST}.json", entry)


@pytest.mark.parametrize("linked", [True, False], ids=["own tree, linked", "own tree"])
def test_a_tree_of_its_own_borrows_images_and_pair_list_of_spair(tmp_path, linked):
    spair, root = write_spair(tmp_path / "SPair-71k"), tmp_path / "SPair-U"
    write_spair_u(root)
    if linked:  # as its authors say to do
        for name in ("Layout", "JPEGImages"):
            (root / name).symlink_to(spair / name)

    (pair,) = SPairU(root=str(root), size=32, spair="nowhere" if linked else str(spair)).pairs("test")

    assert pair.name == FIRST
    assert pair.source.keypoints[[0, 1, 3]].tolist() == [[5, 5], [9, 9], [12, 3]]
    assert (pair.source.visible & pair.target.visible).nonzero().flatten().tolist() == [0, 3]
    assert pair.extent == 34
    assert pair.groups == ()  # the symmetry groups are of other keypoints


def test_annotations_in_spairs_own_tree_are_read_where_the_loader_looks(tmp_path):
    root = write_spair(tmp_path / "SPair-71k")
    write_spair_u(root, "Extra")

    (pair,) = SPairU(root=str(root), size=32, spair=str(root)).pairs("test")

    assert pair.source.keypoints[0].tolist() == [5, 5]  # not SPair-71k's (4, 5)


def test_pairs_of_the_list_without_an_annotation_are_left_out_and_counted(tmp_path, caplog):
    spair, root = write_spair(tmp_path / "SPair-71k"), tmp_path / "SPair-U"
    write_spair_u(root)

    assert len(SPairU(root=str(root), size=32, spair=str(spair)).pairs("test")) == 1
    assert "1 of 2 pairs have no annotation" in caplog.text


def test_missing_parts_are_named(tmp_path):
    spair, root = write_spair(tmp_path / "SPair-71k"), tmp_path / "SPair-U"
    with pytest.raises(UserError, match=r"prepare spair_u"):
        SPairU(root=str(root), size=32, spair=str(spair)).pairs("test")
    write_spair_u(root)
    with pytest.raises(UserError, match=r"Give data\.spair=DIR"):
        SPairU(root=str(root), size=32, spair=str(tmp_path)).pairs("test")
    shutil.rmtree(root / "PairAnnotation")
    with pytest.raises(UserError, match=r"neither PairAnnotation nor ExtraPairAnnotation"):
        SPairU(root=str(root), size=32, spair=str(spair)).pairs("test")


def test_annotations_that_contradict_each_other_are_refused_as_in_spair(tmp_path):
    spair, root = write_spair(tmp_path / "SPair-71k"), tmp_path / "SPair-U"
    write_spair_u(root)
    path = root / "PairAnnotation" / "test" / f"{FIRST}.json"
    edit(path, lambda entry: entry.update(kps_ids=["0", "1"]))

    with pytest.raises(UserError, match="the image annotations share \\[0, 3\\]"):
        SPairU(root=str(root), size=32, spair=str(spair)).pairs("test")
    assert json.loads(path.read_text())["kps_ids"] == ["0", "1"]
