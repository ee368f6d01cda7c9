"""A 4-D convolution of correlations by PyTorch's 2-D and 3-D convolutions, with an equally frugal backward.

A kernel's taps over the first two axes (the source's) are convolutions over the last two (the target's), whose results
are shifted and added. On a CPU all of these are channels of one 2-D convolution of a few source cells, which fits a
processor's cache; of few channels, those of two neighbouring cells are convolved together, which fills its registers.
Elsewhere there is one 3-D convolution for each tap over the first axis, on the whole volume:
few launches, and memory for one more volume.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, once_differentiable
from torch.nn.functional import conv2d, conv3d, max_pool2d
from torch.nn.grad import conv2d_weight, conv3d_weight

from semcorr.core.errors import UserError

CHUNK_VALUES = 2**20  # values of a chunk of shifted results on a CPU: 4 MiB, in the caches of two cores
Cells = tuple[int, slice, int, slice]  # index of source cells of a row next to each other: volume, channels, row, span
BLOCK_VALUES = 31 * 2**18  # of a block that is allocated once and never written: 31 MiB, glibc takes no more
REGISTER = 16  # channels that a CPU's convolution takes at once, zeros where there are fewer


def conv4d(
    x: Float[Tensor, "b c h w k l"],
    weight: Float[Tensor, "o c kh kw kk kl"],
    bias: Float[Tensor, " o"] | None = None,
) -> Float[Tensor, "b o h w k l"]:
    """Cross-correlate over the last four axes, as PyTorch's convolutions do: stride 1, zero padding, same size.

    >>> x = torch.zeros(1, 1, 3, 3, 3, 3)
    >>> x[0, 0, 1, 1, 1, 1] = 1
    >>> conv4d(x, torch.full((1, 1, 3, 3, 3, 3), 2.0)).unique()  # the whole volume is its neighbourhood
    tensor([2.])
    """
    _check_odd(weight.shape[2:])
    return _Conv4d.apply(x, weight, bias)


class Conv4d(nn.Module):
    """A layer of 4-D convolution, initialised as PyTorch's convolutions are.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Kernel size, in cells along each of the four axes; or two, along the first two and the last two. Odd.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int | Sequence[int] = 3) -> None:
        super().__init__()
        source, target = (kernel, kernel) if isinstance(kernel, int) else kernel
        sizes = (source, source, target, target)
        _check_odd(sizes)
        bound = (inputs * prod(sizes)) ** -0.5
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *sizes).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "b c h w k l"], swapped: bool = False) -> Float[Tensor, "b o h w k l"]:
        """Convolve; with `swapped`, as if the first two axes of input and output were the last two."""
        return conv4d(x, self.weight.permute(0, 1, 4, 5, 2, 3) if swapped else self.weight, self.bias)


class MixedConv4d(nn.Module):
    """A layer of 4-D convolutions of several kernel sizes side by side: each makes an equal share of the channels.

    Args:
        inputs: Input channels.
        outputs: Output channels of all together.
        kernels: Two kernel sizes for each: along the first two axes and the last two; odd.
    """

    def __init__(self, inputs: int, outputs: int, kernels: Sequence[Sequence[int]]) -> None:
        super().__init__()
        share = outputs // len(kernels)
        self.branches = nn.ModuleList(Conv4d(inputs, share, kernel) for kernel in kernels)

    def forward(self, x: Float[Tensor, "b c h w k l"], swapped: bool = False) -> Float[Tensor, "b o h w k l"]:
        """Convolve by each; with `swapped`, as if the first two axes of input and output were the last two."""
        return torch.cat([branch(x, swapped) for branch in self.branches], dim=1)


