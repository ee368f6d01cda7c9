"""Any state dict as a TorchScript archive."""

import warnings
from pathlib import Path

import torch
from torch import nn

State = dict[str, torch.Tensor]


class Tower(nn.Module):
    """Parameters under dotted names, as a module that can be traced."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for name in {key.partition(".")[0] for key in state if "." in key}:
            inner = {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{name}.")}
            self.add_module(name, Tower(inner))
        for name, value in state.items():
            if "." not in name:
                self.register_parameter(name, nn.Parameter(value, requires_grad=value.is_floating_point()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum((parameter.sum() for parameter in self.parameters()), start=x)


def script(state: State, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls TorchScript deprecated
        torch.jit.save(torch.jit.trace(Tower(state), torch.ones(1)), path)
