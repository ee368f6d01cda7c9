"""Selection of the part to tune: the last blocks, and the layers inside them by the endings of their names."""

from collections.abc import Sequence

from torch import nn

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.models.backbones.features import parameters_unused_by_facet
from semcorr.models.backbones.sequential import SequentialBackbone

Kinds = tuple[type[nn.Module], ...]


def last_blocks_of(backbone: Backbone, blocks: int | None) -> list[nn.Module]:
    """Return the last `blocks` blocks of a backbone, or all if None.

    Raises:
        UserError: The backbone has fewer blocks, or none at all.
    """
    require_blocks(backbone)
    depth = len(backbone.blocks)
    if blocks is not None and not 1 <= blocks <= depth:
        raise UserError(
            f"`finetune.blocks` must be between 1 and {depth}, the depth of this backbone, or null, got {blocks}"
        )
    return list(backbone.blocks)[-(blocks or depth) :]


def require_blocks(backbone: Backbone) -> None:
    """Refuse to tune a backbone that nothing in can be: a hand-crafted descriptor."""
    if not backbone.blocks:
        raise UserError(
            f"`finetune`: {backbone.name} is computed by a formula and has no weights to tune. Give finetune=frozen; "
            "head=bottleneck, for instance, is trained on top of it."
        )


def target_layers(
    backbone: Backbone, targets: Sequence[str] | None, blocks: int | None, kinds: Kinds = (nn.Linear, nn.Conv2d)
) -> list[str]:
    """Return the full names of the layers in the last blocks whose names end, at a dot, with one of `targets`.

    `qkv` and `attn.qkv` both match `model.blocks.3.attn.qkv`. Every given target must match a layer; of the
    backbone's default list, at least one must.

    Args:
        backbone: Backbone with the layers.
        targets: Endings of names; the backbone's `lora_targets` if None.
        blocks: Number of last blocks to look in; all if None.
        kinds: Types of the layers.

    Raises:
        UserError: A target matches no layer, or the backbone has fewer blocks.
    """
    selected = backbone.lora_targets if targets is None else [targets] if isinstance(targets, str) else targets
    names = adaptable_layers(backbone, blocks, kinds)
    matches = {target: [name for name in names if f".{name}".endswith(f".{target}")] for target in selected}
    unmatched = [target for target in selected if not matches[target]]
    if not any(matches.values()) or (unmatched and targets is not None):
        endings = dict.fromkeys(_name_ending(name) for name in names)
        raise UserError(
            f"`finetune.targets`: no layer of the tuned blocks of {backbone.name} that can be adapted has a name that "
            f"ends with {' or '.join(unmatched) or 'nothing'}. There are {', '.join(endings) or 'none'}."
        )
    return [name for name in names if any(name in layers for layers in matches.values())]


def adaptable_layers(backbone: Backbone, blocks: int | None, kinds: Kinds) -> list[str]:
    """Return the full names of the layers that can be adapted in the last blocks."""
    full_names = {module: name for name, module in backbone.named_modules()}
    parents = {child: parent for parent in backbone.modules() for child in parent.children()}
    modules = [module for block in last_blocks_of(backbone, blocks) for module in block.modules()]
    return [full_names[layer] for layer in modules if isinstance(layer, kinds) and _can_adapt(layer, parents[layer])]


def freeze_unused(backbone: Backbone) -> None:
    """Freeze trainable parameters that no feature depends on: with a facet, the last block is only partly used.

    They would get no gradient, and processes that train together would wait for one.

    Raises:
        UserError: No trainable parameter is left.
    """
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        return
    parts = [part for part in backbone.modules() if isinstance(part, SequentialBackbone) and part.facet != "token"]
    for part in parts:
        for parameter in parameters_unused_by_facet(part.blocks[-1], part.facet):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        raise UserError(
            f"`finetune`: `backbone.facet={parts[0].facet}` is read at the projection of the last block, and all that "
            "would be tuned comes after it. Tune more blocks (finetune.blocks=2), or set backbone.facet=token."
        )


def _can_adapt(module: nn.Module, parent: nn.Module) -> bool:
    """Tell whether a layer can be adapted: it is not a grouped convolution, and its parent calls it.

    A grouped convolution has no low rank to speak of. PyTorch's attention, and timm's EVA, BEiT and Swin v2 where
    queries and values have separate biases, use the weight of a layer without calling it: an adapter around that layer
    would have no effect.
    """
    uses_weight_only = getattr(parent, "q_bias", None) is not None and not getattr(parent, "qkv_bias_separate", False)
    bypassed = isinstance(parent, nn.MultiheadAttention) or (
        uses_weight_only and module is getattr(parent, "qkv", None)
    )
    return not bypassed and getattr(module, "groups", 1) == 1


def _name_ending(name: str) -> str:
    """Return the last part of a name, or the last two if the last is a number.

    >>> _name_ending("model.blocks.3.attn.qkv"), _name_ending("model.layer2.0.downsample.0")
    ('qkv', 'downsample.0')
    """
    parts = name.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])
