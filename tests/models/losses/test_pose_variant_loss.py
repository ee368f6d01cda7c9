"""What a pair and its flips count: the loss is the weighted mean of pairs taken one by one."""

from itertools import permutations
from math import isnan

import pytest
import torch
from posed_pairs import PAPER, SIDE, SWAP, Whole, made_pair, made_view
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import default_collate

from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap, ImageBatch, PairBatch, View
from semcorr.data.all_pairs import find_queries
from semcorr.data.augment import mirror_annotations
from semcorr.data.pose_variants import LossTerm, PoseVariant, image_weights, point_weights
from semcorr.engine.loss_inputs import batch_views, build_loss_inputs
from semcorr.models.heads.cosine import Cosine
from semcorr.models.losses import (
    SoftArgmaxDistance,
    SymmetricContrastive,
    evaluate_loss,
    gaussian_cross_entropy,
    weighted_sum,
)


def made_images(views: list[View], variants: PoseVariant) -> ImageBatch:
    batch = default_collate(views)
    if not variants:
        return ImageBatch(batch, "cat", find_queries(batch.visible))
    turned = default_collate([mirror_annotations(view, SWAP) for view in views])
    return ImageBatch(batch, "cat", image_weights(batch.visible, turned.visible, variants).nonzero(), [turned])


def features(batch: PairBatch | ImageBatch) -> FeatureMap:
    """Of a backbone that averages cells and knows where on the page it is: its map of a mirror image is no mirror."""
    names, image = batch_views(batch)
    assert len(names) == len(image)
    place = torch.linspace(-1, 1, SIDE).expand(len(image), 1, SIDE, SIDE)
    return FeatureMap(nn.functional.avg_pool2d(torch.cat((image, image.square(), 0.2 * place), 1), 8), 8.0)


def loss_on(loss, batch: PairBatch | ImageBatch, variants: PoseVariant, head=None) -> torch.Tensor:
    return evaluate_loss(loss, build_loss_inputs(head or Cosine(), features(batch), batch, variants, 0, loss))


LOSSES = {
    "gaussian": gaussian_cross_entropy,
    "contrastive": SymmetricContrastive(scale=3.0),
    "contrastive without flips": SymmetricContrastive(scale=3.0, flips=False),
    "dense": SoftArgmaxDistance(noise=0.0, integer_source=True),
    "together": weighted_sum(noise=0.0, cross_entropy=1.0, contrastive_flips=False),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def test_terms_of_no_weight_are_left_out():
    assert PoseVariant().terms == [LossTerm(0, 1, 1.0)]
    assert PoseVariant(single_flip=0.5).terms == [LossTerm(0, 1, 1.0), LossTerm(2, 1, 0.5)]
    assert PAPER.terms == [LossTerm(0, 1, 1.0), LossTerm(2, 3, 1.0), LossTerm(2, 1, 1.0), LossTerm(2, 0, 0.25)]
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
    turned = [mirror_annotations(view, SWAP)._replace(image=view.image.flip(-1)) for view in (source, target)]
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


@pytest.mark.parametrize(("variants", "count"), [(PAPER, 10), (PoseVariant(), 8)], ids=["flips", "plain"])
@every_loss
def test_all_pairs_of_some_images_cost_the_mean_of_pair_by_pair(loss, variants, count):
    """Of all ordered pairs that share a keypoint, themselves or by a flip."""
    views = [made_view(str(i), seen) for i, seen in enumerate(("11111", "11010", "00101", "10000"))]
    flips = [mirror_annotations(view, SWAP) for view in views] if variants else views
    pairs = [loss_on(loss, default_collate([made_pair(a, b, variants)]), variants).item()
             for (a, flip), (b, _) in permutations(zip(views, flips, strict=True), 2)
             if (a.visible & b.visible).any() or (flip.visible & b.visible).any()]  # fmt: skip

    found = loss_on(loss, made_images(views, variants), variants)

    assert len(pairs) == count
    assert found.item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-4)


