"""Bottleneck and aggregation: against torchvision's block, in learned shares, from published files."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_heads import built, maps
from torch import nn
from torch.nn.functional import conv2d
from torch.testing import assert_close
from torchvision.models.resnet import Bottleneck as Torchvision

from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.models.heads.aggregation import Aggregation
from semcorr.models.heads.bottleneck import BottleneckHead, ResidualBottleneck


def as_torchvision(block: ResidualBottleneck) -> nn.Module:
    """The same network by others: their bottleneck goes from 4 n channels to n and back."""
    channels, width, groups = block.conv1[0].in_channels, block.conv1[0].out_channels, block.conv1[1].num_groups
    down = None if isinstance(block.shortcut, nn.Identity) else block.shortcut
    other = Torchvision(channels, width, downsample=down, norm_layer=lambda n: nn.GroupNorm(groups, n))
    for i, layer in enumerate((block.conv1, block.conv2, block.conv3), start=1):
        getattr(other, f"conv{i}").load_state_dict(layer[0].state_dict())
        getattr(other, f"bn{i}").load_state_dict(layer[1].state_dict())
    return other


@pytest.mark.parametrize("channels", [32, 24], ids=["identity", "projection"])
def test_the_block_is_torchvisions_with_group_norms(channels):
    block, x = ResidualBottleneck(channels, 32, 8, groups=4), torch.randn(2, channels, 5, 3)
    for parameter in block.parameters():
        nn.init.normal_(parameter)

    assert_close(block(x), as_torchvision(block)(x))


def test_weights_start_by_he_over_what_goes_out():
    block = ResidualBottleneck(512, 256, 128)

    for convolution, fan_out in ((block.conv1[0], 128), (block.conv2[0], 9 * 128), (block.shortcut[0], 256)):
        assert_close(convolution.weight.std(), torch.tensor((2 / fan_out) ** 0.5), rtol=0.02, atol=0)


@pytest.mark.parametrize(("channels", "groups"), [(768, 32), (384, 32), (112, 4), (48, 4), (7, 1)])
def test_a_bottleneck_has_as_many_groups_up_to_32_as_divide_its_channels(channels, groups):
    norms = [part for part in BottleneckHead(channels).modules() if isinstance(part, nn.GroupNorm)]

    assert [norm.num_groups for norm in norms] == [groups] * 3


def test_each_part_goes_through_its_own_block_in_its_share():
    head = built("aggregation", widths=[16, 24, 8])
    parts = head.blocks[0], head.blocks[1], head.blocks[2]
    x = maps(2, 4, 3)
    split = x.values[:, :16], x.values[:, 16:40], x.values[:, 40:]
    with torch.no_grad():
        head.mixing.copy_(torch.tensor([0.2, 0.3, 0.5]).log() + 7)

    expected = sum(share * part(some) for share, part, some in zip((0.2, 0.3, 0.5), parts, split, strict=True))

    assert_close(head.transform(x).values, expected)


def test_timesteps_of_a_layer_share_its_block_and_each_has_its_share():
    head = built("aggregation", "steps=2", widths=[16, 16, 8, 8])
    assert len(head.blocks) == 2
    x = FeatureMap(torch.randn(2, 48, 4, 3), 8)
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4])
    with torch.no_grad():
        head.mixing.copy_(shares.log() - 3)

    places = [(0, 16, 0), (16, 32, 0), (32, 40, 1), (40, 48, 1)]
    parts = [head.blocks[block](x.values[:, low:high]) for low, high, block in places]

    assert_close(head.transform(x).values, sum(share * part for share, part in zip(shares, parts, strict=True)))


def test_diffusion_hyperfeatures_file_gets_each_layer_and_timestep_by_its_share(tmp_path):
    """Its shares are timestep by timestep, and its blocks the layers'; our maps are layer by layer."""
    state = published((16, 24), 8, 32)
    state["mixing_weights"] = torch.randn(6)  # of two layers at three timesteps
    torch.save(state, tmp_path / "aggregation_network.pt")
    values = {(t, i): torch.randn(1, (16, 24)[i], 4, 4) for t in range(3) for i in range(2)}
    widths, path = [16, 16, 16, 24, 24, 24], str(tmp_path / "aggregation_network.pt")

    head = Aggregation(widths, out=32, width=8, groups=4, steps=3, weights=path).eval()

    whole = torch.cat([values[t, i] for i in range(2) for t in range(3)], dim=1)
    shares = state["mixing_weights"].softmax(0)
    expected = torch.zeros(1, 32, 4, 4)
    for number, (t, i) in enumerate((t, i) for t in range(3) for i in range(2)):  # the file's order
        alone = {"mixing_weights": torch.tensor([0.0])} | {
            key.replace(f"layers.{i}.", "layers.0."): value for key, value in state.items() if f"layers.{i}." in key
        }
        expected += shares[number] * as_published(alone, [values[t, i]], groups=4)
    assert_close(head.transform(FeatureMap(whole, 16)).values, expected, atol=1e-4, rtol=1e-4)
    state = head.state_dict()
    save_file(state, tmp_path / "head.safetensors")
    again = Aggregation(widths, 32, 8, 4, steps=3, weights=str(tmp_path / "head.safetensors"))
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    turned = Aggregation([24, 24, 24, 16, 16, 16], 32, 8, 4, steps=3, weights=path, weights_order=[1, 0])
    assert torch.equal(turned.mixing.data, head.mixing.data[[3, 4, 5, 0, 1, 2]])