class PivotConv4d(nn.Module):
    """A 4-D convolution with those taps alone that keep one of the two cells of a match (centre-pivot, as in HSNet).

    It is one 2-D convolution over the source's axes plus one over the target's. With a stride, the axes that a
    convolution does not see are reduced by their largest values.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Kernel size, in cells along each axis; odd.
        stride: Cells from one output to the next, along all axes.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.source, self.target = (nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2) for _ in range(2))

    def forward(self, x: Float[Tensor, "b c h w k l"]) -> Float[Tensor, "b o i j m n"]:
        """Convolve; sides become ceil(side / stride)."""
        by_target = self._convolve_last(self.target, x)
        by_source = self._convolve_last(self.source, x.permute(0, 1, 4, 5, 2, 3)).permute(0, 1, 4, 5, 2, 3)
        return by_source + by_target

    def _convolve_last(self, convolution: nn.Conv2d, x: Float[Tensor, "b c h w k l"]) -> Float[Tensor, "b o i j m n"]:
        """Convolve over the last two axes, for every cell of the reduced first two."""
        if self.stride > 1:
            b, c, h, w, k, l = x.shape  # noqa: E741
            cells = x.permute(0, 1, 4, 5, 2, 3).reshape(b, c * k * l, h, w)
            reduced = max_pool2d(cells, self.stride, ceil_mode=True)
            x = reduced.unflatten(1, (c, k, l)).permute(0, 1, 4, 5, 2, 3)
        b, _, h, w = x.shape[:4]
        volumes: Tensor = convolution(x.permute(0, 2, 3, 1, 4, 5).flatten(0, 2))
        return volumes.unflatten(0, (b, h, w)).permute(0, 3, 1, 2, 4, 5)


class _Conv4d(torch.autograd.Function):
    """The convolution as an autograd function, which saves its input for backward and nothing else."""

    @staticmethod
    def forward(ctx: BackwardCFunction, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = tuple(ctx.saved_tensors)
        needs_x, needs_weight, needs_bias = tuple(ctx.needs_input_grad)
        gradient = gradient.contiguous()
        flipped = weight.flip(2, 3, 4, 5).transpose(0, 1)
        return (
            _convolve(gradient, flipped, None) if needs_x else None,
            _weight_gradient(x, gradient, weight.shape[2:]) if needs_weight else None,
            gradient.sum((0, 2, 3, 4, 5)) if needs_bias else None,
        )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the convolution in the type of `x`, without checks and without autograd."""
    b, _, *grid = x.shape
    start = x.new_zeros(len(weight)) if bias is None else bias.to(x.dtype)
    out = start.view(-1, 1, 1, 1, 1).expand(b, len(weight), *grid).contiguous()
    add = add_by_cells if x.device.type == "cpu" else add_by_volumes
    if x.device.type == "cpu":
        # glibc gives freed memory back to the system beyond twice the largest block that was freed, and the system
        # clears it for each chunk again: a third of all time. After this block it keeps 62 MiB.
        torch.empty(BLOCK_VALUES)
    with torch.autocast(x.device.type, enabled=False):
        add(out, x, weight.to(x.dtype))
    return out


def _weight_gradient(x: Tensor, gradient: Tensor, kernel: Sequence[int]) -> Tensor:
    """Compute the gradient of the kernel from the input and the gradient of the output."""
    by = weight_gradient_by_cells if x.device.type == "cpu" else weight_gradient_by_volumes
    with torch.autocast(x.device.type, enabled=False):
        return by(x, gradient.to(x.dtype), kernel)


