"""SD4Match's conditional prompting module: part of the prompt is computed from both images."""

import hashlib
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool1d

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import OptionsOf, Positive, check_arguments
from semcorr.models.backbones.fuse import resize_image
from semcorr.models.backbones.text_encoder import TextEncoder
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.finetune.prompts import find_diffusion_networks, reload_text_encoder


class ConditionalPrompt(nn.Module):
    """A prompt for each pair: words shared by all pairs, then words computed from the pair (Li et al. 2024).

    Both images go through a frozen DINOv2. Its cells, source and target side by side, are projected to the
    text encoder's width, mixed with one another, pooled to as many as there are words, and gated.

    Args:
        text: The text encoder, frozen.
        vision: The backbone that encodes both images for the prompt, frozen.
        tokens: Number of words shared by all pairs.
        conditional: Number of words computed from the pair.
        scale: Initial standard deviation of words, positions and gates, the unified benchmark's choice; SD4Match
            draws all three uniformly from 0 to 1.
    """

    pairwise = True

    def __init__(self, text: TextEncoder, vision: TimmModel, tokens: int, conditional: int, scale: float) -> None:
        super().__init__()
        cells = (vision.size // vision.stride) ** 2
        self.words = nn.Parameter(scale * torch.randn(1, tokens, text.width))
        self.project = nn.Linear(2 * vision.channels, text.width)
        self.mix = nn.Linear(cells, cells)
        self.position = nn.Parameter(scale * torch.randn(1, conditional, text.width))
        self.gate = nn.Parameter(scale * torch.randn(1, conditional, text.width))
        for layer in (self.project, self.mix):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.text, self.vision = text.requires_grad_(False), vision.requires_grad_(False).eval()

    def forward(self, source: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 i j"]) -> Float[Tensor, "b l d"]:
        """Return the text encoder's hidden states for a pair, the same for both images."""
        cells = torch.cat([self.look(image) for image in (source, target)], dim=2)
        words = self.words.expand(len(cells), -1, -1)
        return self.text.encode(torch.cat((words, self.conditional(cells)), dim=1))

    @torch.no_grad()
    def look(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n c"]:
        """Encode the cells of an image, resized to a square; SD4Match crops its centre instead."""
        side = self.vision.size
        return self.vision(resize_image(image, (side, side))).values.flatten(2).mT

    def conditional(self, seen: Float[Tensor, "b n c"]) -> Float[Tensor, "b m d"]:
        """Compute the words of a pair from the cells of both images."""
        mixed = self.mix(self.project(seen).mT)
        pooled = adaptive_max_pool1d(mixed, self.position.shape[1]).mT
        return (pooled + self.position) * self.gate.tanh()


@check_arguments("finetune")
def conditional_prompt(
    backbone: Backbone,
    tokens: int = 25,
    conditional: int = 50,
    scale: Positive = 0.02,
    dino: str = "vit_base_patch14_dinov2.lvd142m",
    dino_size: int = 224,
    pretrained: bool = True,
    weights: str | None = None,
    **options: Annotated[Any, OptionsOf(TimmModel)],
) -> None:
    """Learn a prompt that depends on the pair.

    Args:
        backbone: Backbone that contains Stable Diffusion; its features depend on the pair from now on.
        tokens: Number of words shared by all pairs.
        conditional: Number of words computed from the pair.
        scale: Initial standard deviation of words, positions and gates.
        dino: timm's name of the transformer that encodes both images for the prompt.
        dino_size: Side of the transformer's square input, in pixels.
        pretrained: Whether the transformer's weights are downloaded.
        weights: Local file of the transformer's weights instead.
        options: Other arguments of the transformer's constructor.
    """
    parts = find_diffusion_networks(backbone)
    if conditional < 1:
        raise UserError(f"`finetune.conditional` must be at least 1, got {conditional}; finetune=prompt does without.")
    for part in parts:
        text = reload_text_encoder(part, tokens + conditional)
        vision = TimmModel(dino, dino_size, pretrained=pretrained, weights=weights, **options)
        part.prompt = ConditionalPrompt(text, vision, tokens, conditional, scale).to(text.model.device)
        # A checkpoint leaves the transformer out: the hash records which one it was trained with.
        part.sha256 = hashlib.sha256(f"{part.sha256} {vision.sha256}".encode()).hexdigest()
