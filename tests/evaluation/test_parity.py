"""The same weights in independent implementations give the same features, to 1e-4 of the largest in float32."""

from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.functional import interpolate
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)
from transformers.utils import logging

from semcorr.models.backbones.segment_anything import SegmentAnything
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.weights.loading import load_weights

SIDE = 112  # eight cells of fourteen pixels
HUGGING_FACE = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "patch_size": 14}
HUGGING_FACE |= {"image_size": SIDE}
THINNER = HUGGING_FACE | {"intermediate_size": 96}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2}
TIMM = {"embed_dim": 48, "depth": 4, "num_heads": 3, "patch_size": 14, "size": SIDE, "pretrained": False}
FIXED = TIMM | {"img_size": SIDE}
THIN = FIXED | {"mlp_ratio": 2.0}
IMAGE = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
WIDER = torch.rand(2, 3, SIDE, SIDE + 56, generator=torch.Generator().manual_seed(1))


def shaken(network: nn.Module) -> nn.Module:
    """No parameter as it was at the start: gains around one, every layer's output about as large as its input."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.3 * noise if parameter.ndim < 2 else noise * parameter[0].numel() ** -0.5
    return network.eval()


def difference(ours: torch.Tensor, reference: torch.Tensor) -> float:
    assert ours.shape == reference.shape
    assert reference.std() > 0.05  # something to compare
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def tokens(network: nn.Module, image: torch.Tensor, **options) -> torch.Tensor:
    """Patch tokens of a network of the transformers library after its final norm, as a map."""
    special = network(image, **options).last_hidden_state
    if hasattr(network, "post_layernorm") and not isinstance(network, SiglipVisionModel):
        special = network.post_layernorm(special)  # CLIP's own output leaves it to the class token
    rows, columns = image.shape[-2] // 14, image.shape[-1] // 14
    return special[:, -rows * columns :].unflatten(1, (rows, columns)).movedim(-1, 1)


def gated(config, **options):
    return lambda: config(
        **THINNER, use_gated_mlp=True, hidden_act="silu", query_bias=False, value_bias=False, **options
    )


NETWORKS = {
    "dinov2": (Dinov2Model, lambda: Dinov2Config(**HUGGING_FACE), "vit_small_patch14_dinov2", FIXED),
    "dinov2_giant": (
        *(Dinov2Model, lambda: Dinov2Config(**HUGGING_FACE, use_swiglu_ffn=True), "vit_giant_patch14_dinov2"),
        FIXED | {"mlp_ratio": 2 * 128 / 48},
    ),
    "dinov2_reg": (
        *(Dinov2WithRegistersModel, lambda: Dinov2WithRegistersConfig(**HUGGING_FACE)),
        *("vit_small_patch14_reg4_dinov2", FIXED),
    ),
    "dinov3": (
        *(DINOv3ViTModel, lambda: DINOv3ViTConfig(**THINNER, num_register_tokens=4)),
        *("vit_small_patch16_dinov3_qkvb", THIN),
    ),
    "dinov3_7b": (
        *(DINOv3ViTModel, gated(DINOv3ViTConfig, num_register_tokens=4), "vit_7b_patch16_dinov3"),
        FIXED | {"mlp_ratio": 2.0, "swiglu_align_to": 1},
    ),
    "clip": (CLIPVisionModel, lambda: CLIPVisionConfig(**THINNER), "vit_large_patch14_clip_quickgelu_224", THIN),
    "vit": (ViTModel, lambda: ViTConfig(**THINNER), "vit_base_patch16_224.dino", THIN),
    "siglip2": (
        *(SiglipVisionModel, lambda: SiglipVisionConfig(**THINNER)),
        *("vit_base_patch16_siglip_512", THIN | {"act_layer": "gelu_tanh"}),
    ),
}


@pytest.fixture(autouse=True)
def _quiet():
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def both(tmp_path, name: str, image: torch.Tensor, **message) -> float:
    family, config, timm_name, options = NETWORKS[name]
    reference = shaken(family(config()))
    reference.save_pretrained(tmp_path)
    ours = TimmModel(timm_name, **options, weights=str(tmp_path)).eval()
    with torch.no_grad():
        normalised = (image - ours.mean) / ours.std
        return difference(ours(image).values, tokens(reference, normalised, **message))


@pytest.mark.parametrize("name", NETWORKS)
def test_timm_and_transformers_agree_on_a_folder_of_hugging_faces_layout(tmp_path, name):
    found = both(tmp_path, name, IMAGE)

    print(f"{name}: {found:.1e}")
    assert found < 1e-4


@pytest.mark.parametrize("name", ["dinov2_reg", "dinov3"])
def test_backbones_agree_at_other_sizes_where_both_follow_the_authors(tmp_path, name):
    """Registers came with resizing without aliasing; DINOv3 rotates by relative places and resizes nothing."""
    found = both(tmp_path, name, WIDER)

    print(f"{name}: {found:.1e}")
    assert found < 1e-4


def test_position_embeddings_of_dinov2_are_resized_three_ways(tmp_path):
    """From 37 cells to 60, as at 840 pixels, smooth embeddings differ by up to one and a half per cent, at the rim.

    The authors' first code adds 0.1 to the size and leaves out antialiasing, transformers leaves out both;
    timm and the authors' code with registers smooth.
    """
    wave = torch.linspace(0, 6, 37)
    grid = (wave[:, None].sin() + wave[None, :].cos())[None, None]

    timms = interpolate(grid, size=(60, 60), mode="bicubic", antialias=True)
    transformers = interpolate(grid, size=(60, 60), mode="bicubic")
    hub = interpolate(grid, scale_factor=(60.1 / 37, 60.1 / 37), mode="bicubic")

    assert hub.shape == timms.shape
    between = {"transformers": difference(timms, transformers), "hub": difference(timms, hub)}
    print(between)
    assert 1e-4 < between["transformers"] < 0.02
    assert 1e-4 < between["hub"] < 0.02


def test_clip_without_quickgelu_is_another_network(tmp_path):
    shaken(CLIPVisionModel(CLIPVisionConfig(**THINNER))).save_pretrained(tmp_path)

    with torch.no_grad():
        right = TimmModel("vit_large_patch14_clip_quickgelu_224", **THIN, weights=str(tmp_path)).eval()(IMAGE).values
        wrong = TimmModel("vit_large_patch14_clip_224", **THIN, weights=str(tmp_path)).eval()(IMAGE).values

    assert difference(wrong, right) > 1e-3


def test_the_image_encoder_is_found_in_a_whole_clip_and_in_a_masked_autoencoder(tmp_path):
    whole = shaken(CLIPModel(CLIPConfig(vision_config=THINNER, text_config=TEXT, projection_dim=16)))
    whole.save_pretrained(tmp_path / "clip")
    masked = shaken(ViTMAEForPreTraining(ViTMAEConfig(**THINNER, mask_ratio=0.0, decoder_hidden_size=32)))
    masked.save_pretrained(tmp_path / "mae")
    clip = TimmModel("vit_large_patch14_clip_quickgelu_224", **THIN, weights=str(tmp_path / "clip")).eval()
    mae = TimmModel("vit_base_patch16_224.mae", **THIN, weights=str(tmp_path / "mae")).eval()
    in_order = torch.arange(64).expand(2, -1)

    with torch.no_grad():
        expected = tokens(whole.vision_model, (IMAGE - clip.mean) / clip.std)
        assert difference(clip(IMAGE).values, expected) < 1e-4
        expected = tokens(masked.vit, (IMAGE - mae.mean) / mae.std, noise=in_order)
        assert difference(mae(IMAGE).values, expected) < 1e-4


def test_timm_and_transformers_agree_on_dinov3s_convnext(tmp_path):
    reference = DINOv3ConvNextModel(DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1]))
    shaken(reference).save_pretrained(tmp_path)
    options = {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1), "layers": [2], "size": 64}
    ours = TimmModel("convnext_tiny.dinov3_lvd1689m", **options, weights=str(tmp_path)).eval()

    with torch.no_grad():
        image = (WIDER[..., :64, :] - ours.mean) / ours.std
        expected = reference(image[..., :160], output_hidden_states=True).hidden_states[3]
        found = difference(ours(WIDER[..., :64, :160]).values, expected)

    print(f"dinov3_convnext: {found:.1e}")
    assert found < 1e-4


@pytest.mark.parametrize("neck", [False, True])
def test_segment_anythings_own_package_and_timm_agree(tmp_path, neck):
    official = pytest.importorskip("segment_anything.modeling")
    small = {
        "embed_dim": 48,
        "depth": 3,
        "num_heads": 3,
        "img_size": 160,
        "window_size": 4,
        "global_attn_indexes": (1,),
    }
    options = {"patch_size": 16, "out_chans": 256, "norm_layer": partial(nn.LayerNorm, eps=1e-6)}
    reference = shaken(official.ImageEncoderViT(use_rel_pos=True, **options, **small))
    torch.save({f"image_encoder.{key}": value for key, value in reference.state_dict().items()}, tmp_path / "sam.pth")
    ours = SegmentAnything(size=160, weights=str(tmp_path / "sam.pth"), neck=neck, **small).eval()
    timms = TimmModel(
        "samvit_base_patch16", size=160, patch_size=16, weights=str(tmp_path / "sam.pth"), norm=neck, **small
    ).eval()
    image = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        found = difference(ours(image).values, timms(image).values)
        if neck:
            assert difference(ours(image).values, reference((image - ours.mean) / ours.std)) < 1e-5

    print(f"sam: {found:.1e}")
    assert found < 1e-4


@pytest.mark.slow
def test_torchvision_and_timm_agree_on_resnet101_up_to_its_third_layer():
    reference = torchvision.models.resnet101()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        reference.train()(WIDER)  # running statistics of its own
    reference.eval()
    ours = TimmModel("resnet101.tv_in1k", size=64, pretrained=False, layers=[3]).eval()
    spare = {key for key in reference.state_dict() if key.startswith("layer4")}
    load_weights(ours.model, reference.state_dict(), "torchvision", spare=spare)

    with torch.no_grad():
        image = IMAGE[..., :96, :96]
        x = (image - ours.mean) / ours.std
        x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))
        expected = reference.layer3(reference.layer2(reference.layer1(x)))
        found = difference(ours(image).values, expected)

    print(f"resnet101: {found:.1e}")
    assert found < 1e-4
