"""State of a tuned backbone: what a checkpoint holds, the identity of its base, and its parts in training mode."""

from collections.abc import Collection, Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

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


def require_same_base(checkpoint_base: Mapping[str, str], base: Mapping[str, str]) -> None:
    """Refuse a checkpoint that was trained from another base."""
    if checkpoint_base != base:
        raise UserError(
            f"The checkpoint was trained on {checkpoint_base['backbone']} with weights sha256 "
            f"{checkpoint_base['sha256'][:12]}; this backbone is {base['backbone']} with {base['sha256'][:12]}. Give "
            "the same backbone and weights."
        )


def require_same_parts(checkpoint_names: Collection[str], names: Collection[str]) -> None:
    """Refuse a checkpoint of other trainable weights than those of this run."""
    if unmatched := sorted(set(checkpoint_names) ^ set(names)):
        raise UserError(
            f"The checkpoint and this run train different weights: {', '.join(unmatched[:3])}. Use its finetune "
            "and head."
        )


def keep_frozen_in_eval(backbone: nn.Module) -> None:
    """Put every part whose parameters are all frozen back into eval mode, after `train()`.

    Batch norms stay in eval mode even if their scale is trained: statistics of a few images would make a map
    depend on its neighbours in the batch.
    """
    parameters = list(backbone.parameters())
    if (parameters and not any(parameter.requires_grad for parameter in parameters)) or isinstance(
        backbone, _BatchNorm
    ):
        backbone.eval()
        return
    for child in backbone.children():
        keep_frozen_in_eval(child)
