"""Head of a convolutional decoder to a finer grid, then cosines; of whole maps, or of windows around candidates."""

from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from semcorr.core.coords import to_grid
from semcorr.core.ranges import Count, Dropout, Range, Window, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.matching.readouts import find_peak
from semcorr.matching.similarity import cosine_similarity, sample_descriptors
from semcorr.models.heads.cosine import Cosine
from semcorr.models.heads.upsample import ChannelNorm
from semcorr.models.heads.windows import check_window, cut_windows, paste_windows, place_windows, scale_cells

REACH = 3  # cells that a decoded cell depends on, to each side of the one that it lies in
AROUND_QUERY = 3  # cells along a side that are decoded around a query: of its own, and half a fine cell beyond
WINDOWS_PER_CHUNK = 4  # windows that are decoded at once
LOWEST = -1.0  # cosine of target cells that are not decoded
Fineness = Annotated[int, Range(least=2, most=16)]


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a norm over the channels after each, added to the input.

    The last norm starts at zero, and with it the block as the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = (ChannelNorm(channels, eps=1e-6) for _ in range(2))
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Apply the block."""
        residual: Tensor = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return x + residual


class DecoderNetwork(nn.Module):
    """Features on a grid that is a whole number of times as fine; untrained, the features interpolated.

    Args:
        channels: Channels of the features, and of all layers.
        fineness: Fine cells along a side of a cell.
        dropout: Share of the input numbers that is dropped in training.
    """

    def __init__(self, channels: int, fineness: int, dropout: float) -> None:
        super().__init__()
        self.fineness = fineness
        self.dropout = nn.Dropout(dropout)
        self.split = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.blocks = nn.ModuleList(ResidualBlock(channels) for _ in range(2))
        self.project = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.split.weight)
        nn.init.dirac_(self.project.weight)
        for layer in (self.split, self.project):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, values: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
        """Decode whole maps, or windows of maps as if they were whole ones."""
        h, w = values.shape[-2:]
        x = self.dropout(scale_cells(values, self.project.weight.dtype))
        x = self.blocks[0](_resize(x, (2 * h, 2 * w)) + self.split(x))
        x = self.blocks[1](_resize(x, (self.fineness * h, self.fineness * w)))
        decoded: Tensor = self.project(x)
        return decoded


def _resize(values: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c i j"]:
    return interpolate(values, size, mode="bilinear", align_corners=False)


class Decoder(Cosine):
    """Cosine similarity of decoded features: a grid four times as fine, a quarter of the image at patches of 16.

    After the decoder of SimpleMatch, from its description; no code of theirs was used: twice the grid by bilinear
    interpolation and a transposed 2 x 2 convolution, added; a residual block of two 3 x 3 convolutions; bilinear to a
    quarter of the image; another block; a linear projection; a dropout of 0.3, of the input here.

    Ours, where it says nothing or an untrained head would lose the features' cosines:
    - Norms are over the channels of each cell, as in `Upsample`; theirs are over the batch, which may be one pair, and
      then neither does a window decode as the map does.
    - Blocks add to their input, the transposed convolution starts at zero and the projection at the identity: before
      training a head is the cosine of interpolated features of unit length.
    - The grid is a whole number of times as fine, so that cells of 14 pixels become 3.5 and not 4.

    Args:
        channels: Channels of the features.
        fineness: Fine cells along a side of a cell.
        dropout: Share of the input numbers that is dropped in training.
    """

    @check_arguments("head")
    def __init__(self, channels: Count, fineness: Fineness = 4, dropout: Dropout = 0.3) -> None:
        super().__init__()
        self.network = DecoderNetwork(channels, fineness, dropout)

    def transform(self, maps: FeatureMap) -> FeatureMap:
        """Return the decoded features, on the finer grid."""
        return FeatureMap(self.network(maps.values), maps.stride / self.network.fineness)


class WindowDecoder(nn.Module):
    """`Decoder`, with features decoded where they may match: around each query, and around its best cell.

    The best cell is that of the cosines of the features as they come, so matches that only decoded features find are
    lost. In its window, similarity is what `Decoder` gives to the last digits; other cells have a cosine of -1. In
    training whole maps are decoded, and the weights are those of `Decoder`.

    Args:
        channels: Channels of the features.
        fineness: Fine cells along a side of a cell.
        dropout: Share of the input numbers that is dropped in training.
        window: Cells of the features along a side of a decoded window in the target.
    """

    @check_arguments("head")
    def __init__(self, channels: Count, fineness: Fineness = 4, dropout: Dropout = 0.3, window: Window = 5) -> None:
        super().__init__()
        self.network, self.window, self.fineness = DecoderNetwork(channels, fineness, dropout), window, fineness

    def forward(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of `points`, given in source pixels, with the decoded cells of the target."""
        if self.training:
            fine = [FeatureMap(self.network(maps.values), self._stride(maps)) for maps in (source, target)]
            return cosine_similarity(sample_descriptors(fine[0].values, points, fine[0].stride), fine[1].values)
        return self.match_windows(source, target, points)

    def match_windows(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """Compute the similarity from windows alone, a few of them at a time."""
        check_window(self.window, *target.values.shape[-2:])
        queries = sample_descriptors(source.values, points, source.stride)
        best = find_peak(cosine_similarity(queries, target.values))
        h, w = (self.network.fineness * length for length in target.values.shape[-2:])
        similarity = points.new_full((*points.shape[:2], h, w), LOWEST, dtype=torch.float32)
        if not points.numel():
            return similarity
        peaks, parts = torch.stack((best.x, best.y), dim=-1), []
        for chunk, peak in zip(
            points.split(WINDOWS_PER_CHUNK, dim=1), peaks.split(WINDOWS_PER_CHUNK, dim=1), strict=True
        ):
            descriptors = self._describe(source, chunk)
            windows, corner = self.decode_around(target.values, peak, self.window)
            cosines = cosine_similarity(descriptors.flatten(0, 1)[:, None], windows.flatten(0, 1))[:, 0]
            parts.append((cosines.unflatten(0, chunk.shape[:2]), corner))
        values, corners = (torch.cat(each, dim=1) for each in zip(*parts, strict=True))
        return paste_windows(similarity, values, corners[..., 1], corners[..., 0])

    def _describe(self, source: FeatureMap, points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n c"]:
        """Decode the source around points, and read it there."""
        h, w = source.values.shape[-2:]
        cells = to_grid(points.float(), source.stride).round().long()
        cells = torch.stack((cells[..., 0].clamp(0, w - 1), cells[..., 1].clamp(0, h - 1)), dim=-1)
        windows, corner = self.decode_around(source.values, cells, AROUND_QUERY)
        stride = self._stride(source)
        inside = points.float() - corner * stride
        return sample_descriptors(windows.flatten(0, 1), inside.flatten(0, 1)[:, None], stride).view(
            *points.shape[:2], -1
        )

    def decode_around(
        self, values: Float[Tensor, "b c h w"], cells: Int[Tensor, "b n 2"], window: int
    ) -> tuple[Float[Tensor, "b n c k l"], Int[Tensor, "b n 2"]]:
        """Decode windows of `window` cells along a side, and return them with their first fine column and row.

        A window is cut with a margin that holds all it depends on, unless the map ends, and decoded like a map.

        Args:
            values: Features of a batch of images.
            cells: Column and row of the middle cell of each window; windows at the border are moved onto the map.
            window: Cells of the features along a side of a window.
        """
        fineness = self.network.fineness
        axes = []
        for coordinates, length in ((cells[..., 0], values.shape[-1]), (cells[..., 1], values.shape[-2])):
            size, whole = min(window, length), min(window + 2 * REACH, length)
            start = place_windows(coordinates, size, length)
            axes.append((start, size, (start - REACH).clamp(0, length - whole), whole))
        (x, width, left, across), (y, height, top, down) = axes
        cut = cut_windows(values, top, left, (down, across))
        decoded = self.network(cut.flatten(0, 1))
        offset_y, offset_x = (fineness * (start - first).flatten()[:, None] for start, first in ((y, top), (x, left)))
        inner = cut_windows(decoded, offset_y, offset_x, (fineness * height, fineness * width))[:, 0]
        return inner.unflatten(0, cells.shape[:2]), fineness * torch.stack((x, y), dim=-1)

    def _stride(self, maps: FeatureMap) -> float:
        return maps.stride / self.network.fineness


def build_decoder(
    channels: Count, fineness: Fineness = 4, dropout: Dropout = 0.3, window: Window | None = None
) -> Decoder | WindowDecoder:
    """Build the head that decodes whole maps, or with a `window` the one that decodes around candidates.

    Args:
        channels: Channels of the features.
        fineness: Fine cells along a side of a cell.
        dropout: Share of the input numbers that is dropped in training.
        window: Cells of the features along a side of a decoded window, an odd number; None decodes whole maps.
    """
    if window is None:
        return Decoder(channels, fineness, dropout)
    return WindowDecoder(channels, fineness, dropout, window)
