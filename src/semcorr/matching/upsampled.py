"""Cosines with features that were bilinearly upsampled to the original image, without making that map (DIFT)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate, normalize


def upsampled_cosine(
    descriptors: Float[Tensor, "n c"], features: Float[Tensor, "1 c h w"], size: tuple[int, int]
) -> Float[Tensor, "1 n height width"]:
    """Cosine of descriptors with features that were bilinearly upsampled to `size` (width, height), as DIFT's.

    A dot product with an interpolated vector is the interpolated dot product. So the products are upsampled, n
    numbers per pixel and not c, and divided by the lengths of the upsampled features, which `upsampled_lengths`
    has from the products of neighbouring cells.
    """
    return _cosine(_products(descriptors, features).float(), upsampled_lengths(features, size).float(), size)


def upsampled_argmax(
    descriptors: Float[Tensor, "n c"], features: Float[Tensor, "1 c h w"], size: tuple[int, int], values: int
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """The pixel of the largest of these cosines, and that cosine.

    Neighbouring pixels differ by little: the best is looked for in single precision, and chosen among it and its
    eight neighbours in double. At most `values` cosines are held at once.
    """
    products, lengths = _products(descriptors, features), upsampled_lengths(features, size)
    single, (w, h) = lengths.float(), size
    parts = (_cosine(some.float(), single, size)[0] for some in products.split(max(1, values // (w * h)), dim=1))
    place = torch.cat([some.flatten(1).argmax(-1) for some in parts])
    near = torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2)).to(place.device)  # row by row
    y, x = (place // w)[:, None] + near[:, 0], (place % w)[:, None] + near[:, 1]
    y, x = y.clamp(0, h - 1), x.clamp(0, w - 1)
    (left, right, across), (above, below, down) = (
        [each[at] for each in _between(features.shape[-1 - axis], size[axis], place.device)]
        for axis, at in ((0, x), (1, y))
    )
    query = torch.arange(len(place), device=place.device)[:, None]
    one, other = (
        products[0][query, rows, left] * (1 - across) + products[0][query, rows, right] * across
        for rows in (above, below)
    )
    score, best = ((one * (1 - down) + other * down) / lengths[y, x]).max(-1)
    pixel = torch.stack([axis.gather(1, best[:, None])[:, 0] for axis in (x, y)], dim=-1)
    return pixel.float(), score.float()


def _products(descriptors: Float[Tensor, "n c"], features: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 n h w"]:
    """In double precision: what is added up together changes the last digits of a sum."""
    return torch.einsum("nc,bchw->bnhw", normalize(descriptors.double(), dim=-1), features.double())


def _cosine(
    products: Float[Tensor, "1 n h w"], lengths: Float[Tensor, "height width"], size: tuple[int, int]
) -> Float[Tensor, "1 n height width"]:
    large: Tensor = interpolate(products, size[::-1], mode="bilinear", align_corners=False)
    return large.div_(lengths)


def upsampled_lengths(features: Float[Tensor, "1 c h w"], size: tuple[int, int]) -> Float[Tensor, "height width"]:
    """Lengths of the vectors of a map that was bilinearly upsampled to `size`, without making that map.

    The square of sum w_i f_i over four cells is a sum of their ten products, and so are those of all pixels between
    the same cells.
    """
    cells = features[0].double()
    (left, right, across), (above, below, down) = (
        _between(features.shape[-1 - axis], size[axis], cells.device) for axis in (0, 1)
    )
    east, south = (cells.roll(-1, axis) for axis in (2, 1))
    diagonal = south.roll(-1, 2)
    own, along, off, main, anti = (
        (one * other).sum(0)
        for one, other in ((cells, cells), (cells, east), (cells, south), (cells, diagonal), (east, south))
    )

    def row(same: Tensor, next_to: Tensor, at: Tensor) -> Tensor:
        """Squared length, half way along x, of the cells of the rows `at`."""
        values = same[at][:, left] * (1 - across) ** 2 + same[at][:, right] * across**2
        return values + 2 * across * (1 - across) * next_to[at][:, left]

    mixed = off[above][:, left] * (1 - across) ** 2 + off[above][:, right] * across**2
    mixed = mixed + across * (1 - across) * (main[above][:, left] + anti[above][:, left])
    down = down[:, None]
    squares = (
        row(own, along, above) * (1 - down) ** 2 + row(own, along, below) * down**2 + 2 * down * (1 - down) * mixed
    )
    return squares.clamp_min(1e-24).sqrt()


def _between(length: int, pixels: int, device: torch.device) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"], Tensor]:
    """For every pixel of an axis the cells on both sides of it, and how far it is from the first to the second."""
    place = ((torch.arange(pixels, device=device) + 0.5) * (length / pixels) - 0.5).clamp(0, length - 1)
    low = place.floor().clamp(max=max(length - 2, 0)).long()
    return low, (low + 1).clamp(max=length - 1), place - low
