"""Unwrapping of a network's weights in checkpoints: from other state, and from prefixes of scripts and libraries."""

import re
from collections.abc import Mapping

import torch  # noqa: F401, of the examples
from torch import Tensor

from semcorr.core.text_files import JsonMapping

# Where checkpoints keep the network, best first: self-distillation evaluates its teacher.
NESTS = ("teacher", "target_encoder", "state_dict_ema", "ema_state_dict", "model_ema", "params_ema", "ema",
         "state_dict", "model_state_dict", "model_state", "model", "network", "net", "module", "backbone", "encoder",
         "params", "weights", "student")  # fmt: skip
# Of torch.compile and DistributedDataParallel, before names; of wrappers that shard or recompute blocks, also within.
WRAPPERS = re.compile(
    r"^(_orig_mod\.|module\.)+|(?<![^.])(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\."
)
PREFIXES = ("teacher.backbone.", "backbone.", "teacher.", "model_ema.", "ema.", "module.", "model.", "net.", "network.",
            "encoder.", "student.backbone.", "student.")  # fmt: skip
OWN = ("patch_embed.proj.weight", "cls_token", "conv1.weight", "conv_stem.weight", "downsample_layers.0.0.weight")
# Weights that have one name in a network, under whatever prefix the network is in a script's own module.
ANCHOR = re.compile(
    r"(.+\.|)(patch_embed\.proj|conv_stem|stem\.0|downsample_layers\.0\.0|layer1\.0\.conv1|3\.squeeze"
    r"|embeddings\.patch_embeddings?(\.projection)?)\.weight"
)
LAYOUTS = ("image_encoder.", "visual.", "features.", "vision_model.")  # prefixes of official files, read by backbones


def unwrap_checkpoint(content: JsonMapping) -> dict[str, Tensor]:
    """Return the network's own tensors in a checkpoint; of a network with heads beside `backbone.`, the backbone's.

    >>> teacher = {"module.backbone.norm.bias": torch.ones(1), "module.head.bias": torch.ones(2)}
    >>> unwrap_checkpoint({"epoch": 3, "teacher": teacher})
    {'norm.bias': tensor([1.])}
    """
    for nest in NESTS:
        if isinstance(content.get(nest), Mapping) and (inner := unwrap_checkpoint(content[nest])):
            return inner
    named = {key: value for key, value in content.items() if isinstance(value, Tensor) and isinstance(key, str)}
    tensors = {WRAPPERS.sub("", key): value for key, value in named.items()}
    for prefix in PREFIXES:
        is_backbone = prefix.endswith("backbone.") and any(key.startswith(prefix) for key in tensors)
        if is_backbone or any(prefix + key in tensors for key in OWN):
            return unwrap_checkpoint(
                {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            )
    names = list_prefixes(tensors)
    prefix = names.pop() if len(names) == 1 else ""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def list_prefixes(tensors: Mapping[str, Tensor]) -> set[str]:
    """Return the prefix of each network in a state dict; none if one of them has no prefix.

    >>> sorted(list_prefixes({"a.patch_embed.proj.weight": torch.ones(1), "b.patch_embed.proj.weight": torch.ones(1)}))
    ['a.', 'b.']
    """
    prefixes = {match[1] for key in tensors if (match := ANCHOR.fullmatch(key))}
    for layout in LAYOUTS:
        prefixes = {prefix.removesuffix(layout) if prefix.endswith(layout) else prefix for prefix in prefixes}
    return set() if "" in prefixes else prefixes
