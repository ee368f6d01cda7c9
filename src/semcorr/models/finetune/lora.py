"""Low-rank updates of layers inside the blocks (Hu et al. 2021); with `dora`, of their directions only."""

from collections.abc import Sequence

from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import Count, Dropout, Positive, check_arguments
from semcorr.models.finetune.targets import target_layers


@check_arguments("finetune")
def lora(
    backbone: Backbone,
    rank: Count = 8,
    alpha: Positive | None = None,
    dropout: Dropout = 0.0,
    targets: Sequence[str] | None = None,
    blocks: int | None = None,
    dora: bool = False,
) -> None:
    """Freeze everything; add `B @ A * alpha / rank` to the weights of linear layers and convolutions.

    B starts at zero, so training starts from the backbone's own features, to the bit. By default the
    queries and values move, as in the paper. timm's DINOv2 makes queries, keys and values in one layer,
    `qkv`: there the keys move, too, through the one A that the three then share.

    Args:
        rank: Of the update of each layer.
        alpha: Scales the update. Left out it equals `rank`: no scaling, whatever the rank, as DistillDIFT has it.
        dropout: Of what enters the update.
        targets: Endings of the names of the layers to adapt; the backbone's `lora_targets` if left out.
        blocks: How many of the last blocks; all if left out.
        dora: Learn each weight's magnitude by itself, and its direction by the update (Liu et al. 2024).
    """
    names = target_layers(backbone, targets, blocks)
    assert isinstance(backbone, nn.Module)
    backbone.requires_grad_(False)
    scale = rank if alpha is None else alpha
    config = LoraConfig(r=rank, lora_alpha=scale, lora_dropout=dropout, target_modules=names, use_dora=dora)  # type: ignore[arg-type]
    inject_adapter_in_model(config, backbone)
    backbone.train(backbone.training)  # what is new, too
