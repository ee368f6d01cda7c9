"""Bottleneck, aggregation, attention and upsampling: published sizes, known answers, slow twins, whole programs."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_heads import built, maps, points
from torch import nn
from torch.testing import assert_close
from torchvision.models.resnet import Bottleneck as Torchvision

from semcorr.backbones.timm_model import TimmModel
from semcorr.coords import to_image
from semcorr.errors import UserError
from semcorr.evaluate import evaluate
from semcorr.heads.aggregation import Aggregation
from semcorr.heads.attention import CrossAttention, SelfAttention
from semcorr.heads.bottleneck import Bottleneck
from semcorr.heads.linear_attention import linear_attention, positions
from semcorr.heads.residual import Residual
from semcorr.heads.upsample import Upsample
from semcorr.run import build
from semcorr.train import train
from semcorr.types import FeatureMap


@pytest.mark.parametrize(
    ("head", "count"),
    [
        (lambda: Bottleneck(768), 628_992),
        (lambda: Aggregation([1280, 1280, 640, 768]), 5_150_208 + 4),
        (lambda: Aggregation([768]), 628_992 + 1),
        (lambda: SelfAttention(768), 5_901_312),
        (lambda: CrossAttention(768), 11_802_624),
        (lambda: Upsample(1024), 8_413_184),
    ],
    ids=["bottleneck", "aggregation", "aggregation of one", "self", "cross", "upsample"],
)
def test_the_published_sizes(head, count):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in head().parameters()) == count


# -- bottleneck and aggregation --


def as_torchvision(block: Residual) -> nn.Module:
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
    block, x = Residual(channels, 32, 8, groups=4), torch.randn(2, channels, 5, 3)
    for parameter in block.parameters():
        nn.init.normal_(parameter)

    assert_close(block(x), as_torchvision(block)(x))


def test_weights_start_by_he_over_what_goes_out():
    block = Residual(512, 256, 128)

    for convolution, fan_out in ((block.conv1[0], 128), (block.conv2[0], 9 * 128), (block.shortcut[0], 256)):
        assert_close(convolution.weight.std(), torch.tensor((2 / fan_out) ** 0.5), rtol=0.02, atol=0)


def test_each_part_goes_through_its_own_block_in_its_share():
    head = built("aggregation", widths=[16, 24, 8])
    parts = head.blocks[0], head.blocks[1], head.blocks[2]
    x = maps(2, 4, 3)
    split = x.values[:, :16], x.values[:, 16:40], x.values[:, 40:]
    with torch.no_grad():
        head.mixing.copy_(torch.tensor([0.2, 0.3, 0.5]).log() + 7)

    expected = sum(share * part(some) for share, part, some in zip((0.2, 0.3, 0.5), parts, split, strict=True))

    assert_close(head.adapt(x).values, expected)


def test_all_parts_start_with_equal_shares():
    assert torch.equal(built("aggregation", trained=False).mixing, torch.ones(2))


def test_a_training_step_sees_four_fifths_of_the_numbers_and_evaluation_all():
    head, x, seen = built("aggregation"), maps(4, 16, 16), []
    head.blocks[1].register_forward_pre_hook(lambda block, given: seen.append(given[0]))

    head.adapt(x)
    head.train().adapt(x)

    whole, thinned = seen
    assert torch.equal(whole, x.values[:, 16:])
    left = thinned != 0
    assert left.float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert left.any(dim=1).all()  # numbers go one by one, not cells
    assert left.flatten(2).any(-1).all()  # nor channels
    assert_close(thinned[left], whole[left] / 0.8)


def published(channels: int, width: int, out: int) -> dict[str, torch.Tensor]:
    """A file in the layout of GeoAware-SC and DIY-SC, of one map."""
    sizes = {"conv1": (width, channels, 1), "conv2": (width, width, 3), "conv3": (out, width, 1)}
    state = {"logit_scale": torch.tensor(3.7), "self_logit_scale": torch.tensor(2.3), "mixing_weights": torch.rand(1)}
    for name, (o, i, kernel) in sizes.items():
        key = f"bottleneck_layers.0.0.{name}"
        state[f"{key}.weight"] = torch.randn(o, i, kernel, kernel)
        state[f"{key}.norm.weight"], state[f"{key}.norm.bias"] = torch.randn(o), torch.randn(o)
    return state


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
    assert_close(head.adapt(FeatureMap(x, 8)).values, other(x))


def test_a_head_reads_what_was_exported_of_one(tmp_path):
    head = Aggregation([16, 32], out=32, width=8, groups=4)
    save_file(head.state_dict(), tmp_path / "head.safetensors")

    again = Aggregation([16, 32], out=32, width=8, groups=4, weights=str(tmp_path / "head.safetensors"))

    assert all(torch.equal(value, again.state_dict()[key]) for key, value in head.state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"position": torch.zeros(3)}, "1 not known to this head: position"),
        ({"bottleneck_layers.0.1.conv1.weight": torch.zeros(3)}, "1 not known to this head: bottleneck_layers.0.1"),
        ({"mixing_weights": torch.ones(4)}, r"1 of another shape: mixing \(4,\) for \(1,\)"),
        ({"bottleneck_layers.0.0.conv3.norm.bias": None}, r"1 missing: blocks.0.conv3.1.bias"),
    ],
)
def test_another_heads_file_is_refused_by_name(tmp_path, change, said):
    state = {key: value for key, value in (published(32, 8, 32) | change).items() if value is not None}
    torch.save(state, tmp_path / "best.pth")

    with pytest.raises(UserError, match=rf"`head\.weights`: .*best\.pth does not fit this head\. {said}"):
        small(tmp_path / "best.pth")


def test_no_code_in_a_heads_file_is_run(tmp_path):
    torch.save({"mixing_weights": nn.Linear(1, 1)}, tmp_path / "best.pth")

    with pytest.raises(UserError, match=r"`head\.weights`: .*best\.pth is a pickle that wants to call"):
        small(tmp_path / "best.pth")


# -- attention --


def slow_attention(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Every query with every key."""
    positive = [torch.where(some > 0, some + 1, some.exp()) for some in (queries, keys)]
    weights = torch.einsum("bnhd,bmhd->bhnm", *positive)
    return torch.einsum("bhnm,bmhe->bnhe", weights / weights.sum(-1, keepdim=True), values)


