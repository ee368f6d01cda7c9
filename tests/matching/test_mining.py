"""Dense matches of a pair: against loops, of affine maps that are known, and without what is wrong in them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from semcorr.matching.mining import (
    MiningRules,
    PointPairs,
    affine_field,
    choose_centres,
    cluster_displacements,
    cluster_means,
    confirmed_matches,
    k_means,
    merge_clusters,
    mine_matches,
    mutual_neighbours,
)

SIDE = 64
RULES = MiningRules(least=50)
MATRIX, SHIFT = np.array([[0.9, 0.2], [-0.1, 0.8]]), np.array([4.0, 9.0])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def warp(points: np.ndarray) -> np.ndarray:
    return points @ MATRIX.T + SHIFT


def lattice(step: int, side: int = SIDE) -> np.ndarray:
    line = np.arange(step // 2, side, step, dtype=float)
    return np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)


def warped(points: np.ndarray) -> PointPairs:
    return PointPairs(points, warp(points))


def slow_neighbours(similarity: list[list[float]], ratio: float) -> list[tuple[int, int]]:
    pairs, mutual = [], []
    for i, row in enumerate(similarity):
        first, second = sorted(row, reverse=True)[:2]
        j = row.index(first)
        column = [other[j] for other in similarity]
        if column.index(max(column)) == i:
            mutual.append((i, j))
            pairs += [(i, j)] if first >= ratio * second else []
    return pairs if len(pairs) >= 3 else mutual


def slow_affine(anchors: PointPairs, triangles: np.ndarray, point: np.ndarray) -> list[float] | None:
    """The affine map of the triangle that the point is in, from its six coefficients."""
    for triangle in triangles:
        corners = np.column_stack((anchors.source[triangle], np.ones(3)))
        if abs(np.linalg.det(corners)) < 1e-12:
            continue
        weights = np.linalg.solve(corners.T, [*point, 1.0])
        if (weights >= -1e-9).all():
            coefficients = np.linalg.solve(corners, anchors.target[triangle])
            return [sum(c * k for c, k in zip(row, [*point, 1.0], strict=True)) for row in coefficients.T]
    return None


@pytest.mark.parametrize("ratio", [0.9, 1.2, 3.0])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_neighbours_are_those_of_a_loop_however_many_rows_come_at_once(ratio, rows):
    similarity = torch.rand(40, 30)

    source, target = mutual_neighbours(similarity.split(rows), ratio)

    found = [*zip(source.tolist(), target.tolist(), strict=True)]
    assert found == slow_neighbours(similarity.tolist(), ratio)
    assert found


def test_without_cells_there_are_no_neighbours():
    assert [part.tolist() for part in mutual_neighbours([])] == [[], []]


def test_a_field_is_that_of_its_triangles_one_by_one(rng):
    from scipy.spatial import Delaunay

    anchors = PointPairs(rng.random((12, 2)) * SIDE, rng.random((12, 2)) * SIDE)
    points = rng.random((60, 2)) * SIDE

    mapped, inside = affine_field(anchors, points)

    triangles = Delaunay(anchors.source).simplices
    expected = [slow_affine(anchors, triangles, point) for point in points]
    assert inside.tolist() == [place is not None for place in expected]
    assert 10 < inside.sum() < 60
    np.testing.assert_allclose(mapped[inside], [place for place in expected if place is not None], atol=1e-8)
    assert np.isnan(mapped[~inside]).all()


def test_a_field_goes_through_its_anchors(rng):
    anchors = PointPairs(rng.random((9, 2)), rng.random((9, 2)))

    mapped, inside = affine_field(anchors, anchors.source * (1 - 1e-9) + anchors.source.mean(0) * 1e-9)

    assert inside.all()
    np.testing.assert_allclose(mapped, anchors.target, atol=1e-6)


@pytest.mark.parametrize("points", [np.zeros((0, 2)), np.ones((2, 2)), np.arange(8.0).repeat(2).reshape(8, 2)])
def test_anchors_that_span_no_triangle_have_no_field(points):
    mapped, inside = affine_field(PointPairs(points, points), np.ones((3, 2)))

    assert not inside.any()
    assert np.isnan(mapped).all()


@pytest.mark.parametrize("seed", range(3))
def test_k_means_ends_where_every_value_is_nearest_to_its_own_mean(seed):
    rng = np.random.default_rng(seed)
    values = rng.random((200, 2))

    labels = k_means(values, choose_centres(values, 5, rng))

    means = [values[labels == label].mean(axis=0) for label in range(labels.max() + 1)]
    nearest = [min(range(len(means)), key=lambda k: math.dist(value, means[k])) for value in values]
    assert labels.tolist() == nearest
    assert len(means) == 5


def test_k_means_finds_three_clusters(rng):
    heaps = rng.permutation(
        np.concatenate([centre + 0.01 * rng.random((30, 2)) for centre in ([0, 0], [1, 0], [0, 1])])
    )

    labels = k_means(heaps, choose_centres(heaps, 3, rng))

    rounded = heaps.round()
    assert all((rounded[labels == label] == rounded[labels == label][0]).all() for label in range(3))


def test_equal_values_are_one_cluster(rng):
    assert cluster_displacements(np.full((20, 2), 3.0), 7, 3, rng).tolist() == [0] * 20
    assert cluster_displacements(np.zeros((20, 2)), 7, 3, rng).tolist() == [0] * 20


def slow_criterion(values: np.ndarray, labels: np.ndarray) -> float:
    """Half the Bayesian information criterion: the lower, the better."""
    likelihood, kinds = 0.0, sorted({*labels.tolist()})
    for kind in kinds:
        members = [value for value, label in zip(values, labels, strict=True) if label == kind]
        mean = [sum(value[d] for value in members) / len(members) for d in range(2)]
        variance = sum(math.dist(value, mean) ** 2 for value in members) / (2 * len(members))
        likelihood -= sum(math.dist(value, mean) ** 2 / (2 * variance) for value in members)
        likelihood -= len(members) * math.log(2 * math.pi * variance)
    return -likelihood + len(kinds) * 4 / 2 * math.log(len(values))


def test_merging_two_clusters_is_the_best_of_all_two_or_none(rng):
    values = rng.random((60, 2))
    labels = k_means(values, choose_centres(values, 4, rng))
    before = slow_criterion(values, labels)
    unions = {(i, j): slow_criterion(values, np.where(labels == j, i, labels)) for j in range(4) for i in range(j)}
    (first, second), after = min(unions.items(), key=lambda item: item[1])

    merged = merge_clusters(values, labels, least=3)

    if after < before:
        means = cluster_means(values, np.where(labels == second, first, labels))
        assert merged.tolist() == [min(range(3), key=lambda k: math.dist(value, means[k])) for value in values]
    else:
        assert merged.tolist() == labels.tolist()


def test_clusters_of_the_same_are_merged_and_far_ones_stay(rng):
    """Points of one heap that were shared out at random, and five heaps."""
    heap = rng.normal(size=(400, 2))
    far = np.concatenate([rng.normal(size=(50, 2)) * 0.01 + centre for centre in 10 * rng.normal(size=(5, 2))])

    together = merge_clusters(heap, rng.integers(0, 7, 400), least=3)
    apart = merge_clusters(far, np.arange(250) // 50, least=3)

    assert 2 <= together.max() < 6
    assert apart.tolist() == (np.arange(250) // 50).tolist()


def slow_confirmed(matches, labels, keypoints, radius, agreement) -> list[bool]:
    def near(points, label, place) -> bool:
        return any(max(abs(points[i] - place)) <= radius for i in range(len(labels)) if labels[i] == label)

    kept = set()
    for label in {*labels.tolist()}:
        here = [k for k in range(len(keypoints.source)) if near(matches.source, label, keypoints.source[k])]
        both = [k for k in here if near(matches.target, label, keypoints.target[k])]
        if here and len(both) / len(here) >= agreement:
            kept.add(label)
    return [label in kept for label in labels.tolist()]


@pytest.mark.parametrize("agreement", [0.0, 0.5, 1.0])
def test_confirmed_regions_are_those_of_a_loop(rng, agreement):
    matches = PointPairs(rng.random((60, 2)) * 20, rng.random((60, 2)) * 20)
    keypoints, labels = PointPairs(rng.random((6, 2)) * 20, rng.random((6, 2)) * 20), rng.integers(0, 9, 60)

    found = confirmed_matches(matches, labels, keypoints, 2.5, agreement)

    assert found.tolist() == slow_confirmed(matches, labels, keypoints, 2.5, agreement)
    assert found.any()


def test_an_affine_warp_is_mined_right(rng):
    candidates, mask = lattice(2), np.ones((SIDE, SIDE), dtype=bool)

    mined = mine_matches(warped(lattice(8)), warped(lattice(20)), candidates, mask, RULES, rng)

    assert len(mined.source) == 300
    np.testing.assert_allclose(mined.target, warp(mined.source), atol=1e-6)
    assert len({tuple(point) for point in mined.source.tolist()}) == 300


def test_neighbours_that_are_wrong_in_one_part_of_the_object_are_left_out(rng):
    """Where the right quarter of the source is said to lie elsewhere, a keypoint knows better."""
    cells = lattice(8)
    wrong = cells[:, 0] > 48
    neighbours = PointPairs(cells, np.where(wrong[:, None], warp(cells) - [35.0, 0.0], warp(cells)))
    keypoints = warped(np.array([[60.0, 12.0], [58.0, 44.0], [20.0, 20.0], [12.0, 52.0], [36.0, 36.0]]))
    mask = np.ones((SIDE, SIDE), dtype=bool)

    mined = mine_matches(neighbours, keypoints, lattice(2), mask, RULES, rng)

    error = np.linalg.norm(mined.target - warp(mined.source), axis=-1)
    assert len(mined.source) == 300
    assert (error < 1).mean() > 0.9
    everything = affine_field(neighbours.join(keypoints), lattice(2))
    before = np.linalg.norm(everything[0] - warp(lattice(2)), axis=-1)[everything[1]]
    assert (before < 1).mean() < 0.8


def test_matches_end_on_the_object_and_few_are_none(rng):
    neighbours, keypoints, candidates = warped(lattice(8)), warped(lattice(20)), lattice(2)
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[:, :30] = True

    mined = mine_matches(neighbours, keypoints, candidates, mask, RULES, rng)
    scarce = mine_matches(neighbours, keypoints, candidates[:49], mask, RULES, rng)

    assert len(mined.source) >= 50
    assert (mined.target[:, 0] < 29.5).all()
    assert len(scarce.source) == len(scarce.target) == 0


def test_without_a_keypoint_nothing_is_mined(rng):
    nothing = PointPairs(np.zeros((0, 2)), np.zeros((0, 2)))

    mined = mine_matches(warped(lattice(8)), nothing, lattice(2), np.ones((SIDE, SIDE), dtype=bool), RULES, rng)

    assert mined.source.shape == (0, 2)


@pytest.mark.parametrize(("keypoint", "count"), [((31.0, 30.0), 1), ((50.0, 50.0), 0)], ids=["near", "far"])
def test_a_single_match_needs_a_keypoint_and_the_object_as_any_other(rng, keypoint, count):
    mask, rules = np.ones((SIDE, SIDE), dtype=bool), replace(RULES, least=1, radius=0.05)

    mined = mine_matches(warped(lattice(8)), warped(np.array([keypoint])), np.array([[30.0, 30.0]]), mask, rules, rng)
    off = mine_matches(warped(lattice(8)), warped(np.array([keypoint])), np.array([[30.0, 30.0]]), ~mask, rules, rng)

    assert (len(mined.source), len(off.source)) == (count, 0)
