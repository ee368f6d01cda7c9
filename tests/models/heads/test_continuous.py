"""Dense decoding around a continuous query: NumPy beside it, where it starts, and shifts by fractions of a cell."""

import math

import numpy as np
import pytest
import torch
from tiny_cost_heads import CHANNELS, STRIDE, built, maps, points
from torch.testing import assert_close

from semcorr.core.coords import to_grid, to_image
from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.matching.readouts import argmax, window_soft_argmax
from semcorr.matching.similarity import cosine_similarity
from semcorr.models.heads.continuous import ContinuousQuery, FilmBlock, interpolated_cosine
from semcorr.models.heads.cosine import Cosine
from semcorr.models.heads.decoder import build_decoder
from semcorr.models.heads.windows import _warn_of_window

Array = np.ndarray


# -- NumPy --


def between(x: Array, place: Array) -> Array:
    """A map (c h w) read bilinearly at a place in cells (x, y), clamped to the border's centres."""
    (column, across), (row, down) = (
        (int(value), value % 1)
        for value in (np.clip(place[0], 0, x.shape[2] - 1), np.clip(place[1], 0, x.shape[1] - 1))
    )
    right, below = min(column + 1, x.shape[2] - 1), min(row + 1, x.shape[1] - 1)
    top = x[:, row, column] * (1 - across) + x[:, row, right] * across
    return top * (1 - down) + (x[:, below, column] * (1 - across) + x[:, below, right] * across) * down


def convolved(x: Array, weight: Array, bias: Array, groups: bool = False) -> Array:
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(weight), *x.shape[1:]))
    for i, j in np.ndindex(x.shape[1:]):
        around = padded[:, i : i + 3, j : j + 3]
        out[:, i, j] = bias + (
            (around * weight[:, 0]).sum((1, 2)) if groups else np.einsum("ockl,ckl->o", weight, around)
        )
    return out


def gelu(x: Array) -> Array:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def unit(x: Array) -> Array:
    """Every cell, or a descriptor, at a mean square of one."""
    return x / np.sqrt((x**2).mean(0))


def phase(place: Array) -> Array:
    return np.concatenate((np.sin(2 * np.pi * place), np.cos(2 * np.pi * place)))


