"""Match-to-match attention: against complex numbers, in parts as together, at known places."""

import math

import pytest
import torch
from tiny_cost_heads import built, centres, maps
from torch import nn
from torch.nn.functional import gelu, layer_norm, linear
from torch.testing import assert_close

from semcorr.models.heads import match_to_match
from semcorr.models.heads.correlation import correlation
from semcorr.models.heads.match_to_match import FastformerLayer, MatchTokens, MatchToMatch, rotary_angles


def test_a_layer_is_fastformers_attention_with_rotated_pairs():
    """Pairs of numbers as complex ones, all tokens at once."""
    torch.manual_seed(0)
    layer, tokens = FastformerLayer(10, 4, 20), torch.randn(2, 6, 5, 10)
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
    (result,) = layer([MatchTokens(tokens.permute(0, 3, 1, 2), *places)])

    assert_close(result.values.permute(0, 2, 3, 1).flatten(1, 2), expected, atol=1e-5, rtol=1e-4)


def test_tokens_looked_at_in_parts_are_tokens_looked_at_together(monkeypatch):
    head, matrix = built("match_to_match"), torch.randn(2, 3, 4, 4, 2)

    results = []
    for tokens in (10**6, 2 * 8 * 5):  # all; five source cells, of which twelve leave two
        monkeypatch.setitem(match_to_match.TOKENS_BY_DEVICE, "cpu", tokens)
        found = head.refine(matrix)
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
    assert_close(rotary_angles(3, 5, 4)[..., 7], torch.zeros(4, 2))
    assert_close(rotary_angles(1, 2, 1)[0, 0], torch.tensor([-math.pi / 2, math.pi / 2]))
    assert rotary_angles(60, 60, 4).abs().max() == pytest.approx(5 * math.pi * 59 / 60, rel=1e-5)
