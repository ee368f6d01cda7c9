"""`loss.convention=aligned`: corner cells on corner pixels, for the source and for the target, as restated here."""

import pytest
import torch
from posed_pairs import PAPER, SIDE, SWAP, made_pair, made_view
from torch.nn.functional import grid_sample, normalize
from torch.utils.data import default_collate

from semcorr.core.coords import to_view
from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap, ImageBatch
from semcorr.data.all_pairs import find_queries
from semcorr.data.augment import mirror_annotations
from semcorr.data.pose_variants import PoseVariant
from semcorr.engine.loss_inputs import build_loss_inputs
from semcorr.matching.readouts import argmax
from semcorr.models.heads.continuous import ContinuousQuery
from semcorr.models.heads.cosine import Cosine
from semcorr.models.losses import GaussianCrossEntropy, SoftArgmaxDistance, WeightedSum, gaussian_cross_entropy
from semcorr.train import train

ALIGNED = GaussianCrossEntropy(convention="aligned")
PLAIN = PoseVariant()
GRID, FINE = 6, 12
WIDTH, HEIGHT = SIDE * 2, SIDE * 4  # of the original, by the scale of a made-up view


class Finer(Cosine):
    """Cosines with a target of cells half as large."""

    def compare(self, descriptors, target):
        values = target.values.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return super().compare(descriptors, FeatureMap(values, target.stride / 2))


def slow_cells(original: torch.Tensor, grid: int) -> torch.Tensor:
    """x (g - 1) / (W - 1): the first pixel's centre is the first cell's, and the last one's the last."""
    return original * (grid - 1) / (torch.tensor([WIDTH, HEIGHT]) - 1)


