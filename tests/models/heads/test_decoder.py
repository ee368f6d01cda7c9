"""The decoder: NumPy beside it, where it starts, and windows against whole maps."""

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_heads import built, maps, yaml
from torch.testing import assert_close

from semcorr.core.coords import to_grid
from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.models.heads.cosine import Cosine
from semcorr.models.heads.decoder import REACH, Decoder, DecoderNetwork, WindowDecoder, build_decoder

Array = np.ndarray
STRIDE = 8.0


def shaken(head: torch.nn.Module) -> torch.nn.Module:
    """A head with weights away from where they start."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return head.eval()


def features(batch: int, channels: int, h: int, w: int) -> FeatureMap:
    return FeatureMap(torch.randn(batch, channels, h, w), STRIDE)


# -- NumPy --


def resized(x: Array, times: float) -> Array:
    """Bilinear, cell by cell: a fine cell's centre between the centres of four, clamped to those of the border."""
    c, h, w = x.shape
    out = np.zeros((c, round(h * times), round(w * times)))
    for i, j in np.ndindex(out.shape[1:]):
        y, x_ = (min(max((k + 0.5) / times - 0.5, 0), n - 1) for k, n in ((i, h), (j, w)))
        for row, down in ((int(y), 1 - y % 1), (min(int(y) + 1, h - 1), y % 1)):
            for column, across in ((int(x_), 1 - x_ % 1), (min(int(x_) + 1, w - 1), x_ % 1)):
                out[:, i, j] += down * across * x[:, row, column]
    return out


