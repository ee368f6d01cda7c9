"""Many pairs at once give what pair by pair gives."""

from itertools import permutations

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.testing import assert_close

from semcorr.core.coords import to_image
from semcorr.core.interfaces import SiameseHead
from semcorr.core.types import FeatureMap
from semcorr.data.all_pairs import find_queries
from semcorr.matching.batched import QueryOptions, all_pairs_similarity, match_to_target, query_similarities
from semcorr.matching.readouts import argmax, bilinear_nn, soft_argmax, window_soft_argmax
from semcorr.matching.similarity import sample_descriptors
from semcorr.models.heads.cosine import Cosine

READOUTS = [argmax, soft_argmax, window_soft_argmax]


class Whole(nn.Module):
    """Not separable: what it says of a point depends on both maps."""

    def forward(self, source, target, points):
        scale, shift = (maps.values.flatten(1).amax(1)[:, None, None, None] for maps in (source, target))
        return Cosine()(source, target, points) * scale + shift


def maps(count: int) -> list[FeatureMap]:
    return [FeatureMap(torch.randn(1, 5, 4, 6), 8) for _ in range(count)]


def points(count: int) -> torch.Tensor:
    return torch.rand(count, 2) * torch.tensor([48.0, 32.0]) - 0.5


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("unit_cells", [False, True])
def test_queries_of_published_protocols_agree_with_whole_maps(unit_cells, products):
    """Unit cells, as if the whole map had been normalised before it is read; products of what is read, or cosines."""
    target, source = maps(2)
    source, places = source._replace(values=source.values * torch.rand(1, 1, 4, 6) * 9), points(7)
    options = QueryOptions(unit_cells, products)

    similarity = next(query_similarities(Cosine(), target, [source], [places], 99, options))

    whole = normalize(source.values, dim=1) if unit_cells else source.values
    queries = sample_descriptors(whole, places[None], 8)[0]
    expected = torch.einsum("qc,chw->qhw", queries, target.values[0])
    if not products:
        expected = expected / queries.norm(dim=1)[:, None, None] / target.values[0].norm(dim=0)
    assert_close(similarity[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", [Cosine(), Whole()], ids=["separable", "not separable"])
@pytest.mark.parametrize("values", [1, 24 * 3, 10**6])
def test_all_queries_into_a_target_get_what_each_pair_gets(head, values):
    """In one product or in chunks of any size; the pairs have different numbers of points, one has none."""
    assert isinstance(head, SiameseHead) == isinstance(head, Cosine)
    target, sources, requested = maps(1)[0], maps(4), [points(n) for n in (3, 0, 1, 7)]

    found = match_to_target(head, target, sources, requested, READOUTS, values)

    similarity = [head(source, target, some[None]) for source, some in zip(sources, requested, strict=True)]
    for readout, pixels in zip(READOUTS, found.points, strict=True):
        assert_close(pixels, to_image(torch.cat([readout(each)[0] for each in similarity]), 8), atol=1e-3, rtol=0)
    assert_close(found.score, torch.cat([each[0].flatten(1).amax(-1) for each in similarity]))


def test_features_in_half_precision_are_matched_in_single():
    """Cosines of 0.9990 and 0.9995 are one number in bfloat16."""
    angles = torch.tensor([0.0, 0.0447, 0.0316])
    cells = torch.stack((angles.cos(), angles.sin()))[None, :, None].half()

    similarity = Cosine()(FeatureMap(cells[..., :1], 8), FeatureMap(cells[..., 1:], 8), torch.tensor([[[3.5, 3.5]]]))

    assert similarity.dtype == torch.float32
    assert_close(similarity.flatten(), torch.tensor([0.9990, 0.9995]), atol=1e-4, rtol=0)
    assert argmax(similarity).tolist() == [[[1.0, 0.0]]]


@pytest.mark.parametrize("head", [Cosine(), Whole()], ids=["separable", "not separable"])
def test_every_ordered_pair_of_a_batch_gets_what_it_gets_alone(head):
    m, n = 4, 3
    images = maps(m)
    together = FeatureMap(torch.cat([one.values for one in images]), 8)
    keypoints, visible = (
        torch.stack([points(n) for _ in range(m)]),
        torch.tensor([[1, 1, 0], [1, 0, 1], [1, 1, 1], [0, 1, 1]]).bool(),
    )
    requested = find_queries(visible)

    similarity = all_pairs_similarity(head, together, keypoints, requested)

    alone = {(s, t): head(images[s], images[t], keypoints[s][None])[0] for s, t in permutations(range(m), 2)}
    assert len(requested) == 3 * 3 * 2  # each keypoint is visible in three
    for row, (source, keypoint, target) in zip(similarity, requested.tolist(), strict=True):
        assert_close(row, alone[source, target][keypoint], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(7, 3), (3, 7), (1, 5)], ids=str)
def test_four_matches_are_blended_on_maps_of_any_shape(size):
    """Of an image of distinct cells each of the four around a point matches itself, and the point is returned."""
    source = FeatureMap(torch.eye(size[0] * size[1]).view(1, -1, *size), 8)
    places = torch.rand(30, 2) * (torch.tensor([size[1], size[0]]) - 1) * 8 + 3.5  # between the centres of all cells

    matches = match_to_target(Cosine(), source, [source], [places], [bilinear_nn])

    assert_close(matches.points[0], places, atol=1e-4, rtol=0)
