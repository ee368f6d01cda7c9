"""Prompt tuning: only the words that Stable Diffusion is conditioned on are learned."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import Positive, check_arguments
from semcorr.models.backbones.diffusion import StableDiffusion
from semcorr.models.backbones.text_encoder import TextEncoder


class LearnedPrompt(nn.Module):
    """One learned prompt for all images, of word embeddings that belong to no vocabulary.

    They go through the frozen text encoder, between its start and end tokens.

    Args:
        text: The text encoder.
        tokens: Number of words.
        scale: Initial standard deviation of the words.
    """

    pairwise = False

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
    """
    for part in find_diffusion_networks(backbone):
        text = reload_text_encoder(part, tokens)
        part.prompt = LearnedPrompt(text, tokens, scale).to(text.model.device)


def find_diffusion_networks(backbone: Backbone) -> list[StableDiffusion]:
    """Freeze a backbone and return its Stable Diffusion networks, which have a prompt."""
    assert isinstance(backbone, nn.Module)
    parts = [module for module in backbone.modules() if isinstance(module, StableDiffusion)]
    if not parts:
        raise UserError(f"{backbone.name} has no prompt to learn: give backbone=sd or backbone=sd_dinov2.")
    backbone.requires_grad_(False)
    return parts


def reload_text_encoder(part: StableDiffusion, tokens: int) -> TextEncoder:
    """Load the text encoder of a network again, which released it after encoding its own prompt."""
    text = part.text().to(next(part.parameters()).device)
    if not 1 <= tokens <= text.length - 2:  # start and end take two
        raise UserError(f"A prompt has room for 1 to {text.length - 2} tokens, got {tokens}: change `finetune.tokens`.")
    return text
