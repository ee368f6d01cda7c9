"""NC-Net's loss: what belongs together matches better than what does not."""

import pytest
import torch
from random_pairs import SIDE, made_pairs, slow_cosines, step_of

from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.models.heads.cosine import Cosine
from semcorr.models.losses import ImageLevel, PairMaps


def slow_score(source: torch.Tensor, target: torch.Tensor, temperature: float) -> float:
    """NC-Net's mean matching score: of each cell the probability of its best match, in both directions, one by one."""
    cosines = slow_cosines(source, target)
    found = []
    for rows in (cosines, cosines.T):
        shares = [float((row / temperature).exp().max() / (row / temperature).exp().sum()) for row in rows]
        found.append(sum(shares) / len(shares))
    return sum(found) / 2


def test_the_loss_is_the_score_of_rolled_targets_less_that_of_the_pairs():
    pairs, (source, target) = made_pairs(3)
    positive = [slow_score(source[i], target[i], 0.2) for i in range(3)]
    negative = [slow_score(source[i], target[j], 0.2) for i, j in ((0, 1), (1, 2), (2, 0))]

    loss = ImageLevel(temperature=0.2, points=None)(step_of(pairs))

    assert loss.item() == pytest.approx(sum(negative) / 3 - sum(positive) / 3, abs=1e-6)


def test_a_lattice_as_fine_as_the_cells_is_all_cells():
    pairs, _ = made_pairs()

    every, four = (ImageLevel(points=points)(step_of(pairs)) for points in (None, 4))

    torch.testing.assert_close(every, four)
    assert pairs.lattice(2)[0].tolist() == [[7.5, 7.5], [23.5, 7.5], [7.5, 23.5], [23.5, 23.5]]


def test_perfect_positive_pairs_and_unlike_negative_pairs_have_the_lowest_loss():
    """Of four cells with directions of their own; the strangers' are orthogonal to all of them: any cell is as good."""
    cells = torch.eye(8).reshape(2, 4, 8).mT.reshape(2, 8, 2, 2)
    maps = FeatureMap(cells, SIDE / 2)
    boxes = torch.zeros(2, 4)

    loss = ImageLevel(temperature=0.01, points=None)(step_of(PairMaps(Cosine(), maps, maps, boxes, boxes, SIDE, "ab")))

    assert loss.item() == pytest.approx(1 / 4 - 1)


def test_a_step_of_one_pair_has_no_negative_pair():
    with pytest.raises(UserError, match=r"this step has one. Give data.batch_size=2 or more"):
        ImageLevel()(step_of(made_pairs(1)[0]))