def test_linear_attention_is_attention_with_every_key():
    queries, keys, values = torch.randn(2, 7, 3, 4), torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 6)

    assert_close(linear_attention(queries, keys, values), slow_attention(queries, keys, values))


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16], ids=str)
def test_sums_over_many_cells_overflow_in_no_precision(precision):
    """4,096 keys of size 100 add up to six times what float16 can hold."""
    queries, keys, values = (torch.full((1, n, 1, 4), 100.0, dtype=precision) for n in (1, 4096, 4096))

    assert_close(linear_attention(queries, keys, values), torch.full((1, 1, 1, 4), 100.0))


def test_a_cell_has_the_same_position_on_every_grid_and_no_other_cell_has_it():
    small, large = positions(3, 5, 16).view(3, 5, 16), positions(6, 9, 16).view(6, 9, 16)

    assert torch.equal(small, large[:3, :5])
    assert torch.cdist(large.flatten(0, 1), large.flatten(0, 1)).add(torch.eye(54)).min() > 0.05
    assert_close(large.norm(dim=-1), torch.full((6, 9), 8**0.5))


def test_attention_knows_where_a_cell_is():
    """Features that are moved give other descriptors, not just moved ones."""
    head, x = built("self_attention"), maps(1, 4, 6)

    moved = FeatureMap(x.values.roll(1, dims=-1), 8)

    assert not torch.allclose(head.adapt(moved).values, head.adapt(x).values.roll(1, dims=-1), atol=1e-3)


def test_a_cell_hears_of_its_whole_image_and_of_the_other_one_only_where_it_should():
    x, other = maps(1, 4, 6), maps(1, 5, 3)
    changed = FeatureMap(x.values.clone(), 8)
    changed.values[..., 3, 5] += 1
    alone, both = built("self_attention"), built("cross_attention")

    assert (alone.adapt(x).values - alone.adapt(changed).values)[..., 0, 0].abs().max() > 1e-4
    first, second = both.adapt_both(x, other)
    after, heard = both.adapt_both(changed, other)
    assert (first.values - after.values)[..., 0, 0].abs().max() > 1e-4
    assert (second.values - heard.values)[..., 0, 0].abs().max() > 1e-5


@pytest.mark.parametrize("name", ["self_attention", "cross_attention"])
def test_the_scale_of_a_backbone_does_not_matter_to_attention(name):
    """Concatenated layers have cells of length 1, DINOv2 of about 50."""
    head, source, target, asked = built(name), maps(1, 4, 6), maps(1, 4, 6), points(1, 5)
    scaled = [FeatureMap(each.values * factor, 8) for each, factor in ((source, 100), (target, 0.01))]

    assert_close(head(*scaled, asked), head(source, target, asked), atol=1e-5, rtol=0)


def test_the_same_image_twice_is_adapted_to_the_same_twice():
    x = maps(1, 4, 6)

    first, second = built("cross_attention").adapt_both(x, x)

    assert torch.equal(first.values, second.values)


# -- upsampling --


def test_a_cell_becomes_four_by_four_around_its_centre():
    """What one cell changes is as far from its centre to the left as to the right."""
    head, x = built("upsample"), maps(1, 9, 11)
    changed = FeatureMap(x.values.clone(), 8)
    changed.values[..., 4, 6] += 1

    before, after = head.adapt(x), head.adapt(changed)

    assert (before.stride, before.values.shape[-2:]) == (2, (36, 44))
    rows, columns = (before.values != after.values).any(1)[0].nonzero().T
    pixels = to_image(torch.stack((columns, rows), dim=-1).float(), 2)
    middle = (pixels.amin(0) + pixels.amax(0)) / 2
    assert_close(middle, to_image(torch.tensor([6.0, 4.0]), 8))
    assert (pixels.amax(0) - pixels.amin(0)).tolist() == [18, 18]  # 4 cells of 2 pixels, 3 more on either side


