"""What several annotated images say of a cell is weighed as a slow twin does."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from semcorr.inference.transfer.propagate import (
    agreement,
    best_source_weights,
    location_prior,
    source_fitness,
    source_weights,
    vote_similarity,
)


def toy(sources: int = 4, keypoints: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    visible = torch.rand(sources, keypoints, generator=generator) > 0.4
    visible[:, 0], visible[:, 1] = False, True
    return torch.rand(sources, keypoints, 3, 4, generator=generator), visible


@pytest.mark.parametrize("use", ["vote", "best"])
def test_the_vote_is_that_of_a_loop(use):
    similarity, visible = toy()
    fit = source_fitness(similarity, visible)
    found = vote_similarity(similarity, {"vote": source_weights, "best": best_source_weights}[use](fit, visible))

    numbers, there = similarity.double().numpy(), visible.numpy()
    fits = [np.mean([numbers[s, k].max() for k in range(5) if there[s, k]]) for s in range(4)]
    for k in range(5):
        known = [s for s in range(4) if there[s, k]]
        total = np.zeros((3, 4))
        if use == "best":
            total += numbers[max(known, key=lambda s: fits[s]), k] if known else 0
        else:
            shares = [np.exp(fits[s] / 0.1) for s in known]
            for s, share in zip(known, shares, strict=True):
                total += numbers[s, k] * share / sum(shares)
        assert_close(found[k].double(), torch.from_numpy(total), atol=1e-5, rtol=0)
    assert not found[0].any()  # which no source shows


def test_two_sources_that_agree_outvote_one_that_is_surer():
    similarity = torch.zeros(3, 1, 1, 5)
    similarity[0, 0, 0, 4] = 0.65
    similarity[1:, 0, 0, 1] = 0.6
    visible = torch.ones(3, 1, dtype=torch.bool)
    fit = source_fitness(similarity, visible)

    assert vote_similarity(similarity, source_weights(fit, visible)).argmax() == 1
    assert vote_similarity(similarity, best_source_weights(fit, visible)).argmax() == 4


def test_a_source_without_keypoints_has_no_say():
    similarity, visible = toy()
    visible[2] = False
    fit = source_fitness(similarity, visible)

    for use in (source_weights, best_source_weights):
        weights = use(fit, visible)
        assert not weights[2].any()
        assert_close(weights.sum(0), visible.any(0).float())


def test_sources_stand_behind_what_they_would_say_and_what_comes_back():
    found = torch.tensor([[10.0, 10.0]])
    own = torch.tensor([[[10.0, 12.0]], [[30.0, 10.0]], [[10.0, 10.0]]])  # near, far, near
    requested = torch.zeros(3, 1, 2)
    back = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]], [[9.0, 0.0]]])  # near, near, far
    weights = torch.tensor([[0.5], [0.3], [0.2]])

    assert agreement(own, found, back, requested, weights, max_distance=2.0).item() == pytest.approx(
        0.5 + 0.3 / 2 + 0.2 / 2
    )


def test_places_are_gaussians_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    cells, weights = torch.rand(3, 2, 2, generator=generator) * 4, torch.rand(3, 2, generator=generator)

    found = location_prior(cells, weights, (6, 4), spread=0.25)

    assert found.shape == (2, 4, 6)
    for k in range(2):
        for y in range(4):
            for x in range(6):
                off = [((x - cells[s, k, 0]) / 6) ** 2 + ((y - cells[s, k, 1]) / 4) ** 2 for s in range(3)]
                expected = sum(weights[s, k] * np.exp(-float(off[s]) / (2 * 0.25**2)) for s in range(3))
                assert found[k, y, x].item() == pytest.approx(float(expected), rel=1e-4)
