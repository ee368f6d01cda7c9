"""The loss by masks of objects: points on an object match points on the object (SFNet)."""

from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.ranges import Count, Temperature, check_arguments
from semcorr.models.losses.inputs import ExtraInput, Lookup, LossInputs
from semcorr.models.losses.pair_maps import PairMaps


class MaskConsistency(nn.Module):
    """The squared difference of a point's own mask and the mask expected where it matches, in both directions.

    SFNet (Lee et al. 2019) reads the target's mask at the expected cell; here it is averaged by the softmax, whose
    gradient does not vanish inside the mask. The mask of an object is its box, which every benchmark has. No keypoint
    is read.

    Args:
        temperature: Temperature of the softmax.
        points: Points along a side of the image that are matched, spread evenly; None for every cell.
    """

    reads_descriptors = False
    lookup: Lookup = "centre"
    reads = (ExtraInput.PAIRS,)

    @check_arguments("loss")
    def __init__(self, temperature: Temperature = 0.05, points: Count | None = 16) -> None:
        super().__init__()
        self.temperature, self.points = temperature, points

    def forward(self, step: LossInputs) -> Float[Tensor, ""]:
        """Compute the loss of a step: a mean over points, directions and pairs."""
        assert step.pairs is not None, "the step was not asked for them"
        return (self._measure_difference(step.pairs) + self._measure_difference(step.pairs.swapped)) / 2

    def _measure_difference(self, pairs: PairMaps) -> Float[Tensor, ""]:
        """Average the squared difference from source to target."""
        points = pairs.lattice(self.points)
        similarity = pairs.similarity(points)
        h, w = similarity.shape[-2:]
        probability = (similarity / self.temperature).flatten(2).softmax(-1)
        expected = (probability * box_shares(pairs.target_box, pairs.side, h, w).flatten(1)[:, None]).sum(-1)
        low, high = (edge[:, None] for edge in pairs.source_box.split(2, dim=-1))
        own = ((points >= low) & (points <= high)).all(-1).to(expected.dtype)
        return (own - expected).square().mean()


def box_shares(box: Float[Tensor, "b 4"], side: int, h: int, w: int) -> Float[Tensor, "b h w"]:
    """Return the share of each cell's area that lies in a box.

    Args:
        box: x1 y1 x2 y2 in pixels of a square image, whose edges are at -0.5 and `side` - 0.5.
        side: Side of the image, in pixels.
        h: Rows of cells.
        w: Columns of cells.

    >>> import torch
    >>> box_shares(torch.tensor([[-0.5, -0.5, 11.5, 7.5]]), side=16, h=2, w=2)  # three quarters of it along x
    tensor([[[1.0000, 0.5000],
             [0.0000, 0.0000]]])
    """
    shares = []
    for axis, count in ((0, w), (1, h)):
        stride, first, last = side / count, box[:, axis, None], box[:, axis + 2, None]
        low = box.new_ones(count).cumsum(0)[None] * stride - stride - 0.5
        shares.append((last.minimum(low + stride) - first.maximum(low)).clamp(min=0) / stride)
    return shares[1][:, :, None] * shares[0][:, None, :]
