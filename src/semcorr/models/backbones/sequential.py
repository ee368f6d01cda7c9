"""A network that is a chain of blocks as a backbone, with a cut after any of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.types import BackboneState, FeatureMap
from semcorr.models.backbones.layers import concatenate_layers

LARGEST = 2**14  # pixels along a side: beyond, a single image takes more memory than there is
Step = Callable[..., Any]  # step(i, the block's own forward, its arguments) -> its output


class CellGrid(NamedTuple):
    """How a network lays cells over an image."""

    stride: int  # image pixels per cell
    multiple: int  # what image sides must be multiples of, in pixels

    def side(self, name: str, size: int | None, cells: int | None = None) -> int:
        """Pixels along a side, given in pixels, or in cells where `cells` is given.

        >>> CellGrid(stride=14, multiple=14).side("dinov2", 840, cells=32)
        448
        """
        key, given = ("size", size or 0) if cells is None else ("grid", cells * self.stride)
        if given > LARGEST:
            most = LARGEST if cells is None else LARGEST // self.stride
            raise UserError(f"`backbone.{key}` must be at most {most} for {name}, {LARGEST} pixels along a side")
        if given > 0 and given % self.multiple == 0:
            return given
        below = given // self.multiple * self.multiple
        near = [side for side in (below, below + self.multiple) if side > 0]
        shown = [side if cells is None else side / self.stride for side in near]
        raise UserError(
            f"`backbone.{key}`: the image side of {name} must be a multiple of {self.multiple} pixels, got {given}. "
            f"Set `backbone.{key}` to {' or '.join(f'{value:g}' for value in shown)}, for instance."
        )


class SequentialBackbone(Backbone, ABC):
    """What backbones share whose network calls each of its blocks once, in order, the output of one to the next.

    A cut needs no knowledge of the network's code. Up to it, what the blocks put out is recorded and
    the rest left undone. After it, the network runs on an empty image of the same size, with its first
    blocks replaced by what was recorded: position embeddings, read-out and norms come from its own
    code. What is computed on the empty image is the patch embedding or stem, a few per cent of a block.

    Args:
        name: Of the weights.
        size: Side of the square images are resized to, in pixels.
        grid: Cells per side instead, which `size` then follows from.
        lattice: Stride, and what image sides must be multiples of.
        statistics: Mean and standard deviation of RGB in [0, 1].
    """

    mean: Tensor
    std: Tensor
    norm: nn.Module | None = None
    pairwise = False
    facet = "token"
    sha256 = ""

    def __init__(
        self,
        name: str,
        size: int | None,
        grid: int | None,
        lattice: CellGrid,
        statistics: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        super().__init__()
        self.name, self.stride, self.multiple = name, lattice.stride, lattice.multiple
        self.size = lattice.side(name, size, grid)
        for key, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(key, torch.tensor(values)[:, None, None], persistent=False)

    @property
    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Trainable units, first to last, none beyond the last layer read."""

    @property
    @abstractmethod
    def points(self) -> list[int]:
        """After how many blocks each layer is read, one per layer."""

    @abstractmethod
    def read(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Normalised images to maps, one per layer: run the network, calling every one of `blocks`."""

    @property
    def lora_targets(self) -> list[str]:
        """Fused or single query and value projections; of convolutional networks every ungrouped convolution."""
        return default_lora_targets(self.blocks)

    def forward(self, image: Float[Tensor, "b 3 height width"]) -> FeatureMap:
        """RGB in [0, 1] to features."""
        return FeatureMap(concatenate_layers(self.read((image - self.mean) / self.std)), self.stride)

    def prefix(self, image: Float[Tensor, "b 3 height width"], depth: int) -> BackboneState:
        """The embedding and the first `depth` blocks."""
        values: dict[str, Tensor] = {}

        def step(i: int, own: Step, x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if i == 0:
                keep(0, x)
            x = own(x, *args, **kwargs)
            keep(i + 1, x)
            return x

        def keep(done: int, x: Tensor) -> None:
            if done == depth or (done < depth and done in self.points):
                values[str(done)] = x
            if done == depth:
                raise _Reached

        with intercept_blocks(self.blocks_up_to(depth), step):
            try:
                self.read((image - self.mean) / self.std)
            except _Reached:
                return BackboneState(values, (image.shape[-2], image.shape[-1]))
        raise AssertionError(f"{self.name} does not call its blocks in order")

    def suffix(self, state: BackboneState, depth: int) -> FeatureMap:
        """From the state after `depth` blocks to features."""

        def step(i: int, own: Step, x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if i == 0:
                x = state.values.get("0", x)
            return own(x, *args, **kwargs) if i >= depth else state.values.get(str(i + 1), x)

        empty = self.mean.new_zeros(len(state.values[str(depth)]), 3, *state.size)
        with intercept_blocks(self.blocks_up_to(depth), step):
            return FeatureMap(concatenate_layers(self.read(empty)), self.stride)

    def blocks_up_to(self, depth: int) -> list[nn.Module]:
        """The first `depth` blocks, and in any case the first, whose input may be asked for."""
        if not 0 <= depth <= len(self.blocks):
            raise UserError(f"`depth` must be between 0 and {len(self.blocks)}, the blocks of {self.name}, got {depth}")
        return list(self.blocks)[: max(depth, 1)]


class _Reached(Exception):  # noqa: N818, no error
    """The depth that was asked for."""


@contextmanager
def intercept_blocks(blocks: Sequence[nn.Module], step: Step) -> Iterator[None]:
    """Inside, a call of `blocks[i]` is `step(i, its own forward, *its arguments)`."""
    shadowed = [block.__dict__.get("forward") for block in blocks]  # others put a forward there, too
    for i, block in enumerate(blocks):
        block.forward = partial(step, i, block.forward)
    try:
        yield
    finally:
        for block, before in zip(blocks, shadowed, strict=True):
            del block.forward
            if before is not None:
                block.forward = before


def default_lora_targets(blocks: Sequence[nn.Module]) -> list[str]:
    """Endings of the names of the modules that LoRA adapts by default.

    Queries and values (Hu et al. 2021, section 4.2); where one layer makes queries, keys and values
    at once, the keys are adapted, too. Of a convolutional network, every convolution, also where it is
    written as a linear layer (ConvNeXt); grouped ones have no low rank to speak of.
    """
    named = [(name.rpartition(".")[2], module) for block in blocks for name, module in block.named_modules()]
    linear = {name for name, module in named if isinstance(module, nn.Linear)}
    for choice in (("qkv",), ("q_proj", "v_proj"), ("query", "value")):
        if linear.issuperset(choice):
            return list(choice)
    return sorted(linear | {name for name, module in named if isinstance(module, nn.Conv2d) and module.groups == 1})
