"""CATs: a plain transformer over the rows of the correlation, bound to one grid."""

import pytest
import torch
from omegaconf import OmegaConf
from tiny_cost_heads import built, centres, maps, points
from torch import nn
from torch.nn.functional import gelu, layer_norm, linear
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.models.heads.cats import CATs
from semcorr.models.heads.correlation import correlation, mutual_matching
from semcorr.train import train

pytestmark = pytest.mark.integration


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
    assert_close(head.aggregate(raw, source, target).reshape(2, 16, 16), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("grid", "millions"), [(16, 2.0), (32, 17.3), (60, 181)])
def test_the_weights_of_cats_grow_with_the_fourth_power_of_the_grid(grid, millions):
    with torch.device("meta"):
        head = CATs(768, grid)

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
