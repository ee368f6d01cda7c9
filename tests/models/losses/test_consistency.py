"""Losses by consistency and masks: paths one by one, warps that are known, boxes cell by cell."""

import math

import pytest
import torch
from random_pairs import CHANNELS, HEIGHT, SIDE, STRIDE, WIDTH, made_pairs, made_sources, slow_cosines, step_of

from semcorr.core.types import FeatureMap
from semcorr.models.heads.cosine import Cosine
from semcorr.models.losses import CycleConsistency, MaskConsistency, PairMaps, SourceImages, WarpConsistency
from semcorr.models.losses.consistency import Criterion, follow_back
from semcorr.models.losses.mask_consistency import box_shares
from semcorr.models.losses.random_warps import draw_warps, map_points, warp_images

CELLS = HEIGHT * WIDTH
STILL = {"rotate": 0.0, "scale": 0.0, "shift": 0.0, "bend": 0.0}


def distinct_pairs(shift: int) -> PairMaps:
    """A pair each of whose cells has a direction of its own; the target is the source, cells rolled along x."""
    cells = torch.eye(CELLS).reshape(1, CELLS, HEIGHT, WIDTH)
    maps = [FeatureMap(values, float(STRIDE)) for values in (cells, cells.roll(shift, -1))]
    box = torch.tensor([[-0.5, -0.5, SIDE - 0.5, SIDE - 0.5]])
    return PairMaps(Cosine(), *maps, box, box, SIDE, ["cat"])


