"""Losses by consistency: matches that lead back to where they began, directly or through a warp that is known."""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from semcorr.core.coords import to_grid
from semcorr.core.ranges import Count, OptionsOf, Range, Share, Sigma, Temperature, Weight, check_arguments
from semcorr.models.losses.gaussian_cross_entropy import Steps, point_cross_entropy
from semcorr.models.losses.inputs import ExtraInput, Lookup, LossInputs, weighted_mean
from semcorr.models.losses.pair_maps import PairMaps
from semcorr.models.losses.pseudo_labels import KeepShare, select_small
from semcorr.models.losses.random_warps import draw_warps, map_points, warp_images


class Criterion(NamedTuple):
    """Comparison of a distribution over cells with a place.

    Attributes:
        temperature: Temperature of the softmax of every step of a path.
        kernel: Points along a side of the grid around the place where probabilities are read, a cell apart; odd.
        sigma: Standard deviation of the Gaussian around the place, in cells.
        keep: Share of a pair's points that count, those of the smallest losses: the others may not be visible.
    """

    temperature: float
    kernel: int
    sigma: float
    keep: float

    def probability(self, similarity: Float[Tensor, "b n h w"]) -> Float[Tensor, "b n h w"]:
        """Compute the softmax over all cells."""
        return (similarity / self.temperature).flatten(2).softmax(-1).view_as(similarity)

    def mean_loss(
        self, probability: Float[Tensor, "b n h w"], places: Float[Tensor, "b n 2"], mask: Bool[Tensor, "b n"]
    ) -> Float[Tensor, ""]:
        """Average the cross-entropy with a Gaussian around `places`, in cells, over the points that count."""
        log_p = probability.clamp(min=1e-12).log()
        losses = point_cross_entropy(log_p, places, 1.0, self.kernel, self.sigma)
        return weighted_mean(losses, select_small(losses.detach(), mask, self.keep))


def follow_back(first: Float[Tensor, "b n h w"], pairs: PairMaps, criterion: Criterion) -> Float[Tensor, "b n k l"]:
    """Continue distributions over the cells of the targets to the cells of the sources (PWarpC, the product of two).

    It takes the similarity of all cells of both images: memory grows by the square of their number.

    Args:
        first: Probability of every target cell, for each point.
        pairs: Features of the pairs.
        criterion: Criterion with the temperature of the way back.
    """
    back = pairs.swapped
    second = criterion.probability(back.similarity(back.lattice(None)))
    with torch.autocast(first.device.type, enabled=False):
        composed = first.flatten(2) @ second.flatten(2)
    return composed.unflatten(-1, second.shape[-2:])


class PathLoss(nn.Module):
    """A loss by where paths from cell to cell lead; no keypoint is read.

    Args:
        points: Number of points of each source, drawn again in every step.
        in_box: Whether points are drawn in the box of the object; otherwise anywhere in the image.
        temperature: Temperature of the softmax of every step of a path.
        kernel: Points along a side of the grid around a place where probabilities are read, a cell apart; odd.
        sigma: Standard deviation of the Gaussian around a place, in cells.
        keep: Share of a pair's points that count, those of the smallest losses.
    """

    reads_descriptors = False
    lookup: Lookup = "centre"
    reads: Sequence[ExtraInput] = (ExtraInput.PAIRS,)

    @check_arguments("loss")
    def __init__(
        self,
        points: Count = 64,
        in_box: bool = True,
        temperature: Temperature = 0.05,
        kernel: Steps = 7,
        sigma: Sigma = 1.5,
        keep: KeepShare = 0.8,
    ) -> None:
        super().__init__()
        self.points, self.in_box = points, in_box
        self.criterion = Criterion(temperature, kernel, sigma, keep)


