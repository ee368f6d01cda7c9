"""The loss by the labels of images: pairs of one object match better than pairs of different ones (NC-Net)."""

from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, Temperature, check_arguments
from semcorr.models.losses.inputs import ExtraInput, Lookup, LossInputs
from semcorr.models.losses.pair_maps import PairMaps


def matching_score(similarity: Float[Tensor, "b n h w"], temperature: float) -> Float[Tensor, " b"]:
    """Average, over the points of each pair, the probability of the best target cell (NC-Net, eq. 6 and 8).

    >>> import torch
    >>> matching_score(torch.zeros(1, 3, 2, 5), temperature=1.0)  # all of ten cells are as good
    tensor([0.1000])
    """
    return (similarity / temperature).flatten(2).softmax(-1).amax(-1).mean(-1)


class ImageLevel(nn.Module):
    """The matching score of negative pairs less that of positive ones: NC-Net (Rocco et al. 2018), eq. 8.

    It is the mean of both directions, over pairs. A negative pair is a source and the target of the next pair of the
    step, whatever it shows, as in the released code: two pairs of one category make a false one. No keypoint is read.

    Args:
        temperature: Temperature of the softmax over target cells; NC-Net's own correlations are taken at 1.
        points: Points along a side of the image that are matched, spread evenly; None for every cell, as published,
            which takes memory by the square of the number of cells.

    Raises:
        UserError: A step that it is called with has one pair alone.
    """

    reads_descriptors = False
    lookup: Lookup = "centre"
    reads = (ExtraInput.PAIRS, ExtraInput.OTHERS)

    @check_arguments("loss")
    def __init__(self, temperature: Temperature = 0.05, points: Count | None = 16) -> None:
        super().__init__()
        self.temperature, self.points = temperature, points

    def forward(self, step: LossInputs) -> Float[Tensor, ""]:
        """Compute the loss of the pairs of a step, of which there must be two at least."""
        pairs = step.pairs
        assert pairs is not None, "the step was not asked for them"
        if len(pairs.source.values) < 2:
            raise UserError(
                "`loss`: the labels of images are learned from pairs that do not belong together, made of two pairs "
                "of a step, and this step has one. Give data.batch_size=2 or more on each process."
            )
        return (self._score(pairs.roll_targets()) - self._score(pairs)).mean()

    def _score(self, pairs: PairMaps) -> Float[Tensor, " b"]:
        """Average the scores of the pairs in both directions."""
        scores = [
            matching_score(each.similarity(each.lattice(self.points)), self.temperature)
            for each in (pairs, pairs.swapped)
        ]
        return (scores[0] + scores[1]) / 2
