"""Every official layout of a network's weights loads to the same features."""

import argparse
import re

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchscript_cases import script

from semcorr.core.errors import UserError
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.weights.state_dict_conversion import convert_to_timm

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2, "size": 64, "patch_size": 8, "pretrained": False}
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "size": 64, "pretrained": False}
SAM = SMALL | {
    "patch_size": 16,
    "img_size": 128,
    "window_size": 3,
    "global_attn_indexes": (2,),
    "size": 128,
    "norm": False,
}
IMAGE = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
State = dict[str, torch.Tensor]


def shaken(name: str, seed: int = 0, **options) -> TimmModel:
    """No parameter as it was at the start, so that none can be left out unnoticed."""
    backbone = TimmModel(name, **options).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in backbone.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return backbone


def renamed(state: State, *rules: tuple[str, str]) -> State:
    for pattern, replacement in rules:
        state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    return state


def dino(own: State) -> State:
    return own


def other(own: State) -> State:
    """Weights that must not be taken."""
    return {key: torch.full_like(value, torch.nan) for key, value in own.items()}


def dino_full(own: State) -> dict:
    heads = {"head.mlp.0.weight": torch.ones(4, 32), "head.last_layer.weight_g": torch.ones(4, 1)}
    teacher = {f"backbone.{key}": value for key, value in own.items()} | heads
    student = {f"module.{key}": value for key, value in (other(teacher)).items()}
    return {
        "student": student,
        "teacher": teacher,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_base", patch_size=8),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }


def ibot_teacher(own: State) -> dict:
    return {"state_dict": own | {"masked_embed": torch.zeros(1, 32)}}


def ibot_full(own: State) -> dict:
    teacher = {f"module.backbone.{key}": value for key, value in ibot_teacher(own)["state_dict"].items()}
    return {
        "student": other(teacher),
        "teacher": teacher | {"module.head.mlp.0.weight": torch.ones(4, 32)},
        "ibot_loss": {"center2": torch.zeros(1, 1, 4)},
    }


def mae(own: State) -> dict:
    return {"model": own}


def mae_full(own: State) -> dict:
    return {"model": own | {"mask_token": torch.ones(1, 1, 8), "decoder_blocks.0.attn.qkv.weight": torch.ones(24, 8)}}


def dinov2(own: State) -> State:
    return own | {"mask_token": torch.zeros(1, 32)}


def dinov2_registers(own: State) -> State:
    """The class token and its position, which timm adds up, apart; positions over class token and patches."""
    position = torch.full((1, 1, 32), 0.25)
    tokens = {"register_tokens": own["reg_token"], "cls_token": own["cls_token"] - position}
    kept = {key: value for key, value in own.items() if key != "reg_token"}
    return dinov2(kept | tokens | {"pos_embed": torch.cat([position, own["pos_embed"]], dim=1)})


def dinov2_giant(own: State) -> State:
    return dinov2(renamed(own, (r"mlp\.fc1", "mlp.w12"), (r"mlp\.fc2", "mlp.w3")))


def dinov2_training(own: State) -> dict:
    return {
        "teacher": {f"backbone.{key}": value for key, value in dinov2(own).items()} | {"dino_head.x": torch.ones(1)}
    }


def dinov3(own: State) -> State:
    """Biases of queries, keys and values are one tensor, masked where it is the keys'."""
    extra = {"mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.ones(4, dtype=torch.bfloat16)}
    kept = {key: value for key, value in own.items() if not key.endswith(("q_bias", "v_bias"))}
    for i in range(3):
        query = own.get(f"blocks.{i}.attn.q_bias", torch.zeros(32))
        value = own.get(f"blocks.{i}.attn.v_bias", torch.zeros(32))
        extra[f"blocks.{i}.attn.qkv.bias"] = torch.cat([query, torch.full((32,), torch.nan), value])
        extra[f"blocks.{i}.attn.qkv.bias_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(32)
    names = (r"^reg_token$", "storage_tokens"), (r"\.gamma_(\d)$", r".ls\1.gamma")
    return renamed(kept, *names) | extra


def dinov3_convnext(own: State) -> State:
    names = (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"\.conv_dw\.", ".dwconv."),
        (r"\.mlp\.fc(\d)\.", r".pwconv\1."),
    )
    norms = {"norm.weight": torch.ones(32), "norm.bias": torch.ones(32), "norms.3.weight": torch.ones(32)}
    last = {"downsample_layers.3.1.weight": torch.ones(32, 24, 2, 2), "stages.3.0.pwconv1.weight": torch.ones(128, 32)}
    return renamed(own, *names) | norms | last


def sam(own: State) -> State:
    encoder = renamed(own, (r"\.mlp\.fc(\d)", r".mlp.lin\1"), ("^", "image_encoder."))
    neck = {"image_encoder.neck.0.weight": torch.ones(256, 32, 1, 1)}
    return encoder | neck | {"prompt_encoder.no_mask_embed.weight": torch.ones(1, 256), "mask_decoder.x": torch.ones(1)}


def clip(own: State) -> State:
    names = (
        (r"^patch_embed\.proj", "conv1"),
        (r"^norm_pre", "ln_pre"),
        (r"^norm\.", "ln_post."),
        (r"^blocks", "transformer.resblocks"),
        (r"\.norm(\d)\.", r".ln_\1."),
        (r"\.attn\.qkv\.", ".attn.in_proj_"),
        (r"\.attn\.proj\.", ".attn.out_proj."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    )
    tower = renamed(own, *names)
    tower["class_embedding"] = tower.pop("cls_token").flatten()
    tower["positional_embedding"] = tower.pop("pos_embed")[0]
    tower["proj"] = torch.ones(32, 16)
    text = {"token_embedding.weight": torch.ones(5, 16), "transformer.resblocks.0.ln_1.bias": torch.ones(16)}
    return {f"visual.{key}": value for key, value in tower.items()} | text | {"logit_scale": torch.tensor(4.6)}


def open_clip_timm(own: State) -> State:
    return {f"visual.trunk.{key}": value for key, value in own.items()} | {"text.ln_final.bias": torch.ones(16)}


LAYOUTS = [
    ("vit_base_patch8_224.dino", SMALL, dino),
    ("vit_base_patch8_224.dino", SMALL, dino_full),
    ("vit_base_patch8_224.dino", SMALL, ibot_teacher),
    ("vit_base_patch8_224.dino", SMALL, ibot_full),
    ("vit_base_patch16_224.mae", SMALL, mae),
    ("vit_base_patch16_224.mae", SMALL, mae_full),
    ("vit_small_patch14_dinov2", SMALL, dinov2),
    ("vit_small_patch14_dinov2", SMALL, dinov2_training),
    ("vit_small_patch14_reg4_dinov2", SMALL, dinov2_registers),
    ("vit_giant_patch14_dinov2", SMALL, dinov2_giant),
    ("vit_small_patch16_dinov3", SMALL, dinov3),
    ("vit_small_patch16_dinov3_qkvb", SMALL, dinov3),
    ("convnext_tiny.dinov3_lvd1689m", CONVNEXT | {"layers": [2]}, dinov3_convnext),
    ("samvit_base_patch16", SAM, sam),
    ("vit_large_patch14_clip_quickgelu_224", SMALL, clip),
    ("vit_base_patch16_siglip_224", SMALL, open_clip_timm),
]


@pytest.mark.parametrize(("name", "options", "layout"), LAYOUTS, ids=[f"{row[0]}-{row[2].__name__}" for row in LAYOUTS])
def test_an_official_layout_loads_to_the_same_features(tmp_path, name, options, layout):
    original = shaken(name, **options)
    image = IMAGE if "sam" not in name else torch.rand(1, 3, 128, 128)
    torch.save(layout(dict(original.model.state_dict())), tmp_path / "official.pth")

    loaded = TimmModel(name, **options, weights=str(tmp_path / "official.pth")).eval()

    with torch.no_grad():
        assert_close(loaded(image).values, original(image).values, atol=1e-5, rtol=1e-5)


def test_blocks_beyond_the_last_layer_read_may_be_in_the_file(tmp_path):
    whole = shaken("vit_base_patch8_224.dino", **SMALL)
    torch.save(ibot_full(dict(whole.model.state_dict())), tmp_path / "official.pth")

    cut = TimmModel("vit_base_patch8_224.dino", **SMALL, weights=str(tmp_path / "official.pth"), layers=[0], norm=False)

    assert_close(cut.model.blocks[0].mlp.fc1.weight, whole.model.blocks[0].mlp.fc1.weight)
    assert len(cut.model.blocks) == 1


def test_dinov3_biases_that_the_network_has_no_place_for_are_not_dropped_unseen(tmp_path):
    biased = shaken("vit_small_patch16_dinov3_qkvb", **SMALL)
    torch.save(dinov3(dict(biased.model.state_dict())), tmp_path / "biased.pth")

    with pytest.raises(UserError, match=r"query and value biases.*backbone\.name=vit_small_patch16_dinov3_qkvb"):
        TimmModel("vit_small_patch16_dinov3", **SMALL, weights=str(tmp_path / "biased.pth"))


def test_weights_of_another_network_are_refused_by_their_first_keys(tmp_path):
    torch.save(sam(dict(shaken("samvit_base_patch16", **SAM).model.state_dict())), tmp_path / "sam.pth")

    with pytest.raises(UserError, match=r"sam\.pth does not fit.*missing: cls_token.*image_encoder"):
        TimmModel("vit_base_patch8_224.dino", **SMALL, weights=str(tmp_path / "sam.pth"))


def test_openais_torchscript_archive_of_clip_is_read_in_half_precision(tmp_path):
    name = "vit_large_patch14_clip_quickgelu_224"
    original = shaken(name, **SMALL)
    original.model.half().float()  # the official file keeps sixteen bits
    state = {key: value.half() for key, value in clip(dict(original.model.state_dict())).items()}
    script(state, tmp_path / "ViT-L-14.pt")

    loaded = TimmModel(name, **SMALL, weights=str(tmp_path / "ViT-L-14.pt")).eval()

    with torch.no_grad():
        assert torch.equal(loaded(IMAGE).values, original(IMAGE).values)


def test_what_is_in_no_known_layout_is_left_as_it_is():
    state = {"some.weight": torch.ones(1)}

    assert convert_to_timm(state, nn.Linear(1, 1)) == state
