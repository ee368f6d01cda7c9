"""CLIP's text encoder, for a prompt or for vectors in the place of its words."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn

if TYPE_CHECKING:
    import transformers


class TextEncoder(nn.Module):
    """The text encoder that conditions Stable Diffusion.

    Args:
        model: CLIPTextModel of the transformers library.
        tokenizer: CLIPTokenizer that belongs to `model`.
    """

    def __init__(self, model: "transformers.CLIPTextModel", tokenizer: "transformers.CLIPTokenizer") -> None:
        super().__init__()
        self.model, self.tokenizer = model.eval(), tokenizer
        self.length: int = model.config.max_position_embeddings  # 77
        self.width: int = model.config.hidden_size

    def forward(self, prompt: str) -> Float[Tensor, "1 l d"]:
        """Compute the hidden states of a prompt, cut if it is too long, as in Stable Diffusion's own pipeline."""
        ids = self.tokenizer(
            prompt, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        ).input_ids
        return self.model(input_ids=ids.to(self.model.device)).last_hidden_state

    def frame(self, tokens: int) -> Int[Tensor, "1 l"]:
        """Return the ids of a prompt with room for `tokens` words: start, placeholders, end, padding."""
        tokenizer = self.tokenizer  # its numbers are filled in where they are used: a GPU would wait for a list of them
        ids = torch.full((1, self.length), tokenizer.pad_token_id, device=self.model.device)
        ids[:, 0], ids[:, tokens + 1] = tokenizer.bos_token_id, tokenizer.eos_token_id
        return ids

    def encode(self, words: Float[Tensor, "b n d"]) -> Float[Tensor, "b l d"]:
        """Compute the hidden states of a prompt with `words`, embeddings, between its start and its end.

        The words stand for the sum of a token's and its position's embedding, as in SD4Match (Li et al. 2024).
        """
        ids = self.frame(words.shape[1]).expand(len(words), -1)

        def insert_words(_: nn.Module, __: object, embedded: Tensor) -> Tensor:
            return torch.cat((embedded[:, :1], words.to(embedded), embedded[:, 1 + words.shape[1] :]), dim=1)

        # The encoder's own forward with other embeddings: it knows its mask better than we do.
        handle = token_embeddings(self.model).register_forward_hook(insert_words)
        try:
            return self.model(input_ids=ids).last_hidden_state
        finally:
            handle.remove()


def token_embeddings(model: nn.Module) -> nn.Module:
    """Return the module of a CLIPTextModel that embeds ids."""
    return next(module for name, module in model.named_modules() if name.rpartition(".")[2] == "embeddings")


def build_byte_tokenizer(size: int) -> "transformers.CLIPTokenizer":
    """Build CLIP's tokenizer without what it learned from text: each byte is a word, the last two ids start and end.

    The published vocabulary begins with these bytes, but needs a download.
    """
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    vocabulary = {word: i for i, word in enumerate(words)}
    vocabulary |= {"<|startoftext|>": size - 2, "<|endoftext|>": size - 1}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
