"""Prompt tuning of Stable Diffusion: words for all pairs, or made of what both images show (SD4Match)."""

import hashlib
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool1d

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import OptionsOf, Positive, check_arguments
from semcorr.models.backbones.diffusion import Prompt, StableDiffusion
from semcorr.models.backbones.fuse import resize_image
from semcorr.models.backbones.text_encoder import TextEncoder
from semcorr.models.backbones.timm_model import TimmModel


class LearnedPrompt(Prompt):
    """One learned prompt for all images, of word embeddings that belong to no vocabulary.

    They go through the frozen text encoder, between its start and end tokens.

    Args:
        text: The text encoder.
        tokens: Number of words.
        scale: Initial standard deviation of the words.
    """

    def __init__(self, text: TextEncoder, tokens: int, scale: float) -> None:
        super().__init__()
        self.words = nn.Parameter(scale * torch.randn(1, tokens, text.width))
        self.text = text.requires_grad_(False)

    def forward(self) -> Float[Tensor, "1 l d"]:
        """Return the text encoder's hidden states."""
        return self.text.encode(self.words)


@check_arguments("finetune")
def prompt(backbone: Backbone, tokens: int = 75, scale: Positive = 0.02) -> None:
    """Learn one prompt for all images: SD4Match's "single" (Li et al. 2024).

    SD4Match starts from the embeddings of words drawn from the vocabulary; the unified benchmark starts from noise
    of their scale, as here.

    Args:
        backbone: Backbone that contains Stable Diffusion, which is changed in place.
        tokens: Number of words.
        scale: Initial standard deviation of the words.

    Raises:
        UserError: The backbone has no prompt, or the text encoder takes fewer words.
    """
    for part in find_diffusion_networks(backbone):
        text = reload_text_encoder(part, tokens)
        part.prompt = LearnedPrompt(text, tokens, scale).to(text.model.device)


def find_diffusion_networks(backbone: Backbone) -> list[StableDiffusion]:
    """Freeze a backbone and return its Stable Diffusion networks, which have a prompt.

    Raises:
        UserError: It has none.
    """
    parts = [module for module in backbone.modules() if isinstance(module, StableDiffusion)]
    if not parts:
        raise UserError(f"{backbone.name} has no prompt to learn: give backbone=sd or backbone=sd_dinov2.")
    backbone.requires_grad_(False)
    return parts


def reload_text_encoder(part: StableDiffusion, tokens: int) -> TextEncoder:
    """Load the text encoder of a network again, which released it after encoding its own prompt.

    Args:
        part: Network that is conditioned on the prompt.
        tokens: Number of words of the prompt that is to be learned.

    Raises:
        UserError: The encoder takes fewer words.
    """
    text = part.text().to(next(part.parameters()).device)
    if not 1 <= tokens <= text.length - 2:  # start and end take two
        raise UserError(f"A prompt has room for 1 to {text.length - 2} tokens, got {tokens}: change `finetune.tokens`.")
    return text


class ConditionalPrompt(Prompt):
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

    def forward(self, source: Float[Tensor, "b n c"], target: Float[Tensor, "#b n c"]) -> Float[Tensor, "b l d"]:
        """Return the text encoder's hidden states for pairs, from the cells of their images; both get the same."""
        cells = torch.cat((source, target.expand_as(source)), dim=2)
        words = self.words.expand(len(cells), -1, -1)
        return self.text.encode(torch.cat((words, self.compute_words(cells)), dim=1))

    @torch.no_grad()
    def encode_cells(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n c"]:
        """Encode the cells of an image, resized to a square; SD4Match crops its centre instead."""
        side = self.vision.size
        return self.vision(resize_image(image, (side, side))).values.flatten(2).mT

    def compute_words(self, cells: Float[Tensor, "b n c"]) -> Float[Tensor, "b m d"]:
        """Compute the words of a pair from the cells of both images."""
        mixed = self.mix(self.project(cells).mT)
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
    """Learn a prompt that depends on the pair: SD4Match's conditional one, see `ConditionalPrompt`.

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

    Raises:
        UserError: The backbone has no prompt, or the text encoder takes fewer words.
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
