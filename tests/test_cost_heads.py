"""Heads that filter the correlation of two whole maps."""

import math
from itertools import product
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.nn.functional import gelu, grid_sample, layer_norm, linear
from torch.testing import assert_close

from semcorr.cli import conf_dir
from semcorr.coords import to_image
from semcorr.errors import UserError
from semcorr.evaluate import evaluate
from semcorr.heads import Separable, match_to_match
from semcorr.heads.additive_attention import Layer, Tokens
from semcorr.heads.cats import Cats
from semcorr.heads.consensus import Consensus
from semcorr.heads.correlation import correlation, mutual_matching, rows_at, swapped
from semcorr.heads.match_to_match import MatchToMatch, angles
from semcorr.localise import argmax, window_soft_argmax
from semcorr.run import build
from semcorr.train import train
from semcorr.types import FeatureMap

CHANNELS, GRID = 12, 4
STRIDE = 8.0
HEADS = ["consensus", "consensus_original", "cats", "match_to_match"]
PRECISIONS = [torch.float32, torch.float16, torch.bfloat16]
heads = pytest.mark.parametrize("name", HEADS)


def built(name: str, trained: bool = True, **options) -> nn.Module:
    """Of the configuration, with weights away from where they start."""
    torch.manual_seed(0)
    cfg = OmegaConf.load(conf_dir() / "head" / f"{name}.yaml")
    for base in cfg.pop("defaults", []):
        cfg = OmegaConf.merge(OmegaConf.load(conf_dir() / "head" / f"{base}.yaml"), cfg)
    given = {"channels": CHANNELS, "grid": GRID}
    head = instantiate(cfg, **{key: value for key, value in given.items() if key in cfg} | options)
    if trained:
        with torch.no_grad():
            for parameter in head.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
    return head


def maps(batch: int = 2, h: int = GRID, w: int = GRID, precision: torch.dtype = torch.float32) -> FeatureMap:
    return FeatureMap(torch.randn(batch, CHANNELS, h, w).to(precision), STRIDE)


def points(batch: int, n: int) -> torch.Tensor:
    return torch.rand(batch, n, 2) * 40 - 4


