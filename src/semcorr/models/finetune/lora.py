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
    """Freeze the backbone and add `B @ A * alpha / rank` to the weights of linear layers and convolutions.

    B starts at zero, so training starts from the backbone's own features, to the bit. By default the
    queries and values are adapted, as in the paper. timm's DINOv2 computes queries, keys and values in one layer,
    `qkv`: there the keys are adapted, too, through the one A that the three then share.

    Args:
        backbone: Backbone to adapt, in place.
        rank: Rank of the update of each layer.
        alpha: Scale of the update. If left out it equals `rank`: no scaling at any rank, as in DistillDIFT.
        dropout: Dropout rate of the update's input.
        targets: Endings of the names of the layers to adapt; the backbone's `lora_targets` if left out.
        blocks: Number of last blocks to adapt; all if left out.
        dora: Whether each weight's magnitude is learned separately, and its direction by the update (Liu et al. 2024).
    """
    names = target_layers(backbone, targets, blocks)
    assert isinstance(backbone, nn.Module)
    backbone.requires_grad_(False)
    scale = rank if alpha is None else alpha
    config = LoraConfig(r=rank, lora_alpha=scale, lora_dropout=dropout, target_modules=names, use_dora=dora)  # type: ignore[arg-type]
    inject_adapter_in_model(config, backbone)
    backbone.train(backbone.training)  # also sets the mode of the new modules
