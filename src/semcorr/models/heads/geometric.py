"""The head of CNNGeo: an affine map, a thin plate, or both in turn, regressed from the correlation.

A warp takes points of the source to their places on the target, both in [-1, 1] from corner to corner.
"""

from typing import Annotated, Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import grid_sample, normalize

from semcorr.core.ranges import Range, check_arguments
from semcorr.core.thin_plate import control_points, thin_plate_kernel, thin_plate_solver
from semcorr.models.heads.correlation import correlation
from semcorr.models.heads.places import PlaceHead, cell_places, resample

Transform = Literal["affine", "tps", "affine_tps"]
Cells = Annotated[int, Range(least=11, most=60)]  # two convolutions without padding take 10 away
CONTROLS = 3  # control points of the thin plate, per side


class Geometric(PlaceHead):
    """A warp of the whole image, regressed from the correlation (Rocco et al. 2017, "CNNGeo").

    As theirs: negative cosines become zero, and the cosines of a source cell with all target cells unit length; a
    convolution of 7 x 7 to 128 channels, one of 5 x 5 to 64, a linear layer to 6 numbers of an affine map, or 18 of
    nine control points. `affine_tps` first regresses the affine map, warps the target by it, and regresses the thin
    plate that remains.

    Ours:
    - The warp leads from the source to the target, as points are asked for: their A is the target, their B the source.
    - Maps of other sizes are averaged or interpolated to `cells` x `cells`, CNNGeo's 15: weights fit any backbone.
    - For the second stage features are warped, not the image; both stages are trained together.
    - Numbers are differences from the identity, and the last layer starts at zero: an untrained head leaves every
      point where it is.
    - Group norms of one group, not batch norms: steps have few pairs, and no pair depends on the others.

    Args:
        transform: What is regressed: `affine`, `tps`, or `affine_tps`, one after the other.
        cells: Cells along a side of the correlation.
    """

    @check_arguments("head")
    def __init__(self, transform: Transform = "affine_tps", cells: Cells = 15) -> None:
        super().__init__()
        self.controls: Tensor
        self.solver: Tensor
        self.cells = cells
        self.affine = WarpRegression(cells, 6) if transform != "tps" else None
        self.tps = WarpRegression(cells, 2 * CONTROLS**2) if transform != "affine" else None
        self.register_buffer("controls", control_points(CONTROLS).float(), persistent=False)
        self.register_buffer("solver", thin_plate_solver(CONTROLS).float(), persistent=False)

    def locate(
        self, source: Float[Tensor, "b c h w"], target: Float[Tensor, "b c k l"], points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n 2"]:
        """Return where the warp takes points, both in [-1, 1]."""
        source, target = (resample(values, self.cells) for values in (source, target))
        affine = None if self.affine is None else self.affine(source, target)
        if self.tps is not None:
            if affine is not None:
                target = warp_features(target, affine)
            points = points + self.bend(self.tps(source, target), points)
        return points if affine is None else apply_affine(affine, points)

    def bend(self, offsets: Float[Tensor, "b p"], points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n 2"]:
        """Return the thin plate's displacement of points, from that of its control points."""
        coefficients = self.solver.to(offsets.dtype) @ offsets.unflatten(1, (-1, 2))
        return thin_plate_kernel(points, self.controls.to(points.dtype)) @ coefficients


class WarpRegression(nn.Module):
    """CNNGeo's regression: from the correlation of two maps to the parameters of a warp, zero at the start.

    Args:
        cells: Cells along a side of both maps, at least 11.
        parameters: Number of the warp's parameters.
    """

    def __init__(self, cells: int, parameters: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(cells**2, 128, 7),
            nn.GroupNorm(1, 128),
            nn.ReLU(),
            nn.Conv2d(128, 64, 5),
            nn.GroupNorm(1, 64),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.linear = nn.Linear(64 * (cells - 10) ** 2, parameters)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, source: Float[Tensor, "b c g g"], target: Float[Tensor, "b c g g"]) -> Float[Tensor, "b p"]:
        """Regress the parameters."""
        matches = correlation(source, target).relu().flatten(3).permute(0, 3, 1, 2)  # a channel for each target cell
        return self.linear(self.layers(normalize(matches, dim=1)))


def apply_affine(change: Float[Tensor, "b 6"], points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n 2"]:
    """Apply the affine map that differs by `change` from the identity, as rows (x y 1).

    >>> import torch
    >>> change = torch.tensor([[0.0, 0.0, 0.5, 1.0, 0.0, 0.0]])  # x to the right by 0.5; y by what x is
    >>> apply_affine(change, torch.tensor([[[0.25, 0.0]]]))
    tensor([[[0.7500, 0.2500]]])
    """
    matrix = change.unflatten(1, (2, 3))
    return points + points @ matrix[..., :2].mT + matrix[:, None, :, 2]


def warp_features(values: Float[Tensor, "b c g g"], change: Float[Tensor, "b 6"]) -> Float[Tensor, "b c g g"]:
    """Sample a map at where an affine map takes each of its cells; beyond the border there is nothing, 0."""
    g = values.shape[-1]
    centres = cell_places(g, change).flatten(0, 1)
    grid = apply_affine(change, centres.expand(len(values), -1, -1)).unflatten(1, (g, g))
    return grid_sample(values, grid, align_corners=False)
