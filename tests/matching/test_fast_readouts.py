"""Readouts in place, all sources at once: each against a slow twin in double precision."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from semcorr.core.interfaces import BatchedHead
from semcorr.core.types import FeatureMap
from semcorr.matching import batched, readouts
from semcorr.matching.batched import TargetQueries, match_to_target, match_to_targets, query_similarities
from semcorr.matching.readouts import (
    apply_readouts,
    argmax,
    find_peak,
    kernel_soft_argmax,
    soft_argmax,
    window_soft_argmax,
)
from semcorr.matching.similarity import multiply_batches, neighbouring_cells, sample_descriptors, sample_from_each
from semcorr.models.heads.cosine import Cosine

READOUTS = [
    argmax,
    soft_argmax,
    partial(soft_argmax, temperature=1e-4),
    kernel_soft_argmax,
    partial(kernel_soft_argmax, sigma=1.5, temperature=0.2),
    partial(kernel_soft_argmax, sigma=0.4, temperature=1e-3),
    window_soft_argmax,
    partial(window_soft_argmax, window=5, temperature=0.1),
    partial(window_soft_argmax, window=5, outside="zero"),
]
SHAPES = [(1, 5, 8, 8), (3, 4, 6, 9), (1, 3, 1, 17), (2, 3, 13, 1), (1, 2, 1, 1), (1, 0, 5, 5), (1, 9, 60, 60)]


def slow_cell(readout, rows: np.ndarray) -> list[float]:
    """Read one map out in double precision: a weight for every cell, then their mean."""
    function, options = (readout.func, readout.keywords) if isinstance(readout, partial) else (readout, {})
    h, w = rows.shape
    top, left = divmod(int(rows.argmax()), w)
    y, x = np.mgrid[:h, :w]
    if function is argmax:
        return [left, top]
    temperature = options.get("temperature", 0.03 if function is kernel_soft_argmax else 0.02)
    logits = rows / temperature
    if function is kernel_soft_argmax:
        logits = logits * np.exp(-((x - left) ** 2 + (y - top) ** 2) / (2 * options.get("sigma", 7.0) ** 2))
    if function is window_soft_argmax:
        reach = options.get("window", 15) // 2
        far = (abs(x - left) > reach) | (abs(y - top) > reach)
        logits = np.where(far, 0.0 if options.get("outside") == "zero" else -math.inf, logits)
    weights = np.exp(logits - logits.max())
    return [float((weights * x).sum() / weights.sum()), float((weights * y).sum() / weights.sum())]


def slow_cells(readout, similarity: torch.Tensor) -> torch.Tensor:
    cells = [slow_cell(readout, rows.double().numpy()) for rows in similarity.flatten(0, 1)]
    return torch.tensor(cells).reshape(*similarity.shape[:2], 2).float()


def random_similarity(shape: tuple[int, ...], low: float, high: float) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) * (high - low) + low


@pytest.mark.parametrize("span", [(-0.3, 0.9), (-1.0, -0.2), (-0.5, 0.0), (20.0, 30.0)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_readouts_agree_with_a_slow_reference_together_and_alone(shape, span):
    """Maps that are negative everywhere too: a Gaussian then lifts far cells above the best one."""
    similarity = random_similarity(shape, *span)
    before = similarity.clone()

    together, score = apply_readouts(similarity, READOUTS)

    for readout, cells in zip(READOUTS, together, strict=True):
        assert_close(cells, slow_cells(readout, similarity), atol=1e-4, rtol=0)
        assert_close(readout(similarity), cells, atol=1e-6, rtol=0)
    assert score.tolist() == similarity.flatten(2).amax(-1).tolist()
    assert_close(similarity, before, atol=0, rtol=0)  # nothing was written into it


@pytest.mark.parametrize("block", [1, 100, 54 * 3, 54 * 7, 10**9])
def test_blocks_of_any_size_give_the_same(block, monkeypatch):
    """Best cells and scores to the bit. Exponentials at the end of a block may differ in the last one."""
    similarity = random_similarity((2, 11, 6, 9), -0.6, 0.4)
    similarity[0, 2] -= 1  # a negative map among others
    whole, score = apply_readouts(similarity, READOUTS)
    monkeypatch.setattr(readouts, "BLOCK", block)

    cells, block_score = apply_readouts(similarity, READOUTS)

    for part, expected in zip(cells, whole, strict=True):
        assert_close(part, expected, atol=2e-6, rtol=0)
    assert cells[0].tolist() == whole[0].tolist()
    assert block_score.tolist() == score.tolist()


@pytest.mark.parametrize("readout", READOUTS[1:])
@pytest.mark.parametrize("low", [-0.3, -1.0])
def test_with_a_gradient_and_without_the_cells_are_the_same(readout, low):
    similarity = random_similarity((2, 3, 7, 9), low, low + 0.9)
    differentiable = similarity.clone().requires_grad_()

    found = readout(differentiable)

    assert found.requires_grad
    assert_close(found.detach(), readout(similarity), atol=1e-4, rtol=0)
    with torch.no_grad():
        assert_close(readout(differentiable), readout(similarity), atol=0, rtol=0)


@pytest.mark.parametrize(
    "readout", [readout for readout in READOUTS[1:] if getattr(readout, "keywords", {}).get("temperature", 1) > 0.01]
)
def test_gradients_are_those_of_finite_differences(readout):
    similarity = random_similarity((1, 2, 4, 5), -0.3, 0.3).double().requires_grad_()

    assert torch.autograd.gradcheck(lambda values: readout(values), (similarity,), eps=1e-6, atol=1e-3, rtol=1e-3)
    apply_readouts(similarity, [readout])[0][0].sum().backward()
    assert similarity.grad.abs().sum() > 0


@pytest.mark.parametrize("precision", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_first_of_equals_is_the_peak(precision):
    similarity = torch.zeros(1, 4, 5, 6, dtype=precision)
    similarity[0, 0, 3, 2] = similarity[0, 0, 3, 5] = similarity[0, 0, 4, 0] = 1
    similarity[0, 1] = -1
    similarity[0, 2, 4, 5] = 0.5
    similarity[0, 3, 2, 1] = math.nan  # found, so that it can be refused

    x, y, score, _ = find_peak(similarity)

    assert list(zip(x[0].tolist(), y[0].tolist(), strict=True)) == [(2, 3), (0, 0), (5, 4), (1, 2)]
    assert score[0, :3].tolist() == [1, -1, 0.5]
    assert score[0, 3].isnan()


@pytest.mark.parametrize("readout", READOUTS[1:])
def test_what_is_not_a_number_stays_so_and_harms_no_other_query(readout):
    similarity = random_similarity((1, 3, 5, 6), -0.3, 0.9)
    clean = readout(similarity[:, ::2].contiguous())
    similarity[0, 1, 2, 3] = math.nan

    (cells,), _ = apply_readouts(similarity, [readout])

    assert cells[0, 1].isnan().all()
    assert_close(cells[:, ::2], clean, atol=1e-6, rtol=0)


class Doubled(Cosine):
    """A head with a description of its own, which must be asked for it."""

    def describe(self, source, points):
        return super().describe(source, points) * torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0])


def build_maps(count: int, layout: torch.memory_format, precision: torch.dtype = torch.float32) -> list[FeatureMap]:
    values = torch.randn(count, 5, 4, 6, generator=torch.Generator().manual_seed(1)).to(precision, memory_format=layout)
    return [FeatureMap(values[i : i + 1], 8) for i in range(count)]


def build_points(*counts: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    border = torch.tensor([[-0.5, -0.5], [3.5, 27.5], [-9.0, 99.0], [43.5, 27.5], [47.5, 31.5]])
    points = [torch.rand(n, 2, generator=generator) * torch.tensor([48.0, 32.0]) - 0.5 for n in counts]
    return [*points, border]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("head", [Cosine(), Doubled()], ids=["cosine", "a description of its own"])
def test_sources_described_together_are_those_described_one_by_one(head, layout, precision):
    """Any layout and precision; points on cells, on the border and beyond; a source without points."""
    assert isinstance(head, BatchedHead)
    sources, points = build_maps(4, layout, precision), build_points(3, 0, 6)
    one_by_one = torch.cat([head.describe(source, some[None])[0] for source, some in zip(sources, points, strict=True)])

    with torch.no_grad():
        together = head.describe_sources(sources, points)

    assert together.dtype == torch.float32
    assert_close(together, one_by_one, atol=1e-6, rtol=1e-6)
    assert_close(head.describe_sources(sources, points), one_by_one, atol=0, rtol=0)  # where gradients are kept


class Negated(Cosine):
    """A head with a comparison of its own."""

    def compare(self, descriptors, target):
        return -super().compare(descriptors, target)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("head", [Cosine(), Negated()], ids=["cosine", "a comparison of its own"])
def test_targets_compared_together_are_those_compared_one_by_one(head, layout, precision):
    """With no, one and many descriptors of a target; with gradients and without."""
    targets, counts = build_maps(4, layout, precision), [3, 0, 1, 30]
    descriptors = torch.randn(34, 5, requires_grad=True)
    rows = descriptors.split(counts)
    one_by_one = torch.cat(
        [head.compare(some[None], target) for some, target in zip(rows, targets, strict=True)], dim=1
    )

    with torch.no_grad():
        together = head.compare_targets(descriptors, counts, targets)

    assert together.dtype == torch.float32
    assert_close(together, one_by_one.detach(), atol=1e-6, rtol=1e-6)
    with_gradients = head.compare_targets(descriptors, counts, targets)
    assert_close(with_gradients, one_by_one, atol=0, rtol=0)
    assert with_gradients.requires_grad


def test_a_window_passes_gradients_to_its_cells_alone():
    """As where cells outside the window are set to minus infinity; a window at the border, one inside."""
    similarity = torch.rand(1, 2, 6, 7, dtype=torch.float64)
    similarity[0, 0, 0, 1] = similarity[0, 1, 3, 3] = 2
    similarity.requires_grad_()
    outside = torch.ones(1, 2, 6, 7, dtype=torch.bool)
    outside[0, 0, :2, :3] = outside[0, 1, 2:5, 2:5] = False
    whole = soft_argmax(similarity.masked_fill(outside, -torch.inf), temperature=0.5)
    (expected,) = torch.autograd.grad(whole.square().sum(), similarity)

    cells = window_soft_argmax(similarity, window=3, temperature=0.5)
    (gradient,) = torch.autograd.grad(cells.square().sum(), similarity)

    assert_close(cells, whole)
    assert_close(gradient, expected)


@pytest.mark.parametrize("other", [torch.randn(1, 5, 3, 3), torch.randn(1, 5, 4, 6).half()], ids=["size", "precision"])
@torch.no_grad()
def test_sources_of_different_kinds_are_described_one_by_one(other):
    sources, points = build_maps(2, torch.channels_last), build_points(4)
    sources[1] = FeatureMap(other, 11)
    expected = [Cosine().describe(source, some[None])[0] for source, some in zip(sources, points, strict=True)]

    assert_close(Cosine().describe_sources(sources, points), torch.cat(expected), atol=0, rtol=0)


@torch.no_grad()
def test_a_part_of_a_map_is_described_as_its_copy():
    part, (points, *_) = torch.randn(1, 5, 9, 9)[:, :, 2:6, 1:7], build_points(7)

    found = Cosine().describe_sources([FeatureMap(part, 8)], [points])

    assert_close(found, Cosine().describe(FeatureMap(part.contiguous(), 8), points[None])[0], atol=1e-6, rtol=1e-6)


def test_descriptors_of_several_sources_have_gradients():
    sources, points = build_maps(2, torch.channels_last), build_points(4)
    values = [source.values.clone().requires_grad_() for source in sources]
    sources = [FeatureMap(one, 8) for one in values]

    next(query_similarities(Cosine(), sources[0], sources, points, 99)).sum().backward()

    assert all(one.grad.abs().sum() > 0 for one in values)


def test_a_point_on_a_cell_is_that_cell():
    values = torch.full((1, 1, 3, 3), math.inf)
    values[0, 0, 1, 1] = 7.0

    cells, weights = neighbouring_cells(torch.tensor([[[11.5, 11.5]]]), 8, 3, 3)

    assert cells.tolist() == [[[4, 4, 4, 4]]]
    assert weights.tolist() == [[[1.0, 0.0, 0.0, 0.0]]]
    assert sample_descriptors(values, torch.tensor([[[11.5, 11.5]]]), 8).tolist() == [[[7.0]]]
    assert sample_from_each([values], [torch.tensor([[11.5, 11.5]])], 8).tolist() == [[7.0]]


@pytest.mark.parametrize("values", [1, 24 * 5, 10**6])
@torch.no_grad()
def test_a_target_is_matched_as_each_pair_alone_in_double_precision(values):
    """From features to cells, by all readouts, in chunks of any size."""
    head = Cosine()
    target, *sources = build_maps(5, torch.channels_last)
    points = build_points(3, 0, 6)

    found = match_to_target(head, target, sources, points, READOUTS, values)

    cells = target.values[0].double().flatten(1)
    queries = torch.cat(
        [sample_descriptors(one.values, some[None], 8)[0].double() for one, some in zip(sources, points, strict=True)]
    )
    similarity = (queries / queries.norm(dim=-1, keepdim=True)) @ (cells / cells.norm(dim=0))
    similarity = similarity.unflatten(-1, (4, 6))[None]
    for readout, expected in zip(READOUTS, found.cells, strict=True):
        assert_close(
            expected, slow_cells(readout, similarity)[0], atol=1e-3 if readout in READOUTS[2::3] else 1e-4, rtol=0
        )
    assert_close(found.score, similarity[0].flatten(1).amax(-1).float())


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("is_cosine", [False, True])
@pytest.mark.parametrize("layout", ["row by row", "channels last"])
@pytest.mark.parametrize(("batch", "columns"), [(1, 6), (3, 6), (1, 1000), (1, 1024), (1, 64 * 64 + 1)])
def test_products_shared_among_threads_are_batched_products(batch, columns, layout, is_cosine, grad):
    """With columns left over, and of maps of either layout; against double precision."""
    a, b = torch.randn(batch, 7, 16), torch.randn(batch, 16, columns)
    b = b if layout == "row by row" else b.transpose(1, 2).contiguous().transpose(1, 2)

    with torch.set_grad_enabled(grad):
        products = multiply_batches(a.requires_grad_(grad), b, is_cosine=is_cosine)

    expected = torch.einsum("bnc,bcm->bnm", a.double(), b.double())
    expected = expected / b.double().norm(dim=1, keepdim=True) if is_cosine else expected
    assert_close(products.double(), expected, atol=1e-5, rtol=1e-5)
    assert products.requires_grad == grad


@torch.no_grad()
def test_a_map_that_comes_again_is_read_as_often():
    """In any order, some without points."""
    first, second, third = (each.values for each in build_maps(3, torch.channels_last))
    maps = [second, first, second, third, first, second]
    points = build_points(3, 1, 0, 2, 4)

    descriptors = sample_from_each(maps, points, 8)

    expected = [sample_descriptors(each, some[None], 8)[0] for each, some in zip(maps, points, strict=True)]
    assert_close(descriptors, torch.cat(expected), atol=1e-6, rtol=1e-6)
    assert sample_from_each(maps[:1], [torch.zeros(0, 2)], 8).shape == (0, first.shape[1])


@pytest.mark.parametrize("joined", [1, 24 * 8, 10**6])
@pytest.mark.parametrize("values", [24 * 5, 10**6])
@torch.no_grad()
def test_several_targets_are_matched_as_each_alone(monkeypatch, values, joined):
    """Similarities are read out together or not; one target has another grid, and one has no points."""
    monkeypatch.setattr(batched, "JOINED_VALUES", joined)
    first, second, third = build_maps(3, torch.channels_last)
    other = FeatureMap(torch.randn(1, first.values.shape[1], 5, 3), 8)
    queries = [
        TargetQueries(first, [second, third], build_points(3)),
        TargetQueries(second, [first, third, other], build_points(1, 0)),
        TargetQueries(third, [first], [torch.zeros(0, 2)]),
        TargetQueries(other, [second, first], build_points(5)),
        TargetQueries(first, [third], build_points()),
    ]

    matches = match_to_targets(Cosine(), queries, READOUTS, values)

    for target_queries, target_matches in zip(queries, matches, strict=True):
        alone = match_to_target(Cosine(), *target_queries, READOUTS)
        assert_close(target_matches.score, alone.score)
        for cells, expected in zip(target_matches.cells, alone.cells, strict=True):
            assert_close(cells, expected, atol=1e-4, rtol=0)
