"""A 4-D convolution equals its definition, forward and backward, and is measured beside the loop it replaces."""

import json
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, pad
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from semcorr.benchmark.command import app
from semcorr.benchmark.conv4d import WAYS, ConvolvedVolume, convolve_by_slices, results_agree
from semcorr.core.errors import UserError
from semcorr.models.heads import conv4d as module
from semcorr.models.heads.conv4d import Conv4d, conv4d

# batch, channels in and out, grid, kernel: odd and even sides, none square, some smaller than the kernel
CASES = [
    (2, 3, 2, (4, 5, 3, 6), (3, 3, 3, 3)),
    (1, 1, 4, (5, 3, 4, 4), (5, 5, 5, 5)),
    (1, 4, 1, (2, 1, 6, 3), (3, 5, 1, 3)),
    (3, 2, 2, (1, 4, 2, 1), (1, 3, 5, 1)),
    (2, 1, 2, (2, 3, 1, 2), (7, 7, 7, 7)),
    (1, 2, 1, (1, 2, 3, 1), (9, 5, 7, 3)),
    (1, 1, 1, (3, 1, 1, 1), (11, 3, 1, 1)),
    (2, 8, 8, (2, 5, 3, 4), (3, 3, 3, 3)),  # two cells at once, and one that is left of a row
    (1, 7, 5, (3, 4, 2, 3), (1, 5, 1, 3)),
    (1, 6, 6, (2, 1, 3, 3), (3, 7, 3, 3)),
]


