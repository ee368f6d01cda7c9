"""The loss by the matches that a teacher finds, where it is sure of them."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from semcorr.core.coords import to_image
from semcorr.core.ranges import Count, Positive, Range, Share, Sigma, Temperature, Window, check_arguments
from semcorr.matching.readouts import find_peak, window_soft_argmax
from semcorr.models.losses.gaussian_cross_entropy import Steps, point_cross_entropy
from semcorr.models.losses.inputs import ExtraInput, Lookup, LossInputs, weighted_mean
from semcorr.models.losses.pair_maps import PairMaps

KeepShare = Annotated[float, Range(above=0, most=1)]  # share of a pair's points


class Labels(NamedTuple):
    """A teacher's matches of points of the source."""

    probability: Float[Tensor, "b n h w"]  # the teacher's softmax over all target cells
    cells: Float[Tensor, "b n 2"]  # the matches, by the teacher's window soft-argmax
    confidence: Float[Tensor, "b n"]  # the probability of the best cell and its eight neighbours
    accepted: Bool[Tensor, "b n"]  # which matches the student may learn from


class PseudoLabels(nn.Module):
    """Cross-entropy with the matches that a teacher finds for random points, as far as they can be trusted.

    A match counts if the teacher is confident, if it leads back to its point, and if its loss is among the smallest of
    its pair: wrong labels have large losses (SCorrSAN, Huang et al. 2022; the principle is of Han et al. 2018).
    PMD's teacher (Li et al. 2021) was trained on other data, MatchMe's is replaced by its student again and again,
    SemiMatch's (Kim et al. 2022) is the network itself: all are options of the callback that holds the teacher. The
    student differs from it by `feature_dropout`, the head's own dropout, and its weights.

    Args:
        points: Number of points of each source that are labelled in a step, drawn again each time.
        in_box: Whether points are drawn in the box of the source, and matches outside the target's box do not count.
        temperature: Temperature of the teacher's softmax.
        window: Cells along the side of the window in which the teacher's softmax is averaged.
        threshold: Least confidence: the probability of the best cell and its eight neighbours.
        cycle: Largest distance, in cells, between a point and where its match leads back to; None does not match back.
        keep: Share of a pair's accepted points that count, those of the smallest losses.
        weigh: Whether points count by their confidence.
        balance: Whether the categories of a step count alike, however many pairs each has.
        soft: Whether the label is the teacher's whole softmax, as the cost volumes of SemiMatch; False: a Gaussian
            around the match.
        student_temperature: Temperature of the student's softmax.
        kernel: Points along a side of the grid around a match where probabilities are read, a cell apart; odd.
        sigma: Standard deviation of the Gaussian around a match, in cells.
    """

    reads_descriptors = False
    lookup: Lookup = "centre"
    reads = (ExtraInput.PAIRS, ExtraInput.TEACHER)

    @check_arguments("loss")
    def __init__(
        self,
        points: Count = 64,
        in_box: bool = True,
        temperature: Temperature = 0.05,
        window: Window = 5,
        threshold: Share = 0.3,
        cycle: Positive | None = 2.0,
        keep: KeepShare = 0.8,
        weigh: bool = True,
        balance: bool = False,
        soft: bool = False,
        student_temperature: Temperature = 0.05,
        kernel: Steps = 7,
        sigma: Sigma = 1.5,
    ) -> None:
        super().__init__()
        self.points, self.in_box, self.temperature, self.window = points, in_box, temperature, window
        self.threshold, self.cycle, self.keep = threshold, cycle, keep
        self.weigh, self.balance, self.soft = weigh, balance, soft
        self.student_temperature, self.kernel, self.sigma = student_temperature, kernel, sigma

    def forward(self, step: LossInputs) -> Float[Tensor, ""]:
        """Compute the loss of random points of the pairs of a step."""
        assert step.pairs is not None, "the step was not asked for them"
        assert step.teacher is not None, "the step was not asked for it"
        points = step.pairs.draw_points(self.points, self.in_box)
        labels = self.label_points(step.teacher, points)
        losses = self.point_losses(step.pairs.similarity(points), labels)
        selection = select_small(losses.detach(), labels.accepted, self.keep)
        weight = selection * (labels.confidence if self.weigh else 1.0)
        weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-12)
        return weighted_mean(losses, balance_pairs(weight, step.pairs.categories) if self.balance else weight)

    @torch.no_grad()
    def label_points(self, teacher: PairMaps, points: Float[Tensor, "b n 2"]) -> Labels:
        """Match points, in pixels of the sources, by the teacher, and tell which matches are accepted."""
        similarity = teacher.similarity(points)
        probability = (similarity / self.temperature).flatten(2).softmax(-1).view_as(similarity)
        w = similarity.shape[-1]
        peak = find_peak(similarity)
        near = 9 * avg_pool2d(probability, 3, stride=1, padding=1)  # zeros beyond the border
        confidence = near.flatten(2).gather(-1, (peak.y * w + peak.x)[..., None])[..., 0]
        cells = window_soft_argmax(similarity, self.window, self.temperature)
        accepted, stride = confidence >= self.threshold, teacher.side / w
        matches = to_image(cells, stride)
        if self.in_box:
            low, high = (edge[:, None] for edge in teacher.target_box.split(2, dim=-1))
            accepted = accepted & ((matches >= low) & (matches <= high)).all(-1)
        if self.cycle is not None:
            back = window_soft_argmax(teacher.swapped.similarity(matches), self.window, self.temperature)
            distance = torch.linalg.vector_norm(to_image(back, stride) - points, dim=-1)
            accepted = accepted & (distance <= self.cycle * stride)
        return Labels(probability, cells, confidence, accepted)

    def point_losses(self, similarity: Float[Tensor, "b n h w"], labels: Labels) -> Float[Tensor, "b n"]:
        """Compute the loss of each point."""
        if not self.soft:
            return point_cross_entropy(similarity, labels.cells, self.student_temperature, self.kernel, self.sigma)
        log_p = (similarity / self.student_temperature).flatten(2).log_softmax(-1)
        return -(labels.probability.flatten(2) * log_p).sum(-1)


def select_small(losses: Float[Tensor, "b n"], accepted: Bool[Tensor, "b n"], share: float) -> Bool[Tensor, "b n"]:
    """Select the given share of the accepted points of each pair, rounded up: those of the smallest losses.

    >>> losses = torch.tensor([[3.0, 1.0, 9.0, 2.0]])
    >>> select_small(losses, torch.tensor([[True, False, True, True]]), share=0.5)
    tensor([[ True, False, False,  True]])
    """
    rank = torch.where(accepted, losses, torch.inf).argsort(dim=-1, stable=True).argsort(dim=-1)
    count = accepted.sum(-1, keepdim=True)
    return accepted & (rank < (count * share - 1e-6).ceil())


def balance_pairs(weight: Float[Tensor, "b n"], categories: Sequence[str]) -> Float[Tensor, "b n"]:
    """Divide the weights of each pair by the number of pairs of its category.

    >>> balance_pairs(torch.ones(3, 1), ["cat", "dog", "cat"])
    tensor([[0.5000],
            [1.0000],
            [0.5000]])
    """
    counts = Counter(categories)  # known to the host: a list of numbers would have to be copied to a GPU
    return torch.stack([row / counts[category] for row, category in zip(weight, categories, strict=True)])
