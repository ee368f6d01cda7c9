"""What a checkpoint holds of a tuned backbone."""

from collections.abc import Collection

from torch import nn


def saved(backbone: nn.Module, buffers: Collection[str]) -> set[str]:
    """Names in the state dict: parameters that move, and persistent buffers that tuning added.

    Tuners like VeRA and RandLoRA keep random projections in buffers, without which the learned vectors
    mean nothing. Weights that several layers share are named once.

    Args:
        backbone: As tuned.
        buffers: The names of its buffers before it was.
    """
    moving = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    wrapped = {name: name.replace(".base_layer.", ".") for name, _ in backbone.named_buffers()}  # peft renames
    added = {name for name, original in wrapped.items() if original not in buffers}
    return (moving | added) & set(backbone.state_dict())
