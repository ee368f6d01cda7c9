"""The distance of soft-argmax to the true cell, which has gradients for every cell of the target, or of a window."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.ranges import Temperature, Weight, Window, check_arguments
from semcorr.matching.readouts import soft_argmax, window_soft_argmax
from semcorr.models.losses.inputs import KeypointWeights, Lookup, LossInputs, mask_values, weighted_mean


def soft_argmax_distance(
    similarity: Float[Tensor, "b n h w"],
    cells: Float[Tensor, "b n 2"],
    mask: KeypointWeights,
    temperature: float = 0.02,
    window: int | None = None,
) -> Float[Tensor, ""]:
    """Compute the mean distance, in cells, of soft-argmax to the true cell: over the whole map, or in a window.

    "Telling Left from Right", eq. 3, which sums over points; the released code takes the mean, as here, of one pair a
    step. Here it is over the points of each pair, then over pairs. With a `window` (Table 9) soft-argmax is that of
    `window_soft_argmax`, around the best cell: no other cell of the map has a gradient.

    Args:
        similarity: Similarity of every point with every target cell.
        cells: True position of every point in the target, in cells of `similarity`.
        mask: Points that count, or their weights, see `weighted_mean`.
        temperature: Divisor of the similarity before the softmax.
        window: Cells along a side of the window, an odd number; None takes the whole map.

    >>> flat = torch.zeros(1, 1, 3, 3)  # soft-argmax is its centre, (1, 1)
    >>> soft_argmax_distance(flat, torch.tensor([[[4.0, 5.0]]]), torch.tensor([[True]]))
    tensor(5.)
    """
    similarity = mask_values(similarity, mask)
    if window is None:
        return _mean_distance(soft_argmax(similarity, temperature), cells, mask)
    return _mean_distance(window_soft_argmax(similarity, window, temperature), cells, mask)


def _mean_distance(
    predictions: Float[Tensor, "b n 2"], cells: Float[Tensor, "b n 2"], mask: KeypointWeights
) -> Float[Tensor, ""]:
    """Average the distance of predictions to the true cells over the points of each pair, then over pairs."""
    return weighted_mean(torch.linalg.vector_norm(predictions - mask_values(cells, mask), dim=-1), mask)


class SoftArgmaxDistance(nn.Module):
    """`soft_argmax_distance` to a perturbed true cell, as GeoAware-SC trains.

    Args:
        temperature: Temperature of the softmax.
        noise: Fraction of the extent whose half is the standard deviation of a normal deviate that moves the true cell:
            2 sigma are the radius of PCK@noise. The extent is the longer side of the target's box.
        integer_source: Whether, as released, the displacement is predicted from the whole cell that the source point
            falls in, with that cell's features, but measured from the point itself. The true cell is then off by the
            truncated fraction, half a cell at most.
        trained_grid: Number of coordinates along a side that soft-argmax averages and that are, as released,
            parameters, trained and decayed. The readouts of evaluation do not use them. None takes the cells' own
            coordinates.
        window: Cells along a side of the window around the best cell that soft-argmax is taken in (Table 9), an odd
            number; None takes the whole map, and only this goes with `trained_grid`.

    Raises:
        UserError: `trained_grid` is less than 2, or given with `window`.
    """

    reads_descriptors = False

    @check_arguments("loss")
    def __init__(
        self,
        temperature: Temperature = 0.02,
        noise: Weight = 0.1,
        integer_source: bool = False,
        trained_grid: int | None = None,
        window: Window | None = None,
    ) -> None:
        super().__init__()
        if trained_grid is not None and trained_grid < 2:
            raise UserError(f"`loss.trained_grid` must be null or at least 2 cells, got {trained_grid}")
        if window is not None and trained_grid is not None:
            raise UserError(
                f"`loss.window` and `loss.trained_grid` exclude each other, got {window} and {trained_grid}. "
                "Set one to null."
            )
        self.temperature, self.noise, self.window = temperature, noise, window
        self.lookup: Lookup = "containing" if integer_source else "centre"
        # x and y from -1 to 1 as in the released code: the effect of a learning rate depends on this scale
        self.grid = None if trained_grid is None else nn.Parameter(torch.linspace(-1, 1, trained_grid).repeat(2, 1))

    def forward(self, step: LossInputs) -> Float[Tensor, ""]:
        """Compute the loss of a step, with new noise each time."""
        cells = mask_values(step.cells, step.mask)
        if self.noise:
            cells = cells + self.noise / 2 * step.extent * torch.randn_like(cells)
        if self.lookup == "containing":
            corner = step.starts + 0.5  # from the grid's corner: a cell is [k, k + 1]
            cells = cells + 0.5 - (corner - corner.floor())
        if self.grid is None:
            return soft_argmax_distance(step.similarity, cells, step.mask, self.temperature, self.window)
        return _mean_distance(
            self._expected_coordinates(mask_values(step.similarity, step.mask), self.grid), cells, step.mask
        )

    def _expected_coordinates(
        self, similarity: Float[Tensor, "b n h w"], grid: Float[Tensor, "2 k"]
    ) -> Float[Tensor, "b n 2"]:
        """Apply soft-argmax with the learned coordinates; returns cells."""
        h, w = similarity.shape[-2:]
        side = grid.shape[1]
        if (h, w) != (side, side):
            raise UserError(f"`loss.trained_grid` must be the cells along a side, {w} x {h} here, got {side}")
        weights = (similarity / self.temperature).flatten(2).softmax(-1).view_as(similarity)
        columns, rows = (grid + 1) * (side - 1) / 2
        return torch.stack(((weights.sum(-2) * columns).sum(-1), (weights.sum(-1) * rows).sum(-1)), dim=-1)
