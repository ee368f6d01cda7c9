"""Similarity of descriptors and feature maps: pure functions on feature maps and points.

Maps may come in half precision. What is computed from them is in single: bfloat16 cannot tell a
cosine of 0.997 from 1, nor a coordinate of 419.6 pixels from 420.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, interpolate, normalize

from semcorr.core.coords import to_grid
from semcorr.core.device import full_float32

PARTS_PER_THREAD = 2  # of a product that threads share: one alone may be held up
MIN_PART_COLUMNS = 64
MIN_LENGTH = 12  # rows or columns: MKL adds up fewer in another order, and digits would depend on how many there are


def sample_descriptors(
    features: Float[Tensor, "b c h w"], points: Float[Tensor, "b n 2"], stride: float
) -> Float[Tensor, "b n c"]:
    """Sample descriptors bilinearly at `points`, given in image pixels.

    Cells are read at their centres. A point in the outer half of a border cell gets that cell. Only
    the four cells around each point are read: the cost of a point does not depend on the size of the map.

    Args:
        features: Features of a batch of images, in any precision.
        points: Points of each image, in pixels.
        stride: Image pixels per cell.

    Returns:
        The descriptors, in single precision.
    """
    cells, weights = neighbouring_cells(points, stride, *features.shape[-2:])
    if features.device.type == "cpu" and type(features) is Tensor and len(features) and not torch.is_grad_enabled():
        return torch.stack([_blend_cells(*image) for image in zip(features[:, None], cells, weights, strict=True)])
    index = cells.flatten(1)[..., None].expand(-1, -1, features.shape[1])
    values = features.flatten(2).transpose(1, 2).gather(1, index)  # all four at once: one write in backward
    return (values.unflatten(1, (-1, 4)).float() * weights[..., None]).sum(2)


def neighbouring_cells(
    points: Float[Tensor, "b n 2"], stride: float, h: int, w: int
) -> tuple[Int[Tensor, "b n 4"], Float[Tensor, "b n 4"]]:
    """Return the four cells around each point, numbered row by row, and their bilinear weights.

    Args:
        points: Points of each image, in pixels; those beyond the centres of the border cells are moved onto them.
        stride: Image pixels per cell.
        h: Rows of the map.
        w: Columns of the map.
    """
    x, y = to_grid(points.float(), stride).unbind(-1)
    x, y = x.clamp(0, w - 1), y.clamp(0, h - 1)
    left, above = x.floor(), y.floor()
    east, south = x - left, y - above  # shares of the cells on the right and below
    west, north = 1 - east, 1 - south
    columns, rows = (left.long(), x.ceil().long()), (above.long() * w, y.ceil().long() * w)
    cells = torch.stack([row + column for row in rows for column in columns], dim=-1)
    return cells, torch.stack([down * across for down in (north, south) for across in (west, east)], dim=-1)


def sample_from_each(
    maps: Sequence[Float[Tensor, "1 c h w"]], points: Sequence[Float[Tensor, "_ 2"]], stride: float
) -> Float[Tensor, "q c"]:
    """Sample descriptors in each of several maps of one size, as `sample_descriptors` does; without gradients.

    Args:
        maps: Features of one image each; the same object may occur repeatedly.
        points: Points of each map's image, in pixels.
        stride: Image pixels per cell, of all maps.

    >>> maps = [torch.full((1, 1, 2, 2), value) for value in (3.0, 5.0)]
    >>> sample_from_each(maps, [torch.zeros(1, 2), torch.zeros(2, 2)], stride=14)
    tensor([[3.],
            [5.],
            [5.]])
    """
    h, w = maps[0].shape[-2:]
    cells, weights = (each[0] for each in neighbouring_cells(torch.cat(list(points))[None], stride, h, w))
    counts = [len(each) for each in points]
    if cells.device.type == "cpu" and len({*map(id, maps)}) < len(maps):
        return _sample_repeated(maps, cells, weights, counts)
    parts = (each.split(counts) for each in (cells, weights))
    return torch.cat([_blend_cells(*part) for part in zip(maps, *parts, strict=True)])


def _sample_repeated(
    maps: Sequence[Float[Tensor, "1 c h w"]],
    cells: Int[Tensor, "q 4"],
    weights: Float[Tensor, "q 4"],
    counts: list[int],
) -> Float[Tensor, "q c"]:
    """Sample as `sample_from_each`, each map once for all of its points: an operation costs as much as dozens."""
    first = {id(features): i for i, features in reversed(list(enumerate(maps)))}
    owners = np.repeat([first[id(features)] for features in maps], counts)
    order = np.argsort(owners, kind="stable")
    rows, place = (torch.from_numpy(index) for index in (order, np.argsort(order)))
    numbers, queries = np.unique(owners, return_counts=True)
    if not len(numbers):
        return maps[0].new_empty(0, maps[0].shape[1], dtype=torch.float32)
    parts = (each.index_select(0, rows).split(queries.tolist()) for each in (cells, weights))
    blended = [_blend_cells(maps[i], *part) for i, *part in zip(numbers, *parts, strict=True)]
    return torch.cat(blended).index_select(0, place)


def _blend_cells(
    features: Float[Tensor, "1 c h w"], cells: Int[Tensor, "n 4"], weights: Float[Tensor, "n 4"]
) -> Float[Tensor, "n c"]:
    """Return the weighted sums of the features of cells, in single precision."""
    table = features.flatten(2)[0].t()
    if table.device.type == "cpu" and table.is_contiguous() and table.dtype == torch.float32:
        return embedding_bag(cells, table, per_sample_weights=weights, mode="sum")  # reads and adds in one pass
    return (table[cells].float() * weights[..., None]).sum(1)


def cosine_similarity(
    descriptors: Float[Tensor, "b n c"], features: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b n h w"]:
    """Compute the cosine of every descriptor with every cell, in [-1, 1].

    The cells are divided by their lengths after the product, not before it: n numbers per cell then
    change, not c, and no second map is written.

    >>> features = torch.eye(2).reshape(1, 2, 1, 2)  # two cells with orthogonal descriptors
    >>> cosine_similarity(torch.tensor([[[3.0, 0.0]]]), features)
    tensor([[[[1., 0.]]]])
    """
    with full_float32(features.device.type):
        similarity = multiply_batches(_unit_rows(descriptors), features.flatten(2).float(), is_cosine=True)
    return similarity.unflatten(-1, features.shape[-2:])


def cosine_similarity_to_each(
    descriptors: Float[Tensor, "q c"], counts: Sequence[int], maps: Sequence[Float[Tensor, "1 c h w"]]
) -> Float[Tensor, "1 q h w"]:
    """Compute the cosines of the first descriptors with the first map, of the next with the next; without gradients.

    As `cosine_similarity` of each, but written next to each other: several small ones are read out together.

    Args:
        descriptors: Descriptors to compare with the maps, those of the first map first.
        counts: Number of descriptors of each map.
        maps: Features of one image each, all of one size.
    """
    h, w = maps[0].shape[-2:]
    similarity = descriptors.new_empty(1, len(descriptors), h * w, dtype=torch.float32)
    with full_float32(descriptors.device.type):
        queries, start = _unit_rows(descriptors)[None], 0
        for count, features in zip(counts, maps, strict=True):
            rows = slice(start, start := start + count)
            multiply_batches(queries[:, rows], features.flatten(2).float(), is_cosine=True, out=similarity[:, rows])
    return similarity.unflatten(-1, (h, w))


def _unit_rows(descriptors: Float[Tensor, "*q c"]) -> Float[Tensor, "*q c"]:
    queries = descriptors.float()
    return queries / torch.linalg.vector_norm(queries, dim=-1, keepdim=True).clamp_min(1e-12)


def multiply_batches(
    a: Float[Tensor, "b n c"],
    b: Float[Tensor, "b c m"],
    is_cosine: bool = False,
    out: Float[Tensor, "b n m"] | None = None,
) -> Float[Tensor, "b n m"]:
    """Multiply matrices, and divide by the lengths of the columns of `b` for cosines.

    On a CPU, the columns of `b` of a batch of one are shared out among the threads here: MKL itself shares a product
    out so that two threads need up to half as long again as the processor does.

    Args:
        a: Rows, such as descriptors.
        b: Columns, such as cells.
        is_cosine: Whether to divide by the lengths of the columns.
        out: Where to write the products; a new tensor by default.
    """
    plain = type(a) is type(b) is Tensor  # others may have no values, as where a program is traced
    if len(a) > 1 or a.device.type != "cpu" or torch.is_grad_enabled() or not plain:
        products = (a[0] @ b[0])[None] if len(a) == 1 else a @ b  # MKL multiplies two matrices sooner than a batch
        products = _divide_by_lengths(products, b) if is_cosine else products
        return products if out is None else out.copy_(products)
    out = a.new_empty(1, a.shape[1], b.shape[2]) if out is None else out
    if 0 < a.shape[1] < MIN_LENGTH:
        padded = torch.cat((a, a.new_zeros(1, MIN_LENGTH - a.shape[1], a.shape[2])), dim=1)
        return out.copy_(multiply_batches(padded, b, is_cosine)[:, : a.shape[1]])
    parts = PARTS_PER_THREAD * torch.get_num_threads()
    width = (b.shape[2] if b.shape[2] % parts == 0 else b.shape[2] - MIN_LENGTH) // parts
    whole = parts * width if width >= MIN_PART_COLUMNS else 0
    rest = a[0] @ b[0, :, whole:] if whole < b.shape[2] else None
    if whole:
        columns, by_part = (matrix[0, :, :whole].unflatten(1, (parts, width)) for matrix in (b, out))
        products = torch.bmm(a.expand(parts, -1, -1), columns.transpose(0, 1)).transpose(0, 1)  # (n parts width)
    lengths = _lengths(b)[0] if is_cosine else None  # after the products, which have brought the map into the cache
    if whole:
        _write_quotients(products, None if lengths is None else lengths[:whole].view(parts, width), by_part)
    if rest is not None:
        _write_quotients(rest, None if lengths is None else lengths[whole:], out[0, :, whole:])
    return out


def _write_quotients(products: Tensor, lengths: Tensor | None, out: Tensor) -> None:
    """Write products, divided by lengths where there are any."""
    if lengths is None:
        out.copy_(products)
    else:
        torch.div(products, lengths, out=out)


def _divide_by_lengths(products: Float[Tensor, "b n m"], cells: Float[Tensor, "b c m"]) -> Float[Tensor, "b n m"]:
    """Divide cosines by the lengths of cells: after the products, which have brought the map into the cache."""
    return torch.div(products, _lengths(cells)[:, None], out=None if products.requires_grad else products)


def _lengths(cells: Float[Tensor, "b c m"]) -> Float[Tensor, "b m"]:
    return torch.linalg.vector_norm(cells, dim=1).clamp_min(1e-12)


def product_similarity(
    descriptors: Float[Tensor, "b n c"], features: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b n h w"]:
    """Compute the dot product of every descriptor with every cell, both as they are.

    >>> features = torch.eye(2).reshape(1, 2, 1, 2)
    >>> product_similarity(torch.tensor([[[3.0, 0.0]]]), features)
    tensor([[[[3., 0.]]]])
    """
    with full_float32(features.device.type):
        similarity = multiply_batches(descriptors.float(), features.flatten(2).float())
    return similarity.unflatten(-1, features.shape[-2:])


def upsampled_cosine(
    descriptors: Float[Tensor, "n c"], features: Float[Tensor, "1 c h w"], size: tuple[int, int]
) -> Float[Tensor, "1 n height width"]:
    """Compute the cosine of descriptors with features bilinearly upsampled to `size` (width, height), as in DIFT.

    A dot product with an interpolated vector is the interpolated dot product. So the products are upsampled, n
    numbers per pixel and not c, and divided by the lengths of the upsampled features, which `upsampled_lengths`
    computes from the products of neighbouring cells.
    """
    # In double precision: the last bits of single depend on how many maps are upsampled at once.
    lengths = upsampled_lengths(features.double(), size)[0]
    return _upsample_cosine(_dot_products(descriptors, features), lengths, size).float()


def upsampled_argmax(
    descriptors: Float[Tensor, "n c"], features: Float[Tensor, "1 c h w"], size: tuple[int, int], values: int
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """Return the pixel of the largest cosine that `upsampled_cosine` gives, and that cosine.

    Neighbouring pixels differ by little: the best is searched for in single precision, and chosen among it and its
    eight neighbours in double precision.

    Args:
        descriptors: Descriptors of the points.
        features: Features of the image.
        size: Width and height that the features are upsampled to.
        values: Largest number of cosines in memory at once.
    """
    products, lengths = _dot_products(descriptors, features), upsampled_lengths(features.double(), size)[0]
    single, (w, h) = lengths.float(), size
    chunks = (
        _upsample_cosine(chunk.float(), single, size)[0] for chunk in products.split(max(1, values // (w * h)), dim=1)
    )
    index = torch.cat([chunk.flatten(1).argmax(-1) for chunk in chunks])
    steps = torch.arange(-1, 2, device=index.device)
    shifts = torch.cartesian_prod(steps, steps)  # row by row
    y, x = (index // w)[:, None] + shifts[:, 0], (index % w)[:, None] + shifts[:, 1]
    y, x = y.clamp(0, h - 1), x.clamp(0, w - 1)
    (left, right, across), (above, below, down) = (
        [cells[coordinates] for cells in _pixel_neighbours(features.shape[-1 - axis], size[axis], index.device)]
        for axis, coordinates in ((0, x), (1, y))
    )
    query = torch.arange(len(index), device=index.device)[:, None]
    top, bottom = (
        products[0][query, rows, left] * (1 - across) + products[0][query, rows, right] * across
        for rows in (above, below)
    )
    score, best = ((top * (1 - down) + bottom * down) / lengths[y, x]).max(-1)
    pixel = torch.stack([axis.gather(1, best[:, None])[:, 0] for axis in (x, y)], dim=-1)
    return pixel.float(), score.float()


def _dot_products(descriptors: Float[Tensor, "n c"], features: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 n h w"]:
    """Multiply unit descriptors with features in double precision, so that chunk sizes do not change the digits."""
    return torch.einsum("nc,bchw->bnhw", normalize(descriptors.double(), dim=-1), features.double())


def _upsample_cosine(
    products: Float[Tensor, "1 n h w"], lengths: Float[Tensor, "height width"], size: tuple[int, int]
) -> Float[Tensor, "1 n height width"]:
    large: Tensor = interpolate(products, size[::-1], mode="bilinear", align_corners=False)
    return large.div_(lengths)


def upsampled_lengths(cells: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b height width"]:
    """Compute the lengths of the vectors of maps that were bilinearly upsampled to `size`, without making those maps.

    The square of sum w_i f_i over four cells is a sum of their ten products, and so are those of all pixels between
    the same cells. `size` is (width, height).
    """
    (left, right, across), (above, below, down) = (
        _pixel_neighbours(cells.shape[-1 - axis], size[axis], cells.device) for axis in (0, 1)
    )
    east, south = (cells.roll(-1, axis) for axis in (-1, -2))
    diagonal = south.roll(-1, -1)
    square, along, off, main, anti = (
        (first * second).sum(1)
        for first, second in ((cells, cells), (cells, east), (cells, south), (cells, diagonal), (east, south))
    )

    def row(same: Tensor, next_to: Tensor, rows: Tensor) -> Tensor:
        """Interpolate the squared length along x for the cells of the given rows."""
        values = same[:, rows][..., left] * (1 - across) ** 2 + same[:, rows][..., right] * across**2
        return values + 2 * across * (1 - across) * next_to[:, rows][..., left]

    mixed = off[:, above][..., left] * (1 - across) ** 2 + off[:, above][..., right] * across**2
    mixed = mixed + across * (1 - across) * (main[:, above][..., left] + anti[:, above][..., left])
    down = down[:, None]
    squares = (
        row(square, along, above) * (1 - down) ** 2
        + row(square, along, below) * down**2
        + 2 * down * (1 - down) * mixed
    )
    return squares.clamp_min(1e-24).sqrt()


def _pixel_neighbours(
    length: int, pixels: int, device: torch.device
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"], Tensor]:
    """Return the cells on both sides of every pixel of an axis, and its distance from the first in cells."""
    coordinate = ((torch.arange(pixels, dtype=torch.float32, device=device) + 0.5) * (length / pixels) - 0.5).clamp(
        0, length - 1
    )
    low = coordinate.floor().clamp(max=max(length - 2, 0)).long()
    return low, (low + 1).clamp(max=length - 1), coordinate - low
