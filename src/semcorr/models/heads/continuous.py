"""Head of dense decoding around a continuous query: its exact place in the source, a finer grid in the target."""

import math
from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, normalize, pad

from semcorr.core.coords import to_grid
from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, Range, Window, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.matching.readouts import find_peak
from semcorr.matching.similarity import cosine_similarity, product_similarity, sample_descriptors, upsampled_lengths
from semcorr.models.heads.upsample import ChannelNorm
from semcorr.models.heads.windows import check_window, cut_windows, paste_windows, place_windows, scale_cells

Fineness = Annotated[int, Range(least=1, most=16)]
WINDOW = 3  # cells along a side of the decoded window, unless another is given
PHASES = 4  # sine and cosine of where a place lies between cells, along x and y


class FilmBlock(nn.Module):
    """A block whose channels a query scales and shifts (FiLM, Perez et al. 2018), then 3 x 3 cells of each and 1 x 1.

    Args:
        width: Channels.
        channels: Channels of the query.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width, eps=1e-6, elementwise_affine=False)
        self.film = nn.Linear(channels, 2 * width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.pointwise = nn.Conv2d(width, width, 1)

    def forward(self, x: Float[Tensor, "q d k l"], query: Float[Tensor, "q c"]) -> Float[Tensor, "q d k l"]:
        """Apply the block; each query has cells of its own."""
        scale, shift = self.film(query)[..., None, None].chunk(2, dim=1)
        conditioned = gelu(self.norm(x) * (1 + scale) + shift)
        residual: Tensor = self.pointwise(self.depthwise(conditioned))
        return x + residual


class ContinuousQuery(nn.Module):
    """Similarity of a query at its exact place on a target grid several times as fine, decoded around the best cell.

    After ImCorr (2026), whose parts and figures are published, and widths and depths are not: those are ours. The
    source is read bilinearly at the query's place, and a small network that sees the cells around it and where
    between them it lies refines the descriptor. The target's cells are made `fineness` times as dense: everywhere by
    the cosine with the interpolated features, and around the cell that is the most similar, in a window, by an update
    from a network whose channels the query scales and shifts (FiLM).

    Both networks end in layers that start at zero, so an untrained head is the cosine of interpolated features.

    Args:
        channels: Channels of the features.
        fineness: Fine cells along a side of a cell of the target; 1 keeps the grid, and refines the query alone.
        window: Cells along a side of the window that is decoded.
        width: Channels of both networks.
        depth: Blocks of the network of the target; 0 leaves it out, and decodes no window.

    Raises:
        UserError: A window is given where none is decoded.
    """

    @check_arguments("head")
    def __init__(
        self,
        channels: Count,
        fineness: Fineness = 4,
        window: Window = WINDOW,
        width: Count = 64,
        depth: Annotated[int, Range(least=0)] = 2,
    ) -> None:
        super().__init__()
        if not depth and window != WINDOW:
            raise UserError(
                f"`head.window={window}` has no effect with head.depth=0, which decodes no window. Leave one out."
            )
        self.fineness, self.window = fineness, window
        self.context = nn.Conv2d(channels, width, 3, padding=1)
        hidden, refined = nn.Linear(width + PHASES, width), nn.Linear(width, channels)
        self.refine = nn.Sequential(hidden, nn.GELU(), refined)
        self.blocks = nn.ModuleList(FilmBlock(width, channels) for _ in range(depth))
        self.phase = nn.Conv2d(PHASES, width, 1) if depth else None
        self.out = nn.Conv2d(width, 1, 1) if depth else None
        for layer in (refined, self.out):
            if layer is not None and layer.bias is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of `points`, given in source pixels, with every fine cell of the target."""
        if not len(points):
            h, w = (self.fineness * length for length in target.values.shape[-2:])
            return points.new_zeros((*points.shape[:2], h, w), dtype=torch.float32)
        if not points.shape[1]:  # which layers do not take; and processes that train together wait for every gradient
            return self(source, target, points.new_zeros(len(points), 1, 2))[:, :0]
        with torch.autocast(source.values.device.type, enabled=False):
            queries = self.describe(source, points)
            similarity = interpolated_cosine(queries, target.values, self.fineness)
            return self._decode(similarity, queries, target.values) if len(self.blocks) else similarity

    def describe(self, source: FeatureMap, points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n c"]:
        """Read the source at points and refine what is read; the mean square of a descriptor is about one."""
        precision = self.context.weight.dtype
        read = scale_descriptors(sample_descriptors(source.values, points, source.stride)).to(precision)
        around = sample_descriptors(self.context(scale_cells(source.values, precision)), points, source.stride)
        place = encode_phase(to_grid(points.to(torch.promote_types(precision, torch.float32)), source.stride))
        refinement: Tensor = self.refine(torch.cat((around, place), dim=-1).to(precision))
        return read + refinement

    def _decode(
        self, similarity: Float[Tensor, "b n h w"], queries: Float[Tensor, "b n c"], target: Float[Tensor, "b c k l"]
    ) -> Float[Tensor, "b n h w"]:
        """Add the update to the similarity of the cells around the best one."""
        h, w = target.shape[-2:]
        check_window(self.window, h, w)
        best = find_peak(cosine_similarity(queries, target))
        rows, columns = min(self.window, h), min(self.window, w)
        top, left = place_windows(best.y, rows, h), place_windows(best.x, columns, w)
        maps = self.context(scale_cells(target, self.context.weight.dtype))
        cells = self._densify(maps, top, left, (rows, columns))
        update = self._update(cells, queries.flatten(0, 1)).unflatten(0, queries.shape[:2])
        update = update.to(similarity.dtype)
        return similarity + paste_windows(
            torch.zeros_like(similarity), update, self.fineness * top, self.fineness * left
        )

    def _densify(
        self, maps: Float[Tensor, "b d h w"], top: Int[Tensor, "b n"], left: Int[Tensor, "b n"], size: tuple[int, int]
    ) -> Float[Tensor, "q d k l"]:
        """Interpolate the cells of windows, as the whole map would be: with the cells around them."""
        padded = pad(maps, (1, 1, 1, 1), mode="replicate")
        rows, columns = (length + 2 for length in size)
        cells = cut_windows(padded, top, left, (rows, columns)).flatten(0, 1)
        fine = (self.fineness * rows, self.fineness * columns)
        dense = interpolate(cells, fine, mode="bilinear", align_corners=False)
        inner = slice(self.fineness, -self.fineness)
        return dense[..., inner, inner]

    def _update(self, cells: Float[Tensor, "q d k l"], queries: Float[Tensor, "q c"]) -> Float[Tensor, "q k l"]:
        """Compute the update of fine cells for the query that each window belongs to."""
        assert self.phase is not None, "with no blocks there is nothing to update"
        assert self.out is not None, "with no blocks there is nothing to update"
        y, x = (
            (torch.arange(length, dtype=torch.float32, device=cells.device) + 0.5) / self.fineness - 0.5
            for length in cells.shape[-2:]
        )
        places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        cells = cells + self.phase(encode_phase(places).permute(2, 0, 1)[None].to(cells.dtype))
        for block in self.blocks:
            cells = block(cells, queries)
        update: Tensor = self.out(cells)
        return update[:, 0]


def interpolated_cosine(
    descriptors: Float[Tensor, "b n c"], features: Float[Tensor, "b c h w"], fineness: int
) -> Float[Tensor, "b n i j"]:
    """Compute cosines with bilinearly interpolated features, on a grid that is a whole number of times as fine.

    The interpolated features are not made: products are interpolated, and divided by `upsampled_lengths`.
    """
    if fineness == 1:
        return cosine_similarity(descriptors, features)
    h, w = (fineness * length for length in features.shape[-2:])
    products = product_similarity(normalize(descriptors.float(), dim=-1), features)
    large = interpolate(products, (h, w), mode="bilinear", align_corners=False)
    return large / upsampled_lengths(features.float(), (w, h))[:, None]


def encode_phase(cells: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b 4"]:
    """Encode where places lie between cells: sine and cosine, once around from one cell to the next.

    >>> encode_phase(torch.tensor([3.0, 1.25])).round().abs()  # at a cell along x, a quarter past one along y
    tensor([0., 1., 1., 0.])
    """
    angles = 2 * math.pi * cells
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def scale_descriptors(descriptors: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
    """Scale descriptors to a mean square of one."""
    return normalize(descriptors, dim=-1) * descriptors.shape[-1] ** 0.5
