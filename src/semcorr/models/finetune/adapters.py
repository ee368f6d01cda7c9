"""Small layers put into a frozen network: the bottleneck, and the places where transformers and others take it.

What is added becomes a child, `adapter`, of the module whose output it changes, and that module gets a
`forward` of its own that calls both. No weight of the network changes its name, so checkpoints of the base
still fit, and `state_dict`, `deepcopy` and export see ordinary modules. Wrapper modules would rename
weights. Forward hooks would outlive their module's forward: a backbone is cut (`Chain.suffix`) by standing
in for the forward of its blocks, and a hook on a block would then run on what was already adapted.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from semcorr.core.errors import UserError

ATTENTION = ("attn", "attention", "self_attn", "attn1")  # attn1: diffusers
FEED_FORWARD = ("mlp", "ffn", "ff")
NORM = ("norm3", "norm2", "layer_norm2", "layernorm_after")  # before the feed-forward; norm3: diffusers
AFTER = ("ls", "layer_scale", "drop_path")  # modules that follow a branch, with the branch's number


class AdapterBottleneck(nn.Module):
    """Down to `width` channels, a non-linearity, and up again: zero until it is trained.

    Args:
        channels: Of what comes in and goes out.
        width: Of the middle.
        activation: Between the two.
        dropout: Of the middle.
        scale: Of what goes out.
        norm: A LayerNorm over what comes in.
        maps: For feature maps (b c h w), by 1 x 1 convolutions, in place of tokens (b ... c).
        like: A weight of the network, for its device and its precision.
    """

    seen: Tensor | None = None  # what `bypass` has seen go in, until it is used

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
        # PyTorch starts `down.weight` by Kaiming with a = sqrt(5), as AdaptFormer asks for.
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)  # type: ignore[arg-type]
        if like is not None:
            self.to(like.device, like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """What is to be added."""
        return self.up(self.dropout(self.activation(self.down(self.norm(x))))) * self.scale


class TransformerUnit(NamedTuple):
    """Attention and feed-forward, each added to the residual stream in its turn."""

    attention: nn.Module  # the last of that branch: what it puts out is added as it is
    feed_forward: nn.Module
    norm: nn.Module | None  # of the stream between the two, on its way into the feed-forward
    scale: Tensor  # a weight as wide as the stream


def transformer_units(block: nn.Module) -> Iterator[TransformerUnit]:
    """The transformer units of a block: mostly itself, in hierarchical networks its members."""
    for module in block.modules():
        children = dict(module.named_children())
        attention = next((name for name in ATTENTION if name in children), None)
        feed_forward = next((name for name in FEED_FORWARD if name in children), None)
        norm = next((name for name in NORM if name in children), None)
        if attention and feed_forward and norm:
            ends = (_end(children, attention, 1), _end(children, feed_forward, 2))
            places = list(children)  # Swin v2 and its like normalise what comes out of a branch: norm2 after mlp
            before = norm != "norm2" or places.index(norm) < places.index(feed_forward)
            yield TransformerUnit(*ends, children[norm] if before else None, children[norm].weight)  # type: ignore[arg-type]


def add_serial(module: nn.Module, adapter: AdapterBottleneck) -> None:
    """Add to what `module` puts out what `adapter` makes of it."""
    module = _place(module, adapter)
    module.forward = partial(_followed, adapter, module.forward)


def add_parallel(start: nn.Module, end: nn.Module, adapter: AdapterBottleneck) -> None:
    """Add to what `end` puts out what `adapter` makes of the input of `start`, which runs before it."""
    end = _place(end, adapter)
    start.forward = partial(_seen, adapter, start.forward)
    end.forward = partial(_bypassed, adapter, end.forward)


def _end(children: dict[str, nn.Module], branch: str, number: int) -> nn.Module:
    return next((children[f"{name}{number}"] for name in AFTER if f"{name}{number}" in children), children[branch])


def _place(module: nn.Module, adapter: AdapterBottleneck) -> nn.Module:
    """Where the adapter becomes a child: in a sequence its last member, as a sequence would run the adapter itself."""
    while isinstance(module, nn.Sequential):
        module = module[-1]
    if hasattr(module, "adapter"):
        raise UserError("This backbone has adapters already. Build it anew to choose again.")
    module.add_module("adapter", adapter)
    return module


def _followed(adapter: AdapterBottleneck, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    output = own(*args, **kwargs)
    if not isinstance(output, tuple):
        return output + adapter(output)
    changed = (output[0] + adapter(output[0]), *output[1:])  # of attention with its weights, a unit with its skips
    return output._make(changed) if hasattr(output, "_make") else changed


def _seen(adapter: AdapterBottleneck, own: Callable[..., Any], x: Tensor) -> Any:
    adapter.seen = x
    return own(x)


def _bypassed(adapter: AdapterBottleneck, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    x, adapter.seen = adapter.seen, None  # kept no longer than needed: it holds a graph
    assert isinstance(x, torch.Tensor)
    return own(*args, **kwargs) + adapter(x)