def reference(source: Array, target: Array, points: Array, state: dict[str, Array], options: dict[str, int]) -> Array:
    """The head for one pair, point by point and fine cell by fine cell."""
    fine, window = options["fineness"], options["window"]
    (_, h, w), similarity = target.shape, []
    context = [convolved(unit(x), state["context.weight"], state["context.bias"]) for x in (source, target)]
    for place in (points + 0.5) / STRIDE - 0.5:
        token = np.concatenate((between(context[0], place), phase(place)))
        hidden = gelu(state["refine.0.weight"] @ token + state["refine.0.bias"])
        query = unit(between(source, place)) + state["refine.2.weight"] @ hidden + state["refine.2.bias"]

        def cosine(vector: Array, query: Array = query) -> float:
            return float(vector @ query / np.linalg.norm(vector) / np.linalg.norm(query))

        places = {
            (i, j): np.array([(j + 0.5) / fine - 0.5, (i + 0.5) / fine - 0.5])
            for i, j in np.ndindex(h * fine, w * fine)
        }
        grid = np.array([[cosine(between(target, places[i, j])) for j in range(w * fine)] for i in range(h * fine)])
        coarse = np.array([[cosine(target[:, i, j]) for j in range(w)] for i in range(h)])
        best_y, best_x = np.unravel_index(coarse.argmax(), coarse.shape)
        top, left = (min(max(k - window // 2, 0), max(n - window, 0)) for k, n in ((best_y, h), (best_x, w)))
        rows, columns = (range(a * fine, min(a + window, n) * fine) for a, n in ((top, h), (left, w)))
        x = np.array([[between(context[1], places[i, j]) for j in columns] for i in rows]).transpose(2, 0, 1)
        x += (
            np.array(
                [[state["phase.weight"][..., 0, 0] @ phase(places[i, j]) for j in columns] for i in rows]
            ).transpose(2, 0, 1)
            + state["phase.bias"][:, None, None]
        )
        for k in range(options["depth"]):
            part = {
                key.removeprefix(f"blocks.{k}."): value
                for key, value in state.items()
                if key.startswith(f"blocks.{k}.")
            }
            scale, shift = np.split(part["film.weight"] @ query + part["film.bias"], 2)
            centred = x - x.mean(0)
            centred /= np.sqrt((centred**2).mean(0) + 1e-6)
            y = gelu(centred * (1 + scale[:, None, None]) + shift[:, None, None])
            y = convolved(y, part["depthwise.weight"], part["depthwise.bias"], groups=True)
            x = (
                x
                + np.einsum("oc,chw->ohw", part["pointwise.weight"][..., 0, 0], y)
                + part["pointwise.bias"][:, None, None]
            )
        update = np.einsum("c,chw->hw", state["out.weight"][0, :, 0, 0], x) + state["out.bias"]
        grid[rows.start : rows.stop, columns.start : columns.stop] += update
        similarity.append(grid)
    return np.array(similarity)


@pytest.mark.parametrize(
    "options",
    [
        {"fineness": 3, "window": 3, "width": 6, "depth": 1},
        {"fineness": 2, "window": 1, "width": 4, "depth": 2},
        {"fineness": 1, "window": 7, "width": 4, "depth": 1},
    ],
    ids=str,
)
def test_the_similarity_is_what_numpy_computes_of_each_point(options):
    """In the middle, at the border, and with a window that is larger than the map."""
    head, source, target, some = built("continuous", **options), maps(1, 5, 4), maps(1, 4, 6), points(1, 6)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(3)  # so that the best cell and the update depend on them
        similarity = head(source, target, some)[0]

    state = {key: value.double().numpy() for key, value in head.state_dict().items()}
    arrays = [x.values[0].double().numpy() for x in (source, target)]
    expected = reference(*arrays, some[0].double().numpy(), state, options)

    assert_close(similarity.double(), torch.from_numpy(expected), atol=2e-5, rtol=1e-5)


def test_cosines_with_interpolated_features_are_those_of_a_map_that_is_made():
    descriptors, features = torch.randn(2, 5, 6), torch.randn(2, 6, 3, 4)
    large = torch.nn.functional.interpolate(features, scale_factor=4, mode="bilinear", align_corners=False)

    assert_close(
        interpolated_cosine(descriptors, features, 4), cosine_similarity(descriptors, large), atol=1e-6, rtol=0
    )


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    block = FilmBlock(2, 3).double()
    cells, query = (torch.randn(2, *size, dtype=torch.double, requires_grad=True) for size in ((2, 3, 4), (3,)))

    assert torch.autograd.gradcheck(
        lambda *given: block(*given[:2]), (cells, query, *block.parameters()), fast_mode=True
    )


def test_gradients_of_cosines_are_those_of_a_map_that_is_made():
    descriptors, features = (torch.randn(*size, requires_grad=True) for size in ((1, 3, 5), (1, 5, 3, 4)))
    large = torch.nn.functional.interpolate(features, scale_factor=3, mode="bilinear", align_corners=False)
    weights = torch.randn(1, 3, 9, 12)

    ours, expected = (
        torch.autograd.grad((similarity * weights).sum(), (descriptors, features))
        for similarity in (interpolated_cosine(descriptors, features, 3), cosine_similarity(descriptors, large))
    )

    assert_close(ours, expected, atol=1e-5, rtol=1e-4)


# -- where it starts --


def test_before_training_it_is_the_cosine_of_interpolated_features():
    head, source, target, some = built("continuous", trained=False), maps(2, 5, 4), maps(2, 4, 6), points(2, 7)
    large = torch.nn.functional.interpolate(target.values, scale_factor=4, mode="bilinear", align_corners=False)

    expected = Cosine()(source, target._replace(values=large), some)

    assert_close(head(source, target, some), expected, atol=1e-6, rtol=0)


def test_the_query_alone_is_on_the_targets_grid_and_starts_as_the_cosine():
    head = built("continuous", trained=False, fineness=1, depth=0)
    source, target, some = maps(2, 5, 4), maps(2, 4, 6), points(2, 7)

    assert_close(head(source, target, some), Cosine()(source, target, some), atol=1e-6, rtol=0)


def test_the_update_is_around_the_best_cell_and_each_query_has_its_own():
    head, source, target, some = built("continuous"), maps(1, 8, 9), maps(1, 8, 9), points(1, 12)
    with torch.no_grad():
        queries = head.describe(source, some)
        update = head(source, target, some) - interpolated_cosine(queries, target.values, 4)
    coarse = cosine_similarity(queries, target.values)[0]

    for fine, cells in zip(update[0], coarse, strict=True):
        y, x = divmod(int(cells.argmax()), 9)
        rows, columns = (fine.abs() > 1e-5).nonzero().T
        top, left = min(max(y - 1, 0), 5), min(max(x - 1, 0), 6)
        assert (rows.min(), rows.max()) == (4 * top, 4 * top + 11)
        assert (columns.min(), columns.max()) == (4 * left, 4 * left + 11)
    shared = head(source, target, torch.cat((some[:, :1], some[:, :1] + 0.4), dim=1))
    assert not torch.equal(shared[0, 0], shared[0, 1])  # a query that is moved by less than a cell is another one


def test_features_of_any_scale_give_the_same():
    head, source, target, some = built("continuous"), maps(1, 5, 4), maps(1, 4, 6), points(1, 7)

    scaled = head(*(one._replace(values=100 * one.values) for one in (source, target)), some)

    assert_close(scaled, head(source, target, some), atol=1e-5, rtol=0)


def test_places_between_cells_are_in_single_precision_whatever_the_weights_are():
    """bfloat16 cannot tell 801.3 pixels from 804: the query would be told another place."""
    head, features, some = built("continuous"), maps(1, 60, 60, torch.bfloat16), points(1, 7) + 400

    with torch.no_grad():
        head.refine[2].weight.mul_(20)
        single = head.describe(features, some)
        half = head.bfloat16().describe(features, some).float()

    assert (half - single).norm() < 0.02 * single.norm()


# -- shifts by fractions of a cell --


def waves(h: int, w: int, shift: tuple[float, float]) -> FeatureMap:
    """A smooth scene, moved by a shift in cells and seen at the centres of cells; no wave is shorter than six cells."""
    generator = torch.Generator().manual_seed(0)
    frequency = (torch.rand(CHANNELS, 2, generator=generator) * 2 - 1) / 6
    start = torch.rand(CHANNELS, generator=generator)
    y, x = torch.meshgrid(torch.arange(h) - shift[1], torch.arange(w) - shift[0], indexing="ij")
    angles = frequency[:, 0, None, None] * x + frequency[:, 1, None, None] * y + start[:, None, None]
    return FeatureMap((2 * math.pi * angles).sin()[None], STRIDE)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.5, 0.25), (-0.3, 0.4), (1.15, -0.35)], ids=str)
