"""The loss by matches mined from a teacher's features: which they are, what they cost, and what learns from them."""

import math
from functools import partial

import pytest
import torch
from moved_pairs import CELLS, SIDE, STRIDE, assert_slope_of_student, moved_pairs, step_of
from posed_pairs import Whole
from random_pairs import slow_cosines

from semcorr.models.losses import LossInputs, MinedMatches, weighted_sum
from semcorr.models.losses.mined_matches import find_neighbours


def slow_loss(loss: MinedMatches, step: LossInputs) -> float:
    """Pair by pair and match by match, in halves of the image's side."""
    source, target, mask = loss.mine(step)
    similarity = step.pairs.similarity(source).detach()
    means = []
    for i in range(len(source)):
        costs = []
        for j in range(source.shape[1]):
            if not mask[i, j]:
                continue
            rows = similarity[i, j].tolist()
            weights = {(x, y): math.exp(rows[y][x] / loss.temperature) for x in range(CELLS) for y in range(CELLS)}
            total = sum(weights.values())
            place = [sum(weight * cell[k] for cell, weight in weights.items()) / total for k in range(2)]
            true = [(float(pixel) + 0.5) / STRIDE - 0.5 for pixel in target[i, j]]
            costs.append(math.dist(place, true) / ((CELLS - 1) / 2))
        if costs:
            means.append(sum(costs) / len(costs))
    return sum(means) / max(len(means), 1)


def evaluate(loss: MinedMatches, step: LossInputs) -> torch.Tensor:
    """The loss, of the same choice of matches each time."""
    torch.manual_seed(7)
    return loss(step)


def test_matches_of_moved_features_are_moved_as_they_are():
    """All that is not moved out of the image on the right, and in again on the left."""
    teacher = moved_pairs()
    teacher.masks[0][..., -2 * STRIDE :] = False
    teacher = teacher._replace(masks=(teacher.masks[0], torch.ones_like(teacher.masks[0])))

    source, target, mask = MinedMatches(least=20).mine(step_of(moved_pairs(), teacher))

    assert mask.sum(-1).tolist() == [300, 300]
    offsets = (target - source)[mask]
    torch.testing.assert_close(offsets, torch.tensor([2.0 * STRIDE, 0.0]).expand_as(offsets), atol=1e-3, rtol=0)


def test_the_loss_is_that_of_matches_one_by_one():
    loss, step = MinedMatches(points=40, least=20, temperature=0.3), step_of(moved_pairs(), moved_pairs())
    found = evaluate(loss, step)
    torch.manual_seed(7)

    assert found.item() == pytest.approx(slow_loss(loss, step), rel=1e-4)
    assert found > 0.1


def test_a_student_that_matches_as_its_teacher_has_nothing_to_learn():
    pairs = moved_pairs()
    other = moved_pairs(shift=-3)

    same, different = (evaluate(MinedMatches(least=20), step_of(student, pairs)) for student in (pairs, other))

    assert same < 0.1 < different


def test_a_gradient_is_the_slope_along_it_and_the_teacher_has_none():
    step = step_of(moved_pairs(shift=3), moved_pairs())
    assert_slope_of_student(partial(evaluate, MinedMatches(points=40, least=20, temperature=0.3)), step)


def test_neighbours_are_those_of_all_cosines():
    pair = moved_pairs(noise=2.0, pairs=1)
    cosines = slow_cosines(pair.source.values[0], pair.target.values[0]).tolist()

    found = find_neighbours(pair, 0.9)

    best = [row.index(max(row)) for row in cosines]
    columns = [*zip(*cosines, strict=True)]
    expected = [(i, j) for i, j in enumerate(best) if columns[j].index(max(columns[j])) == i]
    centres = [
        [[STRIDE * (k % CELLS) + 3.5, STRIDE * (k // CELLS) + 3.5] for k in side]
        for side in zip(*expected, strict=True)
    ]
    assert [side.tolist() for side in found] == centres
    assert 20 < len(expected) < CELLS**2


def test_matches_begin_and_end_on_the_masks():
    teacher = moved_pairs()
    source_mask, target_mask = (torch.zeros(2, SIDE, SIDE, dtype=torch.bool) for _ in range(2))
    source_mask[:, 10:80, 10:80], target_mask[:, 20:70, 20:90] = True, True
    teacher = teacher._replace(masks=(source_mask, target_mask))

    source, target, mask = MinedMatches(least=20).mine(step_of(moved_pairs(), teacher))

    assert mask.any(-1).all()
    for points, object_mask in ((source, source_mask), (target, target_mask)):
        x, y = points[mask].round().long().unbind(-1)
        assert object_mask[0][y, x].all()


@pytest.mark.parametrize("empty", ["keypoints", "mask"])
def test_a_step_without_a_match_costs_nothing(empty):
    teacher, pairs = moved_pairs(), moved_pairs()
    step = step_of(pairs, teacher)
    if empty == "keypoints":
        step = step._replace(mask=torch.zeros_like(step.mask))
    else:
        step = step._replace(teacher=teacher._replace(masks=(teacher.masks[0] & False, teacher.masks[1])))

    loss = MinedMatches()(step)
    loss.backward()

    assert loss == 0
    assert (pairs.source.values.grad == 0).all()


def test_a_head_that_sees_both_images_gives_the_same():
    pairs, teacher = moved_pairs(shift=3), moved_pairs()
    loss = MinedMatches(points=40, least=20)

    whole = step_of(pairs._replace(head=Whole()), teacher._replace(head=Whole()))

    torch.testing.assert_close(evaluate(loss, whole), evaluate(loss, step_of(pairs, teacher)))


def test_a_sum_has_it_with_what_it_reads():
    assert weighted_sum(mined_matches=0.5).reads == ["masks", "pairs", "teacher"]