@pytest.mark.parametrize(("widths", "steps"), [([16, 24], 2), ([16, 16, 16], 2), ([16], 3)])
def test_maps_that_are_not_so_many_for_each_layer_are_refused(widths, steps):
    with pytest.raises(UserError, match=r"`head.steps` is .* Give the number of its timesteps"):
        Aggregation(widths, out=32, width=8, groups=4, steps=steps)


def test_all_parts_start_with_equal_shares():
    assert torch.equal(built("aggregation", trained=False).mixing, torch.ones(2))


def test_a_training_step_sees_four_fifths_of_the_numbers_and_evaluation_all():
    head, x, seen = built("aggregation"), maps(4, 16, 16), []
    head.blocks[1].register_forward_pre_hook(lambda block, given: seen.append(given[0]))

    head.transform(x)
    head.train().transform(x)

    whole, thinned = seen
    assert torch.equal(whole, x.values[:, 16:])
    left = thinned != 0
    assert left.float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert left.any(dim=1).all()  # numbers go one by one, not cells
    assert left.flatten(2).any(-1).all()  # nor channels
    assert_close(thinned[left], whole[left] / 0.8)


# -- weights from a file --


def published(channels: int | tuple[int, ...], width: int, out: int) -> dict[str, torch.Tensor]:
    """A file in the layout of GeoAware-SC and DIY-SC, of one map or several."""
    maps = (channels,) if isinstance(channels, int) else channels
    scales = {"logit_scale": torch.tensor(3.7), "self_logit_scale": torch.tensor(2.3)}
    state = scales | {"mixing_weights": torch.rand(len(maps))}
    for number, size in enumerate(maps):
        sizes = {"conv1": (width, size, 1), "conv2": (width, width, 3), "conv3": (out, width, 1)}
        sizes |= {"shortcut": (out, size, 1)} if size != out else {}
        for name, (o, i, kernel) in sizes.items():
            key = f"bottleneck_layers.{number}.0.{name}"
            state[f"{key}.weight"] = torch.randn(o, i, kernel, kernel)
            state[f"{key}.norm.weight"], state[f"{key}.norm.bias"] = torch.randn(o), torch.randn(o)
    return state


