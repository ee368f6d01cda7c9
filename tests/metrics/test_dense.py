"""Scores of dense matches, by hand and pixel by pixel."""

import math

import pyarrow as pa
import pytest
import torch

from semcorr.metrics.dense import category_scores, dense_schema, flow_pck, label_iou, label_transfer_accuracy


def slow_pck(predicted, truth, evaluated, longer_side):
    """Taniai et al. 2016: images are resized to a longer side of 100, where 5 pixels are the limit."""
    right = count = 0
    for y in range(evaluated.shape[0]):
        for x in range(evaluated.shape[1]):
            if evaluated[y, x]:
                (u, v), (a, b) = predicted[y, x].tolist(), truth[y, x].tolist()
                count += 1
                right += math.hypot(u - a, v - b) * 100 / longer_side < 5
    return right / count


@pytest.mark.parametrize("seed", range(5))
def test_flow_pck_is_that_of_images_resized_to_a_hundred_pixels(seed):
    torch.manual_seed(seed)
    truth = torch.randn(30, 40, 2) * 20
    predicted, evaluated = truth + torch.randn(30, 40, 2), torch.rand(30, 40) < 0.5
    score = flow_pck(predicted, truth, evaluated, 0.05 * 40)
    assert score == pytest.approx(slow_pck(predicted, truth, evaluated, 40))
    assert 0.5 < score < 1


def test_flow_pck_by_hand():
    """Of a 200 x 100 image 10 pixels are the limit: errors of 9.9, 10 (6 and 8), and one outside the foreground."""
    truth, predicted = torch.zeros(100, 200, 2), torch.zeros(100, 200, 2)
    evaluated = torch.zeros(100, 200, dtype=torch.bool)
    evaluated[0, :4] = True
    predicted[0, 0], predicted[0, 1] = torch.tensor([9.9, 0.0]), torch.tensor([6.0, 8.0])
    predicted[0, 9] = 1000.0
    assert flow_pck(predicted, truth, evaluated, 0.05 * 200) == 0.75


def test_label_scores_by_hand():
    """A foreground of 2 x 2 that is carried one column too far, in 3 x 4."""
    truth, carried = torch.zeros(3, 4, dtype=torch.uint8), torch.zeros(3, 4, dtype=torch.uint8)
    truth[:2, :2], carried[:2, 1:3] = 1, 1
    assert label_transfer_accuracy(carried, truth) == 8 / 12  # two are missed, two too many
    assert label_iou(carried, truth) == pytest.approx(2 / 6)


def test_parts_are_weighted_by_their_true_areas_and_background_is_none():
    truth = torch.tensor([[1, 1, 1, 2], [0, 0, 0, 0]], dtype=torch.uint8)
    carried = torch.tensor([[1, 1, 1, 3], [0, 0, 0, 2]], dtype=torch.uint8)
    assert label_iou(carried, truth) == pytest.approx((3 * 1 + 1 * 0) / 4)  # a label that the truth lacks has no weight


def test_categories_average_their_own_pairs():
    rows = [("p", "a", 1.0), ("q", "a", 0.5), ("r", "b", 0.0)]
    table = pa.Table.from_pylist(
        [dict(zip(("pair", "category", "PCK"), row, strict=True)) for row in rows], dense_schema(["PCK"])
    )
    assert category_scores(table) == {"a": {"PCK": 0.75}, "b": {"PCK": 0.0}}
