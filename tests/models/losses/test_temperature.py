"""A learned temperature starts where it is told and ends where it costs least."""

import math

import pytest
import torch
from random_steps import made_step

from semcorr.models.losses import GaussianCrossEntropy, LossInputs, gaussian_cross_entropy
from semcorr.models.losses.gaussian_cross_entropy import PredictedTemperature


def test_a_learned_temperature_starts_at_its_option_and_weight_decay_leaves_it_there():
    step, _ = made_step(torch.ones(1, 3, dtype=torch.bool))
    expected = gaussian_cross_entropy(*step[:3], 0.05)
    for kind in ("scalar", "point"):
        loss = GaussianCrossEntropy(temperature=0.05, learn=kind).double()
        torch.testing.assert_close(loss(step), expected)
        assert not any(parameter.any() for parameter in loss.parameters())


def test_a_learned_temperature_finds_the_one_that_costs_least():
    """Of a map whose softmax at 0.2 is the target, 0.2 is the best temperature."""
    similarity = torch.tensor([[[[0.0, 0.2 * math.log(3.0)]]]]).expand(1, 4, 1, 2)  # probabilities 1/4 and 3/4 at 0.2
    cells = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]])  # and so are they drawn
    step = LossInputs(similarity, cells, torch.ones(1, 4, dtype=torch.bool), cells, torch.ones(1, 4, 2), 0)
    loss = GaussianCrossEntropy(temperature=0.03, learn="scalar", kernel=1)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()

    assert loss.temperature(similarity).item() == pytest.approx(0.2, rel=0.02)


def test_a_predicted_temperature_depends_on_its_own_point_alone():
    predicted = PredictedTemperature()
    torch.nn.init.normal_(predicted.linear.weight)
    similarity = torch.rand(2, 3, 4, 4)

    alone = [predicted(similarity[i : i + 1, j : j + 1]) for i in range(2) for j in range(3)]

    torch.testing.assert_close(predicted(similarity).flatten(), torch.cat(alone).flatten())
    assert predicted(similarity).std() > 0
