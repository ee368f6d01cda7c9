"""Recognition of the network that a state dict is of, by its names and shapes, and of the backbone that takes it."""

import re
from collections.abc import Mapping

from torch import Tensor

# The backbones of each family by their width.
FAMILIES: dict[str, dict[int, str]] = {
    "DINOv2 without registers": {768: "dinov2", 384: "dinov2_s", 1024: "dinov2_l", 1536: "dinov2_g"},
    "DINOv2 with registers": {768: "dinov2_reg", 384: "dinov2_reg_s", 1024: "dinov2_reg_l", 1536: "dinov2_reg_g"},
    "DINOv3": {768: "dinov3", 384: "dinov3_s", 1024: "dinov3_l", 1280: "dinov3_hplus", 4096: "dinov3_7b"},
    "Segment Anything": {768: "sam", 1024: "sam_l", 1280: "sam_h"},
    "CLIP": {1024: "clip", 768: "clip_b16"},
    "a Vision Transformer with patches of 8 pixels, as DINO's": {768: "dino", 384: "dino_s8"},
    "a Vision Transformer with patches of 16 pixels, as DINO's, iBOT's and MAE's": {
        768: "dino_b16, ibot or mae",
        384: "dino_s16 or ibot_s",
        1024: "ibot_l or mae_l",
    },
}
OTHERS = (  # a name that only one family has, the family, what takes it
    (
        r"(model\.diffusion_model|down_blocks|decoder\.up|first_stage_model)\.",
        "Stable Diffusion",
        "backbone=sd with its whole folder",
    ),
    (r"(mixing$|mixing_weights$|bottleneck_layers\.|block\.conv1\.0\.)", "a head, not a backbone", "head.weights"),
    (r"(features\.)?3\.squeeze\.weight$", "SqueezeNet", "backbone=squeezenet"),
    (r"layer3\.22\.conv1\.weight$", "ResNet-101", "backbone=resnet101"),
    (r"layer4\.0\.conv1\.weight$", "a ResNet", "backbone=timm with its name in timm as backbone.name"),
    (r"downsample_layers\.|.*\.depthwise_conv\.", "ConvNeXt", "backbone=dinov3_convnext_tiny, or a larger one,"),
)


MERGE = (
    "Merge it into its model (`merge_and_unload` of peft; `--format merged` of semcorr.export), and give the merged "
    "weights."
)
ADAPTER = re.compile(r"(^|\.)lora_|\.lora\.|\.hada_w|(^|\.)lokr_")


def recognise_weights(state: Mapping[str, Tensor], backbone_state: Mapping[str, Tensor] | None = None) -> str:
    """Name the network and what takes it, in a sentence; an empty one where the names do not tell.

    Args:
        state: State dict to recognise, under its file's own names.
        backbone_state: State dict of the backbone that the file does not fit, under any official names.
    """
    if any(ADAPTER.search(key) for key in state):
        return f"The file is an adapter (LoRA), which holds only what was added to a model. {MERGE}"
    kind = _recognise_transformer(state)
    if kind:
        family, width = kind
        if backbone_state is not None and kind == _recognise_transformer(backbone_state):
            depths = [_count_blocks(tensors) for tensors in (state, backbone_state)]
            unequal = f"{depths[0]} blocks and not {depths[1]}: give weights of the same size"
            equal = "as this backbone is: it is not whole, or has other parts. Give its authors' file"
            return f"The file is of {family}, {width} channels wide, {equal if depths[0] == depths[1] else unequal}."
        options = FAMILIES[family]
        if width in options:
            return f"The file is of {family}, {width} channels wide: backbone={options[width]} takes it."
        sizes = ", ".join(f"{option} ({channels})" for channels, option in options.items())
        return f"The file is of {family}, {width} channels wide, which none here is: backbone={sizes}."
    for pattern, family, option in OTHERS:
        if any(re.match(pattern, key) for key in state):
            return f"The file is of {family}: {option} takes it."
    return ""


def _recognise_transformer(state: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """Return the family of a transformer, one of `FAMILIES`, and its width; None if it is none of them."""
    patch = next((v for k, v in state.items() if re.search(r"(patch_embed.*proj.*|visual\.conv1\.)weight$", k)), None)
    if patch is None or patch.ndim != 4:
        return None
    width, side = patch.shape[0], patch.shape[-1]
    words = ("register_token", "reg_token", "storage_tokens", "pos_embed", "rel_pos", "class_embedding")
    has = {word: any(word in key for key in state) for word in words}
    positions = has["pos_embed"] or any("position_embedding" in key for key in state)
    scaled = any(re.search(r"\.(ls1\.gamma|layer_scale1\.lambda1|gamma_1)$", key) for key in state)
    if has["rel_pos"]:
        return "Segment Anything", width
    if has["class_embedding"]:
        return "CLIP", width
    if has["storage_tokens"] or (not positions and (has["reg_token"] or has["register_token"])):
        return "DINOv3", width
    if side == 14 and scaled:
        registers = has["reg_token"] or has["register_token"]
        return f"DINOv2 {'with' if registers else 'without'} registers", width
    if side in (8, 16) and not scaled and any(re.match(r".*cls_token$", key) for key in state):
        patches = "8 pixels, as DINO's" if side == 8 else "16 pixels, as DINO's, iBOT's and MAE's"
        return f"a Vision Transformer with patches of {patches}", width
    return None


def _count_blocks(state: Mapping[str, Tensor]) -> int:
    """Count the blocks that a state dict has weights of."""
    return len({match[1] for key in state if (match := re.search(r"(?:^|\.)(?:blocks|layer|layers)\.(\d+)\.", key))})
