"""Pose-variant pairs: what a pair becomes with its images mirrored, and what that counts."""

from itertools import permutations
from math import isnan
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from lightning import Trainer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import default_collate

from semcorr.backbones.timm_model import TimmModel
from semcorr.data.all_pairs import queries
from semcorr.data.alter import bare_mirror
from semcorr.data.synthetic import Synthetic
from semcorr.errors import UserError
from semcorr.evaluate import evaluate
from semcorr.heads.cosine import Cosine
from semcorr.losses import Dense, SymmetricContrastive, gaussian_cross_entropy, loss_of, together
from semcorr.pose_variant import PoseVariant, Term, image_weights, point_weights
from semcorr.run import build, reuse
from semcorr.train import train
from semcorr.training import asked, extent, views_of
from semcorr.types import FeatureMap, ImageBatch, PairBatch, View

PAPER = PoseVariant(double_flip=1.0, single_flip=1.0, self_flip=0.25)
SIDE, CELLS = 48, 6  # pixels, cells of 8 pixels
SWAP = (1, 0, 2, 4, 3)  # left and right ear, nose, left and right foot
LINE = ["data.batch_size=2", "data.steps=3", "trainer.max_epochs=1"]
VARIANTS = ["pairs=pose_variant", "finetune.blocks=2"]


def made_view(name: str, visible: str = "11111", pixels: bool = True) -> View:
    return View(
        image=torch.rand(3, SIDE, SIDE) if pixels else torch.empty(3, 0, SIDE),
        keypoints=torch.rand(len(visible), 2) * (SIDE - 1),
        visible=torch.tensor([digit == "1" for digit in visible]),
        box=torch.tensor([4.0, 6.0, 34.0, 26.0]),
        scale=torch.tensor([0.5, 0.25]),
        offset=torch.zeros(2),
        name=name,
    )


def made_pair(source: View, target: View, variants: PoseVariant) -> PairBatch:
    mirrored = [bare_mirror(view, SWAP) for view in (source, target)[: variants.mirrored]]
    twins = torch.zeros_like(source.visible)
    return PairBatch(source, target, twins, torch.tensor(30.0), "cat", f"{source.name}-{target.name}", mirrored)


def made_images(views: list[View], variants: PoseVariant) -> ImageBatch:
    batch = default_collate(views)
    if not variants:
        return ImageBatch(batch, "cat", queries(batch.visible))
    turned = default_collate([bare_mirror(view, SWAP) for view in views])
    return ImageBatch(batch, "cat", image_weights(batch.visible, turned.visible, variants).nonzero(), [turned])


def features(batch: PairBatch | ImageBatch) -> FeatureMap:
    """Of a backbone that averages cells and knows where on the page it is: its map of a mirror image is no mirror."""
    names, image = views_of(batch)
    assert len(names) == len(image)
    place = torch.linspace(-1, 1, SIDE).expand(len(image), 1, SIDE, SIDE)
    return FeatureMap(nn.functional.avg_pool2d(torch.cat((image, image.square(), 0.2 * place), 1), 8), 8.0)


def loss_on(loss, batch: PairBatch | ImageBatch, variants: PoseVariant, head=None) -> torch.Tensor:
    return loss_of(loss, asked(head or Cosine(), features(batch), batch, variants, 0, loss))


class Whole(nn.Module):
    """Cosines, by a head that must be shown both maps."""

    def forward(self, source, target, points):
        return Cosine()(source, target, points)


