"""The head of RTN: an affine map for each cell of the source, made better step by step."""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import grid_sample, interpolate, normalize

from semcorr.core.coords import unit_to_cells
from semcorr.core.ranges import Count, Range, check_arguments
from semcorr.matching.similarity import neighbouring_cells
from semcorr.models.heads.correlation import correlation
from semcorr.models.heads.places import PlaceHead, cell_places, resample

Cells = Annotated[int, Range(least=4, most=60)]
Window = Annotated[int, Range(least=3, most=31, odd=True)]


class LocalAffine(PlaceHead):
    """A field of affine maps, refined again and again (Kim et al. 2018, "Recurrent Transformer Networks").

    As theirs: a step takes the cells around each source cell to the target by that cell's map, reads the cosines of the
    source cell there, and adds what a convolutional encoder and decoder makes of them to the field; all steps have the
    same weights.

    Ours:
    - Cosines are interpolated between target cells, where they interpolate features.
    - A map turns and stretches about the centre of its cell, so its shift is where the centre goes. A point takes the
      maps of the four cells around it, bilinearly.
    - Maps of other sizes are averaged or interpolated to `cells` x `cells`. An untrained head leaves points in place.
    - It learns from places of points. Their loss without keypoints, a classification among the window, is not here.

    Args:
        steps: Refinements of the field.
        window: Cells along a side of what a step looks at; half of it, times the steps, is how far matches are sought.
        cells: Cells along a side of the field.
        width: Channels of the convolutions.
    """

    @check_arguments("head")
    def __init__(self, steps: Count = 4, window: Window = 9, cells: Cells = 16, width: Count = 64) -> None:
        super().__init__()
        self.steps, self.window, self.cells = steps, window, cells
        self.encode = nn.Sequential(nn.Conv2d(window**2, width, 3, padding=1), nn.ReLU())
        self.deepen = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
        )
        self.decode = nn.Conv2d(2 * width, 6, 3, padding=1)
        for parameter in self.decode.parameters():
            nn.init.zeros_(parameter)

    def locate(
        self, source: Float[Tensor, "b c h w"], target: Float[Tensor, "b c k l"], points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n 2"]:
        """Return where the maps of the field take points, both in [-1, 1]."""
        return read_field(self.refine(source, target), points)

    def refine(self, source: Float[Tensor, "b c h w"], target: Float[Tensor, "b c k l"]) -> Float[Tensor, "b g g 6"]:
        """Return the field: of every cell the differences of its map from the identity, as rows (x y 1)."""
        matches = correlation(*(resample(values, self.cells) for values in (source, target)))
        field = matches.new_zeros(*matches.shape[:3], 6)
        for _ in range(self.steps):
            cosines = normalize(sample_windows(matches, field, self.window).relu(), dim=-1)
            field = field + self.regress(cosines.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return field

    def regress(self, cosines: Float[Tensor, "b k g g"]) -> Float[Tensor, "b 6 g g"]:
        """Regress what is added to the field."""
        fine = self.encode(cosines)
        coarse = interpolate(self.deepen(fine), fine.shape[-2:], mode="bilinear", align_corners=False)
        return self.decode(torch.cat((fine, coarse), dim=1))


def sample_windows(
    matches: Float[Tensor, "b g g g g"], field: Float[Tensor, "b g g 6"], window: int
) -> Float[Tensor, "b g g k"]:
    """Read the cosines of every source cell at where its map takes the cells of a window around it, row by row."""
    g, device = matches.shape[1], matches.device
    reach = (torch.arange(window, device=device) - window // 2).to(field.dtype) * (2 / g)
    offsets = torch.stack(torch.meshgrid(reach, reach, indexing="xy"), dim=-1).flatten(0, 1)
    turn, shift = field.unflatten(-1, (2, 3)).split((2, 1), dim=-1)
    moved = offsets + offsets @ turn.mT + (cell_places(field.shape[1], field)[..., None, :] + shift.mT)  # (b g g k 2)
    volume = matches.flatten(3).flatten(0, 2).unflatten(-1, (1, g, g))
    return grid_sample(volume, moved.flatten(0, 2)[:, None], align_corners=False).view(*field.shape[:3], -1)


def read_field(field: Float[Tensor, "b g g 6"], points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n 2"]:
    """Return where the maps of the four cells around each point take it, by their bilinear weights; in [-1, 1].

    >>> shift = torch.zeros(1, 2, 2, 6)
    >>> shift[..., 1, 2] = 1.0  # of the cells on the right, x by 1
    >>> read_field(shift, torch.tensor([[[0.5, 0.0], [0.0, 0.0]]]))  # their centre; half-way to those on the left
    tensor([[[1.5000, 0.0000],
             [0.5000, 0.0000]]])
    """
    g = field.shape[1]
    cells, weights = neighbouring_cells(unit_to_cells(points, g, g), 1, g, g)
    maps = field.flatten(1, 2).gather(1, cells.flatten(1)[..., None].expand(-1, -1, 6)).unflatten(1, (-1, 4))
    turn, shift = maps.unflatten(-1, (2, 3)).split((2, 1), dim=-1)
    away = points[:, :, None] - cell_places(field.shape[1], field).flatten(0, 1)[cells]
    moved = (turn @ away[..., None] + shift)[..., 0]
    return points + (moved * weights[..., None]).sum(2)
