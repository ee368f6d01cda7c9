"""Stable Diffusion in miniature: the published layout with widths of tens, random weights, words of single bytes."""

from functools import partial
from pathlib import Path

import torch
from backbone_cases import tiny
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from semcorr.models.backbones.diffusion import StableDiffusion
from semcorr.models.backbones.diffusion_networks import DiffusionNetworks, reuse_encoder
from semcorr.models.backbones.fuse import FusedBackbone
from semcorr.models.backbones.text_encoder import TextEncoder, build_byte_tokenizer

WIDTHS = (8, 16, 24, 24)
UNET = {"cross_attention_dim": 12, "attention_head_dim": 2, "norm_num_groups": 4, "block_out_channels": WIDTHS}
UNET_2 = UNET | {"attention_head_dim": (1, 2, 3, 3), "use_linear_projection": True}  # as 2.1 differs from 1.5
DOWN, UP = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
VAE = {"block_out_channels": (4, 4, 8, 8), "down_block_types": DOWN, "up_block_types": UP, "norm_num_groups": 2}
TEXT = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = 514
IMAGE = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))


def parts(seed: int = 0, version: int = 2, length: int = 77) -> DiffusionNetworks:
    """Freshly built, the same for a seed. Norms are not left at one and zero, where mistakes would not show."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(**(UNET_2 if version == 2 else UNET)).eval()
    vae = AutoencoderKL(**VAE, layers_per_block=2).eval()
    ids = {"vocab_size": WORDS, "bos_token_id": WORDS - 2, "eos_token_id": WORDS - 1}
    config = CLIPTextConfig(**ids, max_position_embeddings=length, **TEXT)
    text = TextEncoder(CLIPTextModel(config), build_byte_tokenizer(WORDS))
    for name, parameter in [*unet.named_parameters(), *text.named_parameters()]:
        if "norm" in name:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
        if "embedding" in name:
            parameter.data.mul_(20)  # CLIP starts them so small that one prompt is like another
    return DiffusionNetworks(unet, vae, partial(reuse_encoder, text))


def tiny_sd(version: int = 2, **options: object) -> StableDiffusion:
    """A backbone of them, for images of multiples of 64 pixels; `seed` is its own, of its noise."""
    given = {"size": 64, "layers": [5], "ensemble": 1} | options
    return StableDiffusion("tiny", **({"parts": parts(version=version)} | given)).eval()


def build_tiny_sd(size: int, layers: list[int], **_: object) -> StableDiffusion:
    """The backbone that conf/backbone/sd.yaml is with this in the place of its `_target_`."""
    return tiny_sd(size=size, layers=layers)


def build_tiny_sd_dinov2(size: int, **_: object) -> FusedBackbone:
    """The same of conf/backbone/sd_dinov2.yaml."""
    return FusedBackbone([tiny_sd(size=size), tiny(size=size)])


def write_parts(directory: Path, tiny: DiffusionNetworks) -> Path:
    """In diffusers' layout."""
    tiny.unet.save_pretrained(directory / "unet")
    tiny.vae.save_pretrained(directory / "vae")
    text = tiny.text()
    text.model.save_pretrained(directory / "text_encoder")
    text.tokenizer.save_pretrained(directory / "tokenizer")
    return directory