def convolved(x: Array, weight: Array) -> Array:
    """A 3 x 3 convolution, cell by cell; beyond the border are zeros."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(weight), *x.shape[1:]))
    for i, j in np.ndindex(x.shape[1:]):
        out[:, i, j] = np.einsum("ockl,ckl->o", weight, padded[:, i : i + 3, j : j + 3])
    return out


def normed(x: Array, weight: Array, bias: Array) -> Array:
    centred = x - x.mean(0)
    return centred / np.sqrt((centred**2).mean(0) + 1e-6) * weight[:, None, None] + bias[:, None, None]


def block(x: Array, state: dict[str, Array], name: str) -> Array:
    first = normed(
        convolved(x, state[f"{name}.conv1.weight"]), *(state[f"{name}.norm1.{k}"] for k in ("weight", "bias"))
    )
    second = convolved(np.maximum(first, 0), state[f"{name}.conv2.weight"])
    return x + normed(second, *(state[f"{name}.norm2.{k}"] for k in ("weight", "bias")))


def decoded(x: Array, state: dict[str, Array], fineness: int) -> Array:
    """The decoder of one map, layer by layer."""
    c, h, w = x.shape
    x = x / np.sqrt((x**2).mean(0))
    split = np.zeros((c, 2 * h, 2 * w))
    for i, j in np.ndindex(2 * h, 2 * w):
        split[:, i, j] = x[:, i // 2, j // 2] @ state["split.weight"][:, :, i % 2, j % 2] + state["split.bias"]
    x = block(resized(x, 2) + split, state, "blocks.0")
    x = block(resized(x, fineness / 2), state, "blocks.1")
    return np.einsum("oc,chw->ohw", state["project.weight"][..., 0, 0], x) + state["project.bias"][:, None, None]


@pytest.mark.parametrize("fineness", [2, 3, 4])
def test_the_decoder_is_what_numpy_makes_of_each_cell(fineness):
    network = shaken(DecoderNetwork(5, fineness, 0.3)).double()
    values = torch.randn(2, 5, 3, 4, dtype=torch.double)
    state = {key: value.numpy() for key, value in network.state_dict().items()}

    with torch.no_grad():
        result = network(values)

    expected = np.stack([decoded(one, state, fineness) for one in values.numpy()])
    assert_close(result, torch.from_numpy(expected), atol=1e-10, rtol=1e-10)


def test_gradients_are_those_of_finite_differences():
    network = shaken(DecoderNetwork(2, 2, 0.0)).double()
    values = torch.randn(1, 2, 2, 3, dtype=torch.double, requires_grad=True)

    assert torch.autograd.gradcheck(lambda x, *_: network(x), (values, *network.parameters()), fast_mode=True)


def test_before_training_it_is_the_cosine_of_interpolated_features_of_unit_length():
    head, source, target = built("decoder", trained=False), maps(2, 4, 6), maps(2, 5, 3)
    points = torch.rand(2, 7, 2) * 40

    def fine(one: FeatureMap) -> FeatureMap:
        values = one.values / one.values.norm(dim=1, keepdim=True)
        for _ in range(2):
            values = torch.nn.functional.interpolate(values, scale_factor=2, mode="bilinear", align_corners=False)
        return FeatureMap(values, one.stride / 4)

    assert_close(head(source, target, points), Cosine()(fine(source), fine(target), points), atol=1e-5, rtol=0)


def test_numbers_are_dropped_in_training_alone():
    head, one = built("decoder"), maps(1, 4, 4)

    assert torch.equal(head.transform(one).values, head.transform(one).values)
    head.train()
    assert not torch.equal(head.transform(one).values, head.transform(one).values)


def test_features_moved_by_a_cell_are_found_moved_by_four():
    head, x = built("decoder"), maps(1, 11, 12)

    fine, moved = head.transform(x).values, head.transform(FeatureMap(x.values.roll(1, dims=-1), 8)).values

    inner = slice(4 * (REACH + 1), -4 * (REACH + 1))
    assert_close(moved[..., inner.start + 4 : inner.stop + 4], fine[..., inner], atol=1e-5, rtol=0)


# -- windows --


@pytest.mark.parametrize("fineness", [2, 3, 4, 8])
def test_a_decoded_cell_depends_on_three_cells_to_each_side_and_no_more(fineness):
    network = shaken(DecoderNetwork(4, fineness, 0.0)).double()
    values = torch.randn(1, 4, 1, 15, dtype=torch.double, requires_grad=True)

    network(values)[..., 7 * fineness : 8 * fineness].square().sum().backward()

    (reached,) = values.grad[0, :, 0].abs().amax(0).nonzero().T
    assert 7 - REACH <= reached.min() <= 8 - REACH  # at eight times the grid, two suffice
    assert 6 + REACH <= reached.max() <= 7 + REACH


@pytest.mark.parametrize("fineness", [2, 3, 4])
@pytest.mark.parametrize(("h", "w"), [(9, 14), (4, 20), (1, 1), (2, 3)])
def test_windows_are_those_of_the_decoded_maps(fineness, h, w):
    """In the middle and at every border; on maps that are smaller than a window, too."""
    whole = shaken(Decoder(6, fineness))
    head = WindowDecoder(6, fineness, window=3).eval()
    head.load_state_dict(whole.state_dict())
    source, target, points = features(2, 6, h, w), features(2, 6, w, h), torch.rand(2, 37, 2) * 9 * w - 8

    with torch.no_grad():
        expected, similarity = whole(source, target, points), head(source, target, points)

    is_decoded = similarity != -1
    assert is_decoded.sum((2, 3)).unique().tolist() == [fineness**2 * min(3, h) * min(3, w)]
    assert_close(similarity[is_decoded], expected[is_decoded], atol=1e-5, rtol=0)


def test_the_window_lies_around_the_best_cell_of_the_features_as_they_come():
    head = shaken(WindowDecoder(6, 4, window=3))
    source, target, points = features(1, 6, 8, 9), features(1, 6, 8, 9), torch.rand(1, 20, 2) * 60

    similarity, coarse = head(source, target, points), Cosine()(source, target, points)

    for fine, cells in zip(similarity[0], coarse[0], strict=True):
        y, x = divmod(int(cells.argmax()), 9)
        rows, columns = (fine != -1).nonzero().T
        top, left = min(max(y - 1, 0), 5), min(max(x - 1, 0), 6)
        assert (rows.min(), rows.max()) == (4 * top, 4 * top + 11)
        assert (columns.min(), columns.max()) == (4 * left, 4 * left + 11)


def test_in_training_whole_maps_are_decoded():
    whole = shaken(Decoder(6, 4, dropout=0.0)).train()
    head = WindowDecoder(6, 4, dropout=0.0).train()
    head.load_state_dict(whole.state_dict())
    source, target, points = features(2, 6, 5, 4), features(2, 6, 4, 5), torch.rand(2, 3, 2) * 40

    assert torch.equal(head(source, target, points), whole(source, target, points))


def test_without_points_nothing_is_decoded():
    head = shaken(WindowDecoder(6, 4))

    assert head(features(1, 6, 5, 4), features(1, 6, 3, 7), torch.zeros(1, 0, 2)).shape == (1, 0, 12, 28)


@pytest.mark.parametrize(("window", "kind"), [(None, Decoder), (5, WindowDecoder)])
def test_the_option_chooses_what_is_decoded(window, kind):
    assert type(instantiate(OmegaConf.merge(yaml("decoder"), {"channels": 8, "window": window}))) is kind


def test_a_point_is_read_in_the_cell_that_it_lies_in():
    """Half a cell around each centre, borders and beyond included."""
    whole = shaken(Decoder(6, 4))
    head = WindowDecoder(6, 4).eval()
    head.load_state_dict(whole.state_dict())
    source = features(1, 6, 5, 5)
    points = torch.cartesian_prod(torch.linspace(-3, 43, 24), torch.linspace(-3, 43, 24))[None]
    assert to_grid(points, STRIDE).min() < -0.5

    with torch.no_grad():
        expected = whole.describe(whole.transform(source), points)
        assert_close(head._describe(source, points), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: build_decoder(8, fineness=1), "`head.fineness` must be between 2 and 16, got 1"),
        (lambda: build_decoder(8, dropout=1.0), "`head.dropout` must be at least 0 and below 1, got 1.0"),
        (lambda: build_decoder(8, window=4), "`head.window` must be odd and positive, got 4"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_range(attempt, message):
    with pytest.raises(UserError, match=message):
        attempt()
