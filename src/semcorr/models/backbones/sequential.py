"""Backbones that are a chain of blocks, and can be cut after any of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.types import BackboneState, FeatureMap, ImageMaps
from semcorr.models.backbones.features import concatenate_layers

MAX_SIDE = 2**14  # pixels along a side: a single larger image takes more memory than there is
# Errors that networks raise on images that they do not take.
REFUSALS = (TypeError, ValueError, AssertionError, ArithmeticError, LookupError, AttributeError, RuntimeError)
BlockForward = Callable[..., Tensor]
Step = Callable[..., object]  # step(i, the block's original forward, its arguments) -> its output


class CellGrid(NamedTuple):
    """The grid of cells that a network lays over an image."""

    stride: int  # image pixels per cell
    multiple: int  # image sides must be multiples of it, in pixels

    def side(self, name: str, size: int | None, cells: int | None = None) -> int:
        """Return the pixels along a side that is given in pixels, or in cells if `cells` is not None.

        Args:
            name: Name of the network, for messages.
            size: Pixels along the side; ignored where `cells` is given.
            cells: Cells along the side; None where the side is given in pixels.

        Raises:
            UserError: The side is too large, or no multiple of `multiple`.

        >>> CellGrid(stride=14, multiple=14).side("dinov2", 840, cells=32)
        448
        """
        key, pixels = ("size", size or 0) if cells is None else ("grid", cells * self.stride)
        if pixels > MAX_SIDE:
            limit = MAX_SIDE if cells is None else MAX_SIDE // self.stride
            raise UserError(f"`backbone.{key}` must be at most {limit} for {name}, {MAX_SIDE} pixels along a side")
        if pixels > 0 and pixels % self.multiple == 0:
            return pixels
        below = pixels // self.multiple * self.multiple
        nearest = [side for side in (below, below + self.multiple) if side > 0] or [self.multiple]
        suggestions = [side if cells is None else side / self.stride for side in nearest]
        raise UserError(
            f"`backbone.{key}`: the image side of {name} must be a multiple of {self.multiple} pixels, got {pixels}. "
            f"Set `backbone.{key}` to {' or '.join(f'{value:g}' for value in suggestions)}, for instance."
        )


class SequentialBackbone(Backbone, ABC):
    """A backbone whose network calls each of its blocks once, in order, each on the output of the one before.

    A cut needs no knowledge of the network's code. Up to it, the outputs of the blocks are recorded and
    the rest is not run. After it, the network runs on an empty image of the same size, with its first
    blocks replaced by what was recorded: position embeddings, norms and what is read come from its own code.
    What is computed on the empty image is the patch embedding or stem, a few per cent of a block.

    Args:
        name: Name of the weights.
        size: Side of the square images are resized to, in pixels.
        grid: Cells along the side of an image, given instead of `size`.
        lattice: Stride of the network, and the number of pixels that image sides must be multiples of.
        statistics: Mean and standard deviation of RGB in [0, 1].
    """

    mean: Tensor
    std: Tensor
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
        """The trainable units, first to last, none beyond the last layer read."""

    @property
    @abstractmethod
    def points(self) -> list[int]:
        """The number of blocks run before each layer is read, one per layer."""

    @property
    def norm(self) -> nn.Module | None:
        """The last layer that is trained with the blocks: none, unless a subclass has one."""
        return None

    @abstractmethod
    def read(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Compute one map per layer from normalised images: run the network, calling every one of `blocks`."""

    @property
    def lora_targets(self) -> list[str]:
        """The names of fused or single query and value projections, or of all ungrouped convolutions."""
        return default_lora_targets(self.blocks)

    def forward(self, image: Float[Tensor, "b 3 height width"]) -> FeatureMap:
        """Compute the features of RGB images in [0, 1]."""
        return self.join_maps(self.read_maps(image))

    def read_maps(self, image: Float[Tensor, "b 3 height width"]) -> ImageMaps:
        """Compute the maps of all layers, each on its own grid."""
        maps: object = self.read((image - self.mean) / self.std)
        if not isinstance(maps, list | tuple) or not all(isinstance(values, Tensor) for values in maps):
            name = f"{type(self).__module__}.{type(self).__qualname__}.read"
            raise UserError(
                f"`backbone._target_`: {name} must return a list of maps (b c y x), got a {type(maps).__name__}."
            )
        return ImageMaps({str(i): values for i, values in enumerate(maps)})

    def join_maps(self, maps: ImageMaps) -> FeatureMap:
        """Concatenate the maps of all layers."""
        layers = [maps.values[str(i)] for i in range(len(maps.values))]
        return FeatureMap(concatenate_layers(layers, self.unit_layers), self.stride)

    def prefix(self, image: Float[Tensor, "b 3 height width"], depth: int) -> BackboneState:
        """Compute the embedding and the first `depth` blocks."""
        values: dict[str, Tensor] = {}

        def step(i: int, block_forward: BlockForward, x: Tensor, *args: object, **kwargs: object) -> Tensor:
            if i == 0:
                record(0, x)
            x = block_forward(x, *args, **kwargs)
            record(i + 1, x)
            return x

        def record(count: int, x: Tensor) -> None:
            if count == depth or (count < depth and count in self.points):
                values[str(count)] = x
            if count == depth:
                raise _Reached

        with intercept_blocks(self.blocks_up_to(depth), step):
            try:
                self.read((image - self.mean) / self.std)
            except _Reached:
                return BackboneState(values, (image.shape[-2], image.shape[-1]))
        raise AssertionError(f"{self.name} does not call its blocks in order")

    def suffix(self, state: BackboneState, depth: int) -> FeatureMap:
        """Compute the features from the state after `depth` blocks."""
        return self.join_maps(self.finish_maps(state, depth))

    def finish_maps(self, state: BackboneState, depth: int) -> ImageMaps:
        """Compute the maps of all layers from the state after `depth` blocks."""

        def step(i: int, block_forward: BlockForward, x: Tensor, *args: object, **kwargs: object) -> Tensor:
            if i == 0:
                x = state.values.get("0", x)
            return block_forward(x, *args, **kwargs) if i >= depth else state.values.get(str(i + 1), x)

        empty = self.mean.new_zeros(len(state.values[str(depth)]), 3, *state.size)
        with intercept_blocks(self.blocks_up_to(depth), step):
            return ImageMaps({str(i): values for i, values in enumerate(self.read(empty))})

    def require_maps(self) -> None:
        """Refuse a network that gives no map of its cells for images of `size`, or whose blocks are not a chain.

        Shapes are enough to tell, so the network runs on PyTorch's meta device, in milliseconds. One that cannot run
        there runs once on black images.

        Raises:
            UserError: The network is such a one.
        """
        halves = _Halves(self)
        images = torch.empty(2, 3, self.size, self.size, device="meta")
        tensors = [*halves.named_parameters(), *halves.named_buffers()]
        weights = {key: torch.empty_like(value, device="meta") for key, value in tensors}
        try:
            self._require_chain(lambda: functional_call(halves, weights, (images,)))
        except UserError:
            raise
        except Exception:  # an operation without shapes alone, or an image that the network does not take
            black = self.mean.new_zeros(2, 3, self.size, self.size)
            try:
                self._require_chain(lambda: halves(black))
            except REFUSALS as error:
                raise self._size_error((str(error).strip() or type(error).__name__).splitlines()[0][:120]) from error

    def _require_chain(self, run: Callable[[], tuple[FeatureMap, FeatureMap]]) -> None:
        """Run the network on two images, and require that each block is called once, in order, and a map of cells."""
        calls: list[int] = []

        def step(i: int, block_forward: Callable[..., object], x: object, *args: object, **kwargs: object) -> object:
            calls.append(i)
            out = block_forward(x, *args, **kwargs)
            if not (isinstance(x, Tensor) and isinstance(out, Tensor)):
                calls.append(-1)
            return out

        with torch.no_grad(), intercept_blocks(self.blocks, step):
            whole, halves = (maps.values for maps in run())
        cells = self.size // self.stride
        if tuple(whole.shape) != (2, self.channels, cells, cells):
            raise self._size_error(f"it gives {' x '.join(map(str, whole.shape[2:]))}")
        if calls[: len(self.blocks)] != [*range(len(self.blocks))] or halves.shape != whole.shape:
            raise UserError(
                f"`backbone.name`: {self.name} does not pass one tensor from each of its blocks to the next, so it "
                "cannot be cut between them. Choose another backbone."
            )

    def _size_error(self, reason: str) -> UserError:
        """Build the error for a size that the network does not take."""
        cells = self.size // self.stride
        return UserError(
            f"`backbone.size`: {self.name} gives no map of {cells} x {cells} cells for images of {self.size} x "
            f"{self.size} pixels ({reason}). Set it to the size that the network is made for, or choose another one."
        )

    def blocks_up_to(self, depth: int) -> list[nn.Module]:
        """Return the first `depth` blocks, and always the first one, whose input may be needed."""
        if not 0 <= depth <= len(self.blocks):
            raise UserError(f"`depth` must be between 0 and {len(self.blocks)}, the blocks of {self.name}, got {depth}")
        return list(self.blocks)[: max(depth, 1)]


