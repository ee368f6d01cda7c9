"""Instance matching distance and pose prediction, against loops and answers known beforehand."""

from collections import Counter

import pytest
import torch
from torch.testing import assert_close

from semcorr.core.types import FeatureMap
from semcorr.evaluation.pose.distance import (
    ObjectCells,
    cells_of_object,
    instance_distance,
    nearest_cells,
    pose_accuracy,
    template_distances,
    vote_pose,
)

H, W = 5, 5


def random_object(seed, share=0.5):
    generator = torch.Generator().manual_seed(seed)
    maps = FeatureMap(torch.randn(1, 6, H, W, generator=generator), 16.0)
    return maps, torch.rand(H, W, generator=generator) < share


def between(values, y, x):
    """Bilinear, cell by cell: centres at integers, the border's outer half is the border."""
    y, x = min(max(y, 0.0), H - 1.0), min(max(x, 0.0), W - 1.0)
    top, left = int(y), int(x)
    down, right = min(top + 1, H - 1), min(left + 1, W - 1)
    upper = values[:, top, left] * (1 - (x - left)) + values[:, top, right] * (x - left)
    lower = values[:, down, left] * (1 - (x - left)) + values[:, down, right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


def listed(maps, mask, grid):
    """The object's descriptors, one by one."""
    unit = torch.stack([torch.stack([c / c.norm() for c in row.T], dim=1) for row in maps.values[0].movedim(1, 0)], 1)
    if grid is None:
        return [unit[:, i, j] for i in range(H) for j in range(W) if mask[i, j]]
    return [
        between(unit, (i + 0.5) * H / grid - 0.5, (j + 0.5) * W / grid - 0.5)
        for i in range(grid)
        for j in range(grid)
        if mask[i * H // grid, j * W // grid]
    ]


@pytest.mark.parametrize("grid", [None, 7])
@pytest.mark.parametrize("mutual", [False, True])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("seed", range(3))
def test_the_distance_is_that_of_a_loop_over_cells(seed, reduce, mutual, grid):
    source, target = random_object(2 * seed), random_object(2 * seed + 1)
    here, there = (listed(*one, grid) for one in (source, target))
    distances = []
    for i, a in enumerate(here):
        j = min(range(len(there)), key=lambda j: float((a - there[j]).norm()))
        back = min(range(len(here)), key=lambda k: float((there[j] - here[k]).norm()))
        if not mutual or back == i:
            distances.append(float((a - there[j]).norm()))
    expected = sum(distances) / (len(distances) if reduce == "mean" else 1)

    found = instance_distance(*(cells_of_object(*one, grid) for one in (source, target)), reduce, mutual)

    assert len(distances) < len(here) or not mutual  # some are not mutual, or the test says nothing
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_chunks_do_not_change_which_cell_is_nearest():
    here, there = torch.randn(23, 8), torch.randn(31, 8)

    assert torch.equal(nearest_cells(here, there, values=40), nearest_cells(here, there))


def test_an_object_is_at_no_distance_from_itself():
    cells = cells_of_object(*random_object(0))

    assert float(instance_distance(cells, cells)) == 0.0
    assert float(instance_distance(cells, cells, mutual=True)) == 0.0


def test_only_cells_of_both_objects_count():
    values = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    first, second, both = torch.tensor([[True, False], [False, True], [True, True]])

    assert float(instance_distance(ObjectCells(values, first), ObjectCells(values, second))) == pytest.approx(2**0.5)
    assert float(instance_distance(ObjectCells(values, first), ObjectCells(values, both))) == 0.0
    assert float(instance_distance(ObjectCells(values, both), ObjectCells(values, second), "sum")) == pytest.approx(
        2**0.5
    )
    assert float(instance_distance(ObjectCells(values, both), ObjectCells(values, second))) == pytest.approx(2**0.5 / 2)


def test_an_object_without_cells_is_infinitely_far():
    some, none = (ObjectCells(torch.eye(2), torch.tensor([on, on])) for on in (True, False))

    assert instance_distance(some, none) == instance_distance(none, some) == torch.inf


def test_the_length_of_descriptors_does_not_count():
    maps, mask = random_object(1)
    longer = maps._replace(values=maps.values * torch.rand(1, 1, H, W).add(0.5))

    assert_close(cells_of_object(longer, mask).values, cells_of_object(maps, mask).values)


def drawn(pose, seed):
    """Four strokes that point to a side, on a noisy ground."""
    image = 0.2 * torch.randn(1, 6, H, W, generator=torch.Generator().manual_seed(seed))
    image[0, :4, 1:4, 1:4] += torch.eye(4)[pose].reshape(4, 1, 1) * 2
    mask = torch.zeros(H, W, dtype=torch.bool)
    mask[1:4, 1:4] = True
    return cells_of_object(FeatureMap(image, 16.0), mask)


def test_the_pose_of_drawn_templates_is_found():
    templates = [[drawn(pose, 10 * k + pose) for pose in range(4)] for k in range(3)]
    truth = torch.tensor([pose for pose in range(4) for _ in range(3)])

    distances = torch.stack([template_distances(drawn(int(p), 100 + i), templates) for i, p in enumerate(truth)])

    assert vote_pose(distances).tolist() == truth.tolist()
    assert pose_accuracy(distances, truth, (0, 1, 2, 3)) == (1.0, 12)
    assert pose_accuracy(distances, truth, (1, 3)) == (1.0, 6)


def test_a_template_is_matched_with_all_of_its_image():
    """As published: only the image has a mask."""
    values = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    image, template = (ObjectCells(values, torch.tensor(mask)) for mask in ([True, False], [False, True]))

    assert template_distances(image, [[template]]).tolist() == [[0.0]]


def test_the_vote_is_that_of_a_count():
    distances = torch.rand(50, 5, 4, generator=torch.Generator().manual_seed(0))
    for image, found in zip(distances, vote_pose(distances).tolist(), strict=True):
        votes = Counter(min(range(4), key=lambda p: float(some[p])) for some in image)
        most = max(votes.values())
        best = min((p for p in votes if votes[p] == most), key=lambda p: float(image[:, p].mean()))
        assert found == best


def test_accuracy_among_some_poses_ignores_the_others():
    """The third pose is closest to all; between the first two, one of two images is right."""
    distances = torch.tensor([[[0.2, 0.3, 0.1]], [[0.2, 0.3, 0.1]], [[0.2, 0.3, 0.1]]])

    assert pose_accuracy(distances, torch.tensor([0, 1, 2]), (0, 1)) == (0.5, 2)
    assert pose_accuracy(distances, torch.tensor([0, 1, 2]), (0, 1, 2))[0] == pytest.approx(1 / 3)
