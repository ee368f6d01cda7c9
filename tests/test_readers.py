import pytest
from tiny_benchmarks import write_spair, write_willow

from semcorr.data.dataset import PairDataset, unique_images
from semcorr.data.pf_willow import PFWillow
from semcorr.data.spair import SPair


def names(pairs) -> list[tuple[str, str]]:
    return [(pair.source.name, pair.target.name) for pair in pairs]


def test_spair_pairs_come_in_the_order_of_the_layout(tmp_path):
    first, second = SPair(root=str(write_spair(tmp_path)), size=32).pairs("test")

    assert (first.name, first.category) == ("000001-one-two:cat", "cat")
    assert names([first, second]) == [("cat/one", "cat/two"), ("cat/three", "cat/one")]
    assert first.groups == ((2, 3), (9, 10, 11, 12))
    assert first.details["viewpoint_variation"] == 1


def test_spair_keypoints_keep_their_original_ids(tmp_path):
    pair, _ = SPair(root=str(write_spair(tmp_path)), size=32).pairs("test")

    assert pair.target.visible.nonzero().flatten().tolist() == [0, 2, 14]
    assert pair.target.keypoints[[0, 2, 14]].tolist() == [[8, 9], [12, 10], [31, 22]]
    assert pair.target.size == (40, 30)
    assert pair.target.box == (1, 2, 35, 29)
    assert pair.extent == 34  # the longer side of the target's box


def test_a_sample_shares_what_both_images_show_and_knows_the_twins_of_the_target(tmp_path):
    pairs = SPair(root=str(write_spair(tmp_path)), size=80).pairs("test")

    first, second = (PairDataset(pairs, side=80, resize="squash")[i] for i in range(2))

    assert first.shared.nonzero().flatten().tolist() == [0, 2]
    assert not first.ambiguous.any()  # "two" shows ear tip 2 alone
    assert second.shared.nonzero().flatten().tolist() == [2, 3]
    assert second.ambiguous.nonzero().flatten().tolist() == [2, 3]
    assert first.source.keypoints[0].tolist() == pytest.approx([4.5 * 2 - 0.5, 5.5 * 80 / 30 - 0.5])
    assert first.extent == 34  # in original pixels


def test_every_split_of_spair_is_read_from_its_own_folder(tmp_path):
    for folder in ("trn", "val", "test"):
        write_spair(tmp_path / folder, folder)

    assert len(SPair(root=str(tmp_path / "trn"), size=32).pairs("train")) == 2
    assert len(SPair(root=str(tmp_path / "val"), size=32).pairs("val")) == 2


def test_every_image_of_a_set_of_pairs_is_listed_once(tmp_path):
    pairs = SPair(root=str(write_spair(tmp_path)), size=32).pairs("test")

    assert [image.name for image in unique_images(pairs)] == ["cat/one", "cat/three", "cat/two"]


def test_willow_reads_ten_points_of_both_images_from_a_row(tmp_path):
    first, second = PFWillow(root=str(write_willow(tmp_path)), size=32).pairs("test")

    assert names([first, second]) == [("car(G)/a", "car(G)/b"), ("duck(S)/c", "duck(S)/a")]
    assert [first.category, second.category] == ["car(G)", "duck(S)"]
    assert first.source.keypoints.tolist() == [[1.5 * i, i / 2] for i in range(10)]
    assert first.target.keypoints.tolist() == [[1 + 1.5 * i, 2 + i / 2] for i in range(10)]
    assert first.target.visible.tolist() == [True] * 10
    assert first.extent == 13.5  # the larger spread of the target's keypoints, here in x
    assert first.target.path.name == "b.png"