def test_a_shift_by_fractions_of_a_cell_is_found_to_a_tenth_of_a_cell(shift):
    """The grid's ceiling: argmax over its cells is off by a third of a cell on average, and cannot be better.

    Untrained, on a scene without detail that the grid does not resolve, each point within a tenth of a cell.
    """
    source, target = waves(12, 12, (0.0, 0.0)), waves(12, 12, shift)
    cells = torch.rand(1, 60, 2, generator=torch.Generator().manual_seed(1)) * 7 + 2
    some, true = to_image(cells, STRIDE), cells + torch.tensor(shift)

    def errors(head: torch.nn.Module, readout, fineness: int) -> torch.Tensor:
        found = to_grid(to_image(readout(head(source, target, some)), STRIDE / fineness), STRIDE)
        return (found - true).norm(dim=-1)

    with torch.no_grad():
        soft = errors(built("continuous", trained=False), lambda s: window_soft_argmax(s, 5, 0.002), 4)
        finest = errors(built("continuous", trained=False, fineness=8), argmax, 8)
        grid = errors(Cosine(), argmax, 1)

    assert soft.max() < 0.1
    assert finest.mean() < 0.1
    assert finest.max() < 0.2
    assert 0.3 < grid.mean() < 0.45


@pytest.mark.parametrize(
    "head",
    [ContinuousQuery(CHANNELS, window=99), build_decoder(CHANNELS, window=99).eval()],
    ids=["continuous", "decoder"],
)
def test_a_window_that_is_larger_than_the_map_is_told_once(head, caplog):
    _warn_of_window.cache_clear()
    for _ in range(2):
        head(maps(1, 8, 8), maps(1, 8, 7), points(1, 2))
    assert caplog.text.count("`head.window=99` is larger than maps of 8 x 7 cells") == 1


def test_a_window_that_is_as_large_as_the_map_is_not_told(caplog):
    ContinuousQuery(CHANNELS, window=7)(maps(1, 8, 8), maps(1, 4, 7), points(1, 2))
    assert "head.window" not in caplog.text


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: ContinuousQuery(8, fineness=0), "`head.fineness` must be between 1 and 16, got 0"),
        (lambda: ContinuousQuery(8, window=2), "`head.window` must be odd and positive, got 2"),
        (lambda: ContinuousQuery(8, depth=-1), "`head.depth` must be at least 0, got -1"),
        (lambda: ContinuousQuery(8, depth=0, window=7), "`head.window=7` has no effect with head.depth=0"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_range(attempt, message):
    with pytest.raises(UserError, match=message):
        attempt()