@pytest.mark.parametrize("variants", [PoseVariant(), PAPER], ids=["plain", "flips"])
@every_loss
def test_a_batch_costs_the_mean_of_its_pairs_however_many_keypoints_each_shares(loss, variants):
    """Pairs of five points, of one and of none, which are no pair."""
    seen = [("11111", "11111"), ("00100", "00111"), ("10000", "00100")]
    views = [tuple(made_view(f"{i}{j}", each) for j, each in enumerate(pair)) for i, pair in enumerate(seen)]
    batches = [default_collate([made_pair(*pair, variants)]) for pair in views]
    alone = [loss_on(loss, batch, variants).item() for batch in batches[:2]]

    found = loss_on(loss, default_collate([made_pair(*pair, variants) for pair in views]), variants)

    assert found.item() == pytest.approx(sum(alone) / 2, rel=1e-4)


def test_images_that_share_nothing_are_no_pair_though_each_shares_with_its_own_mirror_image():
    visible = torch.tensor([[True, True, False], [False, False, True]])

    weights = image_weights(visible, visible, PAPER)

    assert not weights.any()


def test_a_mirrored_pair_costs_what_the_pair_does_where_features_are_mirrored_with_the_image():
    """Averages of cells know no left and right: with the double flip alone the loss is the plain one."""
    variants, pair = PoseVariant(double_flip=3.0), (made_view("a"), made_view("b", "11011"))
    plain, both = (default_collate([made_pair(*pair, each)]) for each in (PoseVariant(), variants))
    maps = [FeatureMap(nn.functional.avg_pool2d(batch_views(batch)[1], 8), 8.0) for batch in (plain, both)]
    for loss in (gaussian_cross_entropy, SymmetricContrastive(), SoftArgmaxDistance(noise=0.0)):
        expected = evaluate_loss(loss, build_loss_inputs(Cosine(), maps[0], plain, PoseVariant(), 0, loss))
        found = evaluate_loss(loss, build_loss_inputs(Cosine(), maps[1], both, variants, 0, loss))
        torch.testing.assert_close(found, expected)


def test_a_head_that_sees_both_images_gets_the_same_queries():
    views = [made_view(str(i), seen) for i, seen in enumerate(("11111", "11010", "00101"))]
    for batch in (default_collate([made_pair(*views[:2], PAPER)]), made_images(views, PAPER)):
        whole, cosine = (
            build_loss_inputs(head, features(batch), batch, PAPER, 0, None) for head in (Whole(), Cosine())
        )
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
            build_loss_inputs(head, features(batch), batch, PAPER, 0, SoftArgmaxDistance(integer_source=whole))
            for whole in (True, False)
        )
        at_centres = build_loss_inputs(head, features(moved), moved, PAPER, 0, None).similarity
        torch.testing.assert_close(released.similarity, at_centres)
        assert (paper.similarity - at_centres).abs().max() > 1e-3  # equal would be to 1e-5
        assert torch.equal(released.starts, paper.starts)


@pytest.mark.parametrize("variants", [PoseVariant(), PAPER])
def test_a_step_waits_for_no_value(variants):
    """Under tensors without values: whatever needed one would be refused."""
    views = [made_view(str(i)) for i in range(3)]
    batches = default_collate([made_pair(*views[:2], variants)]), made_images(views, variants)
    for batch in batches:
        with FakeTensorMode(allow_non_fake_inputs=True):
            loss = loss_on(weighted_sum(cross_entropy=1.0), batch, variants)
            assert loss.shape == ()


@pytest.mark.parametrize("value", [-1, float("nan")])
def test_a_weight_below_zero_is_refused(value):
    with pytest.raises(UserError, match=r"`pairs\.self_flip` must be 0, which is off, or more, got"):
        PoseVariant(self_flip=value)
