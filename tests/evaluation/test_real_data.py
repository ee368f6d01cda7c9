"""On the real photographs, where they lie beside the checkout; nothing else needs them."""

import pytest
from repository import ROOT

from semcorr.data.ap10k_pairs import read_animals
from semcorr.data.coco_keypoints import COCOKeypoints, read_images
from semcorr.data.download.verify import verify_benchmark
from semcorr.data.proposal_flow import PFPascal, read_willow_pairs
from semcorr.data.spair import read_spair_pairs
from semcorr.evaluate import evaluate

SHARED = ROOT.parent / "shared"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real images are not at {SHARED}")


def test_the_cat_split_agrees_with_its_600_pair_annotations():
    pairs = read_spair_pairs(SHARED / "data/SPair-71k", "test")
    assert len(pairs) == 600
    assert {pair.category for pair in pairs} == {"cat"}
    first = pairs[0]
    assert first.name == "005012-2007_001825-2007_005460:cat"
    assert first.target.keypoints[1].tolist() == [80, 150]
    assert first.extent == 444  # box 40 4 484 370


def test_willow_has_900_pairs_of_ten_keypoints():
    pairs = read_willow_pairs(SHARED / "data/pf-willow")
    assert len(pairs) == 900
    assert all(pair.source.visible.sum() == pair.target.visible.sum() == 10 for pair in pairs)
    assert len({pair.category for pair in pairs}) == 10


def test_pascals_full_lists_are_as_published():
    report = verify_benchmark(PFPascal(root=str(SHARED / "data/pf-pascal/full_pair_lists"), size=64))

    numbers = {(check.what, check.where): check.found for check in report.checks}
    assert [numbers["pairs", split] for split in ("train", "val", "test")] == [2940, 308, 299]
    assert numbers["exact duplicates", "train"] == 488
    assert numbers["images in both", "train & test"] == 302
    assert all(check.verdict == "ok" for check in report.checks if check.official is not None)


def test_the_65_pascal_pairs_are_scored_far_above_chance(config, tmp_path):
    weights = SHARED / "weights/squeezenet1_1_imagenet_features.pth"
    line = [f"data.root={SHARED / 'data/pf-pascal'}", f"backbone.weights={weights}", "data.workers=0"]

    scores = evaluate(config("evaluate", "data=pf_pascal", "backbone=squeezenet", "trainer=cpu", *line))

    assert scores["pairs"] == 65
    assert scores["pck"]["all"]["image"]["0.1"] > 0.5  # 0.23 where the points are not scaled to these images


def test_the_ap10k_fixture_reads_as_official_coco():
    root = SHARED / "data/ap-10k-fixture"
    file = "annotations/ap10k-test-split1.json"
    animals = {a.id: a for a in read_animals([root / file])}
    assert {a.species for a in animals.values()} == {"antelope", "jaguar"}
    assert animals[37516].size == (1200, 867)
    assert animals[37516].box == (66, 192, 1158, 704)
    assert animals[37516].bits.bit_count() == 16
    images, names = read_images(root, file, "data", "xywh")
    assert {name: len(records) for name, records in images.items()} == {"jaguar": 1, "antelope": 1}
    assert names["antelope"][0] == "left_eye"


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
