import pytest
import torch
from PIL import Image
from scipy.io import savemat
from tiny_pascal import SIZE, write_pascal

from semcorr.core.errors import UserError
from semcorr.data.dataset import PairDataset
from semcorr.data.proposal_flow import PFPascal, find_pair_list


def pascal(root, **options) -> PFPascal:
    return PFPascal(root=str(root), size=64, **options)


LAYOUTS = {
    "the official folder, Willow's lists": ("PF-dataset-PASCAL", "{}_pairs_pf_pascal.csv"),
    "the official folder, SD4Match's lists": ("PF-dataset-PASCAL", "{}_pairs.csv"),
    "HPF's folder": ("PF-PASCAL", "{}_pairs_pf_pascal.csv"),
    "images in the root itself": (".", "{}_pairs.csv"),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_published_layout_gives_the_same_pairs(tmp_path, layout):
    data = pascal(write_pascal(tmp_path, *layout))

    assert [len(data.pairs(split)) for split in ("train", "val", "test")] == [4, 1, 1]
    (pair,) = data.pairs("test")
    assert (pair.source.name, pair.target.name, pair.category) == ("2008_000002", "2008_000001", "cat")
    assert pair.target.path.is_file()


def test_lists_are_found_in_a_folder_of_their_own(tmp_path):
    root = write_pascal(tmp_path)
    (root / "image_pairs").mkdir()
    (root / "test_pairs_pf_pascal.csv").rename(root / "image_pairs" / "test_pairs.csv")

    assert find_pair_list(root, "test") == root / "image_pairs" / "test_pairs.csv"


def test_the_class_column_counts_from_one(tmp_path):
    categories = [pair.category for pair in pascal(write_pascal(tmp_path)).pairs("train")]
    assert categories == ["cat", "cat", "cat", "aeroplane"]  # 8 and 1 of the 20 VOC names


def test_a_nan_keypoint_is_not_visible_and_ids_stay_the_rows_of_the_mat(tmp_path):
    pair = pascal(write_pascal(tmp_path)).pairs("train")[0]

    assert pair.source.visible.tolist() == [True, False, True, True]
    assert pair.target.visible.tolist() == [True, True, True, False]
    assert (pair.source.visible & pair.target.visible).nonzero().flatten().tolist() == [0, 2]
    assert pair.source.keypoints[0].tolist() == [10.5, 20.25]  # not floored


def test_categories_with_fewer_keypoints_are_padded_with_rows_that_are_not_visible(tmp_path):
    aeroplane = pascal(write_pascal(tmp_path)).pairs("train")[3]
    assert aeroplane.source.visible.tolist() == [True, True, False, False]


def test_flip_mirrors_both_images_and_swaps_no_ids(tmp_path):
    plain, mirrored = pascal(write_pascal(tmp_path)).pairs("train")[:2]

    assert mirrored.source.mirrored
    assert mirrored.target.mirrored
    assert mirrored.source.name != plain.source.name  # other pixels, other features
    last = SIZE[0] - 1
    assert mirrored.source.keypoints[2].tolist() == [last - 30, 40]
    assert mirrored.source.visible.tolist() == plain.source.visible.tolist()
    assert mirrored.source.box == (last - 90, 6, last - 5, 66)


@pytest.mark.parametrize(("no", "yes"), [("0.0", "1.0"), ("False", "True"), ("FALSE", "TRUE"), ("", "1")])
def test_a_list_that_pandas_or_an_editor_saved_mirrors_the_same_rows(tmp_path, no, yes):
    data = pascal(write_pascal(tmp_path))
    path = find_pair_list(tmp_path, "train")
    head, *rows = path.read_text().split()
    path.write_text("\n".join([head, *(row[:-1] + {"0": no, "1": yes}[row[-1]] for row in rows)]))

    assert [pair.source.mirrored for pair in data.pairs("train")] == [False, True, True, False]
    assert [entry.mirrored for entry in data.pair_list("train")] == [False, True, True, False]


def test_a_mirrored_sample_shows_at_its_keypoints_what_the_plain_one_shows(tmp_path):
    root = write_pascal(tmp_path)
    for stem in ("2008_000001", "2008_000002"):
        noise = torch.randint(0, 255, (SIZE[1] // 10, SIZE[0] // 10, 3), dtype=torch.uint8)
        image = Image.fromarray(noise.numpy()).resize(SIZE, Image.Resampling.NEAREST)
        image.save(root / "PF-dataset-PASCAL" / "JPEGImages" / f"{stem}.jpg", quality=100, subsampling=0)

    plain, mirrored = (PairDataset(pascal(root).pairs("train"), 100, "letterbox")[i].source for i in (0, 1))

    for i in plain.visible.nonzero().flatten():
        (x, y), (u, v) = (view.keypoints[i].round().long().tolist() for view in (plain, mirrored))
        torch.testing.assert_close(plain.image[:, y, x], mirrored.image[:, v, u], atol=0.02, rtol=0)


def test_repeated_rows_are_kept_and_have_names_of_their_own(tmp_path):
    names = [pair.name for pair in pascal(write_pascal(tmp_path)).pairs("train")]
    assert len(set(names)) == len(names) == 4


def test_alpha_is_a_fraction_of_the_images_longer_side_or_of_the_box(tmp_path):
    root = write_pascal(tmp_path)

    assert pascal(root).pairs("test")[0].extent == 100
    assert pascal(root, extent="box").pairs("test")[0].extent == 85  # 5 6 90 66 in the .mat
    assert pascal(root).pairs("train")[0].extent == 100
    assert pascal(root, extent="box").pairs("train")[0].extent == 98


def test_test_points_come_from_the_list_and_need_no_mat(tmp_path):
    root = write_pascal(tmp_path)
    for mat in root.rglob("*.mat"):
        mat.unlink()

    (pair,) = pascal(root).pairs("test")

    assert pair.source.keypoints.tolist() == [[11.5, 22.5], [55, 50]]
    assert pair.target.keypoints.tolist() == [[10.5, 20.25], [30, 40]]


@pytest.mark.parametrize("split", ["train", "test"])
def test_points_measured_at_300_pixels_follow_vocs_larger_frames(tmp_path, caplog, split):
    small = pascal(write_pascal(tmp_path / "a")).pairs(split)[0]
    root = write_pascal(tmp_path / "b")
    for path in root.rglob("*.jpg"):
        Image.open(path).resize((600, 480)).save(path)

    large = pascal(root).pairs(split)[0]

    torch.testing.assert_close(large.source.keypoints, 2 * small.source.keypoints)
    assert large.source.visible.tolist() == small.source.visible.tolist()
    assert large.source.box == tuple(2 * value for value in small.source.box)
    assert large.extent == 600
    assert "not the official ones" in caplog.text


BROKEN = {
    "a class of 0": (lambda s: s.replace(",8,", ",0,"), ["train_pairs_pf_pascal.csv, line 2", "1 to 20", "'0'"]),
    "a flip of 2": (lambda s: s.replace(",8,1", ",8,2", 1), ["train_pairs_pf_pascal.csv, line 3", "0 or 1", "'2'"]),
    "a flip that is no number": (lambda s: s.replace(",8,0", ",8,nan"), ["line 2", "flip", "'nan'", "Restore"]),
    "no class column": (lambda s: s.replace("class", "klass"), ["no column class", "Restore the official list"]),
}


@pytest.mark.parametrize(("change", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_list_is_refused_with_its_line(tmp_path, change, words):
    path = find_pair_list(write_pascal(tmp_path), "train")
    path.write_text(change(path.read_text()))

    with pytest.raises(UserError) as caught:
        pascal(tmp_path).pairs("train")
    for word in words:
        assert word in str(caught.value)


def test_test_points_that_do_not_pair_up_are_refused(tmp_path):
    path = find_pair_list(write_pascal(tmp_path), "test")
    path.write_text(path.read_text().replace("11.5;55", "11.5"))

    with pytest.raises(UserError, match=r"line 2: XA and YA must be numbers, as many in both"):
        pascal(tmp_path).pairs("test")


@pytest.mark.parametrize("word", ["5_5", "\uff15\uff15", "nan", "1e999", "x", ""])
def test_a_test_point_that_only_python_takes_for_a_number_is_refused(tmp_path, word):
    path = find_pair_list(write_pascal(tmp_path), "test")
    path.write_text(path.read_text().replace("11.5;55", f"11.5;{word}"))

    with pytest.raises(UserError, match=rf"line 2: XA: '{word}' must be a finite number"):
        pascal(tmp_path).pairs("test")


def test_a_mat_that_is_none_or_absent_is_named(tmp_path):
    root = write_pascal(tmp_path)
    mat = root / "PF-dataset-PASCAL" / "Annotations" / "cat" / "2008_000001.mat"

    savemat(mat, {"other": 1})
    with pytest.raises(UserError, match=r"2008_000001\.mat is not a PF-PASCAL annotation"):
        pascal(root).pairs("train")
    mat.write_bytes(b"what is this" * 20)
    with pytest.raises(UserError, match=r"2008_000001\.mat is not a PF-PASCAL annotation"):
        pascal(root).pairs("train")
    mat.unlink()
    with pytest.raises(UserError, match=r"2008_000001\.mat does not exist"):
        pascal(root).pairs("train")


def test_missing_lists_and_images_are_reported_as_missing(tmp_path):
    with pytest.raises(UserError, match="No list of PF-PASCAL's test pairs"):
        pascal(tmp_path).pairs("test")
    (tmp_path / "test_pairs.csv").write_text("source_image,target_image,class\n")
    with pytest.raises(UserError, match="images are at none of"):
        pascal(tmp_path).pairs("test")
    with pytest.raises(UserError, match=r"`data.extent` must be one of image, box, got 'bbox'"):
        pascal(tmp_path, extent="bbox")