def slow(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The definition: every neighbourhood, zeros around, against every kernel."""
    sizes = weight.shape[2:]
    near = pad(x, [edge for size in reversed(sizes) for edge in (size // 2, size // 2)])
    for axis, size in enumerate(sizes):
        near = near.unfold(2 + axis, size, 1)
    out = torch.einsum("bchwklpqrs,ocpqrs->bohwkl", near, weight)
    return out if bias is None else out + bias.view(-1, 1, 1, 1, 1)


def drawn(case: tuple, **options) -> list[torch.Tensor]:
    b, c, o, grid, kernel = case
    chance = torch.Generator().manual_seed(0)
    shapes = ([b, c, *grid], [o, c, *kernel], [o])
    return [torch.randn(shape, generator=chance, **options) for shape in shapes]


@pytest.fixture
def by_volumes(monkeypatch):
    """Convolve as on a GPU."""
    monkeypatch.setattr(module, "add_by_cells", module.add_by_volumes)
    monkeypatch.setattr(module, "weight_gradient_by_cells", module.weight_gradient_by_volumes)


@pytest.mark.parametrize("way", [1, 2**20, "volumes"])  # one cell at a time; all of a row; the whole volume
@pytest.mark.parametrize("case", CASES)
def test_the_convolution_and_its_gradients_are_sums_over_all_neighbours(case, way, monkeypatch, request):
    if way == "volumes":
        request.getfixturevalue("by_volumes")
    else:
        monkeypatch.setattr(module, "CHUNK_VALUES", way)
    ours, reference = ([one.clone().requires_grad_() for one in drawn(case)] for _ in range(2))

    found, expected = conv4d(*ours), slow(*reference)
    seeds = torch.randn(expected.shape)
    gradients, expected_gradients = (
        torch.autograd.grad((it * seeds).sum(), of) for it, of in ((found, ours), (expected, reference))
    )

    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert_close(one, other, atol=1e-5 * max(1, other.abs().max().item()), rtol=1e-5)


def test_chunks_that_do_not_divide_a_row_are_put_together(monkeypatch):
    x, weight, bias = drawn((2, 3, 2, (3, 7, 4, 4), (3, 3, 3, 3)))
    monkeypatch.setattr(module, "CHUNK_VALUES", 3 * 9 * 2 * 16)  # of seven cells: three, three and one

    assert [cells[3].stop - cells[3].start for cells in module._iterate_cells(x[:1, :, :1], 9 * 2)] == [3, 3, 1]
    assert_close(conv4d(x, weight, bias), slow(x, weight, bias), atol=1e-5, rtol=1e-5)


def test_neighbouring_cells_stay_together_and_the_last_of_an_odd_row_is_alone(monkeypatch):
    x, weight, bias = drawn((1, 8, 8, (2, 7, 4, 4), (3, 3, 3, 3)))
    monkeypatch.setattr(module, "CHUNK_VALUES", 2 * 12 * 8 * 16)  # of three twos: two and one

    assert [cells[3] for cells in module._iterate_cells(x[:, :, :1], 12 * 8, 2)] == [
        slice(0, 4),
        slice(4, 6),
        slice(6, 7),
    ]
    assert_close(conv4d(x, weight, bias), slow(x, weight, bias), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("outputs", [2, 3])  # taps as output channels; as input channels
def test_gradients_of_the_convolution_are_those_of_finite_differences(outputs):
    inputs = [one.requires_grad_() for one in drawn((1, 2, outputs, (2, 3, 2, 2), (3, 3, 1, 3)), dtype=torch.double)]

    assert torch.autograd.gradcheck(conv4d, inputs)


class CountedCalls(TorchDispatchMode):
    """The operations that launch a kernel: not views, nor requests for memory."""

    VIEWS = ("view", "slice", "select", "transpose", "permute", "expand", "alias", "detach", "empty", "unsqueeze")

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not name.startswith(self.VIEWS) and name != "_unsafe_view":
            self.launches.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_layer_on_a_gpu_is_at_most_twenty_launches(kernel, by_volumes):
    x, weight, bias = drawn((2, 8, 8, (6,) * 4, (kernel,) * 4))
    with CountedCalls() as calls:
        conv4d(x, weight, bias)

    assert len(calls.launches) <= 20, calls.launches
    assert sum("conv" in name for name in calls.launches) == kernel


def test_over_one_pair_of_axes_it_is_a_2d_convolution():
    """Kernels of one cell over the other two: PyTorch's own, for every cell of those."""
    x, weight, bias = drawn((2, 3, 4, (5, 4, 2, 3), (3, 5, 1, 1)))

    found = conv4d(x, weight, bias)

    for k, l in product(range(2), range(3)):  # noqa: E741
        expected = conv2d(x[..., k, l], weight[..., 0, 0], bias, padding=(1, 2))
        assert_close(found[..., k, l], expected, atol=1e-5, rtol=1e-5)


def test_there_need_be_no_bias_and_input_may_lie_in_memory_in_any_order():
    x, weight, _ = drawn(CASES[0])
    turned = x.permute(0, 1, 4, 5, 2, 3)

    assert_close(conv4d(turned, weight), slow(turned, weight, None), atol=1e-5, rtol=1e-5)


def test_an_unneeded_gradient_is_not_computed(monkeypatch):
    x, weight, bias = drawn(CASES[0])
    monkeypatch.setattr(module, "weight_gradient_by_cells", None)

    conv4d(x.requires_grad_(), weight, bias).sum().backward()

    assert x.grad is not None


def test_backward_keeps_nothing_but_the_input_and_the_weights():
    kept = []
    x, weight, bias = (one.requires_grad_() for one in drawn(CASES[0]))
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        conv4d(x, weight, bias)

    assert [one.data_ptr() for one in kept] == [x.data_ptr(), weight.data_ptr()]


def test_a_layer_seen_from_the_other_side_is_the_layer_on_the_transposed_volume():
    layer, x = Conv4d(2, 3), torch.randn(1, 2, 4, 3, 2, 5)

    swapped = layer(x.permute(0, 1, 4, 5, 2, 3)).permute(0, 1, 4, 5, 2, 3)

    assert_close(layer(x, swapped=True), swapped, atol=1e-5, rtol=1e-5)


def test_a_layer_starts_within_the_bounds_of_pytorchs_convolutions():
    layer, reference = Conv4d(4, 8, 3), nn.Conv3d(4, 8, 3)

    assert sum(p.numel() for p in layer.parameters()) == 4 * 8 * 81 + 8
    for own, other in ((layer.weight, reference.weight), (layer.bias, reference.bias)):
        assert own.abs().max() < (4 * 81) ** -0.5
        assert own.abs().max() < other.abs().max()  # fewer inputs, larger bounds


@pytest.mark.parametrize("make", [lambda: Conv4d(1, 1, 4), lambda: conv4d(*drawn((1, 1, 1, (2,) * 4, (3, 3, 2, 3))))])
def test_even_kernels_are_refused(make):
    with pytest.raises(UserError, match=r"kernels of odd sizes, got .*Give 3 or 5"):
        make()


# -- the benchmark --


@pytest.mark.parametrize("case", CASES)
def test_the_loop_that_is_raced_is_the_same_convolution(case):
    x, weight, bias = drawn(case)

    assert_close(convolve_by_slices(x, weight, bias), slow(x, weight, bias), atol=1e-5, rtol=1e-5)


def test_a_disagreement_stops_the_benchmark(monkeypatch):
    monkeypatch.setitem(WAYS, "ours", lambda x, weight, bias: convolve_by_slices(x, weight, bias) + 1)
    with pytest.raises(RuntimeError, match="standard deviations apart"):
        results_agree(ConvolvedVolume(4, 2, 3, False, "cpu"))


def test_seconds_memory_and_floors_of_every_volume_are_written(tmp_path):
    line = ["conv4d", "--side", "4", "--side", "5", "--channels", "2", "--device", "cpu", "--together"]
    result = CliRunner().invoke(app, [*line, "--out", str(tmp_path / "b.json")], catch_exceptions=False)

    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "b.json").read_text())["conv4d"]
    assert set(content["volumes"]) == {
        f"{side}^4, {what}" for side in (4, 5) for what in ("forward", "forward and backward")
    }
    one = content["volumes"]["5^4, forward"]
    assert one["floor"]["operations"] == 2 * 5**4 * 81 * 2 * 2
    assert one["ratio"] == pytest.approx(one["seconds"]["loop"] / one["seconds"]["ours"])
    assert content["settings"]["side"] == [4, 5]


def test_an_even_kernel_is_refused_by_the_command(tmp_path):
    result = CliRunner().invoke(app, ["conv4d", "--kernel", "4", "--out", str(tmp_path / "b.json")])

    assert result.exit_code == 2
    assert "--kernel odd" in result.output
