"""A diffusers UNet as a sequence of units: its encoder's blocks, its middle block, its decoder's steps."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.text_files import JsonObject

FREEU: JsonObject = {"b1": 1.2, "b2": 1.4, "s1": 0.9, "s2": 0.2}  # GeoAware-SC's factors
STAGES = ("blocks", "channels")  # what FreeU's two stages are told apart by
Filter = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class UNetState(NamedTuple):
    """The state that one unit passes to the next."""

    hidden: Float[Tensor, "n _ _ _"]
    skips: dict[int, Tensor]  # the encoder's outputs that the decoder still needs, by their number


class DecoderStep(NamedTuple):
    """A step of the decoder: a residual block, attention if it has any, upsampling if it ends its block.

    Steps are numbered as latent diffusion numbers its `output_blocks`: 0 to 11 in Stable Diffusion.
    """

    block: int  # index of one of the UNet's up blocks
    resnet: int  # index in that block
    channels: int  # of its output
    factor: int  # latent cells per cell of its output


def list_decoder_steps(unet: nn.Module) -> list[DecoderStep]:
    """List every step of the decoder, first to last."""
    factor, steps = coarsest_stride(unet), list[DecoderStep]()
    for i, block in enumerate(_list_parts(unet, "up_blocks")):
        resnets = _list_parts(block, "resnets")
        for j, resnet in enumerate(resnets):
            if j == len(resnets) - 1 and _list_parts(block, "upsamplers"):
                factor //= 2
            steps.append(DecoderStep(i, j, vars(resnet)["out_channels"], factor))
    return steps


def coarsest_stride(unet: nn.Module) -> int:
    """Return the latent cells per cell of the middle block: latents' sides must be multiples of it."""
    return 2 ** sum(bool(_list_parts(block, "downsamplers")) for block in _list_parts(unet, "down_blocks"))


class EncoderBlock(nn.Module):
    """A block of the encoder.

    Args:
        block: Encoder block of diffusers.
        first: Number of the first skip that the block puts out.
        min_skip: Number of the first skip that any step reads; skips before it are dropped.
    """

    def __init__(self, block: nn.Module, first: int, min_skip: int) -> None:
        super().__init__()
        self.block, self.first, self.min_skip = block, first, min_skip

    def forward(self, state: UNetState, time: Float[Tensor, "n t"], text: Float[Tensor, "n l d"]) -> UNetState:
        """Compute the output of the block, and one more skip for each of its layers."""
        hidden, outputs = self.block(state.hidden, time, **_build_attention_arguments(self.block, text))
        new_skips = {number: skip for number, skip in enumerate(outputs, self.first) if number >= self.min_skip}
        return UNetState(hidden, state.skips | new_skips)


