"""The head of convolutional Hough matching (CHM): matches of like shift and like change of scale support each other."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate, softplus

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, Positive, Window, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.models.heads.conv4d import conv4d
from semcorr.models.heads.correlation import (
    SMALL,
    correlation,
    mutual_matching,
    resize_correlation,
    sample_correlation,
)

Sharing = Literal["psi", "iso", "full"]
Tap = tuple[int, ...]  # places in a kernel from its middle: of a match's source, then of its target


class SharedTaps(NamedTuple):
    """Which taps of a kernel have the same weight.

    Attributes:
        groups: The group of every tap.
        sizes: Number of taps in each group.
    """

    groups: Int[Tensor, " taps"]
    sizes: Float[Tensor, " groups"]


def share_taps(taps: Sequence[Tap], key: Callable[[Tap], object]) -> SharedTaps:
    """Put the taps of one key into one group, in the order in which the keys appear.

    >>> share_taps([(-1,), (0,), (1,)], lambda tap: abs(tap[0]))
    SharedTaps(groups=tensor([0, 1, 0]), sizes=tensor([2., 1.]))
    """
    numbers: dict[object, int] = {}
    groups = torch.tensor([numbers.setdefault(key(tap), len(numbers)) for tap in taps])
    return SharedTaps(groups, groups.bincount().float())


def shift_key(tap: Tap, sharing: Sharing) -> object:
    """Return the key that taps (y, x, v, u) of one weight share: the source moves by (y, x), the target by (v, u).

    `iso`: how far apart the two moves are. `psi`, position-sensitive isotropic, also how far the two are from the
    middle, the farther and the nearer. As squares, so that they are whole numbers.
    """
    y, x, v, u = tap
    apart, of_source, of_target = (y - v) ** 2 + (x - u) ** 2, y**2 + x**2, v**2 + u**2
    return {"psi": (max(of_source, of_target), min(of_source, of_target), apart), "iso": apart, "full": tap}[sharing]


def scale_key(tap: Tap, sharing: Sharing) -> object:
    """Return the key that taps of two scales (s, t) share: as `shift_key`, in one dimension, of steps up and down."""
    s, t = tap
    apart, of_source, of_target = abs(s - t), abs(s), abs(t)
    return {"psi": (max(of_source, of_target), min(of_source, of_target), apart), "iso": apart, "full": tap}[sharing]


class HoughKernel(nn.Module):
    """A kernel of votes, of which many taps share a weight; without bias.

    Each group's weight is divided by its number of taps, as in CHM's code: groups of all sizes then learn at one rate.
    The kernel starts as a middle tap of 1, and 1e-3 spread over each group at random.

    Args:
        size: Cells along each of the four spatial axes; odd.
        scales: Taps along both axes of scale, odd; 1 for a kernel in four dimensions.
        sharing: Which taps share: see `shift_key`.
    """

    groups: Int[Tensor, " taps"]
    sizes: Float[Tensor, " groups"]

    def __init__(self, size: int, scales: int, sharing: Sharing) -> None:
        super().__init__()
        self.shape = (scales, scales, size, size, size, size)
        axes = [range(-(length // 2), length // 2 + 1) for length in self.shape]
        taps = list(product(*axes))
        shared = share_taps(taps, lambda tap: (scale_key(tap[:2], sharing), shift_key(tap[2:], sharing)))
        self.register_buffer("groups", shared.groups, persistent=False)
        self.register_buffer("sizes", shared.sizes, persistent=False)
        self.weight = nn.Parameter(1e-3 * torch.rand(len(shared.sizes)) * shared.sizes)
        middle = shared.groups[len(taps) // 2]
        with torch.no_grad():
            self.weight[middle] += shared.sizes[middle]

    def forward(self) -> Float[Tensor, "s s k k k k"]:
        """Return the weights of all taps."""
        return (self.weight / self.sizes).index_select(0, self.groups).view(self.shape)


def conv6d(
    x: Float[Tensor, "b s t h w k l"], kernel: Float[Tensor, "ks kt kh kw kk kl"]
) -> Float[Tensor, "b s t h w k l"]:
    """Cross-correlate over all axes but the first, with zeros around, as PyTorch's convolutions do.

    The pairs of scales are channels of one 4-D convolution: from pair to pair its kernel is the one at their distance,
    zero where that is beyond the kernel.
    """
    s, t = x.shape[1:3]
    by_source, by_target = (
        _scale_taps(length, size, kernel.device).to(kernel.dtype)
        for length, size in zip((s, t), kernel.shape, strict=False)
    )
    weight = torch.einsum("abs,cdt,stijkl->acbdijkl", by_source, by_target, kernel)
    return conv4d(x.flatten(1, 2), weight.flatten(2, 3).flatten(0, 1)).unflatten(1, (s, t))


def _scale_taps(length: int, size: int, device: torch.device | None = None) -> Float[Tensor, "out in tap"]:
    """Mark the tap of a kernel that leads from each output scale to each input scale.

    >>> _scale_taps(2, 3)
    tensor([[[0., 1., 0.],
             [0., 0., 1.]],
    <BLANKLINE>
            [[1., 0., 0.],
             [0., 1., 0.]]])
    """
    place, tap = (torch.arange(count, device=device) for count in (length, size))
    return (place[None, :, None] - place[:, None, None] + size // 2 == tap).float()


class HoughMatching(nn.Module):
    """Convolutional Hough matching (Min and Cho, "Convolutional Hough Matching Networks", CVPR 2021).

    A correlation for each pair of scales of the two images is a volume in six dimensions. A match gathers votes from
    matches of like shift and like change of scale, by one 6-D convolution; a sigmoid; the best pair of scales of every
    match; a 4-D convolution; softplus; mutual matching. As published: scales of 1/2, 1 and 2 in area, each with a 3 x 3
    convolution to a quarter of the channels; kernels of 3 x 3 pairs of scales and 5^4 shifts, whose taps share 220
    weights in six dimensions and 55 in four. Works on maps of any grid.

    Ours, where they differ:
    - The convolutions of features start as the same random projection of each cell at all scales (theirs at random,
      each by itself), and kernels as a middle tap of 1: an untrained head finds what is alike.
    - The output is divided by each source cell's largest value before the last mutual matching, as in `Consensus`: it
      lies in [0, 1], fit for a softmax with a temperature of hundredths.
    - Maps and volumes are resized by cells' centres, and the 4-D convolution is on the grid of the features, where
      theirs is on twice as many cells: the readouts here answer between cells.

    Args:
        channels: Channels of the features.
        width: Channels after the 3 x 3 convolutions; a quarter of `channels` if left out.
        scales: Areas that maps are resized to, as multiples of theirs.
        scale_kernel: Taps along both axes of scale; odd.
        kernel: Cells along each of the four spatial axes; odd.
        sharing: Which taps share a weight: `psi`, those of the same distances from each other and from the middle;
            `iso`, those of the same distance from each other; `full`, none.
    """

    @check_arguments("head")
    def __init__(
        self,
        channels: Count,
        width: Count | None = None,
        scales: Sequence[Positive] = (0.5, 1.0, 2.0),
        scale_kernel: Window = 3,
        kernel: Window = 5,
        sharing: Sharing = "psi",
    ) -> None:
        super().__init__()
        require_scales(scales)
        self.scales = list(scales)
        width = width or max(1, channels // 4)
        projection = nn.init.orthogonal_(torch.empty(width, channels))
        convolutions = [nn.Conv2d(channels, width, 3, padding=1, bias=False) for _ in scales]
        for convolution in convolutions:
            with torch.no_grad():
                convolution.weight.zero_()
                convolution.weight[:, :, 1, 1] = projection
        self.projections = nn.ModuleList(convolutions)
        self.votes = HoughKernel(kernel, scale_kernel, sharing)
        self.shifts = HoughKernel(kernel, 1, sharing)
        self.bias = nn.Parameter(torch.zeros(2))  # of both convolutions

    def forward(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of `points`, given in source pixels, with every target cell."""
        with torch.autocast(source.values.device.type, enabled=False):
            votes = self.vote(self.correlate_scales(source.values, target.values))
            best = votes.amax((3, 4), keepdim=True) + SMALL
            return sample_correlation(mutual_matching(votes) / best, points, source.stride)

    def correlate_scales(
        self, source: Float[Tensor, "b c h w"], target: Float[Tensor, "b c k l"]
    ) -> Float[Tensor, "b s s h w k l"]:
        """Compute the correlation of every scale of the source with every scale of the target, on one grid."""
        sizes = source.shape[-2:], target.shape[-2:]
        of_source, of_target = (self._project_scales(values) for values in (source, target))
        volumes = [
            torch.stack(
                [resize_correlation(correlation(source_map, target_map), *sizes) for target_map in of_target], dim=1
            )
            for source_map in of_source
        ]
        return torch.stack(volumes, dim=1).relu()

    def _project_scales(self, values: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b d _ _"]]:
        """Resize features to every scale and convolve them there."""
        values, (h, w) = values.to(self.bias.dtype), values.shape[-2:]
        resized = (
            interpolate(values, (max(1, round(h * area**0.5)), max(1, round(w * area**0.5))), mode="bilinear")
            for area in self.scales
        )
        return [convolution(scale) for convolution, scale in zip(self.projections, resized, strict=True)]

    def vote(self, volume: Float[Tensor, "b s s h w k l"]) -> Float[Tensor, "b h w k l"]:
        """Convolve in six dimensions, take the best pair of scales, and convolve in four; all positive."""
        votes = (conv6d(volume, self.votes()) + self.bias[0]).sigmoid().amax((1, 2))
        return softplus(conv4d(votes[:, None], self.shifts()[0, 0][None, None], self.bias[1:])[:, 0])


def require_scales(scales: Sequence[float]) -> None:
    """Refuse scales that make maps too small or too large to be meant, or none."""
    if not scales or not all(1 / 16 <= area <= 16 for area in scales):
        raise UserError(f"`head.scales` must be areas between 1/16 and 16, got {list(scales)}. Give [0.5, 1, 2]")