LOSSES = {
    "gaussian": gaussian_cross_entropy,
    "contrastive": SymmetricContrastive(scale=3.0),
    "contrastive without flips": SymmetricContrastive(scale=3.0, flips=False),
    "dense": Dense(noise=0.0, integer_source=True),
    "together": together(noise=0.0, cross_entropy=1.0, contrastive_flips=False),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


# -- views --


def test_keypoints_change_sides_and_rows():
    """By hand: of a 48 pixel image, x becomes 47 - x, and the left ear is where the right one was seen."""
    view = made_view("a", "10110")._replace(
        keypoints=torch.tensor([[1.0, 2.0], [30.0, 3.0], [20.0, 9.0], [5.0, 40.0], [0.0, 0.0]])
    )

    turned = bare_mirror(view, SWAP)

    assert turned.keypoints.tolist() == [[17.0, 3.0], [46.0, 2.0], [27.0, 9.0], [47.0, 0.0], [42.0, 40.0]]
    assert turned.visible.tolist() == [False, True, True, False, True]
    assert turned.box.tolist() == [13.0, 6.0, 43.0, 26.0]
    assert turned.name == "a mirrored"
    assert turned.image.shape == (3, 0, SIDE)


def test_mirrored_twice_is_as_it_was():
    view = made_view("a", "10110", pixels=False)

    again = bare_mirror(bare_mirror(view, SWAP), SWAP)

    assert again.name == view.name
    for one, other in zip(again[:-1], view[:-1], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("variants", [PoseVariant(), PoseVariant(self_flip=1.0), PAPER])
def test_pixels_are_turned_where_they_are_used(variants):
    pairs = [made_pair(made_view("a"), made_view("b"), variants), made_pair(made_view("c"), made_view("d"), variants)]
    batch = default_collate(pairs)

    names, image = views_of(batch)

    assert names == ["a", "c", "b", "d", "a mirrored", "c mirrored", "b mirrored", "d mirrored"][: len(image)]
    assert len(image) == 4 + 2 * variants.mirrored
    assert torch.equal(image[4:], image[: len(image) - 4].flip(-1))


def test_the_extent_is_measured_in_original_pixels():
    """A box of 30 x 20 pixels of a view half as wide and a quarter as high as the image is 60 x 80 in the image."""
    view = default_collate([made_view("a")])

    assert extent(view).tolist() == [[40.0, 20.0]]


# -- weights --


def test_terms_of_no_weight_are_left_out():
    assert PoseVariant().terms == [Term(0, 1, 1.0)]
    assert PoseVariant(single_flip=0.5).terms == [Term(0, 1, 1.0), Term(2, 1, 0.5)]
    assert PAPER.terms == [Term(0, 1, 1.0), Term(2, 3, 1.0), Term(2, 1, 1.0), Term(2, 0, 0.25)]
    assert [each.mirrored for each in (PoseVariant(), PoseVariant(single_flip=1), PAPER)] == [0, 1, 2]


def test_every_pair_counts_alike_whatever_terms_it_lacks():
    masks = torch.rand(4, 50, 6) < 0.2
    masks[:, 0] = False

    weights = point_weights(masks, [1.0, 1.0, 1.0, 0.25])

    torch.testing.assert_close(weights.sum((0, 2)), masks.any(0).any(-1).float())
    assert not weights[~masks].any()
    for i in range(1, 50):
        present = [w for mask, w in zip(masks[:, i], (1.0, 1.0, 1.0, 0.25), strict=True) if mask.any()]
        for mask, weight, w in zip(masks[:, i], weights[:, i], (1.0, 1.0, 1.0, 0.25), strict=True):
            if mask.any():
                assert weight[mask].tolist() == pytest.approx([w / sum(present) / int(mask.sum())] * int(mask.sum()))


def slow_loss(loss, source: View, target: View, variants: PoseVariant) -> float:
    """Term by term, each as a pair of its own with real pixels; NaN where nothing is shared anywhere."""
    turned = [bare_mirror(view, SWAP)._replace(image=view.image.flip(-1)) for view in (source, target)]
    views = [source, target, *turned]
    total = weights = 0.0
    for a, b, weight in variants.terms:
        pair = default_collate([made_pair(views[a], views[b], PoseVariant())])
        if not pair.shared.any() or (b == 0 and not weights):
            continue
        weights += weight
        if (a, b) == (0, 1) or getattr(loss, "flips", True):
            total += weight * loss_on(loss, pair, PoseVariant()).item()
    return total / weights if weights else float("nan")


VISIBLE = [("11111", "11011"), ("10010", "10001"), ("10000", "01100"), ("00100", "00111")]


@pytest.mark.parametrize("variants", [PAPER, PoseVariant(single_flip=0.7), PoseVariant(double_flip=1, self_flip=0.25)])
@every_loss
def test_the_loss_is_the_mean_over_pairs_of_the_weighted_mean_over_terms(loss, variants):
    """Of the pair and the flips that share a keypoint; one pair here shares none but by its single flip."""
    views = [
        tuple(made_view(f"{i}{end}", seen) for end, seen in zip("ab", pair, strict=True))
        for i, pair in enumerate(VISIBLE)
    ]
    if isinstance(loss, type(LOSSES["together"])):
        expected = [
            sum(loss.weights[name] * slow_loss(term, *pair, variants) for name, term in loss.terms.items())
            for pair in views
        ]
    else:
        expected = [slow_loss(loss, *pair, variants) for pair in views]
    expected = [each for each in expected if not isnan(each)]

    found = loss_on(loss, default_collate([made_pair(*pair, variants) for pair in views]), variants)

    assert len(expected) >= 3
    assert found.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


@every_loss
def test_all_pairs_of_some_images_cost_the_mean_of_pair_by_pair(loss):
    """Of all ordered pairs that share a keypoint, themselves or by a flip."""
    views = [made_view(str(i), seen) for i, seen in enumerate(("11111", "11010", "00101", "10000"))]
    pairs = [loss_on(loss, default_collate([made_pair(a, b, PAPER)]), PAPER).item() for a, b in permutations(views, 2)
             if (a.visible & b.visible).any() or (bare_mirror(a, SWAP).visible & b.visible).any()]  # fmt: skip

    found = loss_on(loss, made_images(views, PAPER), PAPER)

    assert len(pairs) == 10
    assert found.item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-4)


@every_loss
def test_all_pairs_without_flips_cost_the_mean_over_points(loss):
    views = [made_view(str(i), seen) for i, seen in enumerate(("11111", "11010", "00101"))]
    plain = PoseVariant()
    every = [default_collate([made_pair(a, b, plain)]) for a, b in permutations(views, 2)]
    counts = [int(pair.shared.sum()) for pair in every]
    expected = sum(
        count * loss_on(loss, pair, plain).item() for count, pair in zip(counts, every, strict=True) if count
    )

    assert loss_on(loss, made_images(views, plain), plain).item() == pytest.approx(expected / sum(counts), rel=1e-4)


def test_images_that_share_nothing_are_no_pair_though_each_shares_with_its_own_mirror_image():
    visible = torch.tensor([[True, True, False], [False, False, True]])

    weights = image_weights(visible, visible, PAPER)

    assert not weights.any()


def test_a_mirrored_pair_costs_what_the_pair_does_where_features_are_mirrored_with_the_image():
    """Averages of cells know no left and right: with the double flip alone the loss is the plain one."""
    variants, pair = PoseVariant(double_flip=3.0), (made_view("a"), made_view("b", "11011"))
    plain, both = (default_collate([made_pair(*pair, each)]) for each in (PoseVariant(), variants))
    maps = [FeatureMap(nn.functional.avg_pool2d(views_of(batch)[1], 8), 8.0) for batch in (plain, both)]
    for loss in (gaussian_cross_entropy, SymmetricContrastive(), Dense(noise=0.0)):
        expected = loss_of(loss, asked(Cosine(), maps[0], plain, PoseVariant(), 0, loss))
        found = loss_of(loss, asked(Cosine(), maps[1], both, variants, 0, loss))
        torch.testing.assert_close(found, expected)


def test_a_head_that_sees_both_images_is_asked_the_same():
    views = [made_view(str(i), seen) for i, seen in enumerate(("11111", "11010", "00101"))]
    for batch in (default_collate([made_pair(*views[:2], PAPER)]), made_images(views, PAPER)):
        whole, cosine = (asked(head, features(batch), batch, PAPER, 0, None) for head in (Whole(), Cosine()))
        torch.testing.assert_close(whole.similarity, cosine.similarity)
        assert torch.equal(whole.mask, cosine.mask)


@pytest.mark.parametrize("head", [Cosine(), Whole()])
def test_as_released_features_are_read_at_the_centre_of_the_cell_a_point_falls_in(head):
    """Between cells otherwise. Where the point itself lies is told either way."""
    views = [made_view(str(i)) for i in range(3)]
    centred = [view._replace(keypoints=(view.keypoints + 0.5).div(8).floor() * 8 + 3.5) for view in views]
    assert not torch.equal(views[0].keypoints, centred[0].keypoints)
    for make in (lambda them: default_collate([made_pair(*them[:2], PAPER)]), lambda them: made_images(them, PAPER)):
        batch, moved = make(views), make(centred)
        released, paper = (
            asked(head, features(batch), batch, PAPER, 0, Dense(integer_source=whole)) for whole in (True, False)
        )
        at_centres = asked(head, features(moved), moved, PAPER, 0, None).similarity
        torch.testing.assert_close(released.similarity, at_centres)
        assert (paper.similarity - at_centres).abs().max() > 0.01
        assert torch.equal(released.starts, paper.starts)


@pytest.mark.parametrize("variants", [PoseVariant(), PAPER])
def test_a_step_waits_for_no_value(variants):
    """Under tensors without values: whatever needed one would be refused."""
    views = [made_view(str(i)) for i in range(3)]
    batches = default_collate([made_pair(*views[:2], variants)]), made_images(views, variants)
    for batch in batches:
        with FakeTensorMode(allow_non_fake_inputs=True):
            loss = loss_on(together(cross_entropy=1.0), batch, variants)
            assert loss.shape == ()


# -- data --


@pytest.fixture
def data(creatures: Path) -> Synthetic:
    data = Synthetic(
        root=str(creatures), size=SIDE, train=3, val=2, test=3, pixels=96, workers=0, steps=3, batch_size=2
    )
    data.pose_variant = PAPER
    return data


def test_a_batch_has_its_mirror_images_with_pixels_and_without(data):
    whole = list(data.train_dataloader())
    data.train_pixels = False
    for batch, bare in zip(whole, data.train_dataloader(), strict=True):
        for view, turned, without in zip(batch[:2], batch.mirrored, bare.mirrored, strict=True):
            flip = {pair.category: list(pair.flip) for pair in data.pairs("train")}
            for i, category in enumerate(batch.category):
                order = flip[category]
                assert torch.equal(turned.visible[i], view.visible[i][order])
                expected = torch.stack((SIDE - 1 - view.keypoints[i, order, 0], view.keypoints[i, order, 1]), -1)
                assert torch.equal(turned.keypoints[i], expected)
            assert [*turned.name] == [f"{name} mirrored" for name in view.name] == [*without.name]
            assert turned.image.shape == (2, 3, 0, SIDE)
            assert torch.equal(turned.keypoints, without.keypoints)


def test_what_is_to_be_trained_on_has_every_mirror_image(data):
    for data.all_pairs in (None, 3):
        listed = {one.name for one in data.to_train_on(1)}
        shown = {name for batch in data.train_dataloader() for name in views_of(batch)[0]}
        assert shown <= listed
        assert any(name.endswith(" mirrored") for name in shown)


def test_a_benchmark_without_left_and_right_has_no_variants(data):
    pairs = [pair._replace(flip=None) for pair in data.pairs("train")]
    data.pairs = lambda split: pairs

    with pytest.raises(UserError, match=r"`pairs`: synthetic does not say .* Set pairs=plain"):
        data.setup("fit")


# -- whole runs --


def module_of(config, *line):
    cfg = config("train", *line)
    return build(cfg, ("fit",), **{key: instantiate(cfg[key]) for key in ("loss", "optimizer", "scheduler")})


def fitted(config, *line):
    """The module after three steps, their losses, and the optimiser."""
    module, data = module_of(config, *line)
    reuse(module, data)
    losses: list[float] = []
    module.log = lambda name, value, **options: losses.append(value.item())
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, max_epochs=1,
        limit_val_batches=0, use_distributed_sampler=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module, losses, trainer.optimizers[0]


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training", "ignore:.*does not have many workers")
@pytest.mark.parametrize(
    "line",
    [
        [],
        ["pairs.double_flip=0", "loss=together", "feature_dropout=0.2"],
        ["augment=flip", "loss=contrastive"],
        ["data.all_pairs=3"],
        ["data.all_pairs=3", "loss=geo_aware_released", "loss.trained_grid=8"],
    ],
    ids=" ".join,
)
def test_training_from_what_is_kept_gives_the_same_losses(config, tiny, line):
    line = [*tiny, *LINE, *VARIANTS, "optimizer.backbone_lr=1e-3", *line]
    off, kept = fitted(config, *line, "store.place=off"), fitted(config, *line)

    assert kept[0].reuse
    assert not off[0].reuse
    assert len(off[1]) == 3
    assert kept[1] == pytest.approx(off[1], rel=1e-5)


@pytest.mark.parametrize(
    ("line", "count"),
    [
        (["pairs=plain"], 4),
        ([], 8),
        (["pairs.double_flip=0"], 6),
        (["pairs=plain", "data.all_pairs=3"], 3),
        (["data.all_pairs=3"], 6),
    ],
)
def test_one_more_image_is_encoded_for_each(config, tiny, monkeypatch, line, count):
    """Of two pairs, or of three images."""
    seen, real = [], TimmModel.forward

    def counted(self, image):
        seen.append(len(image))
        return real(self, image)

    monkeypatch.setattr(TimmModel, "forward", counted)
    module, data = module_of(config, *tiny, *LINE, *VARIANTS, "store.place=off", *line)
    reuse(module, data)
    module.log = lambda *args, **options: None

    module.training_step(next(iter(data.train_dataloader())))

    assert seen == [count]


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training", "ignore:.*does not have many workers")
@pytest.mark.parametrize(
    ("loss", "learned"),
    [
        ("annealed", set()),
        ("learned_temperature", {"loss.temperature.theta"}),
        ("contrastive", {"loss.t"}),
        ("dense", set()),
        ("together", {"loss.learned.contrastive.t"}),
    ],
)
def test_what_a_loss_learns_moves_at_the_heads_rate_and_is_saved(config, tiny, loss, learned):
    line = [*tiny, *LINE, "finetune.blocks=1", f"loss={loss}", "optimizer.lr=1e-2", "scheduler=constant"]
    module, _, optimizer = fitted(config, *line)
    checkpoint: dict = {}
    module.on_save_checkpoint(checkpoint)

    saved = {name: value for name, value in checkpoint["state_dict"].items() if name.startswith("loss.")}
    assert set(saved) == learned
    assert all(value.any() for value in saved.values())
    assert [group["lr"] for group in optimizer.param_groups] == ([1e-2] if learned else []) + [1e-5]


def test_a_run_is_scored_again_without_its_loss(config, tiny, tmp_path):
    line = [*tiny, *LINE, *VARIANTS, "data.steps=1", "loss=together", f"run_dir={tmp_path / 'run'}"]
    metrics = train(config("train", *line))

    again = evaluate(
        config("evaluate", *tiny, "finetune.blocks=2", f"checkpoint={tmp_path / 'run'}", f"run_dir={tmp_path / 'e'}")
    )

    assert again["pck"] == metrics["pck"]


def test_a_temperature_alone_is_nothing_to_train(config, tiny, tmp_path, capsys):
    train(config("train", *tiny, "finetune.blocks=0", "loss=learned_temperature", f"run_dir={tmp_path / 'frozen'}"))

    assert "Nothing to train" in capsys.readouterr().out


def test_another_loss_cannot_go_on_with_what_one_learned(config, tiny):
    module, _ = module_of(config, *tiny, *LINE, "loss=learned_temperature")
    other, _ = module_of(config, *tiny, *LINE, "loss=contrastive")
    checkpoint: dict = {}
    module.on_save_checkpoint(checkpoint)

    with pytest.raises(UserError, match="train different weights: loss"):
        other.on_load_checkpoint(checkpoint)


def test_feature_dropout_is_for_training_alone(config, tiny):
    module, data = module_of(config, *tiny, *LINE, "feature_dropout=0.5", "finetune.blocks=1")
    module.log = lambda *args, **options: None
    batch = next(iter(data.train_dataloader()))
    torch.manual_seed(0)
    first, second = (module.training_step(batch).item() for _ in range(2))
    torch.manual_seed(0)

    assert module.training_step(batch).item() == first != second
    assert torch.equal(module(batch.source, batch.target), module(batch.source, batch.target))


@pytest.mark.parametrize("value", [-1, float("nan")])
def test_a_weight_below_zero_is_refused(value):
    with pytest.raises(UserError, match=r"`pairs\.self_flip` must be 0, which is off, or more, got"):
        PoseVariant(self_flip=value)


def test_what_cannot_go_together_is_refused_before_anything_runs(config, tiny):
    module, _ = module_of(config, *tiny, *LINE)
    parts = {"backbone": module.backbone, "localise": module.localise, "finetune": lambda backbone: None}
    with pytest.raises(UserError, match=r"`loss` compares descriptors of keypoints, and the head Whole has none"):
        type(module)(head=Whole(), loss=SymmetricContrastive(), **parts)
    module.backbone.pairwise = True
    with pytest.raises(UserError, match=r"`pairs`: vit_tiny_patch16_224 sees images in pairs.*Set pairs=plain"):
        type(module)(head=Cosine(), variants=PAPER, **parts)
    with pytest.raises(UserError, match=r"`feature_dropout` must be at least 0, which is off, and less than 1, got 1"):
        type(module)(head=Cosine(), dropout=1, **parts)
