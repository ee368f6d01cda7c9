"""The loss by a teacher's matches all over an object, each looked for where the keypoints of the pair expect it."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from semcorr.core.coords import to_image
from semcorr.core.device import full_float32
from semcorr.core.ranges import Count, OptionsOf, Positive, Temperature, check_arguments, require_fields
from semcorr.models.losses.inputs import ExtraInput, Lookup, LossInputs, weighted_mean
from semcorr.models.losses.pair_maps import PairMaps, covered_cells

LATTICE = 64  # points along a side of the source, of which those on the object are drawn


@dataclass(frozen=True)
class WarpPrior:
    """Prior of the places of an object's points on another, around those that their boxes give them.

    All numbers are in sides of the box.

    Args:
        shift: Standard deviation of a shift of the whole object.
        stretch: Standard deviation of stretching, turning and shearing: a shift for each side of distance.
        bend: Standard deviation of bending.
        length: Distance over which neighbouring points bend together.
        noise: Standard deviation of the place of an annotated keypoint.
    """

    shift: Positive = 0.1
    stretch: Positive = 0.1
    bend: Positive = 0.15
    length: Positive = 0.3
    noise: Positive = 0.03

    def covariance(self, a: Float[Tensor, "b n 2"], b: Float[Tensor, "b m 2"]) -> Float[Tensor, "b n m"]:
        """Compute the covariance of displacements along x, or along y, at two sets of points."""
        distance = (a[:, :, None] - b[:, None]).square().sum(-1)
        straight = self.shift**2 + self.stretch**2 * (a[:, :, None] * b[:, None]).sum(-1)
        return straight + self.bend**2 * torch.exp(-distance / (2 * self.length**2))


def expect_places(
    source: Float[Tensor, "b k 2"],
    target: Float[Tensor, "b k 2"],
    mask: Bool[Tensor, "b k"],
    points: Float[Tensor, "b n 2"],
    prior: WarpPrior,
) -> tuple[Float[Tensor, "b n 2"], Float[Tensor, "b n"]]:
    """Compute where points of an object are on another, by a Gaussian process of its keypoints' displacements.

    All coordinates are in boxes: from -0.5 to 0.5 along each side. Before any keypoint is seen, a point is expected at
    its own place in the other box, or where the object faces the other way, at the mirrored one: whichever fits the
    keypoints better (Rasmussen and Williams, Gaussian Processes for Machine Learning, equations 2.23 and 2.24).

    Args:
        source: Keypoints of each source.
        target: The same keypoints in the target; of no meaning where they are not in `mask`, but finite.
        mask: Which keypoints both images show.
        points: Points of the source whose places are expected.
        prior: Standard deviations of the process.

    Returns:
        Mean and variance of the places, the latter along x and along y alike.

    >>> corner, middle = torch.tensor([[[0.4, 0.4]]]), torch.zeros(1, 1, 2)
    >>> mean, variance = expect_places(corner, corner + 0.1, torch.tensor([[True]]), middle, WarpPrior())
    >>> [[round(float(each), 2) for each in values.flatten()] for values in (mean, variance.sqrt())]
    [[0.04, 0.04], [0.17]]
    """
    visible, x_source, x_target = mask.to(source.dtype), source[..., 0], target[..., 0]
    upright, mirrored = (((x_target - sign * x_source).square() * visible).sum(-1) for sign in (1, -1))
    facing = torch.where(mirrored < upright, -1.0, 1.0)[:, None]
    sign = torch.stack((facing, torch.ones_like(facing)), dim=-1)
    both = visible[:, :, None] * visible[:, None]
    covariance = prior.covariance(source, source) * both + torch.diag_embed(torch.where(mask, prior.noise**2, 1.0))
    across = prior.covariance(points, source) * visible[:, None]
    displacement = (target - source * sign) * visible[..., None]
    solved, _ = torch.linalg.solve_ex(covariance, torch.cat((displacement, across.mT), dim=-1))
    mean = points * sign + across @ solved[..., :2]
    prior_variance = prior.shift**2 + prior.stretch**2 * points.square().sum(-1) + prior.bend**2
    return mean, (prior_variance - (across * solved[..., 2:].mT).sum(-1)).clamp(min=0)


class GuidedMatches(nn.Module):
    """The cross-entropy with a teacher's softmax, of points all over the object, around where keypoints expect them.

    Self-distillation as MARCO's, with other labels: where MARCO spans triangles between mutual neighbours and drops the
    regions that keypoints do not confirm (`MinedMatches`), here the keypoints of the pair, by `expect_places`, say
    where each point is to be looked for. The label is the softmax of the teacher's similarities times the Gaussian of
    that place, on the target's object: as wide as the teacher is unsure. Nothing is done on the CPU.

    Args:
        points: Number of points of each source; all of its object if that has fewer.
        temperature: Temperature of the student's softmax over all target cells.
        teacher_temperature: Temperature of the teacher's.
        spread: Standard deviation, in sides of the box, that is added to that of the expected place.
        prior: Options of `WarpPrior`.
    """

    reads_descriptors = False
    lookup: Lookup = "centre"
    reads = (ExtraInput.PAIRS, ExtraInput.TEACHER, ExtraInput.MASKS)

    @check_arguments("loss")
    def __init__(
        self,
        points: Count = 200,
        temperature: Temperature = 0.05,
        teacher_temperature: Temperature = 0.05,
        spread: Positive = 0.05,
        **prior: Annotated[Any, OptionsOf(WarpPrior)],
    ) -> None:
        super().__init__()
        self.points, self.temperature, self.teacher_temperature = points, temperature, teacher_temperature
        self.spread, self.prior = spread, WarpPrior(**prior)
        require_fields(self.prior, "loss")

    def forward(self, step: LossInputs) -> Float[Tensor, ""]:
        """Compute the loss of a step: a mean over the points of each pair, then over the pairs that have any."""
        assert step.pairs is not None, "the step was not asked for them"
        points, label, mask = self.label(step)
        log_p = (step.pairs.similarity(points).flatten(2) / self.temperature).log_softmax(-1)
        return weighted_mean(-(label * log_p).sum(-1), mask)

    @torch.no_grad()
    def label(self, step: LossInputs) -> tuple[Float[Tensor, "b n 2"], Float[Tensor, "b n m"], Bool[Tensor, "b n"]]:
        """Draw points of each source, and label them by the teacher.

        Returns:
            The points in pixels, their labels, which are distributions over the target's cells, and which points count.
        """
        teacher = step.teacher
        assert teacher is not None, "the step was not asked for it"
        assert teacher.masks is not None, "the step was not asked for them"
        points, on_source = draw_object_points(teacher, self.points)
        similarity = teacher.similarity(points)
        h, w = similarity.shape[-2:]
        stride = teacher.side / w  # images are squares
        shared = step.mask[: len(points)] > 0
        starts, ends = (
            torch.where(shared[..., None], to_image(cells[: len(points)].float(), stride), 0.0)
            for cells in (step.starts, step.cells)
        )
        with full_float32(similarity.device.type):
            mean, variance = expect_places(
                to_box(starts, teacher.source_box),
                to_box(ends, teacher.target_box),
                shared,
                to_box(points, teacher.source_box),
                self.prior,
            )
        diagonal = to_image(torch.arange(w, device=points.device).float()[:, None].expand(w, 2), stride)
        centres = to_box(diagonal.expand(len(points), w, 2), teacher.target_box)  # of columns and of rows
        along_x, along_y = ((centres[:, None, :, i] - mean[..., i, None]).square() for i in range(2))
        distance = along_x[:, :, None] + along_y[..., None]
        logits = similarity / self.teacher_temperature - distance / (2 * (variance + self.spread**2))[..., None, None]
        on_target = covered_cells(teacher.masks[1], h, w)[:, None]
        label = logits.masked_fill(~on_target, -torch.inf).flatten(2).softmax(-1)
        return points, label, on_source & shared.any(-1, keepdim=True)


def to_box(points: Float[Tensor, "b n 2"], box: Float[Tensor, "b 4"]) -> Float[Tensor, "b n 2"]:
    """Return points in sides of a box, from its centre.

    >>> to_box(torch.tensor([[[10.0, 20.0]]]), torch.tensor([[0.0, 0.0, 10.0, 40.0]]))
    tensor([[[0.5000, 0.0000]]])
    """
    low, high = box[:, None, :2], box[:, None, 2:]
    return (points - (low + high) / 2) / (high - low).clamp(min=1)


def draw_object_points(pairs: PairMaps, count: int) -> tuple[Float[Tensor, "b n 2"], Bool[Tensor, "b n"]]:
    """Draw `count` points of a lattice on each source's object, in pixels, without replacement; tell which are on it.

    No number of points is read from the device: an object with fewer of them gets others, which do not count.
    """
    assert pairs.masks is not None, "the step was not asked for them"
    lattice = pairs.lattice(LATTICE)
    on_object = covered_cells(pairs.masks[0], LATTICE, LATTICE).flatten(1)
    order = torch.rand(on_object.shape, device=on_object.device) + on_object
    drawn = order.topk(min(count, LATTICE**2), dim=-1).indices
    return lattice.gather(1, drawn[..., None].expand(-1, -1, 2)), on_object.gather(1, drawn)
