"""AdaptFormer (Chen et al. 2022): a bottleneck parallel to each feed-forward."""

from torch import nn

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import Count, Dropout, check_arguments
from semcorr.models.finetune.adapters import AdapterBottleneck, add_parallel, transformer_units
from semcorr.models.finetune.targets import last_blocks_of

NORMS = ("none", "in")


@check_arguments("finetune")
def adaptformer(
    backbone: Backbone,
    width: Count = 64,
    scale: float = 0.1,
    dropout: Dropout = 0.1,
    layernorm: str = "none",
    blocks: int | None = None,
) -> None:
    """Freeze the backbone and add a bottleneck parallel to the feed-forward of every block.

    As released: its input is the residual stream before the norm of the feed-forward, and its output is scaled and
    added outside any LayerScale; ReLU; dropout in the middle. MARCO has `layernorm="in"` and a width of half the
    channels, in nine blocks.

    Args:
        backbone: Backbone to adapt, in place.
        width: Channels in the bottleneck's middle.
        scale: Factor of the bottleneck's output.
        dropout: Dropout rate in the middle.
        layernorm: `in` puts a LayerNorm before the bottleneck, `none` does not.
        blocks: Number of last blocks to adapt; all if left out.
    """
    if layernorm not in NORMS:
        raise UserError(f"`finetune.layernorm` must be one of {', '.join(NORMS)}, got {layernorm!r}")
    units = [
        unit for block in last_blocks_of(backbone, blocks) for unit in transformer_units(block) if unit.norm is not None
    ]
    if not units:
        raise UserError(
            f"finetune=adaptformer goes beside the feed-forward of transformer blocks, and {backbone.name} has none "
            "with a norm before it. Use finetune=houlsby or finetune=lora, which work there."
        )
    assert isinstance(backbone, nn.Module)
    backbone.requires_grad_(False)
    for unit in units:
        assert unit.norm is not None
        adapter = AdapterBottleneck(
            len(unit.scale), width, nn.ReLU(), dropout, scale, norm=layernorm == "in", like=unit.scale
        )
        add_parallel(unit.norm, unit.feed_forward, adapter)
    backbone.train(backbone.training)  # also sets the mode of the new modules
