"""The head of neighbourhood consensus (NC-Net): matches between neighbouring cells support a match."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torch.utils.checkpoint import checkpoint

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.matching.similarity import cosine_similarity, sample_descriptors
from semcorr.models.heads.conv4d import Conv4d, MixedConv4d
from semcorr.models.heads.correlation import SMALL, correlation, mutual_matching, sample_correlation

KernelSizes = int | Sequence[Sequence[int]]  # of a layer: one along all axes, or several pairs side by side


class Consensus(nn.Module):
    """Neighbourhood consensus: correlation, mutual matching, symmetric 4-D convolutions, mutual matching.

    As in Rocco et al. 2018, "Neighbourhood Consensus Networks": zero padding, a bias and a ReLU after every layer, also
    the last, and f(x) + f(x^T)^T, which swaps with the images. Theirs is 5-5-5 / 16-16-1 (180,033 weights), for 15 to
    25 cells a side; the unified benchmark's for more cells is 3-3-3 / 8-8-1 (6,497). Works on maps of any grid.

    ANC-Net (Li et al., "Correspondence Networks with Adaptive Neighbourhood Consensus", section 3.2) looks at
    neighbourhoods of different size in the two images, for objects of different size: `[[3, 5], [5, 5]]` for a layer
    makes half of its channels from 3 x 3 cells of one image and 5 x 5 of the other. A layer of several kernels is
    f(x) + f(x^T)^T by itself, before the next, as in their code; the layers between such ones are together. Their
    features of self-similarity are not here.

    DualRC-Net (Li et al., "Dual-Resolution Correspondence Networks", section 3) filters the correlation of a coarse
    map, and matches a fine one under its guidance: with `coarse` above 1 the similarity of a point and a cell is their
    cosine times the filtered similarity of the point and the coarse cell that the cell is in. Theirs has a pyramid of
    features; here the coarse map is the fine one, averaged.

    Ours, where they leave it open:
    - Cosines below zero become zero before they are filtered; features after a ReLU, as theirs, have none.
    - The output has no scale of its own. Each source cell's row is divided by its largest value before
      the last mutual matching's factors, so similarity lies in [0, 1] and is 1 where two cells prefer each
      other: fit for a softmax with a temperature of hundredths, like cosines.
    - Weights start as PyTorch's plus a middle tap of 1 / inputs, without biases: the untrained stack is close to the
      identity. Of stacks that start at random, many are zero after their last ReLU, and stay so.
    - In training each of the two passes is repeated in backward: memory holds one of them at a time.

    Args:
        kernels: Kernel size of each layer, in cells along all four axes; or a list of pairs, of which each makes an
            equal share of the layer's channels: along the axes of one image and along those of the other. Odd.
        widths: Output channels of each layer; 1 for the last.
        coarse: Cells along an axis that are averaged to one before they are filtered; 1 for none.
    """

    @check_arguments("head")
    def __init__(
        self,
        kernels: Sequence[KernelSizes] = (3, 3, 3),
        widths: Sequence[Count] = (8, 8, 1),
        coarse: Count = 1,
    ) -> None:
        super().__init__()
        if len(kernels) != len(widths) or not widths or widths[-1] != 1:
            raise UserError(
                "`head.kernels` and `head.widths` must be as many, and the last width 1, "
                f"got {list(kernels)} and {list(widths)}. Give [3, 3, 3] and [8, 8, 1], for instance"
            )
        for kernel, width in zip(kernels, widths, strict=True):
            _check_kernels(kernel, width)
        self.coarse = coarse
        self.layers = nn.ModuleList(
            Conv4d(inputs, width, kernel) if isinstance(kernel, int) else MixedConv4d(inputs, width, kernel)
            for inputs, width, kernel in zip([1, *widths], widths, kernels, strict=False)
        )
        for layer in self.layers.modules():
            if isinstance(layer, Conv4d):
                _add_identity(layer)

    def forward(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of `points`, given in source pixels, with every target cell."""
        with torch.autocast(source.values.device.type, enabled=False):
            if self.coarse == 1:
                return self._match_filtered(source, target, points)
            guide = self._match_filtered(average_cells(source, self.coarse), average_cells(target, self.coarse), points)
            cosines = cosine_similarity(sample_descriptors(source.values, points, source.stride), target.values)
            return cosines.relu() * repeat_cells(guide, self.coarse, *target.values.shape[-2:])

    def _match_filtered(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of points by the filtered correlation of the maps as they are."""
        consensus = self.filter(correlation(source.values, target.values))
        best = consensus.amax((3, 4), keepdim=True) + SMALL
        return sample_correlation(mutual_matching(consensus) / best, points, source.stride)

    def filter(self, correlation: Float[Tensor, "b h w k l"]) -> Float[Tensor, "b h w k l"]:
        """Filter the correlation by the convolutions; swapping source and target only transposes the result."""
        volume = mutual_matching(correlation.relu())[:, None]
        for layers in self._group_layers():
            volume = self._apply_symmetric(layers, volume)
        return volume[:, 0]

    def _group_layers(self) -> list[list[nn.Module]]:
        """Return the layers that are symmetric together: each of several kernels alone, those between such ones."""
        stages: list[list[nn.Module]] = []
        for layer in self.layers:
            if not stages or MixedConv4d in (type(layer), type(stages[-1][-1])):
                stages.append([])
            stages[-1].append(layer)
        return stages

    def _apply_symmetric(
        self, layers: Sequence[nn.Module], volume: Float[Tensor, "b c h w k l"]
    ) -> Float[Tensor, "b o h w k l"]:
        """Compute f(x) + f(x^T)^T; in training each of the two is repeated in backward."""
        if torch.is_grad_enabled():
            direct, transposed = (
                checkpoint(apply_layers, layers, volume, swapped, use_reentrant=False, preserve_rng_state=False)
                for swapped in (False, True)
            )
            return direct + transposed
        return apply_layers(layers, volume, False).add_(apply_layers(layers, volume, True))


def apply_layers(
    layers: Sequence[nn.Module], volume: Float[Tensor, "b c h w k l"], swapped: bool
) -> Float[Tensor, "b o h w k l"]:
    """Compute f(x), or f(x^T)^T by transposed kernels instead of a transposed volume."""
    for layer in layers:
        volume = layer(volume, swapped).relu_()
    return volume


def average_cells(maps: FeatureMap, cells: int) -> FeatureMap:
    """Average squares of `cells` x `cells` cells to one; at the right and bottom edge those that there are.

    >>> average_cells(FeatureMap(torch.tensor([[[[1.0, 3.0, 7.0]]]]), 8), 2)
    FeatureMap(values=tensor([[[[2., 7.]]]]), stride=16)
    """
    means = avg_pool2d(maps.values.float(), cells, ceil_mode=True, count_include_pad=False)
    return FeatureMap(means, maps.stride * cells)


def repeat_cells(similarity: Float[Tensor, "b n h w"], cells: int, h: int, w: int) -> Float[Tensor, "b n k l"]:
    """Give the cells of an h x w map the similarity of the coarse cell that they are in.

    Args:
        similarity: Similarity of every point with every coarse cell.
        cells: Cells along a side of a coarse cell; those at the right and bottom edge may have fewer.
        h: Rows of the map.
        w: Columns of the map.

    >>> repeat_cells(torch.tensor([[[[2.0, 7.0]]]]), 2, 1, 3)
    tensor([[[[2., 2., 7.]]]])
    """
    return similarity.repeat_interleave(cells, 2)[:, :, :h].repeat_interleave(cells, 3)[..., :w]


def _check_kernels(kernel: KernelSizes, width: int) -> None:
    """Refuse sizes that a layer cannot have."""
    pairs = [(kernel, kernel)] if isinstance(kernel, int) else [tuple(pair) for pair in kernel]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise UserError(
            f"`head.kernels` must have for each layer a size, or pairs of sizes, got {kernel}. "
            "Give 5, or [[3, 5], [5, 5]], for instance"
        )
    if invalid := [size for pair in pairs for size in pair if size < 1 or size % 2 == 0]:
        raise UserError(f"`head.kernels` must be odd and positive, got {invalid[0]}. Give 3 or 5")
    if width % len(pairs):
        raise UserError(
            f"`head.widths` must be a multiple of the kernels side by side in a layer, got {width} for {len(pairs)}. "
            f"Give {width // len(pairs) * len(pairs) + len(pairs)}"
        )


@torch.no_grad()
def _add_identity(layer: Conv4d) -> None:
    """Add the identity to a layer's kernel, and set its bias to zero: it then averages the channels of each match."""
    inputs, *sizes = layer.weight.shape[1:]
    i, j, k, l = (size // 2 for size in sizes)  # noqa: E741
    layer.weight[:, :, i, j, k, l] += 1 / inputs
    layer.bias.zero_()