def centres(h: int = GRID, w: int = GRID) -> torch.Tensor:
    """Of all cells, row by row, in pixels."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return to_image(torch.stack((x, y), -1).flatten(0, 1).float(), STRIDE)[None]


# -- every head --


@heads
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_similarity_is_in_single_precision_and_finite(name, precision):
    similarity = built(name)(maps(precision=precision), maps(precision=precision), points(2, 5))

    assert similarity.shape == (2, 5, GRID, GRID)
    assert similarity.dtype == torch.float32
    assert similarity.isfinite().all()


@heads
def test_gradients_in_half_precision_are_finite_and_reach_everything(name):
    head, pair = built(name), [maps(precision=torch.bfloat16) for _ in range(2)]
    for one in pair:
        one.values.requires_grad_()

    with torch.autocast("cpu", torch.bfloat16):
        head(*pair, points(2, 5)).square().sum().backward()

    gradients = [one.grad for one in (*head.parameters(), *(one.values for one in pair))]
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


@heads
def test_images_of_a_batch_do_not_meet(name):
    head, source, target, asked = built(name).eval(), maps(), maps(), points(2, 5)

    together = head(source, target, asked)
    alone = head(FeatureMap(source.values[1:], STRIDE), FeatureMap(target.values[1:], STRIDE), asked[1:])

    assert_close(together[1:], alone, atol=1e-5, rtol=1e-4)


@heads
def test_without_gradients_the_answer_is_the_same(name):
    head, source, target, asked = built(name), maps(), maps(), points(2, 5)

    with torch.no_grad():
        lean = head(source, target, asked)

    assert_close(lean, head(source, target, asked), atol=1e-6, rtol=1e-5)


@heads
def test_no_points_have_no_similarity(name):
    assert built(name)(maps(1), maps(1), points(1, 0)).shape == (1, 0, GRID, GRID)


@heads
def test_both_maps_are_needed_at_once(name):
    assert not isinstance(built(name), Separable)


@pytest.mark.parametrize("name", ["consensus", "consensus_original", "match_to_match"])
def test_maps_may_have_any_grid(name):
    similarity = built(name)(maps(1, 3, 5), maps(1, 4, 2), points(1, 6))

    assert similarity.shape == (1, 6, 4, 2)


@heads
def test_an_untrained_head_finds_the_cells_that_are_the_same(name):
    """Cells of the source, elsewhere in the target; where a soft-argmax at the usual temperature looks too."""
    head, order = built(name, trained=False), torch.randperm(GRID**2, generator=torch.Generator().manual_seed(1))
    scene = torch.eye(GRID**2)[:, :, None].expand(-1, -1, 1).reshape(1, GRID**2, GRID, GRID)
    if name == "cats":
        head = built(name, trained=False, channels=GRID**2)
    moved = scene.flatten(2)[..., order].view_as(scene)

    similarity = head(FeatureMap(scene, STRIDE), FeatureMap(moved, STRIDE), centres())

    found = argmax(similarity)[0]
    assert (found[:, 1] * GRID + found[:, 0]).long().tolist() == order.argsort().tolist()
    assert_close(window_soft_argmax(similarity)[0], found, atol=0.1, rtol=0)


@heads
def test_it_trains_and_is_evaluated_through_its_configuration(config, tiny, tmp_path, name):
    overrides = [*tiny, f"head={name}", "backbone.size=32"]
    quick = ["finetune.blocks=0", "data.steps=3", "data.batch_size=2", "trainer.max_epochs=1", "optimizer.lr=1e-3"]
    if name == "consensus_original":
        overrides += ["head.kernels=[5,3]", "head.widths=[4,1]"]
    cfg = config("train", *overrides, *quick)
    before = {name: value.clone() for name, value in build(cfg)[0].state_dict().items()}
    trained = train(cfg)

    weights = torch.load(Path(tmp_path / "run/checkpoints/last.ckpt"), weights_only=True)["state_dict"]
    assert {key for key in before if key.startswith("head.")} == set(weights)
    assert all(value.isfinite().all() and not value.equal(before[key]) for key, value in weights.items())
    again = config("evaluate", *overrides, f"checkpoint={tmp_path / 'run'}", f"run_dir={tmp_path / 'again'}")
    assert evaluate(again)["pck"] == trained["pck"]


# -- correlation --


def test_the_correlation_is_the_cosine_of_every_two_cells():
    source, target = torch.randn(2, 5, 3, 2), torch.randn(2, 5, 2, 4)

    found = correlation(source, target)

    for b, h, w, k, l in product(range(2), range(3), range(2), range(2), range(4)):  # noqa: E741
        one, other = source[b, :, h, w], target[b, :, k, l]
        assert found[b, h, w, k, l].item() == pytest.approx((one @ other / one.norm() / other.norm()).item(), abs=1e-5)


def test_mutual_matching_keeps_a_permutation():
    matrix = torch.eye(6)[torch.randperm(6)].view(1, 2, 3, 3, 2)

    assert_close(mutual_matching(matrix), matrix, atol=3e-5, rtol=0)


def test_mutual_matching_is_the_published_formula():
    matrix = torch.rand(2, 3, 2, 2, 4)

    found = mutual_matching(matrix)

    for b, h, w, k, l in product(range(2), range(3), range(2), range(2), range(4)):  # noqa: E741
        value, of_target, of_source = matrix[b, h, w, k, l], matrix[b, :, :, k, l].max(), matrix[b, h, w].max()
        expected = value * (value / (of_target + 1e-5)) * (value / (of_source + 1e-5))
        assert found[b, h, w, k, l].item() == pytest.approx(expected.item(), rel=1e-5)


def test_rows_of_points_are_interpolated_over_the_sources_cells():
    """PyTorch's own interpolation; points inside, on the border and beyond; its gradient too."""
    volume, asked = torch.randn(2, 3, 5, 2, 4, requires_grad=True), points(2, 30)
    grid = (asked + 0.5) * 2 / torch.tensor([5 * STRIDE, 3 * STRIDE]) - 1
    images = volume.flatten(3).permute(0, 3, 1, 2)

    expected = grid_sample(images, grid[:, :, None], padding_mode="border", align_corners=False)
    expected = expected[..., 0].transpose(1, 2).unflatten(-1, (2, 4))
    found = rows_at(volume, asked, STRIDE)

    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((it * weights).sum(), volume)[0] for it in (found, expected)]
    assert_close(*gradients, atol=1e-5, rtol=1e-5)


# -- neighbourhood consensus --


