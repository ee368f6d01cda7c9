"""Temperatures that are learned: tau = softplus(theta) + least.

SimSC learns its temperature; neither its formula nor its initial value could be found, so both designs are
ours. Whatever is learned starts at zero and is added to what `initial` amounts to: weight decay then pulls
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
    """One number for all points of all pairs.

    >>> LearnedTemperature(initial=0.03)(torch.zeros(1, 1, 2, 2))
    tensor(0.0300, grad_fn=<AddBackward0>)
    """

    def __init__(self, initial: float = 0.03, least: float = LEAST) -> None:
        super().__init__()
        self.start, self.least = inverse_softplus(initial, least), least
        self.theta = nn.Parameter(torch.zeros(()))

    def forward(self, similarity: Float[Tensor, "b n h w"]) -> Float[Tensor, ""]:
        """The same whatever the similarity."""
        return softplus(self.start + self.theta) + self.least


class PredictedTemperature(nn.Module):
    """One number per point, predicted from its similarities: their maximum, mean and standard deviation.

    A pair says by them how peaked it is. The temperature of a point depends on nothing else in the batch, and its
    gradient moves the prediction, not the features.
    """

    def __init__(self, initial: float = 0.03, least: float = LEAST) -> None:
        super().__init__()
        self.start, self.least = inverse_softplus(initial, least), least
        self.linear = nn.Linear(3, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, similarity: Float[Tensor, "b n h w"]) -> Float[Tensor, "b n 1 1"]:
        """To divide the similarity by."""
        with torch.autocast(similarity.device.type, enabled=False):
            flat = similarity.detach().flatten(2).to(self.linear.weight.dtype)
            seen = torch.stack((flat.amax(-1), flat.mean(-1), flat.std(-1, correction=0)), dim=-1)
            return (softplus(self.start + self.linear(seen)) + self.least)[..., None]


KINDS = {"scalar": LearnedTemperature, "point": PredictedTemperature}


def build_temperature(kind: str, initial: float) -> nn.Module:
    """The module that learns a temperature."""
    if kind not in KINDS:
        raise UserError(f"`loss.learn` must be null or one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS[kind](initial)


def inverse_softplus(initial: float, least: float) -> float:
    """What softplus maps to `initial - least`."""
    if not initial > least:
        raise UserError(f"`loss.temperature` must be more than {least} to be learned, got {initial}")
    return math.log(math.expm1(initial - least))
