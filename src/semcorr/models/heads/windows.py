"""Windows of maps around cells: their place, and what they show of the map."""

import logging
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

log = logging.getLogger(__name__)


def check_window(window: int, height: int, width: int) -> None:
    """Warn of a window that is larger than the maps that it is in: once for a size, and not in a compiled graph.

    Args:
        window: Cells along a side of the window.
        height: Rows of the maps.
        width: Columns of the maps.
    """
    if window > max(height, width) and not torch.compiler.is_compiling():
        _warn_of_window(window, height, width)


@cache
def _warn_of_window(window: int, height: int, width: int) -> None:
    log.warning(
        "`head.window=%d` is larger than maps of %d x %d cells: all of them is decoded, as by any such window",
        window,
        height,
        width,
    )


def place_windows(cells: Int[Tensor, "b n"], size: int, length: int) -> Int[Tensor, "b n"]:
    """Return the first position of windows around cells along an axis; those at the border are moved onto the map.

    Args:
        cells: Position of the middle cell of each window.
        size: Cells along the axis in a window.
        length: Cells along the axis in the map.

    >>> place_windows(torch.tensor([[0, 4, 9]]), size=3, length=10)
    tensor([[0, 3, 7]])
    """
    return (cells - size // 2).clamp(0, length - size)


def cut_windows(
    maps: Float[Tensor, "b c h w"], top: Int[Tensor, "b n"], left: Int[Tensor, "b n"], size: tuple[int, int]
) -> Float[Tensor, "b n c k l"]:
    """Cut windows out of maps.

    Args:
        maps: Maps of a batch of images.
        top: First row of each window; all of it lies on the map.
        left: First column of each window.
        size: Rows and columns of a window.

    >>> cut_windows(torch.arange(6.0).view(1, 1, 2, 3), torch.tensor([[0]]), torch.tensor([[1]]), (2, 2)).tolist()
    [[[[[1.0, 2.0], [4.0, 5.0]]]]]
    """
    w = maps.shape[-1]
    down, across = (torch.arange(length, device=maps.device) for length in size)
    index = (top[..., None] + down)[..., None] * w + (left[..., None] + across)[..., None, :]  # (b n k l)
    cells = maps.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, maps.shape[1], -1))
    return cells.unflatten(2, index.shape[1:]).transpose(1, 2)


def paste_windows(
    similarity: Float[Tensor, "b n h w"],
    windows: Float[Tensor, "b n k l"],
    top: Int[Tensor, "b n"],
    left: Int[Tensor, "b n"],
) -> Float[Tensor, "b n h w"]:
    """Return a similarity in which one window for each point has new values.

    Args:
        similarity: Similarity of every point with every cell.
        windows: Values of the window of each point.
        top: First row of each window; all of it lies on the map.
        left: First column of each window.

    >>> top, left = torch.tensor([[0]]), torch.tensor([[1]])
    >>> paste_windows(torch.zeros(1, 1, 1, 3), torch.ones(1, 1, 1, 2), top, left).tolist()
    [[[[0.0, 1.0, 1.0]]]]
    """
    k, l = windows.shape[-2:]  # noqa: E741
    down, across = (torch.arange(length, device=windows.device) for length in (k, l))
    index = (top[..., None] + down)[..., None] * similarity.shape[-1] + (left[..., None] + across)[..., None, :]
    return similarity.flatten(2).scatter(2, index.flatten(2), windows.flatten(2)).view_as(similarity)


def scale_cells(maps: Float[Tensor, "b c h w"], precision: torch.dtype) -> Float[Tensor, "b c h w"]:
    """Scale every cell to a mean square of one: backbones differ by factors of a hundred."""
    return normalize(maps.to(precision), dim=1) * maps.shape[1] ** 0.5
