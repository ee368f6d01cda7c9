"""What every head that filters the correlation of two whole maps promises, whatever is inside."""

from pathlib import Path

import pytest
import torch
from tiny_cost_heads import GRID, STRIDE, built, centres, maps, points
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.core.interfaces import SiameseHead
from semcorr.core.types import FeatureMap
from semcorr.engine.build import build_datamodule_and_module
from semcorr.evaluate import evaluate
from semcorr.matching.readouts import argmax, window_soft_argmax
from semcorr.models.heads.cats import CATs
from semcorr.models.heads.consensus import Consensus
from semcorr.models.heads.match_to_match import MatchToMatch
from semcorr.train import train

pytestmark = pytest.mark.integration

LEARNED = [
    "consensus",
    "consensus_original",
    "consensus_adaptive",
    "consensus_dual",
    "chm",
    "cats",
    "cats_plus_plus",
    "match_to_match",
    "geometric",
    "local_affine",
    "continuous",
]
FINE = {"continuous": 4}  # cells of the similarity along a side of one of the features'
WARPS = ["geometric", "local_affine"]  # which cannot tell a match from a warp of everything
HEADS = [*LEARNED, "transport", "gromov_wasserstein"]
PRECISIONS = [torch.float32, torch.float16, torch.bfloat16]
heads = pytest.mark.parametrize("name", HEADS)


@heads
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_similarity_is_in_single_precision_and_finite(name, precision):
    similarity = built(name)(maps(precision=precision), maps(precision=precision), points(2, 5))

    assert similarity.shape == (2, 5, GRID * FINE.get(name, 1), GRID * FINE.get(name, 1))
    assert similarity.dtype == torch.float32
    assert similarity.isfinite().all()


@heads
def test_gradients_in_half_precision_are_finite_and_reach_everything(name):
    head, pair = built(name), [maps(precision=torch.bfloat16) for _ in range(2)]
    for one in pair:
        one.values.requires_grad_()

    with torch.autocast("cpu", torch.bfloat16):
        head(*pair, points(2, 5)).square().sum().backward()

    gradients = [one.grad for one in (*head.parameters(), *(one.values for one in pair))]
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


@heads
def test_images_of_a_batch_do_not_meet(name):
    head, source, target, requested = built(name).eval(), maps(), maps(), points(2, 5)

    together = head(source, target, requested)
    alone = head(FeatureMap(source.values[1:], STRIDE), FeatureMap(target.values[1:], STRIDE), requested[1:])

    assert_close(together[1:], alone, atol=1e-5, rtol=1e-4)


@heads
def test_without_gradients_the_answer_is_the_same(name):
    head, source, target, requested = built(name), maps(), maps(), points(2, 5)

    with torch.no_grad():
        lean = head(source, target, requested)

    assert_close(lean, head(source, target, requested), atol=1e-6, rtol=1e-5)


@heads
def test_no_points_have_no_similarity(name):
    side = GRID * FINE.get(name, 1)

    assert built(name)(maps(1), maps(1), points(1, 0)).shape == (1, 0, side, side)


@pytest.mark.parametrize("name", LEARNED)
def test_no_points_leave_no_weight_without_a_gradient(name):
    """Of processes that train together, each waits for the gradients of all."""
    head = built(name)

    head(maps(1), maps(1), points(1, 0)).sum().backward()

    assert not any(weight.grad is None or weight.grad.any() for weight in head.parameters())


@heads
def test_both_maps_are_needed_at_once(name):
    assert not isinstance(built(name), SiameseHead)


@pytest.mark.parametrize("name", [name for name in HEADS if name != "cats"])
def test_maps_may_have_any_grid(name):
    similarity = built(name)(maps(1, 3, 5), maps(1, 4, 2), points(1, 6))

    assert similarity.shape == (1, 6, 4 * FINE.get(name, 1), 2 * FINE.get(name, 1))


