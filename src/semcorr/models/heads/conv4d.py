"""A 4-D convolution of correlations by matrix products accumulated in the output, with an equally frugal backward.

Over the last two axes (the target's) the input is unfolded, a few cells of the first two (the source's) at a
time; every tap of the kernel over the first two axes is then one product with the unfolded chunk, added to the
output cells at that offset. No operation is spent on padded channels, and the only memory besides input and output
is one chunk, of the size of a processor's cache.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, once_differentiable

from semcorr.core.errors import UserError

CACHED = 2**12  # cells of a chunk on a CPU: they fit into a core's cache
MANY = 2**18  # cells of a chunk elsewhere: enough to keep the device busy


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
        kernel: Kernel size, in cells along each of the four axes; odd.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        _check_odd([kernel])
        bound = (inputs * kernel**4) ** -0.5
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *[kernel] * 4).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "b c h w k l"], swapped: bool = False) -> Float[Tensor, "b o h w k l"]:
        """Convolve; with `swapped`, as if the first two axes of input and output were the last two."""
        return conv4d(x, self.weight.permute(0, 1, 4, 5, 2, 3) if swapped else self.weight, self.bias)


class _Conv4d(torch.autograd.Function):
    """The convolution as an autograd function, which saves its input for backward and nothing unfolded."""

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
    """Compute the convolution, without checks and without autograd."""
    b, _, *grid = x.shape
    o, _, *kernel = weight.shape
    start = x.new_zeros(o) if bias is None else bias.to(x.dtype)
    out = start.view(-1, 1, 1, 1, 1).expand(b, o, *grid).contiguous()
    taps = weight.to(x.dtype).permute(2, 3, 0, 1, 4, 5).flatten(3)  # (kh kw o c*kk*kl)
    cells = out.flatten(3)
    for tap, (image, row, span), columns in _iterate_taps(x, kernel):
        cells[image, :, row, span].addmm_(taps[tap], columns)
    return out


def _weight_gradient(x: Tensor, gradient: Tensor, kernel: Sequence[int]) -> Tensor:
    """Compute the gradient of the kernel from the input and the gradient of the output."""
    kh, kw, kk, kl = kernel
    taps = x.new_zeros(kh, kw, gradient.shape[1], x.shape[1] * kk * kl)
    cells = gradient.flatten(3)
    for tap, (image, row, span), columns in _iterate_taps(x, kernel):
        taps[tap].addmm_(cells[image, :, row, span], columns.T)
    return taps.unflatten(3, (-1, kk, kl)).permute(2, 3, 0, 1, 4, 5)


def _iterate_taps(
    x: Tensor, kernel: Sequence[int]
) -> Iterator[tuple[tuple[int, int], tuple[int, int, slice], Float[Tensor, "unfolded cells"]]]:
    """Yield taps over the first two axes, the output cells (image, row, span) that each adds to, and its factor."""
    (h, w, *inner), (kh, kw, *_) = x.shape[2:], kernel
    size = prod(inner)
    for image, row, first, columns in _unfold_chunks(x, kernel):
        last = first + columns.shape[1] // size
        for i, j in product(range(kh), range(kw)):
            target_row, shift = row + kh // 2 - i, kw // 2 - j
            low, high = max(0, first + shift), min(w, last + shift)
            if 0 <= target_row < h and low < high:
                start = low - shift - first
                factor = columns[:, start * size : (start + high - low) * size]
                yield (i, j), (image, target_row, slice(low * size, high * size)), factor


def _unfold_chunks(x: Tensor, kernel: Sequence[int]) -> Iterator[tuple[int, int, int, Float[Tensor, "unfolded cells"]]]:
    """Yield image, row, first cell and a chunk of neighbourhoods over the last two axes, as columns.

    The same memory is used for all chunks: fresh memory would have to be requested from the system each time.
    """
    (b, c, h, w, k, l), (*_, kk, kl) = x.shape, kernel  # noqa: E741
    limit = max(1, (CACHED if x.device.type == "cpu" else MANY) // (k * l))
    at_once = -(-w // -(-w // limit))  # chunks of about the same size
    padded = x.new_zeros(c, at_once, k + kk - 1, l + kl - 1)
    inner = padded[..., kk // 2 : kk // 2 + k, kl // 2 : kl // 2 + l]
    windows = padded.unfold(2, kk, 1).unfold(3, kl, 1).permute(0, 4, 5, 1, 2, 3)
    columns = x.new_empty(c * kk * kl * at_once * k * l)
    for image, row, first in product(range(b), range(h), range(0, w, at_once)):
        n = min(at_once, w - first)
        inner[:, :n] = x[image, :, row, first : first + n]
        chunk = columns[: c * kk * kl * n * k * l].view(c, kk, kl, n, k, l)
        chunk.copy_(windows[:, :, :, :n])
        yield image, row, first, chunk.view(c * kk * kl, -1)


def _check_odd(sizes: Sequence[int]) -> None:
    """Refuse kernels of even size: their output would not have the size of the input."""
    if any(size % 2 == 0 for size in sizes):
        raise UserError(f"a 4-D convolution has kernels of odd sizes, got {tuple(sizes)}. Give 3 or 5")
