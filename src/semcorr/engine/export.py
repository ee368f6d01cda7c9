"""Export of a tuned backbone to files of weights that other programs read: all of them, or an adapter alone."""

import json
import os
import re
import warnings
from copy import deepcopy
from pathlib import Path

import torch
from jaxtyping import Float
from omegaconf import DictConfig
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.engine.build import build_backbone
from semcorr.models.finetune.merge import merge_adapters


def export_merged(backbone: Backbone, cfg: DictConfig, path: Path, facts: dict[str, str]) -> float:
    """Fold what tuning added into the network and write all its weights.

    Returns:
        Relative difference of the features that the written file gives.
    """
    _, network = unwrapped_network(backbone)
    if "weights" not in cfg.backbone:
        raise UserError(f"{backbone.name} takes no weights from a file, so none is written. Try --format onnx.")
    expected = compute_features(backbone)
    merge_adapters(backbone)
    _save(network.state_dict(), path, facts)
    config = getattr(network, "config", None)
    if config is not None:  # the transformers library reads beside the weights how to build and normalise
        config.save_pretrained(str(path.parent))
        statistics = {f"image_{name}": backbone.get_buffer(name).flatten().tolist() for name in ("mean", "std")}
        path.with_name("preprocessor_config.json").write_text(json.dumps(statistics) + "\n", encoding="utf-8")
    return relative_difference(compute_features(build_backbone(cfg, weights=str(path)).eval()), expected)


def export_adapter(backbone: Backbone, cfg: DictConfig, path: Path, facts: dict[str, str]) -> float:
    """Write `path`, an adapter_config.json, and the weights beside it.

    Returns:
        Relative difference of the features that peft gives with the written files.
    """
    adapted_layers = [name for name, module in backbone.named_modules() if isinstance(module, BaseTunerLayer)]
    if not adapted_layers:
        raise UserError(
            "Only a run that peft tuned, by finetune=lora for instance, has an adapter. Try another --format."
        )
    prefix, _ = unwrapped_network(backbone)
    weights = get_peft_model_state_dict(backbone, save_embedding_layers=False)
    adapter_weights = {f"base_model.model.{name.removeprefix(prefix)}": value for name, value in weights.items()}
    _save(adapter_weights, path.with_name("adapter_model.safetensors"), facts)
    config = deepcopy(vars(backbone)["peft_config"]["default"])
    # peft's own names are shortened to this network
    config.target_modules = sorted(name.removeprefix(prefix) for name in adapted_layers)
    config.base_model_name_or_path, config.inference_mode = facts["base"], True
    config.save_pretrained(str(path.parent))
    base_backbone = build_backbone(cfg).eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # peft on newer transformers
        PeftModel.from_pretrained(unwrapped_network(base_backbone)[1], str(path.parent))
    return relative_difference(compute_features(base_backbone.eval()), compute_features(backbone))


def export_head(head: nn.Module, path: Path, facts: dict[str, str]) -> None:
    """Write the weights of a head, if it has any."""
    if head.state_dict():
        _save(head.state_dict(), path, facts)


def unwrapped_network(backbone: Backbone) -> tuple[str, nn.Module]:
    """Return the prefix of the names of the one network in a backbone, and that network as other libraries know it."""
    parts = {name: part for name, part in backbone.named_children() if next(part.parameters(), None) is not None}
    for name in [name for name, part in parts.items() if isinstance(part, nn.ModuleList)]:
        parts |= {f"{name}.{i}": part for i, part in parts.pop(name).named_children()}
    if len(parts) != 1:
        raise UserError(
            f"{backbone.name} is made of several networks ({', '.join(parts)}), which no one file of weights holds. "
            "Evaluate the run itself by checkpoint=RUN."
        )
    ((name, part),) = parts.items()
    return ("", backbone) if name == "features" else (f"{name}.", part)  # torchvision itself says `features`


@torch.no_grad()
def compute_features(backbone: Backbone, image: Float[Tensor, "b 3 h w"] | None = None) -> Float[Tensor, "b c _ _"]:
    """Compute the features of images, by default of an image of noise."""
    if image is None:
        image = noise_image((backbone.size, backbone.size))
    if backbone.pairwise:
        return backbone.pair(image, image.flip(-1))[0].values
    return backbone(image).values


def noise_image(sides: tuple[int, int]) -> Float[Tensor, "1 3 h w"]:
    """Return an image of noise, the same at every call."""
    return torch.rand(1, 3, *sides, generator=torch.Generator().manual_seed(1))


def relative_difference(found: Float[Tensor, "*shape"], expected: Float[Tensor, "*shape"]) -> float:
    """Return the largest absolute difference, as a fraction of the largest expected magnitude."""
    return float((found - expected).abs().max() / expected.abs().max())


def _save(weights: dict[str, Tensor], path: Path, facts: dict[str, str]) -> None:
    """Write weights as safetensors, with facts as metadata.

    Raises:
        OSError: The file cannot be written, which safetensors reports by an error of its own.
    """
    tensors = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
    try:
        save_file(tensors, path, metadata={"format": "pt", **facts})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