def test_features_moved_by_a_cell_are_found_moved_by_four():
    head, x = built("upsample"), maps(1, 9, 11)

    fine, moved = head.adapt(x).values, head.adapt(FeatureMap(x.values.roll(1, dims=-1), 8)).values

    assert_close(moved[..., 8:-4], fine[..., 4:-8])


# -- options --


@pytest.mark.parametrize(("channels", "groups"), [(768, 32), (384, 32), (112, 4), (48, 4), (7, 1)])
def test_a_bottleneck_has_as_many_groups_up_to_32_as_divide_its_channels(channels, groups):
    norms = [part for part in Bottleneck(channels).modules() if isinstance(part, nn.GroupNorm)]

    assert [norm.num_groups for norm in norms] == [groups] * 3


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (
            lambda: Bottleneck(48, groups=32),
            "`head.groups` must divide the 48 channels that go out and the 12 of the middle: one of 1, 2, 3, 4, 6, 12 "
            "here, got 32. Or set `head.width` to a multiple of it.",
        ),
        (lambda: Bottleneck(64, groups=0), "`head.groups` must divide .* one of 1, 2, 4, 8, 16 here, got 0"),
        (lambda: Aggregation([8], dropout=1), "`head.dropout` must be at least 0 and below 1, got 1"),
        (lambda: SelfAttention(48, heads=5), "`head.heads` must divide the 48 channels of the features, got 5"),
        (lambda: CrossAttention(48, depth=0), "`head.depth` must be at least 1, got 0"),
        (lambda: SelfAttention(6, heads=3), "channels divide by 4, for positions; got 6"),
        (lambda: Upsample(8, stages=0), "`head.stages` must be at least 1, got 0"),
    ],
)
def test_an_option_out_of_range_is_told_its_range(attempt, message):
    with pytest.raises(UserError, match=message):
        attempt()


# -- whole programs --

QUICK = ["finetune=frozen", "data.steps=12", "data.batch_size=2", "trainer.max_epochs=1", "optimizer.lr=1e-2"]
SMALL = {
    "bottleneck": [],
    "aggregation": ["head.out=32", "head.width=8", "head.groups=4"],
    "self_attention": [],
    "cross_attention": [],
    "upsample": [],
}


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many images each call of the backbone was given."""
    calls, real = [], TimmModel.forward

    def counted(self, image):
        calls.append(len(image))
        return real(self, image)

    monkeypatch.setattr(TimmModel, "forward", counted)
    return calls


@pytest.mark.parametrize(
    ("name", "batches"),
    [
        *((name, []) for name in ("bottleneck", "aggregation", "self_attention", "cross_attention")),
        *((name, ["data.all_pairs=3"]) for name in ("upsample", "cross_attention")),
    ],
)
def test_a_head_alone_trains_from_stored_features_and_evaluates_to_the_same(
    config, tiny, tmp_path, encoded, name, batches
):
    """Of 15 images to train on and 10 to validate none is encoded twice; the test of 15 starts afresh."""
    line = [*tiny, "backbone.size=32", f"head={name}", *SMALL[name]]
    module, _ = build(config("train", *line, "finetune=frozen"))
    before = {key: value.clone() for key, value in module.moving().items()}
    encoded.clear()

    trained = train(config("train", *line, *QUICK, *batches))

    assert 30 < sum(encoded) <= 15 + 10 + 15  # 12 steps look at 48 images or more
    after = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert set(after) == set(before)
    assert all(key.startswith("head.") for key in after)
    assert any(not torch.equal(value, before[key]) for key, value in after.items())
    again = evaluate(
        config("evaluate", *line, "finetune=frozen", f"checkpoint={tmp_path / 'run'}", f"run_dir={tmp_path / 'again'}")
    )
    assert again["pck"] == trained["pck"]


def test_an_untrained_attention_scores_what_the_cosine_scores(config, tiny, tmp_path):
    line = [*tiny, "backbone.size=32"]

    cosine, within, across = (
        evaluate(config("evaluate", *line, f"head={name}", f"run_dir={tmp_path / name}"))
        for name in ("cosine", "self_attention", "cross_attention")
    )

    assert within["pck"] == across["pck"] == cosine["pck"]


def test_head_and_backbone_train_together(config, tiny, tmp_path):
    train(config("train", *tiny, *QUICK, "backbone.size=32", "finetune=blocks_1", "head=bottleneck"))

    after = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert {key.split(".")[0] for key in after} == {"backbone", "head"}
