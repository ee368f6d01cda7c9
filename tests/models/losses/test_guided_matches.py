"""The loss by a teacher's matches around the places that keypoints expect: which places, which labels, what learns."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from moved_pairs import CELLS, SIDE, STRIDE, assert_slope_of_student, moved_pairs, step_of
from posed_pairs import Whole

from semcorr.core.types import FeatureMap
from semcorr.models.losses import GuidedMatches, LossInputs
from semcorr.models.losses.guided_matches import WarpPrior, draw_object_points, expect_places

PRIOR = WarpPrior(shift=0.2, stretch=0.3, bend=0.1, length=0.4, noise=0.05)
BROAD = {"shift": 1e3, "stretch": 1e-3, "bend": 1e-3, "noise": 1e3}  # keypoints say nothing


def slow_places(source, target, points, prior: WarpPrior) -> list[tuple[float, float, float]]:
    """One pair, point by point, by the inverse of the covariance of its keypoints, in double precision."""

    def covariance(a, b) -> float:
        bend = prior.bend**2 * math.exp(-(math.dist(a, b) ** 2) / (2 * prior.length**2))
        return prior.shift**2 + prior.stretch**2 * (a[0] * b[0] + a[1] * b[1]) + bend

    errors = {sign: sum((t[0] - sign * s[0]) ** 2 for s, t in zip(source, target, strict=True)) for sign in (1, -1)}
    sign = -1 if errors[-1] < errors[1] else 1
    known = np.array([[covariance(a, b) + (a is b) * prior.noise**2 for b in source] for a in source])
    inverse = np.linalg.inv(known)
    moves = np.array([[t[0] - sign * s[0], t[1] - s[1]] for s, t in zip(source, target, strict=True)])
    places = []
    for point in points:
        across = np.array([covariance(point, each) for each in source])
        x, y = across @ inverse @ moves
        places.append((sign * point[0] + x, point[1] + y, covariance(point, point) - across @ inverse @ across))
    return places


@pytest.mark.parametrize("mirrored", [1.0, -1.0])
def test_places_are_those_of_the_process_written_out(mirrored):
    generator = torch.Generator().manual_seed(3)
    source, points = (torch.rand(2, n, 2, generator=generator) - 0.5 for n in (6, 9))
    target = source * torch.tensor([mirrored, 1.0]) + 0.1 * torch.randn(2, 6, 2, generator=generator)
    mask = torch.tensor([[True, True, False, True, False, True], [False, False, True, False, False, False]])
    hidden = torch.where(mask[..., None], target, 7.0)  # values of others do not matter

    mean, variance = expect_places(source, hidden, mask, points, PRIOR)

    found = torch.cat((mean, variance[..., None]), dim=-1)
    for i, visible in enumerate(mask):
        rows = [each[i][visible].double().tolist() for each in (source, target)]
        expected = torch.tensor(slow_places(*rows, points[i].double().tolist(), PRIOR), dtype=torch.float32)
        torch.testing.assert_close(found[i], expected, atol=2e-5, rtol=1e-4)


def test_keypoints_in_their_own_places_leave_every_point_in_its_own():
    source = torch.rand(1, 5, 2) - 0.5
    points = torch.rand(1, 50, 2) - 0.5
    for place in (torch.tensor([1.0, 1.0]), torch.tensor([-1.0, 1.0])):
        mean, variance = expect_places(source, source * place, torch.ones(1, 5, dtype=torch.bool), points, PRIOR)
        torch.testing.assert_close(mean, points * place)
        assert (variance >= 0).all()


def test_without_a_keypoint_every_point_is_expected_in_its_own_place_as_widely_as_before():
    nothing, points = torch.zeros(1, 3, 2), torch.rand(1, 20, 2) - 0.5
    mean, variance = expect_places(nothing, nothing, torch.zeros(1, 3, dtype=torch.bool), points, PRIOR)
    torch.testing.assert_close(mean, points)
    expected = PRIOR.shift**2 + PRIOR.stretch**2 * points.square().sum(-1) + PRIOR.bend**2
    torch.testing.assert_close(variance, expected)


def evaluate(loss: GuidedMatches, step: LossInputs) -> torch.Tensor:
    """The loss, of the same choice of points each time."""
    torch.manual_seed(7)
    return loss(step)


def test_points_and_labels_are_on_the_objects():
    teacher = moved_pairs()
    source_mask, target_mask = (torch.zeros(2, SIDE, SIDE, dtype=torch.bool) for _ in range(2))
    source_mask[:, 12:84, 18:84], target_mask[:, 24:72, 16:88] = True, True  # whole squares and cells
    step = step_of(moved_pairs(), teacher._replace(masks=(source_mask, target_mask)))

    points, label, mask = GuidedMatches(points=300).label(step)

    x, y = points[mask].round().long().unbind(-1)
    assert mask.all()
    assert source_mask[0][y, x].all()
    assert len(points[0].unique(dim=0)) == 300
    torch.testing.assert_close(label.sum(-1), torch.ones(2, 300))
    cells = label.unflatten(-1, (CELLS, CELLS))
    inside = cells[:, :, 3:9, 2:11]
    torch.testing.assert_close(inside.sum((-1, -2)), torch.ones(2, 300))


def test_of_an_object_with_fewer_points_all_count_once_and_no_others():
    pairs = moved_pairs(pairs=1)
    pairs.masks[0][:] = False
    pairs.masks[0][:, 30:36, 30:36] = True  # of 64 x 64 points, 1.5 pixels apart

    points, mask = draw_object_points(pairs, 200)

    assert mask.sum() == 16
    assert len(points[mask].unique(dim=0)) == 16
    assert points[mask].min() > 29
    assert points[mask].max() < 36


def test_keypoints_tell_two_places_apart_that_look_the_same():
    """Features of one column all over: the label is the Gaussian of the expected place, two cells to the right."""
    pairs = moved_pairs()
    same = pairs._replace(
        source=FeatureMap(torch.ones_like(pairs.source.values), STRIDE),
        target=FeatureMap(torch.ones_like(pairs.target.values), STRIDE),
    )
    points, label, mask = GuidedMatches(points=300, shift=0.3, bend=1e-2).label(step_of(pairs, same))

    columns = torch.arange(CELLS, dtype=torch.float32) * STRIDE + (STRIDE - 1) / 2
    place = (label.unflatten(-1, (CELLS, CELLS)).sum(-2) * columns).sum(-1)
    inner = mask & (points[..., 0] > 20) & (points[..., 0] < 60)  # far from the border, where a Gaussian is cut
    torch.testing.assert_close(place[inner], points[..., 0][inner] + 2 * STRIDE, atol=1.5, rtol=0)


def test_the_loss_is_that_of_points_one_by_one():
    loss, step = GuidedMatches(points=20), step_of(moved_pairs(), moved_pairs(shift=1))
    found = evaluate(loss, step)
    torch.manual_seed(7)
    points, label, mask = loss.label(step)
    similarity = step.pairs.similarity(points).detach().flatten(2)
    means = []
    for i in range(len(points)):
        costs = []
        for j in range(20):
            weights = [math.exp(value / loss.temperature) for value in similarity[i, j].tolist()]
            shares = [weight / sum(weights) for weight in weights]
            costs.append(-sum(q * math.log(p) for q, p in zip(label[i, j].tolist(), shares, strict=True)))
        means.append(sum(costs) / len(costs))

    assert mask.all()
    assert found.item() == pytest.approx(sum(means) / len(means), rel=1e-4)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_where_keypoints_say_nothing():
    pairs = moved_pairs(noise=2.0)
    other = moved_pairs(noise=2.0)
    slopes = []
    for teacher in (pairs, other):
        loss = evaluate(GuidedMatches(points=300, **BROAD), step_of(pairs, teacher))
        slopes.append(torch.autograd.grad(loss, pairs.source.values)[0].abs().max())

    assert slopes[0] < 1e-3 * slopes[1]


def test_a_gradient_is_the_slope_along_it_and_the_teacher_has_none():
    step = step_of(moved_pairs(shift=3), moved_pairs())
    assert_slope_of_student(partial(evaluate, GuidedMatches(points=40)), step)


@pytest.mark.parametrize("where", ["one pair", "all pairs"])
def test_a_pair_without_a_keypoint_does_not_count(where):
    teacher, pairs = moved_pairs(), moved_pairs(shift=3)
    step, loss = step_of(pairs, teacher), GuidedMatches(points=40)
    step.mask[1:] = False
    step.cells[1:] = torch.nan
    if where == "all pairs":
        step.mask[:] = False
        found = evaluate(loss, step)
        found.backward()
        assert found == 0
        assert (pairs.source.values.grad == 0).all()
        return
    assert loss.label(step)[2].any(-1).tolist() == [True, False]
    assert torch.isfinite(evaluate(loss, step))


def test_a_head_that_sees_both_images_gives_the_same():
    pairs, teacher = moved_pairs(shift=3), moved_pairs()
    whole = step_of(pairs._replace(head=Whole()), teacher._replace(head=Whole()))
    loss = GuidedMatches(points=40)
    torch.testing.assert_close(evaluate(loss, whole), evaluate(loss, step_of(pairs, teacher)))
