"""Adapters in series: Houlsby et al. (2019) in transformers, Rebuffi et al. (2018) in convolutional networks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import Count, check_arguments
from semcorr.models.finetune.adapters import AdapterBottleneck, add_serial, transformer_units
from semcorr.models.finetune.targets import last_blocks_of


@check_arguments("finetune")
def houlsby(backbone: Backbone, width: Count = 64, blocks: int | None = None) -> None:
    """Freeze the backbone and add two bottlenecks to every transformer block, after attention and feed-forward.

    Each is a residual branch, before the block's addition and after its LayerScale, if there is one. The paper
    starts them near the identity; here they start at it, to the bit. A block without attention gets one bottleneck
    after it, of 1 x 1 convolutions: a residual adapter in series.

    Args:
        backbone: Backbone to adapt, in place.
        width: Channels in the middle of a bottleneck.
        blocks: Number of last blocks to adapt; all if left out.
    """
    adapted_blocks = last_blocks_of(backbone, blocks)
    assert isinstance(backbone, nn.Module)
    backbone.requires_grad_(False)
    plain_blocks = [block for block in adapted_blocks if not list(transformer_units(block))]
    for block, channels in zip(plain_blocks, output_channels(backbone, plain_blocks), strict=True):
        like = next(backbone.parameters())
        add_serial(block, AdapterBottleneck(channels, width, nn.GELU(), maps=True, like=like))
    for unit in [unit for block in adapted_blocks for unit in transformer_units(block)]:
        for branch in (unit.attention, unit.feed_forward):
            add_serial(branch, AdapterBottleneck(len(unit.scale), width, nn.GELU(), like=unit.scale))
    backbone.train(backbone.training)  # also sets the mode of the new modules


def output_channels(backbone: Backbone, blocks: Sequence[nn.Module]) -> list[int]:
    """Return the output channels of `blocks`, measured in a run on a small image."""
    assert isinstance(backbone, nn.Module)
    if not blocks:
        return []
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def record_shape(block: nn.Module, _: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        shapes[block] = tuple(first.shape) if isinstance(first, Tensor) else ()

    modes = {module: module.training for module in backbone.modules()}
    hooks = [block.register_forward_hook(record_shape) for block in blocks]
    try:
        backbone.eval()  # batch norms must not learn from this image
        side = min(backbone.size, 4 * getattr(backbone, "multiple", backbone.size))
        image = next(backbone.parameters()).new_zeros(1, 3, side, side)
        with torch.no_grad():
            backbone.pair(image, image) if backbone.pairwise else backbone(image)  # type: ignore[attr-defined,operator]
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    unknown = [type(block).__name__ for block in blocks if len(shapes.get(block, ())) != 4]
    if unknown:
        raise UserError(
            f"finetune=houlsby: {unknown[0]} of {backbone.name} has neither attention and feed-forward by a name "
            "that is known nor a feature map as its output. Use finetune=lora or finetune=last_blocks."
        )
    return [shapes[block][1] for block in blocks]
