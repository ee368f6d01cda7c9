"""Propagation of labels against its definition, cell by cell."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from semcorr.matching.propagation import PropagationRule, propagate_labels, sharpen_labels


def slow_propagation(target, sources, labels, rule):
    """As DINO's: weights exp(s / T) in a window, all but a cell's k largest made 0, divided by their sum."""
    h, w = target.shape[1:]
    result = torch.zeros(labels.shape[1], h, w)
    for y in range(h):
        for x in range(w):
            weighted = []
            for t in range(len(sources)):
                for v in range(h):
                    for u in range(w):
                        if rule.radius is None or max(abs(v - y), abs(u - x)) <= rule.radius:
                            s = torch.dot(normalize(target[:, y, x], dim=0), normalize(sources[t, :, v, u], dim=0))
                            weighted.append((math.exp(s.item() / rule.temperature), labels[t, :, v, u]))
            best = sorted(weighted, key=lambda pair: -pair[0])[: rule.neighbours]
            total = sum(weight for weight, _ in best)
            result[:, y, x] = sum(weight / total * label for weight, label in best)
    return result


@pytest.mark.parametrize("values", [1, 700, 2**25])
@pytest.mark.parametrize("radius", [0, 1, 2, None])
@pytest.mark.parametrize("neighbours", [1, 3, 1000])
def test_labels_are_those_of_the_definition(neighbours, radius, values):
    target, sources, labels = torch.randn(6, 4, 5), torch.randn(3, 6, 4, 5), torch.rand(3, 2, 4, 5)
    rule = PropagationRule(neighbours, radius, 0.3)
    assert torch.allclose(
        propagate_labels(target, sources, labels, rule, values),
        slow_propagation(target, sources, labels, rule),
        atol=1e-5,
    )


def released_propagation(target, sources, labels, topk, radius):
    """The order of DINO's released script: all weights at once, a mask of the neighbourhood, a threshold, a product."""
    _, h, w = target.shape
    a, b = normalize(target.flatten(1), dim=0), normalize(sources.flatten(2), dim=1)
    weights = torch.exp(torch.einsum("cm,tck->tkm", a, b) / 0.1)
    near = torch.zeros(h, w, h, w)
    for i in range(h):
        for j in range(w):
            near[i, j, max(0, i - radius) : i + radius + 1, max(0, j - radius) : j + radius + 1] = 1
    weights = (weights * near.reshape(h * w, h * w).T).flatten(0, 1)
    weights[weights < weights.topk(topk, dim=0).values.amin(0)] = 0
    weights = weights / weights.sum(0, keepdim=True)
    return (labels.transpose(0, 1).flatten(1) @ weights).unflatten(1, (h, w))


@pytest.mark.parametrize(("topk", "radius"), [(5, 12), (5, 3), (10, 4)])
def test_labels_are_those_of_the_released_script(topk, radius):
    target, sources, labels = torch.randn(16, 12, 15), torch.randn(4, 16, 12, 15), torch.rand(4, 3, 12, 15)
    moved = propagate_labels(target, sources, labels, PropagationRule(topk, radius), values=20_000)
    assert torch.allclose(moved, released_propagation(target, sources, labels, topk, radius), atol=1e-5)


def test_a_label_moves_no_further_than_the_radius():
    """The only cell that resembles the target's lies two cells away."""
    target, sources = torch.full((2, 1, 5), 1.0), torch.full((1, 2, 1, 5), 1.0)
    target[1, 0, 0] = sources[0, 1, 0, 2] = -1.0
    labels = torch.zeros(1, 1, 1, 5)
    labels[0, 0, 0, 2] = 1.0
    near, far = (propagate_labels(target, sources, labels, PropagationRule(1, r))[0, 0, 0].item() for r in (1, 2))
    assert (near, far) == (0.0, 1.0)


def test_propagated_labels_stay_shares():
    labels = torch.rand(4, 3, 6, 6).softmax(1)
    moved = propagate_labels(torch.randn(8, 6, 6), torch.randn(4, 8, 6, 6), labels, PropagationRule())
    assert torch.allclose(moved.sum(0), torch.ones(6, 6), atol=1e-5)


def test_each_label_is_stretched_to_its_own_range_and_an_absent_one_stays_so():
    labels = torch.tensor([[[0.2, 0.6]], [[0.0, 0.0]], [[0.0, 1e-9]]])
    assert sharpen_labels(labels).tolist() == [[[0.0, 1.0]], [[0.0, 0.0]], [[0.0, 1.0]]]


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (9, 11)])
def test_an_object_that_is_everywhere_stays_so(shape, share):
    """Also after propagation, whose weights do not quite add up to one."""
    labels = torch.stack([torch.zeros(shape), torch.full(shape, share)]).expand(3, -1, -1, -1)
    moved = propagate_labels(torch.randn(8, *shape), torch.randn(3, 8, *shape), labels, PropagationRule())

    assert torch.equal(sharpen_labels(labels[0]), labels[0])
    assert torch.allclose(sharpen_labels(moved), labels[0], atol=1e-5)