@pytest.mark.parametrize("name", [name for name in HEADS if name not in (*WARPS, *FINE)])
def test_an_untrained_head_finds_the_cells_that_are_the_same(name):
    """Cells of the source, elsewhere in the target; where a soft-argmax at the usual temperature looks too."""
    head, order = built(name, trained=False), torch.randperm(GRID**2, generator=torch.Generator().manual_seed(1))
    if name == "consensus_dual":  # coarse cells move as a whole
        order = torch.arange(GRID**2).view(2, 2, 2, 2)[[1, 0]][:, :, [1, 0]].flatten()
    scene = torch.eye(GRID**2)[:, :, None].expand(-1, -1, 1).reshape(1, GRID**2, GRID, GRID)
    if name in ("cats", "cats_plus_plus"):
        head = built(name, trained=False, channels=GRID**2)
    if name == "chm":
        head = built(name, trained=False, channels=GRID**2, width=GRID**2)
    moved = scene.flatten(2)[..., order].view_as(scene)

    similarity = head(FeatureMap(scene, STRIDE), FeatureMap(moved, STRIDE), centres())

    found = argmax(similarity)[0]
    assert (found[:, 1] * GRID + found[:, 0]).long().tolist() == order.argsort().tolist()
    assert_close(window_soft_argmax(similarity)[0], found, atol=0.1, rtol=0)


@pytest.mark.sampled(11)
@pytest.mark.parametrize("name", LEARNED)
def test_a_head_trains_and_is_evaluated_through_its_configuration(config, tiny, tmp_path, name):
    overrides = [*tiny, f"head={name}", "backbone.size=32", "protocol=semcorr"]
    quick = ["finetune.blocks=0", "data.steps=3", "data.batch_size=2", "trainer.max_epochs=1", "optimizer.lr=1e-3"]
    if name == "consensus_original":
        overrides += ["head.kernels=[5,3]", "head.widths=[4,1]"]
    if name == "consensus_adaptive":
        overrides += ["head.kernels=[[[1,3],[3,3]],3]", "head.widths=[4,1]"]
    cfg = config("train", *overrides, *quick)
    before = {name: value.clone() for name, value in build_datamodule_and_module(cfg)[0].state_dict().items()}
    trained = train(cfg)

    weights = torch.load(Path(tmp_path / "run/checkpoints/last.ckpt"), weights_only=True)["state_dict"]
    assert {key for key in before if key.startswith("head.")} == set(weights)
    assert all(value.isfinite().all() and not value.equal(before[key]) for key, value in weights.items())
    again = config("evaluate", *overrides, f"checkpoint={tmp_path / 'run'}", f"run_dir={tmp_path / 'again'}")
    assert evaluate(again)["pck"] == trained["pck"]


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: Consensus([3, 3], [8, 8, 1]), r"`head.kernels` and `head.widths` must be as many.*\[3, 3\]"),
        (lambda: Consensus([3, 3], [8, 8]), "the last width 1"),
        (lambda: Consensus([3, 4], [8, 1]), "`head.kernels` must be odd and positive, got 4"),
        (lambda: Consensus([[[3, 4]]], [1]), "`head.kernels` must be odd and positive, got 4"),
        (lambda: Consensus([[3, 5]], [1]), "each entry a whole number, or a list, each entry a list"),
        (lambda: Consensus([[[3]]], [1]), r"`head.kernels` must have for each layer a size, or pairs.*\[\[3\]\]"),
        (lambda: Consensus([[]], [1]), r"`head.kernels` must have for each layer a size, or pairs of sizes, got \[\]"),
        (lambda: Consensus([[[3, 5], [5, 5]], 3], [3, 1]), "`head.widths` must be a multiple.*got 3 for 2. Give 4"),
        (lambda: Consensus(coarse=0), "`head.coarse` must be at least 1, got 0"),
        (lambda: CATs(8, 4, depth=0), "`head.depth` must be at least 1"),
        (lambda: CATs(8, 2, heads=200), "`head.heads` must be between 1 and 132, got 200"),
        (lambda: MatchToMatch(heads=3), "`head.heads` must be even.*got 3"),
    ],
)
def test_options_out_of_range_are_refused_with_their_range(attempt, message):
    with pytest.raises(UserError, match=message):
        attempt()
