"""Factors of the learning rate of some of a backbone's weights, which a way of tuning asks for."""

from collections.abc import Iterable

from torch import nn
from torch.nn import Parameter

FACTOR = "rate_factor"  # attribute of a parameter


def set_rate_factor(module: nn.Module, factor: float) -> None:
    """Have the trainable parameters of a module learn at the backbone's rate times a factor."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            setattr(parameter, FACTOR, float(factor))


def group_by_rate(parameters: Iterable[Parameter]) -> dict[float, list[Parameter]]:
    """Group parameters by the factors of their rate, 1 where `set_rate_factor` has set none.

    >>> first, second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> set_rate_factor(second, 100)
    >>> {factor: len(group) for factor, group in group_by_rate([first.weight, second.weight]).items()}
    {1.0: 1, 100.0: 1}
    """
    groups: dict[float, list[Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(getattr(parameter, FACTOR, 1.0), []).append(parameter)
    return groups