def as_published(state: dict[str, torch.Tensor], maps: list[torch.Tensor], groups: int) -> torch.Tensor:
    """What a file makes of maps in its own order: layer by layer, each named as in the file."""
    shares = [math.exp(weight) for weight in state["mixing_weights"].tolist()]
    total = torch.zeros(())
    for number, values in enumerate(maps):

        def layer(x, name, number=number):
            key = f"bottleneck_layers.{number}.0.{name}"
            kernel = state[f"{key}.weight"]
            x = conv2d(x, kernel, padding=kernel.shape[-1] // 2).unflatten(1, (groups, -1))
            mean, variance = x.mean((2, 3, 4), keepdim=True), x.var((2, 3, 4), correction=0, keepdim=True)
            x = ((x - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
            return x * state[f"{key}.norm.weight"][:, None, None] + state[f"{key}.norm.bias"][:, None, None]

        out = layer(layer(layer(values, "conv1").clamp(min=0), "conv2").clamp(min=0), "conv3")
        added = layer(values, "shortcut") if f"bottleneck_layers.{number}.0.shortcut.weight" in state else values
        total = total + shares[number] / sum(shares) * (out + added).clamp(min=0)
    return total


def small(path: Path) -> Aggregation:
    return Aggregation([32], out=32, width=8, groups=4, weights=str(path)).eval()


def test_a_published_adapter_is_read_to_the_last_key(tmp_path):
    """Against torchvision's block with the file's numbers; only the temperatures of its losses have no place."""
    state = published(32, 8, 32)
    torch.save(state, tmp_path / "best.pth")

    head = small(tmp_path / "best.pth")

    assert len(state) == 2 + len(head.state_dict())
    assert torch.equal(head.mixing.data, state["mixing_weights"])
    other = Torchvision(32, 8, norm_layer=lambda n: nn.GroupNorm(4, n))
    for i in (1, 2, 3):
        key = f"bottleneck_layers.0.0.conv{i}"
        getattr(other, f"conv{i}").weight.data = state[f"{key}.weight"]
        norm = {"weight": state[f"{key}.norm.weight"], "bias": state[f"{key}.norm.bias"]}
        getattr(other, f"bn{i}").load_state_dict(norm)
    x = torch.randn(1, 32, 4, 6)
    assert_close(head.transform(FeatureMap(x, 8)).values, other(x))


def test_geo_awares_post_processor_gets_each_map_by_the_block_it_was_trained_with(tmp_path):
    """Its file is in the order s3, s4, s5, DINOv2; our decoder gives s5, s4, s3. s4 and s5 have the same channels."""
    state = published((640, 1280, 1280, 768), 8, 32)
    torch.save(state, tmp_path / "best.pth")
    s3, s4, s5, dino = (torch.randn(1, channels, 4, 4) for channels in (640, 1280, 1280, 768))

    head = Aggregation([1280, 1280, 640, 768], out=32, width=8, groups=4, weights=str(tmp_path / "best.pth")).eval()

    ours = head.transform(FeatureMap(torch.cat((s5, s4, s3, dino), dim=1), 16)).values
    assert_close(ours, as_published(state, [s3, s4, s5, dino], groups=4), atol=1e-4, rtol=1e-4)
    assert (ours - as_published(state, [s3, s5, s4, dino], groups=4)).abs().max() > 0.1
    assert torch.equal(head.mixing.data, state["mixing_weights"][[2, 1, 0, 3]])


@pytest.mark.parametrize(
    ("blocks", "order", "maps"),
    [
        ((16, 24, 32), None, (2, 0, 1)),  # channels tell
        ((16, 32, 32), (2, 1, 0), (2, 1, 0)),
        ((16, 32, 32), (1, 2, 0), (1, 2, 0)),
        ((32, 32, 16), (0, 1, 2), (0, 1, 2)),
    ],
)
def test_blocks_go_to_the_maps_that_channels_or_the_user_name(tmp_path, blocks, order, maps):
    state = published(blocks, 8, 32)
    torch.save(state, tmp_path / "best.pth")
    values = [torch.randn(1, channels, 4, 4) for channels in blocks]
    widths, path = [blocks[number] for number in maps], str(tmp_path / "best.pth")

    head = Aggregation(widths, out=32, width=8, groups=4, weights=path, weights_order=order).eval()

    ours = head.transform(FeatureMap(torch.cat([values[number] for number in maps], dim=1), 16)).values
    assert_close(ours, as_published(state, values, groups=4), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "output"),
    [
        (
            {},
            "maps of 16, 32, 32 channels, and does not tell which is for which of the backbone's 32, 32, 16",
        ),
        ({"weights_order": [0, 1, 1]}, "`head.weights_order` must hold each number from 0 to 2 once, got [0, 1, 1]"),
        ({"weights_order": [2, 1, 0], "weights": None}, "give `head.weights`, or no order"),
        ({"weights_order": [0, 1]}, "from 0 to 2 once, got [0, 1]"),
        (
            {"weights_order": [0, 1, -1]},
            "`head.weights_order` must be a list, each entry at least 0, or null, got [0, 1, -1]",
        ),
        ({"weights_order": [0, 1, 2]}, "does not fit this head. "),
    ],
)
def test_a_file_that_does_not_tell_its_order_is_asked_about_and_not_guessed(tmp_path, options, output):
    torch.save(published((16, 32, 32), 8, 32), tmp_path / "best.pth")

    with pytest.raises(UserError) as error:
        Aggregation([32, 32, 16], 32, 8, 4, **({"weights": str(tmp_path / "best.pth")} | options))

    assert output in str(error.value)


def test_a_head_reads_what_was_exported_of_one(tmp_path):
    head = Aggregation([32, 32, 16], out=32, width=8, groups=4)
    torch.nn.init.normal_(head.mixing)
    save_file(head.state_dict(), tmp_path / "head.safetensors")

    again, swapped = (
        Aggregation([32, 32, 16], 32, 8, 4, weights=str(tmp_path / "head.safetensors"), weights_order=order)
        for order in (None, [1, 0, 2])
    )

    assert all(torch.equal(value, again.state_dict()[key]) for key, value in head.state_dict().items())
    assert torch.equal(swapped.blocks[0].conv2[0].weight, head.blocks[1].conv2[0].weight)
    assert torch.equal(swapped.mixing, head.mixing[[1, 0, 2]])


@pytest.mark.parametrize(
    ("change", "output"),
    [
        ({"position": torch.zeros(3)}, "1 not known to this head: position"),
        ({"bottleneck_layers.0.1.conv1.weight": torch.zeros(3)}, "1 not known to this head: bottleneck_layers.0.1"),
        ({"bottleneck_layers.0.0.conv1.weight": torch.zeros(3)}, r"1 of another shape: blocks.0.conv1.0.weight \(3,\)"),
        ({"mixing_weights": torch.ones(4)}, r"1 of another shape: mixing \(4,\) for \(1,\)"),
        ({"bottleneck_layers.0.0.conv3.norm.bias": None}, r"1 missing: blocks.0.conv3.1.bias"),
    ],
)
def test_another_heads_file_is_refused_by_name(tmp_path, change, output):
    state = {key: value for key, value in (published(32, 8, 32) | change).items() if value is not None}
    torch.save(state, tmp_path / "best.pth")

    with pytest.raises(UserError, match=rf"`head\.weights`: .*best\.pth does not fit this head\. {output}"):
        small(tmp_path / "best.pth")


def test_no_code_in_a_heads_file_is_run(tmp_path):
    torch.save({"mixing_weights": nn.Linear(1, 1)}, tmp_path / "best.pth")

    with pytest.raises(UserError, match=r"`head\.weights`: .*best\.pth is a pickle that wants to call"):
        small(tmp_path / "best.pth")
