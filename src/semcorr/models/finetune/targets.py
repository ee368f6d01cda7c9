"""Which part of a backbone is tuned: its last blocks, and the layers inside them by the endings of their names."""

from collections.abc import Sequence

from torch import nn

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.models.backbones.facets import parameters_unused_by_facet
from semcorr.models.backbones.sequential import SequentialBackbone

Kinds = tuple[type[nn.Module], ...]


def last_blocks_of(backbone: Backbone, blocks: int | None) -> list[nn.Module]:
    """The last `blocks` blocks, all of them where it is None."""
    depth = len(backbone.blocks)
    if blocks is not None and not 1 <= blocks <= depth:
        raise UserError(
            f"`finetune.blocks` must be between 1 and {depth}, the depth of this backbone, or null, got {blocks}"
        )
    return list(backbone.blocks)[-(blocks or depth) :]


def target_layers(
    backbone: Backbone, targets: Sequence[str] | None, blocks: int | None, kinds: Kinds = (nn.Linear, nn.Conv2d)
) -> list[str]:
    """Full names of the layers of the last blocks whose names end, at a dot, with one of `targets`.

    `qkv` and `attn.qkv` both match `model.blocks.3.attn.qkv`. Every target must match something; of the
    backbone's own list, which is the default, one must.
    """
    wanted = backbone.lora_targets if targets is None else [targets] if isinstance(targets, str) else targets
    names = adaptable_layers(backbone, blocks, kinds)
    found = {target: [name for name in names if f".{name}".endswith(f".{target}")] for target in wanted}
    missed = [target for target in wanted if not found[target]]
    if not any(found.values()) or (missed and targets is not None):
        endings = dict.fromkeys(_ending(name) for name in names)
        raise UserError(
            f"`finetune.targets`: no layer of the tuned blocks of {backbone.name} that can be adapted has a name that "
            f"ends with {' or '.join(missed) or 'nothing'}. There are {', '.join(endings) or 'none'}."
        )
    return [name for name in names if any(name in matches for matches in found.values())]


def adaptable_layers(backbone: Backbone, blocks: int | None, kinds: Kinds) -> list[str]:
    """Full names of what can be adapted in the last blocks."""
    assert isinstance(backbone, nn.Module)
    full = {module: name for name, module in backbone.named_modules()}
    parents = {child: parent for parent in backbone.modules() for child in parent.children()}
    inside = [module for block in last_blocks_of(backbone, blocks) for module in block.modules()]
    return [full[m] for m in inside if isinstance(m, kinds) and _adaptable(m, parents[m])]


def freeze_unused(backbone: Backbone) -> None:
    """Freeze again, of what tuning moved, what no feature depends on: the last block of a facet is not read to its end.

    No gradient would come there, and processes that train together would wait for one.
    """
    assert isinstance(backbone, nn.Module)
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


def _adaptable(module: nn.Module, parent: nn.Module) -> bool:
    """Not a grouped convolution, which has no low rank to speak of, nor a layer that is never called.

    PyTorch's attention, and timm's EVA, BEiT and Swin v2 where queries and values have a bias of their
    own, read the weight of a layer instead: whatever is put around that layer would do nothing.
    """
    reads_weight = getattr(parent, "q_bias", None) is not None and not getattr(parent, "qkv_bias_separate", False)
    bypassed = isinstance(parent, nn.MultiheadAttention) or (reads_weight and module is getattr(parent, "qkv", None))
    return not bypassed and getattr(module, "groups", 1) == 1


def _ending(name: str) -> str:
    """The last part of a name; the last two where that is a number.

    >>> _ending("model.blocks.3.attn.qkv"), _ending("model.layer2.0.downsample.0")
    ('qkv', 'downsample.0')
    """
    parts = name.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])
