"""J and F: by hand, and against the released definitions written with loops and scipy."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.ndimage import binary_dilation

from semcorr.metrics.segmentation import (
    SCHEMA,
    boundary_accuracy,
    build_mask_rows,
    davis_statistics,
    dilate_disk,
    mask_boundary,
    mean_scores,
    object_scores,
    region_similarity,
)


def slow_boundary(mask: np.ndarray) -> np.ndarray:
    """A pixel is on it if one of the three pixels to the right and below differs; beyond the border nothing does."""
    height, width = mask.shape
    result = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            result[y, x] = any(mask[v, u] != mask[y, x] for v, u in others if v < height and u < width)
    return result


def slow_f(predicted: np.ndarray, truth: np.ndarray, tolerance: float) -> float:
    """The released f_measure, with scipy's dilation by a disk."""
    radius = math.ceil(tolerance * np.linalg.norm(predicted.shape))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = x**2 + y**2 <= radius**2
    a, b = slow_boundary(predicted), slow_boundary(truth)
    if not a.any() or not b.any():
        return float(a.any() == b.any())
    precision = (a & binary_dilation(b, disk)).sum() / a.sum()
    recall = (b & binary_dilation(a, disk)).sum() / b.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def blobs(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A union of discs, some of them cut by the border."""
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), bool)
    for _ in range(generator.integers(0, 4)):
        centre, radius = generator.uniform(0, 1, 2) * [height, width], generator.uniform(1, height / 3)
        mask |= (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    return mask


@pytest.mark.parametrize("tolerance", [0.008, 0.04, 0.1])
def test_j_and_f_agree_with_the_released_definitions_on_drawn_masks(tolerance):
    generator = np.random.default_rng(0)
    pairs = [(blobs(generator, 37, 53), blobs(generator, 37, 53)) for _ in range(40)]
    predicted, truth = (torch.from_numpy(np.stack(masks)) for masks in zip(*pairs, strict=True))

    region, boundary = region_similarity(predicted, truth), boundary_accuracy(predicted, truth, tolerance)

    for i, (a, b) in enumerate(pairs):
        assert region[i].item() == pytest.approx((a & b).sum() / (a | b).sum() if (a | b).any() else 1.0)
        assert boundary[i].item() == pytest.approx(slow_f(a, b, tolerance))
    assert len({round(value, 3) for value in boundary.tolist()}) > 10  # the cases differ


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 8, 60])
def test_a_disk_of_rows_is_a_disk(radius):
    mask = torch.rand(3, 31, 44, generator=torch.Generator().manual_seed(1)) < 0.003
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = x**2 + y**2 <= radius**2
    expected = np.stack([binary_dilation(layer, disk) for layer in mask.numpy()])
    assert np.array_equal(dilate_disk(mask, radius).numpy(), expected)


def test_boundaries_by_hand():
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[1:3, 2:4] = True
    assert mask_boundary(mask).int().tolist() == [[0, 1, 1, 1, 0], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    assert not mask_boundary(torch.ones(3, 3, dtype=torch.bool)).any()  # the frame is no boundary


def test_f_by_hand():
    """Squares of 40 that lie 3 pixels apart: with a radius of 2 (of 200 x 150: 0.008 of 250) two sides are missed."""
    predicted, truth = (torch.zeros(150, 200, dtype=torch.bool) for _ in range(2))
    predicted[50:90, 50:90], truth[50:90, 53:93] = True, True
    assert region_similarity(predicted, truth).item() == pytest.approx(37 / 43)
    # A boundary has 160 pixels: two horizontal sides of 41, and 39 rows between them at two columns. Of a horizontal
    # side all but one column lie within 2 pixels of the other's, 40; the outer vertical side is 3 pixels from anything,
    # and of the inner one the two rows next to each horizontal side of the other are right.
    assert boundary_accuracy(predicted, truth).item() == pytest.approx((2 * 40 + 4) / 160)


def test_empty_masks_by_hand():
    empty, full = torch.zeros(20, 20, dtype=torch.bool), torch.zeros(20, 20, dtype=torch.bool)
    full[5:9, 5:9] = True
    assert (region_similarity(empty, empty).item(), boundary_accuracy(empty, empty).item()) == (1, 1)
    for a, b in ((empty, full), (full, empty)):
        assert (region_similarity(a, b).item(), boundary_accuracy(a, b).item()) == (0, 0)
    far = full.roll(10, 0)
    assert boundary_accuracy(full, far).item() == 0  # boundaries on both sides, and nothing near


def test_statistics_follow_the_released_bins():
    """Ten frames: the bins of the released code share their ends, 0 to 2, 2 to 4 or 5, ..., 7 to 9."""
    values = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    ends = np.round(np.linspace(1, 10, 5) + 1e-10).astype(np.uint8) - 1  # as released
    bins = [values[ends[i] : ends[i + 1] + 1] for i in range(4)]
    scores = davis_statistics(values)
    assert ends.tolist() == [0, 2, 5, 7, 9]
    assert scores["mean"] == pytest.approx(0.45)
    assert scores["recall"] == 0.4  # 0.5 is not above 0.5
    assert scores["decay"] == pytest.approx(np.mean(bins[0]) - np.mean(bins[3])) == pytest.approx(0.8 - 0.1)
    assert davis_statistics([0.25]) == {"mean": 0.25, "recall": 0.0, "decay": 0.0}


def test_every_object_counts_the_same_however_long_its_video():
    short = build_mask_rows("a", [1], [1], torch.tensor([[0.0]]), torch.tensor([[0.5]]))
    long = build_mask_rows("b", [1, 2], [1, 2], torch.tensor([[1.0, 0.5]] * 2), torch.tensor([[1.0, 0.5]] * 2))
    scores = object_scores(pa.concat_tables([long, short]))

    assert short.schema == SCHEMA
    assert {video: list(objects) for video, objects in scores.items()} == {"a": ["1"], "b": ["1", "2"]}
    mean = mean_scores(entry for objects in scores.values() for entry in objects.values())
    assert mean["J"] == pytest.approx((0 + 1 + 0.5) / 3)
    assert mean["JF"] == pytest.approx((0.25 + 1 + 0.5) / 3)
