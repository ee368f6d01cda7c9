"""Heads that regress the place of each point on the target, and what they have in common."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from semcorr.core.coords import cells_to_unit, to_grid, unit_to_cells
from semcorr.core.types import FeatureMap

# Loss of similarity per squared cell. Its softmax at our readouts' 0.02 is a Gaussian of 0.6 cells: wide enough for a
# mean within 0.01 cells of the place, and narrow, because the border cuts it off and shifts the mean.
SLOPE = 0.03


class PlaceHead(nn.Module, ABC):
    """A head that finds places, and gives similarities by the distance from them."""

    def forward(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of `points`, given in source pixels, with every target cell: by its distance."""
        (h, w), (k, l) = (maps.values.shape[-2:] for maps in (source, target))  # noqa: E741
        with torch.autocast(source.values.device.type, enabled=False):
            unit = cells_to_unit(to_grid(points.float(), source.stride), w, h)
            places = self.locate(source.values, target.values, unit)
            return place_similarity(unit_to_cells(places, l, k), k, l)

    @abstractmethod
    def locate(
        self, source: Float[Tensor, "b c h w"], target: Float[Tensor, "b c k l"], points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n 2"]:
        """Return the places of points on the target, both in [-1, 1] from corner to corner."""


def resample(values: Float[Tensor, "b c h w"], cells: int) -> Float[Tensor, "b c g g"]:
    """Resample a map to `cells` x `cells`, averaging where it is finer; in single precision at least."""
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if values.shape[-2:] == (cells, cells):
        return values
    return interpolate(values, (cells, cells), mode="bilinear", align_corners=False, antialias=True)


def cell_places(cells: int, like: Tensor) -> Float[Tensor, "g g 2"]:
    """Return the centres of `cells` x `cells` cells, in [-1, 1], of the type of a tensor and on its device."""
    line = torch.arange(cells, device=like.device, dtype=like.dtype)
    return cells_to_unit(torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1), cells, cells)


def place_similarity(places: Float[Tensor, "b n 2"], height: int, width: int) -> Float[Tensor, "b n h w"]:
    """Compute the similarity of places, in cells, with every cell: 1 less `SLOPE` times the squared distance.

    Readouts find the place between cells; cross-entropies are squared distances, and their gradients reach it
    from everywhere.

    >>> place_similarity(torch.tensor([[[1.0, 0.5]]]), height=2, width=3)
    tensor([[[[0.9625, 0.9925, 0.9625],
              [0.9625, 0.9925, 0.9625]]]])
    """
    across, down = (
        (torch.arange(length, device=places.device, dtype=places.dtype) - place[..., None]).square()
        for length, place in zip((width, height), places.unbind(-1), strict=True)
    )
    return 1 - SLOPE * (across[..., None, :] + down[..., None])
