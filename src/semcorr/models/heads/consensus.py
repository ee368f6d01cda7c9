"""The head of neighbourhood consensus (NC-Net): matches between neighbouring cells support a match."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.models.heads.conv4d import Conv4d
from semcorr.models.heads.correlation import SMALL, correlation, mutual_matching, sample_correlation


class Consensus(nn.Module):
    """Neighbourhood consensus: correlation, mutual matching, symmetric 4-D convolutions, mutual matching.

    As in Rocco et al., "Neighbourhood Consensus Networks": zero padding, a bias and a ReLU after every layer,
    also the last, and f(x) + f(x^T)^T, which swaps with the images. Theirs is 5-5-5 / 16-16-1 (180,033
    weights), for 15 to 25 cells a side; the unified benchmark's for more cells is 3-3-3 / 8-8-1 (6,497).
    Works on maps of any grid.

    Ours, where they leave it open:
    - Cosines below zero become zero before they are filtered; features after a ReLU, as theirs, have none.
    - The output has no scale of its own. Each source cell's row is divided by its largest value before
      the last mutual matching's factors, so similarity lies in [0, 1] and is 1 where two cells prefer each
      other: fit for a softmax with a temperature of hundredths, like cosines.
    - Weights start as PyTorch's plus a middle tap of 1 / inputs, without biases: the untrained stack is close to the
      identity. Of stacks that start at random, many are zero after their last ReLU, and stay so.
    - In training each of the two passes is repeated in backward: memory holds one of them at a time.

    Args:
        kernels: Kernel size of each layer, in cells along all four axes; odd.
        widths: Output channels of each layer; 1 for the last.
    """

    @check_arguments("head")
    def __init__(self, kernels: Sequence[int] = (3, 3, 3), widths: Sequence[Count] = (8, 8, 1)) -> None:
        super().__init__()
        if len(kernels) != len(widths) or not widths or widths[-1] != 1:
            raise UserError(
                "`head.kernels` and `head.widths` must be as many, and the last width 1, "
                f"got {list(kernels)} and {list(widths)}. Give [3, 3, 3] and [8, 8, 1], for instance"
            )
        if invalid := [kernel for kernel in kernels if kernel < 1 or kernel % 2 == 0]:
            raise UserError(f"`head.kernels` must be odd and positive, got {invalid[0]}. Give 3 or 5")
        inputs = [1, *widths]
        layers = list(map(Conv4d, inputs, widths, kernels))
        for layer in layers:
            _add_identity(layer)
        self.layers = nn.ModuleList(layers)

    def forward(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of `points`, given in source pixels, with every target cell."""
        with torch.autocast(source.values.device.type, enabled=False):
            consensus = self.filter(correlation(source.values, target.values))
            best = consensus.amax((3, 4), keepdim=True) + SMALL
            return sample_correlation(mutual_matching(consensus) / best, points, source.stride)

    def filter(self, correlation: Float[Tensor, "b h w k l"]) -> Float[Tensor, "b h w k l"]:
        """Filter the correlation by the convolutions; swapping source and target only transposes the result."""
        volume = mutual_matching(correlation.relu())[:, None]
        if torch.is_grad_enabled():
            direct, transposed = (
                checkpoint(self._apply_layers, volume, swapped, use_reentrant=False, preserve_rng_state=False)
                for swapped in (False, True)
            )
            return (direct + transposed)[:, 0]
        return self._apply_layers(volume, False).add_(self._apply_layers(volume, True))[:, 0]

    def _apply_layers(self, volume: Float[Tensor, "b 1 h w k l"], swapped: bool) -> Float[Tensor, "b 1 h w k l"]:
        """Compute f(x), or f(x^T)^T by transposed kernels instead of a transposed volume."""
        for layer in self.layers:
            volume = layer(volume, swapped).relu_()
        return volume


@torch.no_grad()
def _add_identity(layer: Conv4d) -> None:
    """Add the identity to a layer's kernel, and set its bias to zero: it then averages the channels of each match."""
    middle = layer.weight.shape[-1] // 2
    layer.weight[:, :, middle, middle, middle, middle] += 1 / layer.weight.shape[1]
    layer.bias.zero_()
