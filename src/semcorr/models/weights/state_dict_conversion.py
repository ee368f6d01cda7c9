"""Conversion of the state dicts of official files to the layouts of timm networks.

timm converts much by itself: DINOv2, DINOv3, SAM, ConvNeXt and CLIP as their authors published them. This
module brings everything else to a layout that timm knows, before timm's converter runs.
"""

import re
import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.models.weights.networks import ADAPTER, recognise_weights

State = Mapping[str, Tensor]

# Hugging Face's names, older and newer, to the authors' names; applied in order, to names without their prefix.
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
    """Convert any official layout of `model`'s family to its own, leaving out what only pretraining needs.

    Args:
        state: State dict of a file, under its own names.
        model: timm's network, which must still have all its blocks: timm's converters look shapes up in it.

    Raises:
        UserError: The file is of another network, or an adapter.
    """
    if any(ADAPTER.search(key) for key in state):
        raise UserError(f"`backbone.weights`: the file does not fit this backbone. {_suggest_weights(state)}")
    state = {
        key: value
        for key, value in convert_from_hugging_face(merge_block_chunks(state)).items()
        if not PRETRAINING.match(key)
    }
    _require_kind(state, model)
    state = _remove_zero_biases(state, model)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        return dict(convert(dict(state), model)) if convert else state
    except UserError:
        raise
    except Exception as error:  # raised by timm, on names and shapes of another network
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"`backbone.weights`: the file does not fit this backbone ({reason:.120}). {_suggest_weights(state)}"
        ) from None


def merge_block_chunks(state: State) -> State:
    """Give blocks one number instead of two: DINOv2's training code stores them in chunks.

    Its numbers within a chunk continue from chunk to chunk; other code starts again in each chunk.

    >>> list(merge_block_chunks({"blocks.0.0.attn.qkv.bias": torch.ones(1), "blocks.1.1.attn.qkv.bias": torch.ones(1)}))
    ['blocks.0.attn.qkv.bias', 'blocks.1.attn.qkv.bias']
    """
    if not any(re.match(r"blocks\.\d+\.\d+\.attn\.qkv\.", key) for key in state):
        return state
    matches = (re.match(r"blocks\.(\d+)\.(\d+)\.", key) for key in state)
    indices = sorted({(int(match[1]), int(match[2])) for match in matches if match})
    block_numbers = [block for _, block in indices]
    is_continuous = len(set(block_numbers)) == len(block_numbers)
    numbers = {pair: pair[1] if is_continuous else i for i, pair in enumerate(indices)}
    return {
        re.sub(r"^blocks\.(\d+)\.(\d+)\.", lambda m: f"blocks.{numbers[int(m[1]), int(m[2])]}.", key): value
        for key, value in state.items()
    }


def _require_kind(state: State, model: nn.Module) -> None:
    """Refuse a file with other patches or registers, which timm would resize or cannot convert."""
    model_state = model.state_dict()
    patch, expected = state.get("patch_embed.proj.weight"), model_state.get("patch_embed.proj.weight")
    if patch is None or expected is None:
        return
    if patch.ndim == 4 and expected.ndim == 4 and patch.shape[-2:] != expected.shape[-2:]:
        raise UserError(
            f"`backbone.weights`: the file is of patches of {patch.shape[-1]} pixels, and this backbone has patches of "
            f"{expected.shape[-1]}. {_suggest_weights(state)}"
        )
    counts = [
        next((tensor.shape[1] for key in REGISTERS if (tensor := tensors.get(key)) is not None and tensor.ndim == 3), 0)
        for tensors in (state, model_state)
    ]
    if counts[0] != counts[1] and ("pos_embed" in model_state or "pos_embed" in state):
        raise UserError(
            f"`backbone.weights`: the file has {counts[0] or 'no'} register tokens, and this backbone has "
            f"{counts[1] or 'none'}. {_suggest_weights(state)}"
        )


def _suggest_weights(state: State) -> str:
    """Say which network the weights are of, if it is known, or else what to give."""
    return recognise_weights(state) or "Give weights of the same model."


def convert_from_hugging_face(state: State) -> dict[str, Tensor]:
    """Rename a vision transformer of the transformers library as its authors do; return anything else as it is.

    Of a model with a text tower or a decoder, only the image encoder is returned.
    """
    if any(".depthwise_conv." in key for key in state):
        return {_rename_key(key, CONVNEXT): value for key, value in state.items()}
    anchors = (ANCHOR.fullmatch(k) for k in state)
    prefix = next((anchor[1] for anchor in anchors if anchor and "text" not in anchor[1]), None)
    if prefix is None:
        return dict(state)
    encoder = {_rename_key(k.removeprefix(prefix), HUGGING_FACE): v for k, v in state.items() if k.startswith(prefix)}
    if any(".mlp.up_proj." in key for key in encoder):
        names = GATED if any(".mlp.gate_proj." in key for key in encoder) else PLAIN
        encoder = {re.sub(r"(gate|up|down)_proj", lambda match: names[match[0]], key): v for key, v in encoder.items()}
        encoder = {"storage_tokens" if key == "register_tokens" else key: v for key, v in encoder.items()}
    for key in {"cls_token", "pos_embed"} & set(encoder):
        encoder[key] = encoder[key].reshape(1, -1, encoder[key].shape[-1])
    return fuse_projections(encoder)


def _rename_key(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    """Apply the rules, each a pattern and its replacement, one after the other."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def fuse_projections(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fuse queries, keys and values in one layer; a bias that only some of them have is zero for the rest."""
    parts = re.compile(r"(blocks\.\d+\.attn)\.[qkv]\.(weight|bias)")
    fused = {key: value for key, value in state.items() if not parts.fullmatch(key)}
    for block, kind in dict.fromkeys(match.groups() for match in map(parts.fullmatch, state) if match):
        projections = [state.get(f"{block}.{letter}.{kind}") for letter in "qkv"]
        reference = next(part for part in projections if part is not None)
        fused[f"{block}.qkv.{kind}"] = torch.cat(
            [torch.zeros_like(reference) if part is None else part for part in projections]
        )
    return fused


def _remove_zero_biases(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Remove DINOv3's query and value biases, which are zero in most of its networks, if `model` has none.

    timm removes them without looking at them. The biases of keys are masked, and in the file still as initialised.
    """
    names = [key for key in state if key.endswith("attn.qkv.bias")]
    if "storage_tokens" not in state or not names:
        return state
    if getattr(model.get_submodule("blocks.0.attn"), "q_bias", None) is not None:
        return state
    if any(part.any() for name in names for part in state[name].chunk(3)[::2]):
        name = vars(model)["pretrained_cfg"]["architecture"]
        raise UserError(
            f"`backbone.weights`: this file has query and value biases, and {name} is built without. "
            f"Set backbone.name={name}_qkvb."
        )
    return {key: value for key, value in state.items() if key not in names}
