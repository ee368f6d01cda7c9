"""Adapters inside a frozen network: the bottleneck, and the modules of transformers and others that it is added to.

An adapter becomes a child, `adapter`, of the module whose output it changes, and that module gets a `forward` that
calls both. No weight of the network changes its name, so checkpoints of the base still fit, and `state_dict`,
`deepcopy` and export see ordinary modules. Wrapper modules would rename weights. Forward hooks would outlive their
module's forward: a backbone is split (`SequentialBackbone.suffix`) by replacing the forward of its blocks, and a hook
on a block would then run on features that were already adapted.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import Count, Dropout, check_arguments
from semcorr.models.finetune.targets import last_blocks_of

ATTENTION = ("attn", "attention", "self_attn", "attn1")  # attn1: diffusers
FEED_FORWARD = ("mlp", "ffn", "ff")
NORM = ("norm3", "norm2", "layer_norm2", "layernorm_after")  # before the feed-forward; norm3: diffusers
BRANCH_ENDS = ("ls", "layer_scale", "drop_path")  # modules that follow a branch; their names end in its number


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
        like: A weight of the network, whose device and precision are taken; None takes PyTorch's defaults.
    """

    branch_input: Tensor | None = None  # input of a parallel branch (`add_parallel`), until it is used

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
            assert isinstance(parameter, Tensor)
            nn.init.zeros_(parameter)
        if like is not None:
            self.to(like.device, like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled output, which the caller adds."""
        return self.up(self.dropout(self.activation(self.down(self.norm(x))))) * self.scale


class TransformerUnit(NamedTuple):
    """Attention and feed-forward of a transformer, each added to the residual stream in turn."""

    attention: nn.Module  # the last module of that branch, whose output is added unchanged
    feed_forward: nn.Module  # the last module of that branch, likewise
    norm: nn.Module | None  # norm of the stream before the feed-forward; None where it comes after it
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
            scale = children[norm].weight
            assert isinstance(scale, Tensor)
            yield TransformerUnit(*ends, children[norm] if is_pre_norm else None, scale)


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
    """Return the last module of a branch: its LayerScale or drop path, or the branch itself."""
    return next(
        (children[f"{name}{number}"] for name in BRANCH_ENDS if f"{name}{number}" in children), children[branch]
    )


def _attach(module: nn.Module, adapter: AdapterBottleneck) -> nn.Module:
    """Make the adapter a child of a module; for a sequence, which would run it, of its last member."""
    while isinstance(module, nn.Sequential):
        module = module[-1]
    if hasattr(module, "adapter"):
        raise UserError("This backbone has adapters already. Build it again to choose again.")
    module.add_module("adapter", adapter)
    return module


def _forward_serial(
    adapter: AdapterBottleneck, forward: Callable[..., object], *args: object, **kwargs: object
) -> object:
    """Run a module's own forward, and add the adapter's output to its first output."""
    output = forward(*args, **kwargs)
    if not isinstance(output, tuple):
        return output + adapter(output)
    changed = (output[0] + adapter(output[0]), *output[1:])  # attention may return its weights, too, a unit its skips
    return output._make(changed) if hasattr(output, "_make") else changed


def _remember_input(adapter: AdapterBottleneck, forward: Callable[..., object], x: Tensor) -> object:
    """Keep a module's input for the adapter of a parallel branch, and run the module's own forward."""
    adapter.branch_input = x
    return forward(x)


def _forward_parallel(
    adapter: AdapterBottleneck, forward: Callable[..., object], *args: object, **kwargs: object
) -> Tensor:
    """Run a module's own forward, and add the adapter's output for the input that `_remember_input` kept."""
    x, adapter.branch_input = adapter.branch_input, None  # released at once: it holds a graph
    assert isinstance(x, torch.Tensor)
    return forward(*args, **kwargs) + adapter(x)


NORMS = ("none", "in")


@check_arguments("finetune")
def adaptformer(
    backbone: Backbone,
    width: Count = 64,
    scale: float = 0.1,
    dropout: Dropout = 0.1,
    layernorm: str = "none",
    blocks: int | None = None,
) -> None:
    """Freeze the backbone and add a bottleneck parallel to the feed-forward of every block.

    It is AdaptFormer (Chen et al. 2022), as released: its input is the residual stream before the norm of the
    feed-forward, and its output is scaled and added outside any LayerScale; ReLU; dropout in the middle. MARCO has
    `layernorm="in"` and a width of half the channels, in nine blocks.

    Args:
        backbone: Backbone to adapt, in place.
        width: Channels in the bottleneck's middle.
        scale: Factor of the bottleneck's output.
        dropout: Dropout rate in the middle.
        layernorm: `in` puts a LayerNorm before the bottleneck, `none` does not.
        blocks: Number of last blocks to adapt; all if left out.

    Raises:
        UserError: The backbone has fewer blocks, or none with a norm before its feed-forward.
    """
    if layernorm not in NORMS:
        raise UserError(f"`finetune.layernorm` must be one of {', '.join(NORMS)}, got {layernorm!r}")
    units = [
        unit for block in last_blocks_of(backbone, blocks) for unit in transformer_units(block) if unit.norm is not None
    ]
    if not units:
        raise UserError(
            f"finetune=adaptformer goes beside the feed-forward of transformer blocks, and {backbone.name} has none "
            "with a norm before it. Use finetune=houlsby or finetune=lora, which work there."
        )
    backbone.requires_grad_(False)
    for unit in units:
        assert unit.norm is not None
        adapter = AdapterBottleneck(
            len(unit.scale), width, nn.ReLU(), dropout, scale, norm=layernorm == "in", like=unit.scale
        )
        add_parallel(unit.norm, unit.feed_forward, adapter)
    backbone.train(backbone.training)  # also sets the mode of the new modules


@check_arguments("finetune")
def houlsby(backbone: Backbone, width: Count = 64, blocks: int | None = None) -> None:
    """Freeze the backbone and add two bottlenecks to every transformer block, after attention and feed-forward.

    They are the adapters of Houlsby et al. 2019. Each is a residual branch, before the block's addition and after its
    LayerScale, if there is one. Theirs start near the identity; here they start at it, to the bit. A block without
    attention gets one bottleneck after it, of 1 x 1 convolutions: a residual adapter in series.

    Args:
        backbone: Backbone to adapt, in place.
        width: Channels in the middle of a bottleneck.
        blocks: Number of last blocks to adapt; all if left out.

    Raises:
        UserError: The backbone has fewer blocks, or one with neither attention and feed-forward nor a feature map.
    """
    adapted_blocks = last_blocks_of(backbone, blocks)
    backbone.requires_grad_(False)
    plain_blocks = [block for block in adapted_blocks if not list(transformer_units(block))]
    for block, channels in zip(plain_blocks, output_channels(backbone, plain_blocks), strict=True):
        like = next(backbone.parameters())
        add_serial(block, AdapterBottleneck(channels, width, nn.GELU(), maps=True, like=like))
    for unit in [unit for block in adapted_blocks for unit in transformer_units(block)]:
        for branch in (unit.attention, unit.feed_forward):
            add_serial(branch, AdapterBottleneck(len(unit.scale), width, nn.GELU(), like=unit.scale))
    backbone.train(backbone.training)  # also sets the mode of the new modules


def output_channels(backbone: Backbone, blocks: Sequence[nn.Module]) -> list[int]:
    """Return the output channels of `blocks`, measured in a run on a small image.

    Raises:
        UserError: The output of a block is not a feature map.
    """
    if not blocks:
        return []
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def record_shape(block: nn.Module, _: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        shapes[block] = tuple(first.shape) if isinstance(first, Tensor) else ()

    modes = {module: module.training for module in backbone.modules()}
    hooks = [block.register_forward_hook(record_shape) for block in blocks]
    try:
        backbone.eval()  # batch norms must not learn from this image
        side = min(backbone.size, 4 * getattr(backbone, "multiple", backbone.size))
        image = next(backbone.parameters()).new_zeros(1, 3, side, side)
        with torch.no_grad():
            backbone.pair(image, image) if backbone.needs_pair else backbone(image)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    unknown = [type(block).__name__ for block in blocks if len(shapes.get(block, ())) != 4]
    if unknown:
        raise UserError(
            f"finetune=houlsby: {unknown[0]} of {backbone.name} has neither attention and feed-forward by a name "
            "that is known nor a feature map as its output. Use finetune=lora or finetune=last_blocks."
        )
    return [shapes[block][1] for block in blocks]