class CycleConsistency(PathLoss):
    """Points of the source, matched in the target and back, are where they began; no keypoint is read.

    On probabilities, as PWarpC's bipath (Truong et al. 2022) without a warp; the first such losses (Laskar et al.,
    WeakMatchNet) are on parameters of a transformation. The options are those of `PathLoss`.
    """

    def forward(self, step: LossInputs) -> Float[Tensor, ""]:
        """Compute the loss of random points of a step."""
        pairs = step.pairs
        assert pairs is not None, "the step was not asked for them"
        points = pairs.draw_points(self.points, self.in_box)
        back = follow_back(self.criterion.probability(pairs.similarity(points)), pairs, self.criterion)
        places = to_grid(points, pairs.side / back.shape[-1])
        return self.criterion.mean_loss(back, places, torch.ones_like(points[..., 0], dtype=torch.bool))


class WarpConsistency(PathLoss):
    """From a warped source to the target and back to the source, a point goes where the warp took it from.

    PWarpC's objective (Truong et al. 2022), after WarpC's on flows (2021): the bipath over the target, and the direct
    match of the warped source with the source, which the warp supervises. No keypoint is read. The source is warped on
    the device, so frozen blocks are computed at every step.

    Args:
        points: Number of points of each warped source, drawn again in every step.
        in_box: Whether only the points count that come from the box of the source's object; otherwise all that come
            from within the source do.
        supervision: Weight of the direct match; that of the bipath is 1.
        rotate: Largest angle by which a source is turned, in degrees, either way.
        scale: Largest change of size: a source is enlarged or shrunk by a factor of up to 1 + scale.
        shift: Largest shift along x and along y, as a fraction of the side.
        bend: Largest displacement of each of 4 x 4 control points along x and along y, as a fraction of the side; from
            a sixth on an image would fold.
        criterion: The other options of `PathLoss`; `keep` applies to the bipath alone.
    """

    reads = (ExtraInput.PAIRS, ExtraInput.PIXELS)

    @check_arguments("loss")
    def __init__(
        self,
        points: Count = 128,
        in_box: bool = True,
        supervision: Weight = 1.0,
        rotate: Annotated[float, Range(0, 180, off=True)] = 20.0,
        scale: Share = 0.25,
        shift: Annotated[float, Range(0, 0.5, off=True)] = 0.1,
        bend: Annotated[float, Range(0, 0.15, off=True)] = 0.03,
        **criterion: Annotated[Any, OptionsOf(PathLoss)],
    ) -> None:
        super().__init__(points, in_box, **criterion)
        self.supervision = supervision
        self.rotate, self.scale, self.shift, self.bend = rotate, scale, shift, bend

    def forward(self, step: LossInputs) -> Float[Tensor, ""]:
        """Compute the loss of a step, with new warps."""
        pairs, sources = step.pairs, step.sources
        assert pairs is not None, "the step was not asked for them"
        assert sources is not None, "the step was not asked for them"
        count, side, device = len(sources.image), pairs.side, sources.image.device
        grid = draw_warps(count, side, self.rotate, self.scale, self.shift, self.bend, device)
        warped = sources.encode(warp_images(sources.image, grid))
        points = torch.rand(count, self.points, 2, device=device) * (side - 1)  # between pixels: see map_points
        origins = map_points(grid, points)
        edges = (-0.5, side - 0.5)
        low, high = (edge[:, None] for edge in pairs.source_box.clamp(*edges).split(2, dim=-1))
        inside = (origins >= low) & (origins <= high) if self.in_box else (origins >= edges[0]) & (origins <= edges[1])
        mask, criterion = inside.all(-1), self.criterion
        first = criterion.probability(pairs._replace(source=warped).similarity(points))
        back = follow_back(first, pairs, criterion)
        places = to_grid(origins, side / back.shape[-1])
        loss = criterion.mean_loss(back, places, mask)
        if not self.supervision:
            return loss
        direct = criterion.probability(pairs._replace(source=warped, target=pairs.source).similarity(points))
        places = to_grid(origins, side / direct.shape[-1])
        return loss + self.supervision * criterion._replace(keep=1.0).mean_loss(direct, places, mask)
