"""Adaptive pose alignment: which view of the source is chosen, what is read from it, and what is refused."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hydra.utils import instantiate
from lightning import Trainer
from patch_backbone import Patches as Pixels
from PIL import Image

from semcorr.core.errors import UserError
from semcorr.data.datamodule import PairDataModule
from semcorr.data.dataset import ImageDataset
from semcorr.data.image_variants import ImageVariant, content_hash
from semcorr.data.record import ImageRecord, PairRecord, build_image_record
from semcorr.data.views import make_view
from semcorr.engine.module import CorrespondenceModule
from semcorr.evaluate import evaluate
from semcorr.evaluation.pose.alignment import PLAIN, AdaptivePose, PoseTransform, apply_variant, pose_summary
from semcorr.evaluation.pose.masks import box_cells
from semcorr.matching.readouts import argmax
from semcorr.models.heads.cosine import Cosine
from semcorr.train import train

pytestmark = pytest.mark.integration

SIDE, COUNT = 96, 8
FLIP = (1, 0, 3, 2, 5, 4, 6, 7)
EVERY = [PLAIN, PoseTransform(mirrored=True), *(PoseTransform(turned=turn) for turn in (90, 180, 270))]
ADAPTIVE = AdaptivePose(mirror=True, rotations={"bottle": (90, 180, 270)}, mask="box")


class Patches(Pixels):
    """Not the same for a patch and its mirror image."""

    widths = (192,)


class Posed(PairDataModule):
    """A picture of noise, paired with itself in a pose of its own: `variant`. Keypoint `hidden` is not to be seen."""

    name, variant, category, hidden, hidden_in_target = "posed", PLAIN, "bottle", (), ()

    def records(self, split: str) -> list[PairRecord]:
        random = np.random.default_rng(0)
        pixels = random.integers(0, 256, (64, 96, 3), dtype=np.uint8)
        points = random.uniform(12, [84, 52], (COUNT, 2))
        source = self._record("a", pixels, points, self.hidden)
        turned, moved = pixels, points
        if self.variant.mirrored:
            turned, moved = turned[:, ::-1], (np.array([95, 0]) + moved * [-1, 1])[list(FLIP)]
        for _ in range(self.variant.turned // 90):
            moved = np.stack((moved[:, 1], turned.shape[1] - 1 - moved[:, 0]), axis=1)
            turned = np.rot90(turned)
        target = self._record("b", turned, moved, self.hidden_in_target)
        return [PairRecord("a-b", self.category, source, target, 96.0, flip=FLIP)]

    def _record(self, name, pixels, points, hidden) -> ImageRecord:
        path = self.root / f"{name}.png"
        Image.fromarray(np.ascontiguousarray(pixels)).save(path)
        size = (pixels.shape[1], pixels.shape[0])
        known = [None if i in hidden else point for i, point in enumerate(points.tolist())]
        return build_image_record(name, path, size, known, (4, 4, size[0] - 5, size[1] - 5), path)


def scored(tmp_path, pose=ADAPTIVE, resize="squash", **changes):
    data = Posed(root=str(tmp_path), size=SIDE, resize=resize, workers=0)
    for key, value in changes.items():
        setattr(data, key, value)
    module = CorrespondenceModule(Patches(), Cosine(), localise=argmax, finetune=lambda backbone: None, pose=pose)
    pose.check(module.backbone, data)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        use_distributed_sampler=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.test(module, datamodule=data, verbose=False)
    return module


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
@pytest.mark.parametrize("variant", EVERY, ids=str)
def test_a_source_is_seen_in_the_pose_of_its_target_and_its_points_are_found_there(tmp_path, variant, resize):
    """The target is the source, mirrored or turned; the pose that makes them the same pixels is chosen."""
    module = scored(tmp_path, variant=variant, resize=resize)

    assert pose_summary(module.result.tables["poses"])["chosen"] == {str(variant): 1}
    (best,) = (row for row in module.result.tables["poses"].to_pylist() if row["chosen"])
    assert best["distance"] == 0.0
    assert module.result.scores["pck"]["all"]["image"]["0.1"] == 1.0
    rows = module.result.tables["predictions"].to_pylist()
    assert len(rows) == COUNT
    for row in rows:  # within its cell or, midway between two, the other
        assert abs(row["predicted_x"] - row["target_x"]) <= 0.6 * 8
        assert abs(row["predicted_y"] - row["target_y"]) <= 0.6 * 8


def test_without_alignment_a_mirrored_copy_is_not_recognised(tmp_path):
    assert scored(tmp_path, AdaptivePose(), variant=EVERY[1]).result.scores["pck"]["all"]["image"]["0.1"] < 0.5


@pytest.mark.parametrize("options", [{}, {"mask": "none", "mutual": True}, {"reduce": "sum"}, {"grid": 16}], ids=str)
def test_every_way_to_compare_finds_the_mirror(tmp_path, options):
    pose = AdaptivePose(mirror=True, **options)

    assert pose_summary(scored(tmp_path, pose, variant=EVERY[1]).result.tables["poses"])["chosen"] == {"mirrored": 1}
    assert pose_summary(scored(tmp_path, pose, variant=PLAIN).result.tables["poses"])["chosen"] == {"plain": 1}


def test_a_pair_in_one_pose_is_answered_as_without_alignment(tmp_path):
    aligned, plain = rows_of(scored(tmp_path)), rows_of(scored(tmp_path, AdaptivePose()))

    assert aligned.keys() == plain.keys()
    assert all(same(row, plain[keypoint]) for keypoint, row in aligned.items())


def test_rotations_are_tried_for_their_category_alone(tmp_path):
    tried = {
        category: set(scored(tmp_path, category=category).result.tables["poses"]["variant"].to_pylist())
        for category in ("bottle", "cup")
    }

    assert tried == {"bottle": {str(variant) for variant in EVERY}, "cup": {"plain", "mirrored"}}


def rows_of(module):
    return {row["keypoint"]: row for row in module.result.tables["predictions"].to_pylist()}


def same(row, other):
    """To the last digit, but for the score, which is rounded as its product is on this processor."""
    return row | {"score": other["score"]} == other and row["score"] == pytest.approx(other["score"], abs=1e-6)


def test_a_keypoint_whose_twin_is_out_of_sight_is_read_from_the_image_as_it_is(tmp_path):
    """The source hides 0, the twin of 1. In the mirror image nobody knows where keypoint 1 is; 2 and 6 are known."""
    hidden = {"variant": EVERY[1], "hidden": (0,)}
    aligned, plain = rows_of(scored(tmp_path, **hidden)), rows_of(scored(tmp_path, AdaptivePose(), **hidden))

    assert set(aligned) == set(range(1, COUNT))
    assert same(aligned[1], plain[1])
    for k in range(2, COUNT):
        assert abs(aligned[k]["predicted_x"] - aligned[k]["target_x"]) <= 0.6 * 8


def test_twins_shared_asks_for_the_twin_in_the_target_too(tmp_path):
    hidden = {"variant": EVERY[1], "hidden_in_target": (0,)}
    plain = rows_of(scored(tmp_path, AdaptivePose(), **hidden))
    source, shared = (
        rows_of(scored(tmp_path, AdaptivePose(mirror=True, twins=twins), **hidden)) for twins in ("source", "shared")
    )

    assert same(shared[1], plain[1])
    assert not same(shared[1], source[1])
    assert all(same(shared[k], source[k]) for k in range(2, COUNT))


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
@pytest.mark.parametrize("variant", EVERY, ids=str)
def test_the_view_of_a_record_in_a_pose_is_the_view_in_that_pose(tmp_path, variant, resize):
    """What protocols that look at records see is what is read in the turned square."""
    pair = Posed(root=str(tmp_path), size=SIDE).records("test")[0]
    plain, turned = (make_view(one.source, SIDE, resize, pixels=False) for one in (pair, apply_variant(pair, variant)))

    order = FLIP if variant.mirrored else range(COUNT)
    expected = variant.transform_points(plain.keypoints[list(order)], (SIDE, SIDE))

    torch.testing.assert_close(turned.keypoints, expected)
    assert turned.name == plain.name
    box = variant.transform_pixels(box_cells(pair.source, SIDE, resize, SIDE))
    assert torch.equal(box_cells(apply_variant(pair, variant).source, SIDE, resize, SIDE), box)


@pytest.mark.parametrize("variant", EVERY, ids=str)
def test_points_go_where_pixels_go(variant):
    image = torch.zeros(7, 7)
    image[2, 5] = 1
    x, y = variant.transform_points(torch.tensor([5.0, 2.0]), size=(7, 7)).long()

    assert variant.transform_pixels(image)[y, x] == 1
    assert (variant == PLAIN) == bool((variant.transform_pixels(image) == image).all())


@pytest.mark.parametrize(("there", "back"), [(1, 1), (2, 4), (3, 3), (4, 2)])
def test_a_mirror_or_turn_is_undone_exactly(there, back):
    points = torch.tensor([[0.0, 3.0], [6.5, 1.25], [2.0, 2.0]])

    moved = EVERY[back].transform_points(
        EVERY[there].transform_points(points, size=(7, 9)), size=(9, 7) if there in (2, 4) else (7, 9)
    )

    assert torch.equal(moved, points)


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_a_turned_view_is_the_view_of_the_turned_image(tmp_path, resize):
    """To the last bit where resizing both sides to the square, or neither, is the same work."""
    data = Posed(root=str(tmp_path), size=SIDE, resize=resize, workers=0)
    data.variant = PoseTransform(turned=90)
    pair = data.records("test")[0]

    seen = ImageDataset([ImageVariant(pair.source, turned=90), ImageVariant(pair.target)], SIDE, resize)
    assert seen[0].name == "a turned 90"
    assert (seen[0].image.int() - seen[1].image.int()).abs().max() <= 1


def test_each_view_of_an_image_has_a_name_and_a_place_of_its_own_in_a_store(tmp_path):
    record = Posed(root=str(tmp_path), size=SIDE).records("test")[0].source
    views = [ImageVariant(record, mirrored, turned) for mirrored in (False, True) for turned in (0, 90, 180, 270)]

    assert len({view.name for view in views}) == len({content_hash(view) for view in views}) == 8


def test_a_run_says_what_was_chosen(config, tiny, tmp_path):
    metrics = evaluate(config("evaluate", *tiny, "pose=adaptive"))

    table = pq.read_table(tmp_path / "run" / "poses.parquet").to_pylist()
    assert metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["pose"]["mask"] == "segmentation"
    assert sum(metrics["pose"]["chosen"].values()) == metrics["pairs"] == sum(row["chosen"] for row in table)
    assert len(table) == 2 * metrics["pairs"]
    for pair in {row["pair"] for row in table}:
        tried = {row["variant"]: row for row in table if row["pair"] == pair}
        assert tried["mirrored"]["chosen"] == (tried["mirrored"]["distance"] < tried["plain"]["distance"])


def test_a_run_without_alignment_says_nothing_of_it(config, tiny, tmp_path):
    assert "pose" not in evaluate(config("evaluate", *tiny))
    assert not (tmp_path / "run" / "poses.parquet").exists()


@pytest.mark.slow
def test_features_kept_on_a_disk_give_the_same_answers(config, tiny, tmp_path):
    plain = evaluate(config("evaluate", *tiny, "pose=adaptive", f"run_dir={tmp_path / 'a'}"))
    for run in ("b", "c"):  # written, read
        kept = ["store=disk", f"store.root={tmp_path / 'store'}", f"run_dir={tmp_path / run}"]
        again = evaluate(config("evaluate", *tiny, "pose=adaptive", *kept))
        assert again["pose"] == plain["pose"]
        assert again["pck"] == plain["pck"]


@pytest.mark.slow
def test_training_ends_with_an_aligned_test(config, tiny):
    few = ["trainer.max_epochs=1", "data.steps=1", "data.batch_size=2"]

    assert "chosen" in train(config("train", *tiny, *few, "pose=adaptive"))["pose"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "oval"}, "pose.mask.*auto, segmentation, box, sam, none.*'oval'"),
        ({"reduce": "max"}, "pose.reduce"),
        ({"twins": "all"}, "pose.twins"),
        ({"grid": 0}, "pose.grid"),
        ({"rotations": {"bottle": [45]}}, r"pose.rotations.bottle.*90, 180 and 270.*\[45\]"),
        ({"rotations": {"bottle": 90}}, "pose.rotations.bottle"),
        ({"mirror": True, "mask": "sam"}, "pose.sam_weights=FILE"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        AdaptivePose(**options)


def test_a_backbone_that_sees_both_images_at_once_is_refused(config, tiny):
    backbone = instantiate(config("evaluate", *tiny).backbone)
    backbone.pairwise = True

    with pytest.raises(UserError, match=r"sees both images at once.*pose=none"):
        ADAPTIVE.check(backbone, Named(root=".", size=64))


class Named(PairDataModule):
    name = "named"

    def records(self, split):
        return []


def test_a_benchmark_that_knows_no_left_and_right_is_refused(tmp_path):
    data = Posed(root=str(tmp_path), size=SIDE, workers=0)
    data.restrict_split("test", [pair._replace(flip=None) for pair in data.records("test")])

    with pytest.raises(UserError, match=r"pose.mirror.*posed.*pose=none"):
        ADAPTIVE.check(Patches(), data)
    AdaptivePose(rotations={"bottle": [90]}).check(Patches(), data)  # turning swaps nothing


def test_segmentation_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"2 images of posed test have no segmentation.*pose.mask=box"):
        scored(tmp_path, AdaptivePose(mirror=True, mask="segmentation"))
