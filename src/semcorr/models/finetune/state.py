"""What a checkpoint holds of a tuned backbone, and the identity of the base it was tuned from."""

from collections.abc import Collection, Mapping

from torch import nn

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone


def checkpoint_keys(backbone: nn.Module, buffers: Collection[str]) -> set[str]:
    """Return the names in the state dict of trainable parameters and of persistent buffers that tuning added.

    Tuners like VeRA and RandLoRA keep random projections in buffers, without which the learned vectors
    mean nothing. Weights that several layers share are named once.

    Args:
        backbone: The tuned backbone.
        buffers: Names of the backbone's buffers before tuning.
    """
    trainable = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    wrapped = {name: name.replace(".base_layer.", ".") for name, _ in backbone.named_buffers()}  # peft renames
    added = {name for name, original in wrapped.items() if original not in buffers}
    return (trainable | added) & set(backbone.state_dict())


def base_weights_id(backbone: Backbone) -> dict[str, str]:
    """Return name and hash of the weights that training starts from."""
    return {"backbone": backbone.name, "sha256": backbone.sha256}


def require_same_base(base: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Refuse a checkpoint that was trained from another base."""
    if base != own:
        raise UserError(
            f"The checkpoint was trained on {base['backbone']} with weights sha256 {base['sha256'][:12]}; this "
            f"backbone is {own['backbone']} with {own['sha256'][:12]}. Give the same backbone and weights."
        )


def require_same_parts(names: Collection[str], own: Collection[str]) -> None:
    """Refuse a checkpoint of other trainable weights than those of this run."""
    if unmatched := sorted(set(names) ^ set(own)):
        raise UserError(
            f"The checkpoint and this run train different weights: {', '.join(unmatched[:3])}. Use its finetune "
            "and head."
        )
