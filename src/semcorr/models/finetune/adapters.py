"""Adapters inside a frozen network: the bottleneck, and the modules of transformers and others that it is added to.

An adapter becomes a child, `adapter`, of the module whose output it changes, and that module gets a `forward` that
calls both. No weight of the network changes its name, so checkpoints of the base still fit, and `state_dict`,
`deepcopy` and export see ordinary modules. Wrapper modules would rename weights. Forward hooks would outlive their
module's forward: a backbone is split (`SequentialBackbone.suffix`) by replacing the forward of its blocks, and a hook
on a block would then run on features that were already adapted.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from semcorr.core.errors import UserError

ATTENTION = ("attn", "attention", "self_attn", "attn1")  # attn1: diffusers
FEED_FORWARD = ("mlp", "ffn", "ff")
NORM = ("norm3", "norm2", "layer_norm2", "layernorm_after")  # before the feed-forward; norm3: diffusers
AFTER = ("ls", "layer_scale", "drop_path")  # modules that follow a branch; their names end in its number


class AdapterBottleneck(nn.Module):
    """A bottleneck: down to `width` channels, a non-linearity, and up again; zero until it is trained.

    Args:
        channels: Input and output channels.
        width: Channels in the middle.
        activation: Module between the two layers.
        dropout: Dropout rate in the middle.
        scale: Factor of the output.
        norm: Whether a LayerNorm is applied to the input.
        maps: Whether inputs are feature maps (b c h w), for 1 x 1 convolutions, instead of tokens (b ... c).
        like: A weight of the network, whose device and precision are taken.
    """

    seen: Tensor | None = None  # input of a parallel branch (`add_parallel`), until it is used

    def __init__(
        self,
        channels: int,
        width: int,
        activation: nn.Module,
        dropout: float = 0.0,
        scale: float = 1.0,
        norm: bool = False,
        maps: bool = False,
        like: Tensor | None = None,
    ) -> None:
        super().__init__()
        layer: Callable[..., nn.Module] = partial(nn.Conv2d, kernel_size=1) if maps else nn.Linear
        self.norm = nn.LayerNorm(channels) if norm else nn.Identity()
        self.down, self.up = layer(channels, width), layer(width, channels)
        self.activation, self.dropout, self.scale = activation, nn.Dropout(dropout), scale
        # PyTorch initialises `down.weight` by Kaiming with a = sqrt(5), as AdaptFormer requires.
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)  # type: ignore[arg-type]
        if like is not None:
            self.to(like.device, like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled output, which the caller adds."""
        return self.up(self.dropout(self.activation(self.down(self.norm(x))))) * self.scale


class TransformerUnit(NamedTuple):
    """Attention and feed-forward of a transformer, each added to the residual stream in turn."""

    attention: nn.Module  # the last module of that branch, whose output is added unchanged
    feed_forward: nn.Module  # likewise
    norm: nn.Module | None  # norm of the stream before the feed-forward
    scale: Tensor  # a weight as wide as the stream


def transformer_units(block: nn.Module) -> Iterator[TransformerUnit]:
    """Yield the transformer units of a block: usually the block itself, in hierarchical networks its members."""
    for module in block.modules():
        children = dict(module.named_children())
        attention = next((name for name in ATTENTION if name in children), None)
        feed_forward = next((name for name in FEED_FORWARD if name in children), None)
        norm = next((name for name in NORM if name in children), None)
        if attention and feed_forward and norm:
            ends = (_branch_end(children, attention, 1), _branch_end(children, feed_forward, 2))
            names = list(children)  # Swin v2 and similar ones normalise the output of a branch: norm2 after mlp
            is_pre_norm = norm != "norm2" or names.index(norm) < names.index(feed_forward)
            yield TransformerUnit(*ends, children[norm] if is_pre_norm else None, children[norm].weight)  # type: ignore[arg-type]


def add_serial(module: nn.Module, adapter: AdapterBottleneck) -> None:
    """Add to the output of `module` the adapter's output for it."""
    module = _attach(module, adapter)
    module.forward = partial(_forward_serial, adapter, module.forward)


def add_parallel(start: nn.Module, end: nn.Module, adapter: AdapterBottleneck) -> None:
    """Add to the output of `end` the adapter's output for the input of `start`, which runs earlier."""
    end = _attach(end, adapter)
    start.forward = partial(_remember_input, adapter, start.forward)
    end.forward = partial(_forward_parallel, adapter, end.forward)


def _branch_end(children: dict[str, nn.Module], branch: str, number: int) -> nn.Module:
    return next((children[f"{name}{number}"] for name in AFTER if f"{name}{number}" in children), children[branch])


def _attach(module: nn.Module, adapter: AdapterBottleneck) -> nn.Module:
    """Make the adapter a child of a module; for a sequence, which would run it, of its last member."""
    while isinstance(module, nn.Sequential):
        module = module[-1]
    if hasattr(module, "adapter"):
        raise UserError("This backbone has adapters already. Build it anew to choose again.")
    module.add_module("adapter", adapter)
    return module


def _forward_serial(
    adapter: AdapterBottleneck, forward: Callable[..., object], *args: object, **kwargs: object
) -> object:
    output = forward(*args, **kwargs)
    if not isinstance(output, tuple):
        return output + adapter(output)
    changed = (output[0] + adapter(output[0]), *output[1:])  # attention may return its weights, too, a unit its skips
    return output._make(changed) if hasattr(output, "_make") else changed


def _remember_input(adapter: AdapterBottleneck, forward: Callable[..., object], x: Tensor) -> object:
    adapter.seen = x
    return forward(x)


def _forward_parallel(
    adapter: AdapterBottleneck, forward: Callable[..., object], *args: object, **kwargs: object
) -> Tensor:
    x, adapter.seen = adapter.seen, None  # released at once: it holds a graph
    assert isinstance(x, torch.Tensor)
    return forward(*args, **kwargs) + adapter(x)
