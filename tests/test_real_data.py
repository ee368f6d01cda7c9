"""On the real photographs, where they lie beside the checkout; nothing else needs them."""

from pathlib import Path

import pytest

from semcorr.data.coco_keypoints import COCOKeypoints
from semcorr.data.pf_willow import willow_pairs
from semcorr.data.spair import spair_pairs
from semcorr.evaluate import evaluate

SHARED = Path(__file__).parents[2] / "shared"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real images are not at {SHARED}")


def test_the_cat_split_agrees_with_its_600_pair_annotations():
    pairs = spair_pairs(SHARED / "data/SPair-71k", "test")
    assert len(pairs) == 600
    assert {pair.category for pair in pairs} == {"cat"}
    first = pairs[0]
    assert first.name == "005012-2007_001825-2007_005460:cat"
    assert first.target.keypoints[1].tolist() == [80, 150]
    assert first.extent == 444  # box 40 4 484 370


def test_willow_has_900_pairs_of_ten_keypoints():
    pairs = willow_pairs(SHARED / "data/pf-willow")
    assert len(pairs) == 900
    assert all(pair.source.visible.sum() == pair.target.visible.sum() == 10 for pair in pairs)
    assert len({pair.category for pair in pairs}) == 10


def test_animal_pose_gives_pairs_of_its_five_animals():
    data = COCOKeypoints(root=str(SHARED / "data/animal-pose"), size=64, box="xyxy")
    assert data.categories("test") == ["cat", "cow", "dog", "horse", "sheep"]
    assert [len(data.pairs(split)) for split in ("train", "val", "test")] == [10_000, 450, 450]


def test_imagenet_weights_beat_random_ones_by_25_points_on_the_cats(config, tmp_path):
    line = [
        "data=spair",
        f"data.root={SHARED / 'data/SPair-71k'}",
        "backbone=squeezenet",
        "trainer=cpu",
        "data.workers=0",
    ]
    weights = SHARED / "weights/squeezenet1_1_imagenet_features.pth"

    random = evaluate(config("evaluate", *line, "backbone.pretrained=false", f"run_dir={tmp_path / 'random'}"))
    trained = evaluate(config("evaluate", *line, f"backbone.weights={weights}", f"run_dir={tmp_path / 'trained'}"))

    assert trained["pairs"] == random["pairs"] == 600
    difference = trained["pck"]["all"]["image"]["0.1"] - random["pck"]["all"]["image"]["0.1"]
    assert difference >= 0.25