def slow_softmax(row: torch.Tensor, temperature: float) -> list[float]:
    powers = [math.exp(float(value) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def test_a_path_over_the_target_is_the_sum_over_its_cells():
    pairs, (source, target) = made_pairs(2)
    criterion = Criterion(0.3, 3, 1.0, 1.0)
    first = criterion.probability(pairs.similarity(pairs.lattice(None)))

    found = follow_back(first, pairs, criterion).flatten(2)

    for i in range(2):
        cosines = slow_cosines(source[i], target[i])
        there = [slow_softmax(row, 0.3) for row in cosines]
        back = [slow_softmax(row, 0.3) for row in cosines.T]
        for j in range(CELLS):
            expected = [sum(there[j][k] * back[k][m] for k in range(CELLS)) for m in range(CELLS)]
            assert found[i, j].tolist() == pytest.approx(expected, abs=1e-5)


def test_points_that_come_back_cost_less_than_points_that_do_not():
    """The least that a Gaussian allows, whatever the target; a target of equal cells loses the way."""
    lost = distinct_pairs(0)
    lost = lost._replace(target=lost.target._replace(values=torch.ones_like(lost.target.values)))
    costs = []
    for pairs in (distinct_pairs(0), distinct_pairs(2), lost):
        torch.manual_seed(3)
        costs.append(float(CycleConsistency(temperature=0.02, kernel=1, keep=1.0)(step_of(pairs))))

    assert costs[0] == pytest.approx(costs[1], rel=1e-4)
    assert costs[0] < costs[2]


@pytest.mark.parametrize("change", [{}, {"shift": 0.4}, {"rotate": 90.0}, {"bend": 0.15}])
def test_a_warped_image_shows_at_a_point_what_the_original_shows_where_it_came_from(change):
    """Of an image that is its own coordinates: what is seen at a pixel is the place that it was taken from."""
    side = 32
    x, y = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="xy")
    image = torch.stack((x, y, torch.ones_like(x))).expand(5, -1, -1, -1)
    grid = draw_warps(5, side, **{**STILL, **change}, device=torch.device("cpu"))
    points = torch.rand(5, 40, 2) * side - 0.5

    origins = map_points(grid, points.round())
    seen = warp_images(image, grid)

    column, row = points.round().clamp(0, side - 1).long().unbind(-1)
    values = torch.stack([seen[i, :, row[i], column[i]].T for i in range(5)])
    inside = ((origins > 0) & (origins < side - 1)).all(-1) & ((points > 0) & (points < side - 1)).all(-1)
    assert inside.float().mean() > 0.3
    torch.testing.assert_close(values[inside][:, :2], origins[inside], atol=2e-3, rtol=0)
    if not change:
        torch.testing.assert_close(origins, points.round(), atol=1e-4, rtol=0)
    else:
        assert (origins - points).abs().max() > 2


def test_a_warp_turns_and_shifts_as_far_as_it_may():
    """The centre of an image that is turned stays; that of one that is shifted moves by a share of the side."""
    centre = torch.full((200, 1, 2), 15.5)
    options = {"device": torch.device("cpu"), "scale": 0.0, "bend": 0.0}

    turned = map_points(draw_warps(200, 32, rotate=30.0, shift=0.0, **options), centre)
    moved = map_points(draw_warps(200, 32, rotate=0.0, shift=0.25, **options), centre) - centre

    torch.testing.assert_close(turned, centre, atol=1e-3, rtol=0)
    assert 7 < moved.abs().max() <= 8.001
    assert moved.amin() < -7


def test_a_loss_by_a_warp_is_least_for_features_that_move_with_the_image():
    """Features that are the image's own colours follow every warp; those of another image follow none."""
    ramp = torch.linspace(0, 1, SIDE)
    image = torch.stack((ramp.expand(SIDE, SIDE), ramp.expand(SIDE, SIDE).T, 1 - ramp.expand(SIDE, SIDE)))[None]
    sources = SourceImages(image, made_sources().encode)
    maps = sources.encode(image)
    box = torch.tensor([[-0.5, -0.5, SIDE - 0.5, SIDE - 0.5]])
    own = PairMaps(Cosine(), maps, maps, box, box, SIDE, ["cat"])
    mirrored = own._replace(source=maps._replace(values=maps.values.flip(-1, -2)))
    costs = []
    for pairs in (own, mirrored):
        torch.manual_seed(0)
        costs.append(float(WarpConsistency(64, temperature=0.01, keep=1.0)(step_of(pairs, sources=sources))))

    assert costs[0] < 0.7 * costs[1]


def test_an_image_that_stays_is_a_cycle_and_a_match_with_itself():
    """Without a warp the two parts are the cycle's own, at the same points."""
    pairs, _ = made_pairs(2)
    image = torch.rand(2, CHANNELS, SIDE, SIDE)
    sources = SourceImages(image, lambda _: pairs.source)
    options = {"in_box": False, "temperature": 0.3, "keep": 1.0, **STILL}
    torch.manual_seed(5)
    bipath = WarpConsistency(50, supervision=0.0, **options)(step_of(pairs, sources=sources))
    torch.manual_seed(5)
    both = WarpConsistency(50, supervision=2.0, **options)(step_of(pairs, sources=sources))
    criterion = Criterion(0.3, 7, 1.5, 1.0)
    torch.manual_seed(5)
    draw_warps(2, SIDE, **STILL, device=torch.device("cpu"))  # as many random numbers
    points = torch.rand(2, 50, 2) * (SIDE - 1)
    there = criterion.probability(pairs.similarity(points))
    places, mask = (points + 0.5) / STRIDE - 0.5, torch.ones(2, 50, dtype=torch.bool)
    itself = criterion.probability(pairs._replace(target=pairs.source).similarity(points))

    expected = criterion.mean_loss(follow_back(there, pairs, criterion), places, mask)
    torch.testing.assert_close(bipath, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both, expected + 2 * criterion.mean_loss(itself, places, mask), atol=1e-4, rtol=1e-4)


def test_the_share_of_a_cell_in_a_box_is_that_of_its_pixels():
    box = torch.tensor([[2.5, 4.5, 26.5, 20.5], [-3.0, 7.5, 50.0, 30.5]])
    for b, shares in zip(box.tolist(), box_shares(box, SIDE, HEIGHT, WIDTH), strict=True):
        fine = torch.tensor([
            [float(b[0] <= x / 4 <= b[2] and b[1] <= y / 4 <= b[3]) for x in range(4 * SIDE)] for y in range(4 * SIDE)
        ])  # fmt: skip
        expected = torch.nn.functional.avg_pool2d(fine[None], 4 * STRIDE)[0]
        torch.testing.assert_close(shares, expected, atol=0.13, rtol=0)  # quarters of pixels, not half a cell


def test_the_loss_by_masks_is_that_of_points_one_by_one():
    pairs, (source, target) = made_pairs(2)
    total = []
    for a, b, first, second in (
        (source, target, pairs.source_box, pairs.target_box),
        (target, source, pairs.target_box, pairs.source_box),
    ):
        shares = box_shares(second, SIDE, HEIGHT, WIDTH).flatten(1)
        for i in range(2):
            for j, row in enumerate(slow_cosines(a[i], b[i])):
                x, y = (j % WIDTH + 0.5) * STRIDE - 0.5, (j // WIDTH + 0.5) * STRIDE - 0.5
                own = float(first[i, 0] <= x <= first[i, 2] and first[i, 1] <= y <= first[i, 3])
                expected = sum(p * float(m) for p, m in zip(slow_softmax(row, 0.2), shares[i], strict=True))
                total.append((own - expected) ** 2)

    loss = MaskConsistency(temperature=0.2, points=None)(step_of(pairs))

    assert loss.item() == pytest.approx(sum(total) / len(total), rel=1e-4)


def test_objects_that_match_their_boxes_cost_nothing():
    """The object is the left half of both images, in cells of its own; and the right half, in the box of the target."""
    cells = torch.zeros(1, 2, HEIGHT, WIDTH)
    cells[:, 0, :, :2], cells[:, 1, :, 2:] = 1, 1
    maps = FeatureMap(cells, float(STRIDE))
    left = torch.tensor([[-0.5, -0.5, SIDE / 2 - 0.5, SIDE - 0.5]])
    right = torch.tensor([[SIDE / 2 - 0.5, -0.5, SIDE - 0.5, SIDE - 0.5]])
    loss = MaskConsistency(temperature=0.01, points=None)

    same = loss(step_of(PairMaps(Cosine(), maps, maps, left, left, SIDE, ["cat"])))
    other = loss(step_of(PairMaps(Cosine(), maps, maps, left, right, SIDE, ["cat"])))

    assert same.item() == pytest.approx(0)
    assert other.item() == pytest.approx(1)