@pytest.mark.parametrize(("name", "weights"), [("consensus", 6_497), ("consensus_original", 180_033)])
def test_neighbourhood_consensus_has_the_published_number_of_weights(name, weights):
    assert sum(parameter.numel() for parameter in built(name).parameters()) == weights


def test_swapping_source_and_target_transposes_what_consensus_finds():
    head, matrix = built("consensus"), torch.rand(2, 3, 4, 2, 5)

    assert_close(swapped(head.filtered(matrix)), head.filtered(swapped(matrix)), atol=1e-6, rtol=1e-4)


def test_consensus_by_hand_on_two_by_two_cells():
    """One kernel of two taps, the middle and the next column of the source; a bias that silences the weakest."""
    head = Consensus(kernels=[3], widths=[1])
    with torch.no_grad():
        head.layers[0].weight.zero_()
        head.layers[0].weight[0, 0, 1, 1, 1, 1] = 2.0
        head.layers[0].weight[0, 0, 1, 2, 1, 1] = 1.0
        head.layers[0].bias.fill_(-0.3)
    source, target = maps(1, 2, 2), maps(1, 2, 2)
    cells = list(product(range(2), repeat=4))

    def mutual(x):
        best = lambda a, b: max(x[c] for c in cells if (c[:2] == a or a is None) and (c[2:] == b or b is None))  # noqa: E731
        return {c: x[c] ** 3 / ((best(c[:2], None) + 1e-5) * (best(None, c[2:]) + 1e-5)) for c in cells}

    cosines = correlation(source.values, target.values)[0]
    x = mutual({c: max(0.0, cosines[c].item()) for c in cells})
    y = {
        (a, b, c, d): max(0, 2 * x[a, b, c, d] + (x[a, 1, c, d] if b == 0 else 0) - 0.3)
        + max(0, 2 * x[a, b, c, d] + (x[a, b, c, 1] if d == 0 else 0) - 0.3)
        for a, b, c, d in cells
    }
    assert 0 < sum(value == 0 for value in y.values()) < 14
    z = mutual(y)
    expected = [z[c] / (max(y[*c[:2], *other] for other in product(range(2), repeat=2)) + 1e-5) for c in cells]

    found = head(source, target, centres(2, 2))

    assert_close(found.flatten(), torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_the_second_pass_sees_the_transposed_volume():
    head, matrix = built("consensus_original"), torch.rand(1, 3, 2, 4, 3)
    stack = nn.Sequential(*(layer for one in head.layers for layer in (one, nn.ReLU())))

    def both(volume):
        volume = mutual_matching(volume)
        there, back = stack(volume[:, None])[:, 0], stack(swapped(volume)[:, None])[:, 0]
        return there + swapped(back)

    assert_close(head.filtered(matrix), both(matrix), atol=1e-5, rtol=1e-4)
    weights = torch.randn(1, 3, 2, 4, 3)
    ours, plain = (
        torch.autograd.grad((of(matrix) * weights).sum(), [*head.parameters()]) for of in (head.filtered, both)
    )
    for one, other in zip(ours, plain, strict=True):
        assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_consensus_lies_between_0_and_1_whatever_the_filters_scale_is():
    head, pair, asked = built("consensus"), (maps(), maps()), centres().expand(2, -1, -1)
    similarity = head(*pair, asked)
    with torch.no_grad():
        head.layers[-1].weight *= 100
        head.layers[-1].bias *= 100
    louder = head(*pair, asked)

    assert similarity.min() >= 0
    assert similarity.amax((1, 2, 3)).tolist() == pytest.approx([1, 1], abs=1e-2)
    assert similarity.max() <= 1
    assert_close(louder, similarity, atol=1e-2, rtol=0)


def test_what_consensus_keeps_for_backward_does_not_grow_with_its_layers():
    def kept(depth: int) -> int:
        head, total, matrix = Consensus([3] * depth, [8] * (depth - 1) + [1]), [], torch.rand(1, 5, 5, 5, 5)
        with torch.autograd.graph.saved_tensors_hooks(lambda one: total.append(one.numel()) or one, lambda one: one):
            head.filtered(matrix)
        return sum(total)

    assert kept(4) == kept(2) < 6 * 5**4


# -- CATs --


def test_cats_is_a_plain_transformer_over_the_rows_of_the_correlation():
    """With PyTorch's own attention, position by position; target cells first, then source cells."""
    head, raw, source, target = built("cats", projected=8), torch.rand(2, 4, 4, 4, 4), maps().values, maps().values
    block, matrix = head.blocks[0], raw.reshape(2, 16, 16)
    attention = nn.MultiheadAttention(24, 6, batch_first=True)
    attention.in_proj_weight, attention.in_proj_bias = block.qkv.weight, block.qkv.bias
    attention.out_proj = block.merge

    def passed(rows, features):
        own = [[head.project(features[b, :, i // 4, i % 4]) for i in range(16)] for b in range(2)]
        tokens = torch.cat((rows, torch.stack([torch.stack(one) for one in own])), -1)
        tokens = tokens + torch.stack([torch.cat((head.columns[i % 4], head.rows[i // 4])) for i in range(16)])
        normed = layer_norm(tokens, (24,), block.norm1.weight, block.norm1.bias, 1e-6)
        tokens = tokens + attention(normed, normed, normed)[0]
        normed = layer_norm(tokens, (24,), block.norm2.weight, block.norm2.bias, 1e-6)
        middle = gelu(linear(normed, block.mlp[0].weight, block.mlp[0].bias))
        return head.out(tokens + linear(middle, block.mlp[2].weight, block.mlp[2].bias))

    there = passed(matrix.mT, target).mT + matrix
    expected = passed(there, source) + matrix

    assert (expected - matrix).std() > 0.05  # something to compare
    assert_close(head.aggregated(raw, source, target).reshape(2, 16, 16), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("grid", "millions"), [(16, 2.0), (32, 17.3), (60, 181)])
def test_the_weights_of_cats_grow_with_the_fourth_power_of_the_grid(grid, millions):
    with torch.device("meta"):
        head = Cats(768, grid)

    width = grid**2 + 128
    inner = width // 6 * 6
    attention, mlp = width * 3 * inner + 3 * inner + inner * width + width, 8 * width**2 + 5 * width
    around = 768 * 128 + 128 + grid * width + width * grid**2 + grid**2 + 4 * width
    found = sum(parameter.numel() for parameter in head.parameters())
    assert found == attention + mlp + around
    assert found / 1e6 == pytest.approx(millions, rel=0.02)


def test_untrained_cats_is_the_mutually_matched_correlation():
    source, target = maps(), maps()
    expected = mutual_matching(correlation(source.values, target.values).relu()).flatten(1, 2)

    similarity = built("cats", trained=False)(source, target, centres().expand(2, -1, -1))

    assert_close(similarity, expected, atol=1e-6, rtol=1e-5)


def test_tokens_that_do_not_divide_by_the_heads_keep_a_rest():
    """As 3,728 numbers and 6 heads do, at 60 cells."""
    head = built("cats", grid=3, projected=4)

    assert head(maps(1, 3, 3), maps(1, 3, 3), points(1, 2)).shape == (1, 2, 3, 3)


@pytest.mark.parametrize("pair", [((4, 4), (5, 5)), ((4, 6), (4, 4))])
def test_cats_refuses_another_grid_and_says_which(pair):
    source, target = (maps(1, *size) for size in pair)

    with pytest.raises(UserError, match=r"weights for 4 x 4 cells, and was given features of (5 x 5|6 x 4).*=4`"):
        built("cats")(source, target, points(1, 2))


def test_the_grid_of_cats_is_that_of_the_backbone_and_is_written_down(config, tiny, tmp_path):
    quick = ["finetune.blocks=0", "data.steps=1", "data.batch_size=1", "trainer.max_epochs=1"]
    train(config("train", *tiny, "head=cats", "backbone.grid=3", *quick))

    assert OmegaConf.load(tmp_path / "run/config.yaml").head.grid == 3


# -- match to match --


def test_a_layer_is_fastformers_attention_with_rotated_pairs():
    """Pairs of numbers as complex ones, all tokens at once."""
    torch.manual_seed(0)
    layer, tokens = Layer(10, 4, 20), torch.randn(2, 6, 5, 10)
    source, target = torch.randn(6, 2, 2), torch.randn(5, 2, 2)  # two heads each, x and y
    turn = torch.cat((source[:, None].expand(-1, 5, -1, -1), target[None].expand(6, -1, -1, -1)), 2).flatten(0, 1)
    for norm in (layer.norm1, layer.norm2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)

    def split(weights, x):
        return linear(x, weights.weight).unflatten(-1, (4, 2, 2))

    def summed(logits, pairs):
        weights = torch.softmax(logits / math.sqrt(4), dim=1)
        return torch.einsum("bth,bthp->bhp", weights, pairs)[:, None]

    x = tokens.flatten(1, 2)
    normed = layer_norm(x, (10,), layer.norm1.weight, layer.norm1.bias)
    q, k, v = (split(one, normed) for one in (layer.query, layer.key, layer.value))
    turned_q, turned_k, turned_v = (
        torch.view_as_complex(one) * torch.polar(torch.ones_like(turn), turn) for one in (q, k, v)
    )
    query = summed(q.flatten(-2) @ layer.query_weight.weight[0], turned_q.to(torch.complex64).real) + 1j * summed(
        q.flatten(-2) @ layer.query_weight.weight[0], turned_q.imag
    )
    logits = (turned_k * query.conj()).real @ layer.key_weight.weight[0]
    key = summed(logits, turned_k.real) + 1j * summed(logits, turned_k.imag)
    found = linear((turned_v * key.conj()).real, layer.spread.weight, layer.spread.bias) + q.flatten(-2)
    x = x + layer.merge(found.flatten(-2))
    normed = layer_norm(x, (10,), layer.norm2.weight, layer.norm2.bias)
    expected = x + layer.narrow(gelu(layer.widen(normed)))

    places = source.permute(1, 2, 0)[..., None], target.permute(1, 2, 0)[:, :, None]
    (result,) = layer([Tokens(tokens.permute(0, 3, 1, 2), *places)])

    assert_close(result.values.permute(0, 2, 3, 1).flatten(1, 2), expected, atol=1e-5, rtol=1e-4)


def test_tokens_looked_at_in_parts_are_tokens_looked_at_together(monkeypatch):
    head, matrix = built("match_to_match"), torch.randn(2, 3, 4, 4, 2)

    results = []
    for tokens in (10**6, 2 * 8 * 5):  # all; five source cells, of which twelve leave two
        monkeypatch.setitem(match_to_match.TOKENS, "cpu", tokens)
        found = head.refined(matrix)
        results.append([found, *torch.autograd.grad(found.square().sum(), [*head.parameters()])])

    for one, other in zip(*results, strict=True):
        assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_untrained_match_to_match_is_the_cosine():
    source, target = maps(1), maps(1)

    similarity = built("match_to_match", trained=False)(source, target, centres())

    assert_close(similarity, correlation(source.values, target.values).flatten(1, 2), atol=1e-5, rtol=0)


def test_match_to_match_has_16_numbers_a_token_and_26_thousand_weights():
    layer = 2 * 2 * 16 + 3 * 16 * 32 + 4 + 2 + (2 * 4 + 4) + (32 * 16 + 16) + (2 * 16 * 64 + 64 + 16)

    assert sum(parameter.numel() for parameter in MatchToMatch().parameters()) == 32 + 6 * layer + 32 + 17


def test_where_a_cell_is_does_not_depend_on_how_many_there_are():
    """The middle of the image is turned by nothing, its corners by most."""
    assert_close(angles(3, 5, 4)[..., 7], torch.zeros(4, 2))
    assert_close(angles(1, 2, 1)[0, 0], torch.tensor([-math.pi / 2, math.pi / 2]))
    assert angles(60, 60, 4).abs().max() == pytest.approx(5 * math.pi * 59 / 60, rel=1e-5)


# -- options --


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: Consensus([3, 3], [8, 8, 1]), r"`head.kernels` and `head.widths` must be as many.*\[3, 3\]"),
        (lambda: Consensus([3, 3], [8, 8]), "the last width 1"),
        (lambda: Consensus([3, 4], [8, 1]), "`head.kernels` must be odd and positive, got 4"),
        (lambda: Cats(8, 4, depth=0), "`head.depth` must be at least 1"),
        (lambda: Cats(8, 2, heads=200), "`head.heads` between 1 and 132, got 1 and 200"),
        (lambda: MatchToMatch(heads=3), "`head.heads` must be even.*got 3"),
    ],
)
def test_options_out_of_range_are_told_their_range(attempt, message):
    with pytest.raises(UserError, match=message):
        attempt()