def slow_similarity(source: torch.Tensor, target: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Cosines of one pair: cells of unit length, read with the corners aligned, against all cells."""
    at = slow_cells(original, GRID) * 2 / (GRID - 1) - 1
    read = grid_sample(normalize(source, dim=0)[None], at[None, None], align_corners=True)[0, :, 0]
    return torch.einsum("cn,chw->nhw", normalize(read, dim=0), normalize(target, dim=0))


@pytest.fixture
def batch_and_originals():
    originals = torch.rand(2, 3, 5, 2) * (torch.tensor([WIDTH, HEIGHT]) - 1)
    views = [
        [
            view._replace(keypoints=to_view(points, view.scale, view.offset))
            for points, view in ((each, made_view(f"{i}{j}")) for j, each in enumerate(side))
        ]
        for i, side in enumerate(originals)
    ]
    return views, originals


def test_source_and_target_are_read_with_their_corners_aligned(batch_and_originals):
    (sources, targets), originals = batch_and_originals
    batch = default_collate([made_pair(a, b, PLAIN) for a, b in zip(sources, targets, strict=True)])
    maps = FeatureMap(torch.randn(6, 7, GRID, GRID), SIDE / GRID)

    step = build_loss_inputs(Cosine(), maps, batch, PLAIN, 0, ALIGNED)

    for i in range(3):
        expected = slow_similarity(maps.values[i], maps.values[3 + i], originals[0, i])
        torch.testing.assert_close(step.similarity[i], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(step.cells, slow_cells(originals[1], GRID), atol=1e-4, rtol=0)
    assert torch.equal(step.mask, torch.ones(3, 5, dtype=torch.bool))
    centres = build_loss_inputs(Cosine(), maps, batch, PLAIN, 0, GaussianCrossEntropy())
    assert (centres.cells - step.cells).abs().max() > 0.2
    assert (centres.similarity - step.similarity).abs().max() > 0.01


def test_true_cells_are_those_of_a_finer_grid_where_the_head_makes_one(batch_and_originals):
    (sources, targets), originals = batch_and_originals
    batch = default_collate([made_pair(a, b, PLAIN) for a, b in zip(sources, targets, strict=True)])

    step = build_loss_inputs(Finer(), FeatureMap(torch.randn(6, 7, GRID, GRID), SIDE / GRID), batch, PLAIN, 0, ALIGNED)

    torch.testing.assert_close(step.cells, slow_cells(originals[1], FINE), atol=1e-4, rtol=0)


def test_points_are_read_in_the_finer_cells_that_they_are_to_be_found_in(batch_and_originals):
    """An image is most like itself at the true place, though a cell of its features is elsewhere than those in it."""
    (views, _), _ = batch_and_originals
    batch = default_collate([made_pair(view, view, PLAIN) for view in views])
    maps = FeatureMap(torch.randn(3, 7, GRID, GRID).repeat(2, 1, 1, 1), SIDE / GRID)
    head = ContinuousQuery(7, fineness=8, depth=0)

    step = build_loss_inputs(head, maps, batch, PLAIN, 0, ALIGNED)

    off = (argmax(step.similarity) - step.cells).abs()
    inside = (step.cells > 4).all(-1) & (step.cells < 8 * GRID - 5).all(-1)  # no farther out than the cells' centres
    assert int(inside.sum()) > 5
    assert off[inside].max() < 1


def test_all_ordered_pairs_of_images_are_the_pairs_one_by_one(batch_and_originals):
    (views, _), originals = batch_and_originals
    batch = default_collate(views)
    maps = FeatureMap(torch.randn(3, 7, GRID, GRID), SIDE / GRID)

    step = build_loss_inputs(Cosine(), maps, ImageBatch(batch, "cat", find_queries(batch.visible)), PLAIN, 0, ALIGNED)

    for row, (source, keypoint, target) in enumerate(find_queries(batch.visible).tolist()):
        expected = slow_similarity(maps.values[source], maps.values[target], originals[0, source])[keypoint]
        torch.testing.assert_close(step.similarity[0, row], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            step.cells[0, row], slow_cells(originals[0, target], GRID)[keypoint], atol=1e-4, rtol=0
        )


def test_a_mirror_image_has_the_mirror_images_cells(batch_and_originals):
    (sources, targets), originals = batch_and_originals
    batch = default_collate([made_pair(a, b, PAPER) for a, b in zip(sources, targets, strict=True)])

    step = build_loss_inputs(Cosine(), FeatureMap(torch.randn(12, 7, GRID, GRID), 8.0), batch, PAPER, 0, ALIGNED)

    mirrored = slow_cells(originals[1], GRID)[:, list(SWAP)] * torch.tensor([-1, 1]) + torch.tensor([GRID - 1, 0])
    torch.testing.assert_close(step.cells[3:6], mirrored, atol=1e-4, rtol=0)  # of both, mirrored
    assert mirror_annotations(sources[0], SWAP).visible.all()


def test_a_point_outside_the_image_is_kept_inside():
    view = made_view("a")._replace(keypoints=torch.tensor([[-9.0, SIDE + 9.0]] * 5))
    batch = default_collate([made_pair(view, view, PLAIN)])

    step = build_loss_inputs(Cosine(), FeatureMap(torch.randn(2, 7, GRID, GRID), 8.0), batch, PLAIN, 0, ALIGNED)

    x, y = step.cells[0, 0].tolist()
    assert 0 < x < 1e-3
    assert 0 < GRID - 1 - y < 1e-3


def test_a_sum_of_both_conventions_is_refused():
    terms = {"entropy": ALIGNED, "dense": SoftArgmaxDistance()}
    with pytest.raises(UserError, match="its losses differ in it: aligned, centre"):
        WeightedSum(terms, {"entropy": 1.0, "dense": 1.0})
    assert WeightedSum({"a": ALIGNED}, {"a": 1.0}).lookup == "aligned"
    assert WeightedSum({"a": gaussian_cross_entropy}, {"a": 1.0}).lookup == "centre"


@pytest.mark.parametrize("resize", ["letterbox", "corner"])
def test_an_image_that_does_not_fill_its_square_is_refused(config, tiny, tmp_path, resize):
    line = ["loss.convention=aligned", f"data.resize={resize}", "protocol=semcorr", f"run_dir={tmp_path}"]
    with pytest.raises(UserError, match=f"and data.resize={resize} does not. Give data.resize=squash or"):
        train(config("train", *tiny, *line))


def test_another_convention_is_refused(config, tiny, tmp_path):
    with pytest.raises(UserError, match=r"`loss\.convention` must be"):
        train(config("train", *tiny, "loss.convention=corners", f"run_dir={tmp_path}"))
