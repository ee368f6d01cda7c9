import pytest
import torch
from tiny_benchmarks import edit, write_spair, write_willow

from semcorr.core.coords import from_view
from semcorr.core.errors import UserError
from semcorr.data.dataset import PairDataset
from semcorr.data.image_variants import unique_images
from semcorr.data.proposal_flow import PFWillow
from semcorr.data.record import pad_keypoints
from semcorr.data.spair import SPair
from semcorr.evaluate import evaluate
from semcorr.metrics.pck import pck


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


@pytest.mark.parametrize("word", ["1_5", "\uff11", "inf", "x"])
def test_willow_refuses_what_only_python_takes_for_a_number(tmp_path, word):
    path = write_willow(tmp_path) / "test_pairs.csv"
    path.write_text(path.read_text().replace(",1.5,", f",{word},", 1))

    with pytest.raises(UserError, match=rf"line 2: '{word}' must be a finite number"):
        PFWillow(root=str(tmp_path), size=32).pairs("test")


def test_willows_threshold_is_the_spread_of_the_ten_target_points_whatever_is_padded(tmp_path):
    """Published code pads to 20 points with -1 and took the -1 for a coordinate: about 80 instead of 70."""
    pairs = PFWillow(root=str(write_willow(tmp_path)), size=32).pairs("test")
    crowd = pairs[0].source._replace(keypoints=torch.zeros(20, 2), visible=torch.ones(20, dtype=torch.bool))
    wide = pairs[0]._replace(source=crowd, target=crowd)

    alone, *_ = PairDataset(pairs, 32, "squash")
    among, *_ = PairDataset(pad_keypoints([*pairs, wide]), 32, "squash")

    assert among.target.keypoints.shape == (20, 2)
    assert among.extent == alone.extent == 13.5  # x from 1 to 14.5; with the padding it would be 15.5
    truth = from_view(alone.target.keypoints[None], alone.target.scale[None], alone.target.offset[None])
    near = truth + torch.tensor([1.4, 0.0])  # within 0.1 x 15.5 of the truth, not within 0.1 x 13.5
    far = torch.cat((near, torch.zeros(1, 10, 2)), dim=1)
    more = torch.cat((truth, torch.zeros(1, 10, 2)), dim=1)
    assert pck(near, truth, alone.extent[None], 0.1).item() == 0
    assert pck(far, more, among.extent[None], 0.1, among.shared[None]).item() == 0


def test_a_keypoint_on_the_far_edge_is_matched_like_any_other(tmp_path, config):
    """SPair-71k is 1-based: x may equal the width, one past the last pixel's index."""
    root = write_spair(tmp_path / "SPair-71k")
    for stem in ("one", "two"):
        edit(root / "ImageAnnotation" / "cat" / f"{stem}.json", lambda e: e["kps"].update({"2": [40, 30]}))
    for name in ("000001-one-two", "000002-three-one"):
        path = root / "PairAnnotation" / "test" / f"{name}:cat.json"
        sides = ("src", "trg") if name.endswith("two") else ("trg",)
        edit(path, lambda e, sides=sides: [e[f"{s}_kps"].__setitem__(e["kps_ids"].index("2"), [40, 30]) for s in sides])

    scores = evaluate(config("evaluate", "data=spair", f"data.root={root}", "backbone=tiny", "data.workers=0"))

    assert scores["keypoints"] == 4


def test_the_layouts_empty_last_line_is_no_pair(tmp_path):
    root = write_spair(tmp_path)
    layout = root / "Layout" / "large" / "test.txt"
    layout.write_text(layout.read_text() + "\n\n")
    assert len(SPair(root=str(root), size=32).pairs("test")) == 2