def add_by_volumes(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add the convolution of `x` to `out` by a 3-D convolution of the whole volume for each tap over the first axis."""
    rows, padding = weight.shape[2], [size // 2 for size in weight.shape[3:]]
    for i in range(rows):
        to, of = _overlap(x.shape[2], i - rows // 2)
        if to.start < to.stop:
            volumes = conv3d(x[:, :, of].transpose(1, 2).flatten(0, 1), weight[:, :, i], padding=padding)
            out[:, :, to].add_(volumes.unflatten(0, (len(x), -1)).transpose(1, 2))


def weight_gradient_by_volumes(x: Tensor, gradient: Tensor, kernel: Sequence[int]) -> Tensor:
    """Compute the gradient of the kernel by one 3-D convolution for each tap over the first axis."""
    rows, *inner = kernel
    shape, padding = (gradient.shape[1], x.shape[1], *inner), [size // 2 for size in inner]
    taps = []
    for i in range(rows):
        to, of = _overlap(x.shape[2], i - rows // 2)
        volumes, results = (part.transpose(1, 2).flatten(0, 1) for part in (x[:, :, of], gradient[:, :, to]))
        taps.append(
            conv3d_weight(volumes, shape, results, padding=padding) if len(volumes) else volumes.new_zeros(shape)
        )
    return torch.stack(taps, dim=2)


def add_by_cells(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add the convolution of `x` to `out`: for a few source cells at a time, one 2-D convolution for all their taps.

    The taps are input channels, read from the neighbours of each cell, or output channels, added to its neighbours:
    whichever are fewer.
    """
    o, c, kh, kw, *inner = weight.shape
    padding = [size // 2 for size in inner]
    if c < o:
        filters = weight.permute(0, 2, 3, 1, 4, 5).flatten(1, 3)
        for cells in _iterate_cells(x, kh * kw * c):
            results = conv2d(_gather_neighbours(x, cells, (kh, kw)), filters, padding=padding)
            out[cells].add_(results.transpose(0, 1))
        return
    at_once = count_cells_at_once(c)
    stacked = {group: _stack_taps(weight, group) for group in {1, at_once}}
    for cells in _iterate_cells(x, kh * (kw + at_once - 1) * o, at_once):
        group = _group_size(cells, at_once)
        results = conv2d(_join_groups(x[cells], group), stacked[group], padding=padding).unflatten(1, (kh, -1, o))
        for i, j, neighbours, span in _iterate_neighbours(cells, (kh, kw), x.shape, group):
            out[neighbours].add_(results[span, i, j].transpose(0, 1))


def count_cells_at_once(channels: int) -> int:
    """Return how many neighbouring cells of so many channels are convolved together.

    Two whose channels fit a register: a third of the taps of a kernel of 3 are then zeros, but half of the register
    would be. With fewer channels than a quarter of it nothing is gained.

    >>> [count_cells_at_once(channels) for channels in (1, 8, 10, 16)]
    [1, 2, 1, 1]
    """
    return 2 if REGISTER // 4 < channels <= REGISTER // 2 else 1


def _group_size(cells: Cells, at_once: int) -> int:
    """Return how many of some cells are convolved together: one, where it is the last of a row of odd length."""
    return at_once if (cells[3].stop - cells[3].start) % at_once == 0 else 1


def _join_groups(cells: Float[Tensor, "c cells k l"], group: int) -> Float[Tensor, "groups joined k l"]:
    """Make the channels of neighbouring cells those of one."""
    return cells.unflatten(1, (-1, group)).permute(1, 2, 0, 3, 4).flatten(1, 2)


def _stack_taps(weight: Float[Tensor, "o c kh kw kk kl"], group: int) -> Float[Tensor, "results inputs kk kl"]:
    """Return filters from the channels of neighbouring cells to what they add to each cell around them.

    Args:
        weight: The kernel.
        group: Number of neighbouring cells.
    """
    o, c, kh, kw, *inner = weight.shape
    filters, taps = (
        weight.new_zeros(kh, kw + group - 1, o, group, c, *inner),
        weight.flip(2, 3).permute(2, 3, 0, 1, 4, 5),
    )
    for i in range(group):
        filters[:, i : i + kw, :, i] = taps
    return filters.flatten(3, 4).flatten(0, 2)


def weight_gradient_by_cells(x: Tensor, gradient: Tensor, kernel: Sequence[int]) -> Tensor:
    """Compute the gradient of the kernel by one 2-D convolution for all taps of a few source cells at a time."""
    kh, kw, *inner = kernel
    o, c, padding = gradient.shape[1], x.shape[1], [size // 2 for size in inner]
    if c < o:
        filters = x.new_zeros(o, kh * kw * c, *inner)
        for cells in _iterate_cells(x, kh * kw * c):
            neighbours = _gather_neighbours(x, cells, (kh, kw))
            filters += conv2d_weight(neighbours, filters.shape, gradient[cells].transpose(0, 1), padding=padding)
        return filters.unflatten(1, (kh, kw, c)).permute(0, 3, 1, 2, 4, 5)
    at_once = count_cells_at_once(c)
    taps = x.new_zeros(kh, kw, o, c, *inner)
    for cells in _iterate_cells(x, kh * (kw + at_once - 1) * o, at_once):
        group = _group_size(cells, at_once)
        neighbours = _gather_neighbours(gradient, cells, (kh, kw), group)
        shape = (neighbours.shape[1], group * c, *inner)
        filters = conv2d_weight(_join_groups(x[cells], group), shape, neighbours, padding=padding)
        for i, of_cell in enumerate(filters.unflatten(0, (kh, -1, o)).unflatten(3, (group, c)).unbind(3)):
            taps += of_cell[:, i : i + kw]
    return taps.flip(0, 1).permute(2, 3, 0, 1, 4, 5)


def _iterate_cells(x: Tensor, channels: int, group: int = 1) -> Iterator[Cells]:
    """Yield the source cells of all rows, as many at a time as fit a cache.

    Args:
        x: The volume.
        channels: Values of a group of cells for each target cell.
        group: Number of neighbouring cells that are taken together; what is left of a row comes last.
    """
    b, _, h, w, *inner = x.shape
    limit, groups = max(1, CHUNK_VALUES // (channels * prod(inner))), w // group
    at_once = group * -(-groups // max(1, -(-groups // limit)))  # chunks of about the same size
    whole = range(0, groups * group, at_once or group)
    spans = [slice(first, min(first + at_once, groups * group)) for first in whole]
    spans += [slice(groups * group, w)] if groups * group < w else []
    for volume, row, span in product(range(b), range(h), spans):
        yield volume, slice(None), row, span


def _iterate_neighbours(
    cells: Cells, kernel: tuple[int, int], shape: Sequence[int], group: int = 1
) -> Iterator[tuple[int, int, Cells, slice]]:
    """Yield each tap, the neighbours of the groups at that tap, and which of the groups have one within the volume.

    Args:
        cells: Source cells of a row next to each other.
        kernel: Size of the kernel along the source's axes.
        shape: Shape of the volume.
        group: Number of cells of a group; its taps along the row reach from the first one's to the last one's.
    """
    volume, channels, row, span = cells
    for i, j in product(range(kernel[0]), range(kernel[1] + group - 1)):
        down, first = row + i - kernel[0] // 2, span.start + j - kernel[1] // 2
        low = max(0, -(first // group))
        high = min((span.stop - span.start) // group, (shape[3] - 1 - first) // group + 1)
        if 0 <= down < shape[2] and low < high:
            columns = slice(first + low * group, first + (high - 1) * group + 1, group)
            yield i, j, (volume, channels, down, columns), slice(low, high)


def _gather_neighbours(
    x: Tensor, cells: Cells, kernel: tuple[int, int], group: int = 1
) -> Float[Tensor, "groups stacked k l"]:
    """Stack the neighbours of some cells, or of groups of them, zeros outside the volume."""
    groups = (cells[3].stop - cells[3].start) // group
    stack = x.new_zeros(groups, kernel[0], kernel[1] + group - 1, x.shape[1], *x.shape[4:])
    for i, j, neighbours, with_neighbour in _iterate_neighbours(cells, kernel, x.shape, group):
        stack[with_neighbour, i, j] = x[neighbours].transpose(0, 1)
    return stack.flatten(1, 3)


def _overlap(length: int, shift: int) -> tuple[slice, slice]:
    """Return the positions of an axis from which `shift` leads to another one, and those that it leads to."""
    low = min(length, max(0, -shift))
    high = max(low, min(length, length - shift))  # none where the shift leads beyond the axis
    return slice(low, high), slice(low + shift, high + shift)


def _check_odd(sizes: Sequence[int]) -> None:
    """Refuse kernels of even size: their output would not have the size of the input."""
    if any(size % 2 == 0 for size in sizes):
        raise UserError(f"a 4-D convolution has kernels of odd sizes, got {tuple(sizes)}. Give 3 or 5")