class MiddleBlock(nn.Module):
    """The block between encoder and decoder."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, state: UNetState, time: Float[Tensor, "n t"], text: Float[Tensor, "n l d"]) -> UNetState:
        """Compute the output of the block; the skips stay as they are."""
        return UNetState(self.block(state.hidden, time, **_build_attention_arguments(self.block, text)), state.skips)


class DecoderBlock(nn.Module):
    """A step of the decoder.

    Args:
        block: Up block that the step belongs to.
        step: Step of the decoder.
        skip: Number of the skip that the step reads.
        freeu: FreeU (Si et al. 2024), to apply to the step's input and skip; None to leave both as they are.
    """

    def __init__(self, block: nn.Module, step: DecoderStep, skip: int, freeu: Filter | None) -> None:
        super().__init__()
        resnets, attentions = _list_parts(block, "resnets"), _list_parts(block, "attentions")
        upsamplers = _list_parts(block, "upsamplers") if step.resnet == len(resnets) - 1 else []
        self.resnet = resnets[step.resnet]
        self.attention = attentions[step.resnet] if attentions else None
        self.upsampler = upsamplers[0] if upsamplers else None
        self.skip, self.freeu = skip, freeu

    def forward(self, state: UNetState, time: Float[Tensor, "n t"], text: Float[Tensor, "n l d"]) -> UNetState:
        """Compute the output of the step, and the skips without the one it read."""
        hidden, skip = state.hidden, state.skips[self.skip]
        if self.freeu is not None:  # FreeU works in place, and its input may have been recorded as a layer
            hidden, skip = self.freeu(hidden.clone(), skip)
        hidden = self.resnet(torch.cat((hidden, skip), dim=1), time)
        if self.attention is not None:
            hidden = self.attention(hidden, encoder_hidden_states=text, return_dict=False)[0]
        if self.upsampler is not None:
            hidden = self.upsampler(hidden)
        return UNetState(hidden, {number: value for number, value in state.skips.items() if number != self.skip})


def list_unet_blocks(unet: nn.Module, last: int, freeu: str | None) -> list[nn.Module]:
    """List the UNet's units up to decoder step `last`, in the order they run.

    The last skips are used first: the first ones, which only steps after `last` would read, are dropped.

    Args:
        unet: UNet of diffusers.
        last: Index of the last decoder step.
        freeu: How FreeU's stages are distinguished, one of `STAGES`; None disables FreeU.
    """
    blocks: list[nn.Module] = []
    decoder, first = list_decoder_steps(unet), 1  # skip 0 is the input of the encoder
    min_skip = len(decoder) - 1 - last
    for block in _list_parts(unet, "down_blocks"):
        blocks.append(EncoderBlock(block, first, min_skip))
        first += len(_list_parts(block, "resnets")) + bool(_list_parts(block, "downsamplers"))
    blocks.append(MiddleBlock(unet.get_submodule("mid_block")))
    up_blocks = _list_parts(unet, "up_blocks")
    for number, step in enumerate(decoder[: last + 1]):
        stage = _select_freeu(decoder, number, freeu)
        blocks.append(DecoderBlock(up_blocks[step.block], step, len(decoder) - 1 - number, stage))
    return blocks


def list_freeu_factors(unet: nn.Module, freeu: str | None) -> list[float]:
    """List what FreeU multiplies the first half of each decoder step's output by, where the next step reads it."""
    decoder = list_decoder_steps(unet)
    stages = [_find_freeu_stage(decoder, number, freeu) for number in range(1, len(decoder))]
    return [1.0 if stage is None else FREEU[f"b{stage + 1}"] for stage in (*stages, None)]  # none reads the last


def scale_first_half(values: Float[Tensor, "b c h w"], factor: float) -> Float[Tensor, "b c h w"]:
    """Multiply the first half of the channels by a factor; return the same tensor if it is 1."""
    if factor == 1:
        return values
    half = values.shape[1] // 2
    return torch.cat((factor * values[:, :half], values[:, half:]), dim=1)


def _select_freeu(decoder: Sequence[DecoderStep], number: int, freeu: str | None) -> Filter | None:
    """Return FreeU for a step, with the factors of its stage; None where it does not apply."""
    from diffusers.utils.torch_utils import apply_freeu

    stage = _find_freeu_stage(decoder, number, freeu)
    return None if stage is None else partial(apply_freeu, stage, **FREEU)


def _find_freeu_stage(decoder: Sequence[DecoderStep], number: int, freeu: str | None) -> int | None:
    """Return FreeU's stage of a step, 0 or 1; None where it does not apply.

    The original goes by the channels of the input: its first stage has the most, 1280 in Stable
    Diffusion, its second 640. diffusers takes the first two blocks, the second of which gets 1280, too.
    """
    if freeu is None:
        return None
    widths = sorted({step.channels for step in decoder}, reverse=True)
    input_channels = decoder[max(number - 1, 0)].channels  # the middle is as wide as the first step
    stage = decoder[number].block if freeu == "blocks" else widths.index(input_channels)
    return stage if stage < 2 else None


def _list_parts(module: nn.Module, name: str) -> list[nn.Module]:
    """List the modules in a list of diffusers; none where the list is None, or not there."""
    parts = getattr(module, name, None)
    return [] if parts is None else list(parts)


def _build_attention_arguments(block: nn.Module, text: Tensor) -> dict[str, Tensor]:
    """Build the arguments of a block with attention to the text; none for a block without."""
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
