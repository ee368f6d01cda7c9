import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from semcorr.matching.readouts import argmax, kernel_soft_argmax, soft_argmax, window_soft_argmax

READOUTS = [argmax, soft_argmax, window_soft_argmax, kernel_soft_argmax]


def slow_expectation(logits: list[list[float]]) -> list[float]:
    weights = [[math.exp(value) for value in row] for row in logits]
    total = sum(map(sum, weights))
    x = sum(j * value for row in weights for j, value in enumerate(row)) / total
    y = sum(i * value for i, row in enumerate(weights) for value in row) / total
    return [x, y]


def full_map_window(similarity: torch.Tensor, window: int = 15, temperature: float = 0.02) -> torch.Tensor:
    """The same rule with every cell's exponential, most of them of -inf."""
    h, w = similarity.shape[-2:]
    top, left = (argmax(similarity)[..., k, None, None] for k in (1, 0))
    rows, columns = torch.arange(h)[:, None], torch.arange(w)
    outside = ((rows - top).abs() > window // 2) | ((columns - left).abs() > window // 2)
    weights = (similarity / temperature).masked_fill(outside, -torch.inf).flatten(2).softmax(-1).unflatten(-1, (h, w))
    return torch.stack(((weights * columns).sum((-2, -1)), (weights * rows).sum((-2, -1))), dim=-1)


def best(rows: list[list[float]]) -> tuple[int, int]:
    return max(((i, j) for i in range(len(rows)) for j in range(len(rows[0]))), key=lambda at: rows[at[0]][at[1]])


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(("x", "y"), [(5, 2), (0, 0), (8, 3)])  # on a map that is not square
def test_a_single_peak_is_found_where_it_is(readout, x, y):
    similarity = torch.zeros(1, 1, 4, 9)
    similarity[0, 0, y, x] = 1

    assert_close(readout(similarity), torch.tensor([[[x, y]]]).float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("readout", READOUTS)
def test_every_point_of_every_pair_is_localised_alone(readout):
    similarity = torch.rand(2, 3, 4, 9)

    together = readout(similarity)

    for b in range(2):
        for n in range(3):
            assert_close(together[b, n], readout(similarity[b : b + 1, n : n + 1])[0, 0])


def test_a_second_far_mode_moves_soft_argmax_but_not_its_window():
    similarity = torch.full((1, 1, 9, 20), -1.0)
    similarity[0, 0, 3, 3], similarity[0, 0, 6, 17] = 1.0, 0.99

    share = 1 / (1 + math.exp(0.01 / 0.02))  # of the second mode, at the default temperature
    assert_close(soft_argmax(similarity), torch.tensor([[[3 + 14 * share, 3 + 3 * share]]]))
    assert_close(window_soft_argmax(similarity, window=5), torch.tensor([[[3.0, 3.0]]]))


@pytest.mark.parametrize("readout", [soft_argmax, partial(window_soft_argmax, window=5)])
def test_a_blob_between_two_cells_is_found_between_them(readout):
    y, x = torch.meshgrid(torch.arange(6), torch.arange(9), indexing="ij")
    similarity = torch.exp(-((x - 4.5) ** 2 + (y - 2) ** 2) / 2)[None, None]

    assert_close(readout(similarity), torch.tensor([[[4.5, 2.0]]]), atol=1e-4, rtol=0)


def test_the_window_is_cut_at_the_border():
    similarity = torch.zeros(1, 1, 4, 5)
    similarity[0, 0, 0, 0] = 1e-6  # all but flat, the best cell in the corner

    found = window_soft_argmax(similarity, window=5, temperature=1.0)

    assert_close(found, torch.tensor([[[1.0, 1.0]]]), atol=1e-4, rtol=0)  # the mean of cells 0, 1, 2


@pytest.mark.parametrize("window", [1, 3, 7])
def test_window_soft_argmax_agrees_with_a_slow_loop(window):
    similarity = torch.rand(2, 4, 6, 8)

    found = window_soft_argmax(similarity, window, temperature=0.1)

    for b in range(2):
        for n in range(4):
            rows = similarity[b, n].tolist()
            top, left = best(rows)
            for i in range(6):
                for j in range(8):
                    near = abs(i - top) <= window // 2 and abs(j - left) <= window // 2
                    rows[i][j] = rows[i][j] / 0.1 if near else -math.inf
            assert found[b, n].tolist() == pytest.approx(slow_expectation(rows), abs=1e-4)


@pytest.mark.parametrize("window", [1, 5, 9, 15, 41])
@pytest.mark.parametrize("shape", [(2, 7, 6, 9), (1, 4, 30, 20), (1, 3, 1, 8), (1, 2, 1, 1)])
def test_the_cropped_window_is_the_window_of_the_whole_map(window, shape):
    similarity = torch.rand(shape, dtype=torch.double, generator=torch.Generator().manual_seed(0)) / 5
    similarity[0, 0, 0, -1] = similarity[0, 1, -1, 0] = 0.25  # the best cell in a corner
    cropped, full = similarity.clone().requires_grad_(), similarity.clone().requires_grad_()
    weights = torch.rand(*shape[:2], 2, dtype=torch.double)

    found, expected = window_soft_argmax(cropped, window), full_map_window(full, window)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()

    assert_close(found, expected, atol=1e-6, rtol=0)
    assert_close(cropped.grad, full.grad, atol=1e-6, rtol=1e-6)
    assert_close(window_soft_argmax(similarity.float(), window), expected.float().detach(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("readout", READOUTS)
def test_bfloat16_similarity_is_read_to_single_precision(readout):
    """A far cell, so that 8 bits would not hold it."""
    similarity = (torch.rand(1, 3, 40, 300) / 2).bfloat16()
    similarity[..., 21, 259] = 1.0

    assert readout(similarity).dtype == torch.float32
    assert_close(readout(similarity), readout(similarity.float()), atol=0, rtol=0)


@pytest.mark.parametrize("readout", READOUTS)
def test_autocast_costs_no_precision(readout):
    similarity = torch.rand(1, 3, 40, 60)

    with torch.autocast("cpu", torch.bfloat16):
        found = readout(similarity)

    assert_close(found, readout(similarity), atol=0, rtol=0)


@pytest.mark.parametrize("sigma", [1.0, 7.0])
def test_kernel_soft_argmax_agrees_with_a_slow_loop(sigma):
    similarity = torch.rand(2, 4, 6, 8)

    found = kernel_soft_argmax(similarity, sigma, temperature=0.1)

    for b in range(2):
        for n in range(4):
            rows = similarity[b, n].tolist()
            top, left = best(rows)
            for i in range(6):
                for j in range(8):
                    rows[i][j] *= math.exp(-((i - top) ** 2 + (j - left) ** 2) / (2 * sigma**2)) / 0.1
            assert found[b, n].tolist() == pytest.approx(slow_expectation(rows), abs=1e-4)


def test_a_window_larger_than_the_map_is_soft_argmax():
    similarity = torch.rand(2, 3, 5, 7)

    assert_close(window_soft_argmax(similarity, window=15), soft_argmax(similarity))


@pytest.mark.parametrize("readout", READOUTS[1:])
def test_a_tiny_temperature_is_argmax(readout):
    similarity = torch.stack([torch.randperm(35) / 35 for _ in range(6)]).reshape(2, 3, 5, 7)

    assert_close(readout(similarity, temperature=1e-4), argmax(similarity), atol=1e-4, rtol=0)


@pytest.mark.parametrize("window", [14, 0, -3])
def test_a_window_without_a_middle_is_refused(window):
    with pytest.raises(ValueError, match=rf"`localise.window` must be odd and positive, got {window}"):
        window_soft_argmax(torch.rand(1, 1, 4, 4), window)


def test_argmax_of_equal_cells_is_the_first_in_reading_order():
    similarity = torch.zeros(1, 1, 3, 4)
    similarity[0, 0, 1, 2] = similarity[0, 0, 2, 0] = 1

    assert argmax(similarity).tolist() == [[[2, 1]]]


def test_the_gradient_of_a_window_takes_no_more_memory_than_the_similarity():
    """Not that of all windows that there are, 900 of 121 cells."""
    similarity = torch.randn(1, 3, 40, 40, requires_grad=True)
    with LargestTensor() as largest:
        window_soft_argmax(similarity, window=11).sum().backward()

    assert similarity.grad is not None
    assert largest.count <= similarity.numel()


class LargestTensor(TorchDispatchMode):
    """The number of values of the largest tensor that an operation makes in memory of its own."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not made._is_view():
            self.count = max(self.count, made.numel())
        return made
