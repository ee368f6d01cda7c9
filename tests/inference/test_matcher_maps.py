"""Flows, similarities and mutual neighbours say what matches say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matched_pictures import SMALL, cell, drawn_cats, size_of, some_points, upright
from PIL import Image
from torch.testing import assert_close

from semcorr import Matcher

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    """With true weights: 12 cells a side."""
    return Matcher.load("efficientnet_lite0", SMALL, device="cpu")


@pytest.fixture(scope="module")
def cats(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return drawn_cats(tmp_path_factory.mktemp("cats") / "drawn")


def test_a_flow_says_of_pixels_what_a_match_says_of_points(matcher, cats):
    a, b = (matcher.encode(path) for path in cats[:2])
    flow = matcher.dense(a, b)
    side = torch.arange(2, 10) * matcher.module.backbone.stride + 7.5  # centres of cells, in the view
    centres = a.placement.from_view(torch.cartesian_prod(side, side)).round()
    match = matcher.match(a, b, centres)
    x, y = centres.long().T

    assert flow.flow.shape == (a.size[1], a.size[0], 2)
    off = (centres + flow.flow[y, x] - match.points).norm(dim=-1) / cell(matcher, b.size).max()
    assert off.quantile(0.8) < 0.5
    assert ((flow.confidence >= 0) & (flow.confidence <= 1)).all()


def test_a_flow_to_itself_is_none_and_sure_of_it(matcher, cats):
    flow = matcher.dense(cats[0], cats[0], size=(50, 40))

    assert flow.flow.shape == (40, 50, 2)
    assert flow.flow.abs().max() < 0.1 * cell(matcher, size_of(cats[0])).max()
    assert flow.confidence.min() > 0.99


def test_a_flow_is_sure_of_nothing_in_the_padding(matcher, cats):
    """Which is not shown to the network: the plain left half of the source, but for half a cell."""
    padded = np.pad(upright(cats[0]), ((0, 0), (150, 0), (0, 0)), constant_values=255)
    half = cell(matcher, size_of(cats[0]))[0] / 2

    flow = matcher.dense(padded, padded)

    assert not flow.confidence[:, : int(150 - half) - 1].any()
    assert flow.confidence[:, 150:].min() > 0.99


def test_similarity_is_greatest_where_the_match_is(matcher, cats):
    a, b = (matcher.encode(path) for path in cats[:2])
    points = some_points(a.size, 10)
    match = matcher.match(a, b, points)

    for point, found, score in zip(points, match.points, match.scores, strict=True):
        near = matcher.similarity(a, b, point)
        assert near.shape == b.size[::-1]
        assert near.max() == pytest.approx(float(score), abs=0.02)
        y, x = divmod(int(near.argmax()), b.size[0])
        assert (torch.tensor([x, y]) - found).norm() < 2.5 * cell(matcher, b.size).max()


def test_mutual_neighbours_are_those_of_a_loop_over_all_cells(matcher, cats):
    a, b = (matcher.encode(path) for path in cats[:2])
    one, other = (x.maps.values[0].flatten(1).T for x in (a, b))
    table = torch.nn.functional.normalize(one, dim=1) @ torch.nn.functional.normalize(other, dim=1).T
    pairs = [i for i in range(len(one)) if int(table[:, int(table[i].argmax())].argmax()) == i]
    expected = sorted((float(table[i].max()) for i in pairs), reverse=True)

    found = matcher.mutual(a, b)

    assert_close(found.scores, torch.tensor(expected), atol=1e-4, rtol=0)
    assert len(matcher.mutual(a, b, most=3).points) == 3


def test_mutual_neighbours_that_do_not_come_back_are_not_called_consistent(cats):
    """Cells prefer each other, and the readout may answer with a place far from them."""
    matcher = Matcher.load("efficientnet_lite0", SMALL, "localise=soft", device="cpu", subcell=False)
    found = matcher.mutual(*cats[:2])
    off = ((found.returned - found.source) / cell(matcher, size_of(cats[0]))).norm(dim=-1)

    assert found.consistent.tolist() == (off <= matcher.cycle).tolist()
    assert not found.consistent.all()
    assert found.consistent.tolist() == matcher.match(*cats[:2], found.source).consistent.tolist()


@pytest.mark.parametrize("narrow", [0, 1])
def test_mutual_neighbours_lie_inside_both_pictures(cats, narrow):
    """One is letterboxed, the other has the colour of padding: that is neither asked about nor an answer."""
    line = (SMALL, "data.resize=letterbox", "localise=argmax")
    matcher = Matcher.load("efficientnet_lite0", *line, device="cpu", trim=False)
    pair = [Image.fromarray(upright(path)).resize((240, 240)) for path in cats[:2]]
    pair[narrow] = pair[narrow].crop((60, 0, 180, 240))
    pair[1 - narrow].paste("black", (0, 0, 60, 240))
    pair[1 - narrow].paste("black", (180, 0, 240, 240))

    found = matcher.mutual(*pair)

    assert len(found.points) > 5
    for points, image in ((found.source, pair[0]), (found.points, pair[1])):
        low, high = torch.tensor([-0.5, -0.5]), torch.tensor(image.size) - 0.5
        assert ((points > low + 0.1) & (points < high - 0.1)).all()  # no place beyond, brought onto the edge
