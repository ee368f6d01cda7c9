"""The state dict of an official file to the layout of a timm network.

timm converts much by itself: DINOv2, DINOv3, SAM, ConvNeXt and CLIP as their authors published them. What is
here brings everything else to a layout that timm knows, and stands before timm's converter.
"""

import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.models.backbones.weight_kinds import ADAPTER, recognise_weights

State = Mapping[str, Tensor]

# Hugging Face's names, older and newer, to the authors' names; first to last, on the names without their prefix.
HUGGING_FACE = (
    (r"^embeddings\.patch_embeddings?\.(projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.position_embeddings?(\.weight)?$", "pos_embed"),
    (r"^embeddings\.", ""),  # mask_token, register_tokens
    (r"^(encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"\.(?:attention\.attention|attention|self_attn)\.(q|k|v)(?:_proj|uery|ey|alue)\.", r".attn.\1."),
    (r"\.(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.", ".attn.proj."),
    (r"\.(layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"^pre_layrnorm\.", "norm_pre."),  # CLIP's own spelling
    (r"^(layernorm|post_layernorm)\.", "norm."),
)
GATED = {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"}  # DINOv3's largest
PLAIN = {"up_proj": "fc1", "down_proj": "fc2"}
CONVNEXT = (  # Hugging Face's DINOv3 ConvNeXt to the authors'
    (r"^(model\.)?stages\.(\d)\.downsample_layers\.", r"downsample_layers.\2."),
    (r"^(model\.)?stages\.(\d)\.layers\.", r"stages.\2."),
    (r"\.depthwise_conv\.", ".dwconv."),
    (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
    (r"(\.|^)layer_norm\.", r"\1norm."),
)
REGISTERS = ("register_tokens", "reg_token", "storage_tokens")
ANCHOR = re.compile(r"(.*\.|)embeddings\.(cls_token|class_embedding|patch_embedding\.weight)")  # of an image encoder
PRETRAINING = re.compile(r"masked_embed|decoder_|pooler\.")


def convert_to_timm(state: State, model: nn.Module) -> dict[str, Tensor]:
    """Any official layout of `model`'s family to its own; what is known to be needed in pretraining only is left out.

    `model` must still have all its blocks: timm's converters look shapes up in it.
    """
    if any(ADAPTER.search(key) for key in state):
        raise UserError(f"`backbone.weights`: the file does not fit this backbone. {_of(state)}")
    state = {
        key: value
        for key, value in convert_from_hugging_face(merge_block_chunks(state)).items()
        if not PRETRAINING.match(key)
    }
    _require_kind(state, model)
    state = _without_zero_biases(state, model)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        return dict(convert(dict(state), model)) if convert else state
    except UserError:
        raise
    except Exception as error:  # timm's, on names and shapes of another network
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"`backbone.weights`: the file does not fit this backbone ({reason:.120}). {_of(state)}"
        ) from None


def merge_block_chunks(state: State) -> State:
    """Blocks under one number, of DINOv2's training code, which keeps them in chunks.

    Its numbers within a chunk go on from chunk to chunk; others begin anew in each.

    >>> list(merge_block_chunks({"blocks.0.0.attn.qkv.bias": torch.ones(1), "blocks.1.1.attn.qkv.bias": torch.ones(1)}))
    ['blocks.0.attn.qkv.bias', 'blocks.1.attn.qkv.bias']
    """
    if not any(re.match(r"blocks\.\d+\.\d+\.attn\.qkv\.", key) for key in state):
        return state
    found = (re.match(r"blocks\.(\d+)\.(\d+)\.", key) for key in state)
    places = sorted({(int(each[1]), int(each[2])) for each in found if each})
    within = [place for _, place in places]
    going_on = len(set(within)) == len(within)
    number = {pair: pair[1] if going_on else i for i, pair in enumerate(places)}
    return {
        re.sub(r"^blocks\.(\d+)\.(\d+)\.", lambda at: f"blocks.{number[int(at[1]), int(at[2])]}.", key): value
        for key, value in state.items()
    }


def _require_kind(state: State, model: nn.Module) -> None:
    """Refuse a file of other patches or registers, which timm would resize or cannot convert."""
    own = model.state_dict()
    patch, expected = state.get("patch_embed.proj.weight"), own.get("patch_embed.proj.weight")
    if patch is None or expected is None:
        return
    if patch.ndim == 4 and expected.ndim == 4 and patch.shape[-2:] != expected.shape[-2:]:
        raise UserError(
            f"`backbone.weights`: the file is of patches of {patch.shape[-1]} pixels, and this backbone has patches of "
            f"{expected.shape[-1]}. {_of(state)}"
        )
    counts = [
        next((each.shape[1] for key in REGISTERS if (each := tensors.get(key)) is not None and each.ndim == 3), 0)
        for tensors in (state, own)
    ]
    if counts[0] != counts[1] and ("pos_embed" in own or "pos_embed" in state):
        raise UserError(
            f"`backbone.weights`: the file has {counts[0] or 'no'} register tokens, and this backbone has "
            f"{counts[1] or 'none'}. {_of(state)}"
        )


def _of(state: State) -> str:
    return recognise_weights(state) or "Give weights of the same model."


def convert_from_hugging_face(state: State) -> dict[str, Tensor]:
    """A vision transformer of the transformers library under its authors' names; anything else as it is.

    Of a model with a text tower or a decoder only the image encoder is kept.
    """
    if any(".depthwise_conv." in key for key in state):
        return {_renamed(key, CONVNEXT): value for key, value in state.items()}
    anchors = (
        re.fullmatch(r"(.*\.|)embeddings\.(cls_token|class_embedding|patch_embedding\.weight)", k) for k in state
    )
    prefix = next((anchor[1] for anchor in anchors if anchor and "text" not in anchor[1]), None)
    if prefix is None:
        return dict(state)
    own = {_renamed(k.removeprefix(prefix), HUGGING_FACE): v for k, v in state.items() if k.startswith(prefix)}
    if any(".mlp.up_proj." in key for key in own):
        names = GATED if any(".mlp.gate_proj." in key for key in own) else PLAIN
        own = {re.sub(r"(gate|up|down)_proj", lambda found: names[found[0]], key): v for key, v in own.items()}
        own = {"storage_tokens" if key == "register_tokens" else key: v for key, v in own.items()}
    for key in {"cls_token", "pos_embed"} & set(own):
        own[key] = own[key].reshape(1, -1, own[key].shape[-1])
    return _fused(own)


def _renamed(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _fused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values in one layer; a bias that only some of them have is zero for the rest."""
    parts = re.compile(r"(blocks\.\d+\.attn)\.[qkv]\.(weight|bias)")
    fused = {key: value for key, value in state.items() if not parts.fullmatch(key)}
    for block, kind in dict.fromkeys(found.groups() for found in map(parts.fullmatch, state) if found):
        own = [state.get(f"{block}.{which}.{kind}") for which in "qkv"]
        like = next(part for part in own if part is not None)
        fused[f"{block}.qkv.{kind}"] = torch.cat([torch.zeros_like(like) if part is None else part for part in own])
    return fused


def _without_zero_biases(state: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """DINOv3's query and value biases, which most of its networks learnt to be zero, where `model` has none.

    timm leaves them out unseen. The keys' are masked, and in the file whatever they were at the start.
    """
    names = [key for key in state if key.endswith("attn.qkv.bias")]
    if "storage_tokens" not in state or not names or getattr(model.blocks[0].attn, "q_bias", None) is not None:
        return state
    if any(part.any() for name in names for part in state[name].chunk(3)[::2]):
        name = model.pretrained_cfg["architecture"]
        raise UserError(
            f"`backbone.weights`: this file has query and value biases, and {name} is built without. "
            f"Set backbone.name={name}_qkvb."
        )
    return {key: value for key, value in state.items() if key not in names}