class _Halves(nn.Module):
    """The features of a backbone, whole and cut after its last block."""

    def __init__(self, backbone: SequentialBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Float[Tensor, "b 3 height width"]) -> tuple[FeatureMap, FeatureMap]:
        whole, depth = self.backbone(image), len(self.backbone.blocks)
        return whole, self.backbone.suffix(self.backbone.prefix(image, depth), depth)


class _Reached(Exception):  # noqa: N818, no error
    """The requested depth has been reached."""


@contextmanager
def intercept_blocks(blocks: Sequence[nn.Module], step: Step) -> Iterator[None]:
    """Replace each call of `blocks[i]` in the context by `step(i, original forward, *arguments)`."""
    # Other code, such as adapters, may have put a forward on a block as well: it is put back afterwards.
    instance_forwards = [block.__dict__.get("forward") for block in blocks]
    for i, block in enumerate(blocks):
        block.forward = partial(step, i, block.forward)
    try:
        yield
    finally:
        for block, previous in zip(blocks, instance_forwards, strict=True):
            del block.forward
            if previous is not None:
                block.forward = previous


def default_lora_targets(blocks: Sequence[nn.Module]) -> list[str]:
    """List the endings of the names of the modules that LoRA adapts by default.

    Queries and values (Hu et al. 2021, section 4.2); where one layer makes queries, keys and values
    at once, the keys are adapted, too. Of a convolutional network, every convolution is adapted, also where
    it is written as a linear layer (ConvNeXt); grouped ones have no low rank to speak of.
    """
    modules = [(name.rpartition(".")[2], module) for block in blocks for name, module in block.named_modules()]
    linear = {name for name, module in modules if isinstance(module, nn.Linear)}
    for choice in (("qkv",), ("q_proj", "v_proj"), ("query", "value")):
        if linear.issuperset(choice):
            return list(choice)
    return sorted(linear | {name for name, module in modules if isinstance(module, nn.Conv2d) and module.groups == 1})
