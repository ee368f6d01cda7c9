"""The loss by a teacher's matches: which are accepted, which are kept, and what they cost."""

import math

import pytest
import torch
from random_pairs import HEIGHT, SIDE, STRIDE, WIDTH, made_pairs, step_of

from semcorr.core.types import FeatureMap
from semcorr.models.heads.cosine import Cosine
from semcorr.models.losses import PairMaps, PseudoLabels
from semcorr.models.losses.pseudo_labels import balance_pairs

CELLS = HEIGHT * WIDTH
OPEN = {"in_box": False, "threshold": 0.0, "cycle": None, "keep": 1.0, "weigh": False}  # every match counts


def shifted_pairs(shift: int) -> PairMaps:
    """A pair each of whose cells has a direction of its own; the target is the source, cells rolled along x."""
    cells = torch.eye(CELLS).reshape(1, CELLS, HEIGHT, WIDTH)
    maps = [FeatureMap(values, float(STRIDE)) for values in (cells, cells.roll(shift, -1))]
    box = torch.tensor([[-0.5, -0.5, SIDE - 0.5, SIDE - 0.5]])
    return PairMaps(Cosine(), *maps, box, box, SIDE, ["cat"])


def centres() -> torch.Tensor:
    return shifted_pairs(0).lattice(None)


def slow_loss(loss: PseudoLabels, student: PairMaps, teacher: PairMaps, points: torch.Tensor) -> float:
    """Pair by pair and point by point; the label is the teacher's whole softmax."""
    first, second = (pairs.similarity(points).flatten(2).detach() for pairs in (student, teacher))
    cells = loss.label_points(teacher, points).cells
    total, pairs = 0.0, 0
    for i in range(len(points)):
        found = []
        for j in range(points.shape[1]):
            p = [math.exp(float(value) / loss.temperature) for value in second[i, j]]
            p = [value / sum(p) for value in p]
            best = max(range(CELLS), key=p.__getitem__)
            y, x = divmod(best, WIDTH)
            near = [p[v * WIDTH + u] for v in range(HEIGHT) for u in range(WIDTH) if abs(u - x) < 2 and abs(v - y) < 2]
            match = [(float(c) + 0.5) * STRIDE - 0.5 for c in cells[i, j]]
            x1, y1, x2, y2 = teacher.target_box[i].tolist()
            back = loss.label_points(teacher.swapped, torch.tensor(match).expand(len(points), 1, 2)).cells[i, 0]
            returned = [(float(c) + 0.5) * STRIDE - 0.5 for c in back]
            accepted = sum(near) >= loss.threshold and x1 <= match[0] <= x2 and y1 <= match[1] <= y2
            accepted &= math.dist(returned, points[i, j].tolist()) <= loss.cycle * STRIDE
            q = [math.exp(float(value) / loss.student_temperature) for value in first[i, j]]
            cost = -sum(a * math.log(b / sum(q)) for a, b in zip(p, q, strict=True))
            found += [(cost, sum(near))] if accepted else []
        kept = sorted(found)[: math.ceil(loss.keep * len(found))]
        if kept:
            total += sum(cost * weight for cost, weight in kept) / sum(weight for _, weight in kept)
            pairs += 1
    return total / max(pairs, 1)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_that_of_points_one_by_one(seed):
    torch.manual_seed(seed)
    loss = PseudoLabels(12, temperature=0.3, threshold=0.4, cycle=1.5, keep=0.6, soft=True, student_temperature=0.2)
    student, teacher = made_pairs(3)[0], made_pairs(3)[0]
    torch.manual_seed(100 + seed)
    points = student.draw_points(12, in_box=True)
    accepted = loss.label_points(teacher, points).accepted
    torch.manual_seed(100 + seed)

    found = loss(step_of(student, teacher=teacher))

    assert 0 < accepted.float().mean() < 1
    assert found.item() == pytest.approx(slow_loss(loss, student, teacher, points), rel=1e-4)


def test_a_teacher_finds_the_cells_that_were_moved():
    labels = PseudoLabels(**OPEN, temperature=0.01).label_points(shifted_pairs(1), centres())

    torch.testing.assert_close(labels.cells[0, 0], torch.tensor([1.0, 0.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(labels.confidence, torch.ones(1, CELLS))


def test_a_student_like_its_teacher_costs_less_than_any_other():
    """Of hard labels, and of soft ones, where it costs the entropy of the teacher."""
    pairs = shifted_pairs(1)
    for soft in (False, True):
        loss = PseudoLabels(**OPEN, soft=soft)
        costs = [float(loss(step_of(shifted_pairs(shift), teacher=pairs))) for shift in (1, 0, 2)]
        assert costs[0] < min(costs[1:])


def test_matches_count_by_confidence_box_and_return():
    pairs, points = shifted_pairs(1), centres()
    small = pairs._replace(target_box=torch.tensor([[7.5, -0.5, 15.5, SIDE - 0.5]]))  # the second column
    vague = pairs._replace(target=pairs.target._replace(values=torch.ones_like(pairs.target.values)))
    one_way = pairs._replace(
        source=pairs.source._replace(values=pairs.source.values[:, :, :, :1].expand(-1, -1, -1, WIDTH))
    )

    def accepted(teacher: PairMaps, **options: object) -> list[bool]:
        options = {**OPEN, "temperature": 0.01, **options}
        return PseudoLabels(**options).label_points(teacher, points).accepted[0, :WIDTH].tolist()

    assert accepted(small) == [True] * WIDTH
    assert accepted(small, in_box=True) == [True, False, False, False]
    assert accepted(vague, threshold=0.9) == [False] * WIDTH
    assert accepted(one_way, cycle=None) == [True] * WIDTH
    assert sum(accepted(one_way, cycle=1.0)) < WIDTH  # all are found in one place, which leads back to one


def test_without_an_accepted_label_the_loss_is_zero():
    pairs, leaves = made_pairs()

    loss = PseudoLabels(threshold=1.0, temperature=10.0)(step_of(pairs, teacher=pairs))
    loss.backward()

    assert loss == 0
    assert not any(leaf.grad.any() for leaf in leaves)


def test_categories_of_a_step_count_alike():
    weights = balance_pairs(torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.2, 0.8]]), ["cat", "cat", "dog"])

    assert weights.sum(-1).tolist() == pytest.approx([0.5, 0.5, 1.0])


def test_a_teacher_gets_no_gradient():
    (student, leaves), (teacher, others) = made_pairs(), made_pairs()

    PseudoLabels(**OPEN)(step_of(student, teacher=teacher)).backward()

    assert all(leaf.grad.any() for leaf in leaves)
    assert all(leaf.grad is None for leaf in others)
