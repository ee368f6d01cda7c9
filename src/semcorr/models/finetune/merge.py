"""Merging of fine-tuned adapters into the backbone's own weights."""

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from semcorr.core.errors import UserError
from semcorr.models.finetune.adapters import AdapterBottleneck
from semcorr.models.finetune.prompts import ConditionalPrompt, LearnedPrompt

UNMERGEABLE: dict[type[nn.Module], str] = {
    AdapterBottleneck: "adapters are not linear",
    LearnedPrompt: "a prompt is not a weight of the network",
    ConditionalPrompt: "a prompt is made again for every pair",
}


def merge_adapters(backbone: nn.Module) -> None:
    """Replace adapted layers by the backbone's original modules, with the update merged into their weights.

    The features stay the same to rounding. Blocks that were tuned directly need no merging.

    Raises:
        UserError: Something cannot be merged, as it is not linear in its input; nothing is changed then.
    """
    for kind, reason in UNMERGEABLE.items():
        if any(isinstance(module, kind) for module in backbone.modules()):
            raise _merge_error(reason)
    layers = {name: module for name, module in backbone.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, layer in layers.items():
        try:
            layer.merge()
        except NotImplementedError:  # raised by all layers of a tuner or by none
            raise _merge_error(f"peft cannot do it for {type(layer).__module__.split('.')[-2]}") from None
        backbone.set_submodule(name, layer.get_base_layer())
    if layers:
        del backbone.peft_config  # peft leaves it on the module


def _merge_error(reason: str) -> UserError:
    """Return the error that tuned weights cannot be merged, with its reason."""
    return UserError(
        f"The tuned weights cannot be merged into the weights of the backbone: {reason}. Export it whole (--format "
        "onnx), or evaluate the run itself (checkpoint=RUN)."
    )
