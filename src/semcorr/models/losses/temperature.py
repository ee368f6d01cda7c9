"""Learned temperatures: tau = softplus(theta) + least.

SimSC learns its temperature; neither its formula nor its initial value could be found, so both designs are
ours. The learned parameters start at zero and are added to the value that gives `initial`: weight decay then pulls
towards the initial temperature.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from semcorr.core.errors import UserError

LEAST = 0.001


class LearnedTemperature(nn.Module):
    """One learned temperature for all points of all pairs.

    >>> LearnedTemperature(initial=0.03)(torch.zeros(1, 1, 2, 2))
    tensor(0.0300, grad_fn=<AddBackward0>)
    """

    def __init__(self, initial: float = 0.03, least: float = LEAST) -> None:
        super().__init__()
        self.start, self.least = inverse_softplus(initial, least), least
        self.theta = nn.Parameter(torch.zeros(()))

    def forward(self, similarity: Float[Tensor, "b n h w"]) -> Float[Tensor, ""]:
        """Return the temperature, which does not depend on the similarity."""
        return softplus(self.start + self.theta) + self.least


class PredictedTemperature(nn.Module):
    """One temperature per point, predicted from its similarities: their maximum, mean and standard deviation.

    These tell how peaked the similarities are. The temperature of a point depends on nothing else in the batch, and
    its gradient trains the prediction, not the features.
    """

    def __init__(self, initial: float = 0.03, least: float = LEAST) -> None:
        super().__init__()
        self.start, self.least = inverse_softplus(initial, least), least
        self.linear = nn.Linear(3, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, similarity: Float[Tensor, "b n h w"]) -> Float[Tensor, "b n 1 1"]:
        """Predict the temperatures by which to divide the similarity."""
        with torch.autocast(similarity.device.type, enabled=False):
            flat = similarity.detach().flatten(2).to(self.linear.weight.dtype)
            statistics = torch.stack((flat.amax(-1), flat.mean(-1), flat.std(-1, correction=0)), dim=-1)
            return (softplus(self.start + self.linear(statistics)) + self.least)[..., None]


KINDS = {"scalar": LearnedTemperature, "point": PredictedTemperature}


def build_temperature(kind: str, initial: float) -> nn.Module:
    """Build the module of a learned temperature: `scalar` or `point`."""
    if kind not in KINDS:
        raise UserError(f"`loss.learn` must be null or one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS[kind](initial)


def inverse_softplus(initial: float, least: float) -> float:
    """Return the number that softplus maps to `initial - least`."""
    if not initial > least:
        raise UserError(f"`loss.temperature` must be more than {least} to be learned, got {initial}")
    return math.log(math.expm1(initial - least))
