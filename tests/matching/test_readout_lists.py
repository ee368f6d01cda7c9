"""Readouts that only protocols use: blended from four cells, upsampled, in a window beside zeros."""

import math

import numpy as np
import pytest
import slow_protocols
import torch
from torch.nn.functional import interpolate, normalize
from torch.testing import assert_close

from semcorr.core.types import FeatureMap
from semcorr.matching.batched import match_to_target
from semcorr.matching.readouts import argmax, parse_readout
from semcorr.matching.similarity import upsampled_argmax, upsampled_cosine
from semcorr.models.heads.cosine import Cosine


def test_upsampling_products_equals_upsampling_features():
    features, queries = torch.randn(1, 5, 7, 6), torch.randn(4, 5)

    fast = upsampled_cosine(queries, features, (31, 23))

    large = normalize(interpolate(features, (23, 31), mode="bilinear", align_corners=False), dim=1)
    pixels, scores = upsampled_argmax(queries, features, (31, 23), values=31 * 23 * 3)
    assert_close(scores, fast[0].flatten(1).amax(-1))
    assert_close(pixels[:, 0] + 31 * pixels[:, 1], fast[0].flatten(1).argmax(-1).float())
    assert_close(fast[0], torch.einsum("nc,chw->nhw", normalize(queries, dim=-1), large[0]), atol=1e-5, rtol=1e-5)


def test_bilinear_nn_blends_the_matches_of_four_cells():
    """Against NC-Net's rule, point by point; points on the border and beyond have fewer neighbours."""
    torch.manual_seed(0)
    head, stride = Cosine(), 8
    source, target = (FeatureMap(torch.randn(1, 5, 6, 6), stride) for _ in range(2))
    points = torch.cat((torch.rand(9, 2) * 48 - 0.5, torch.tensor([[-0.5, 47.5], [3.5, 3.5]])))

    found = match_to_target(
        head, target, [source, source], [points, points[:2]], [argmax, parse_readout("bilinear_nn")]
    )
    small = match_to_target(
        head, target, [source, source], [points, points[:2]], [parse_readout("bilinear_nn")], values=1
    )

    assert_close(small.cells[0], found.cells[1])
    for point, cell in zip(points.tolist(), found.cells[1].tolist(), strict=False):
        x, y = (min(max((p + 0.5) / stride - 0.5, 0), 5) for p in point)
        x0, y0 = min(math.floor(x), 4), min(math.floor(y), 4)
        expected = np.zeros(2)
        for i in (0, 1):
            for j in (0, 1):
                vector = source.values[0, :, y0 + j, x0 + i].double().numpy()
                scores = slow_protocols.cosines(vector, target.values[0].double().numpy())
                share = (x - x0 if i else 1 - x + x0) * (y - y0 if j else 1 - y + y0)
                expected += share * np.array(slow_protocols.best(scores))
        assert cell == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("peak", [0.6, 0.2, -0.1])
@pytest.mark.parametrize("place", [(4, 3), (0, 0), (8, 6)])
def test_a_window_beside_zeros_equals_a_map_times_a_mask(peak, place):
    torch.manual_seed(1)
    scores = torch.rand(1, 1, 7, 9) * 0.3 - 0.5
    scores[0, 0, place[1], place[0]] = peak

    found = parse_readout("window_5_zero")(scores)

    assert_close(
        found[0, 0].tolist(),
        list(slow_protocols.window(scores[0, 0].double().numpy(), 2, 0.02, 1.0)),
        atol=1e-4,
        rtol=0,
    )
