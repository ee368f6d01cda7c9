"""Fine-tuning by any tuner of huggingface/peft that adapts layers, and LoRA with defaults of its own."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Annotated, Any

from peft import LoraConfig, PeftConfig, PeftType, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import Count, Dropout, OptionsOf, Positive, check_arguments
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.models.finetune.targets import adaptable_layers, target_layers

PROMPTS = "it learns prompts of a language model"
BASIS = (
    "it learns in a basis, decomposed from the weights, that no checkpoint holds and another machine may sign otherwise"
)
REFUSED = {
    "lora": "it has a file of its own: finetune=lora or finetune=dora",
    "adalora": "its ranks are allotted by calls from the training loop; without them it is LoRA by another name",
    "adamss": "it needs scikit-learn, and steps of its own during training",
    "poly": "it mixes skills by a task number that comes with each batch",
    "shadow": "it trains a copy of a language model beside it",
    "trainable_tokens": "it trains rows of a language model's embedding",
    "xlora": "it mixes LoRAs that were trained before",
    **dict.fromkeys(("adaption_prompt", "cartridge", "cpt", "multitask_prompt_tuning", "p_tuning"), PROMPTS),
    **dict.fromkeys(("prefix_tuning", "prompt_tuning"), PROMPTS),
    **dict.fromkeys(("frod", "psoft"), BASIS),
}
START: dict[str, JsonObject] = {  # to start from the pretrained features, if peft's default is random or missing
    "c3a": {"init_weights": True},
    "fourierft": {"init_weights": True},
    "ia3": {"feedforward_modules": ()},  # all scale their outputs; layers named here would scale their inputs
}
OURS = {field.name for field in fields(PeftConfig)} | {"target_modules", "target_parameters", "exclude_modules"}
OURS |= {"layers_to_transform", "layers_pattern", "modules_to_save"}


def list_tuner_configs(tuner: object) -> list[object]:
    """List the configuration class in peft of a tuner; empty for an unknown one."""
    return [config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items() if kind.value.lower() == tuner]


@check_arguments("finetune")
def peft_tuner(
    backbone: Backbone,
    tuner: str = "loha",
    targets: Sequence[str] | None = None,
    blocks: int | None = None,
    **options: Annotated[Any, OptionsOf(list_tuner_configs, by="tuner")],
) -> None:
    """Freeze the backbone and let `tuner` adapt the layers that `targets` names.

    Most start from the backbone's own features to the bit; those that reflect, project or decompose weights
    (`hra`, `deft`, `osf`) to rounding, and `vblora` and `unilora`, which start from random vectors, near them.
    Not every tuner can adapt convolutions.

    Args:
        backbone: Backbone to adapt, in place.
        tuner: peft's name of the tuner: loha, lokr, vera, boft, oft, hra, ia3, ln_tuning, fourierft, road, ...
        targets: Endings of the names of the layers to adapt; if left out the backbone's `lora_targets`, or every
            LayerNorm of the blocks for `ln_tuning`.
        blocks: Number of last blocks to adapt; all if left out.
        options: Other arguments of the tuner's configuration in peft.

    Raises:
        UserError: The tuner or an option is unknown, no layer has such a name, or peft cannot adapt the layers.
    """
    config = build_tuner_config(tuner, options)
    if tuner == "ln_tuning" and targets is None:
        names = adaptable_layers(backbone, blocks, (nn.LayerNorm,))
    else:
        names = target_layers(
            backbone, targets, blocks, (nn.LayerNorm,) if tuner == "ln_tuning" else (nn.Linear, nn.Conv2d)
        )
    backbone.requires_grad_(False)
    build = PEFT_TYPE_TO_TUNER_MAPPING[PeftType(tuner.upper())]
    with warnings.catch_warnings():  # peft expects the width of a LayerNorm where only linear layers have it
        warnings.filterwarnings("ignore", "Unsupported layer type")
        try:  # as inject_adapter_in_model, but also for tuners whose layers share weights
            build(backbone, config(target_modules=names), "default")
        except (ValueError, TypeError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"finetune=peft: peft cannot put {tuner} into {backbone.name} ({reason}).") from error
    backbone.train(backbone.training)  # also sets the mode of the new modules


def build_tuner_config(tuner: str, options: JsonMapping) -> Callable[..., PeftConfig]:
    """Return a function that makes the tuner's configuration in peft, given the layers as `target_modules`.

    Args:
        tuner: peft's name of the tuner, one of `list_tuners`.
        options: Other arguments of the configuration.

    Raises:
        UserError: The tuner or an option is unknown or not for this use.
    """
    configs = {kind.value.lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if tuner in REFUSED:
        raise UserError(
            f"finetune.tuner={tuner} is not for this: {REFUSED[tuner]}. There are {', '.join(list_tuners())}."
        )
    if tuner not in configs:
        raise UserError(
            f"`finetune.tuner`: peft has no tuner {tuner!r} that works here. There are {', '.join(list_tuners())}."
        )
    allowed = sorted({field.name for field in fields(configs[tuner]) if field.init} - OURS)
    unknown = [name for name in options if name not in allowed]
    if unknown:
        raise UserError(f"`finetune.{unknown[0]}` is not an option of {tuner}. It has {', '.join(allowed)}.")
    return partial(configs[tuner], **(START.get(tuner, {}) | dict(options)))


def list_tuners() -> list[str]:
    """List the names that `tuner` may have."""
    return sorted(kind.value.lower() for kind in PEFT_TYPE_TO_TUNER_MAPPING if kind.value.lower() not in REFUSED)


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

    B starts at zero, so training starts from the backbone's own features, to the bit. By default the queries and values
    are adapted, as in the paper (Hu et al. 2021). timm's DINOv2 computes queries, keys and values in one layer, `qkv`:
    there the keys are adapted, too, through the one A that the three then share.

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
    backbone.requires_grad_(False)
    scale = rank if alpha is None else alpha
    config = LoraConfig(r=rank, lora_alpha=scale, lora_dropout=dropout, target_modules=names, use_dora=dora)  # type: ignore[arg-type]
    inject_adapter_in_model(config, backbone)
    backbone.train(backbone.training)  # also sets the mode of the new modules
