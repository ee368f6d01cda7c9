"""Indices of layers, and the concatenation of their feature maps."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from semcorr.core.errors import UserError


def concatenate_layers(maps: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b c h w"]:
    """Normalise each map (L2), bring all to the finest grid (bilinear) and concatenate them along channels.

    Normalised parts of equal length make a cosine of the whole the mean of the parts' cosines, so no
    layer drowns another. A single map is returned as it is.
    """
    if len(maps) == 1:
        return maps[0]
    finest = max((tuple(m.shape[-2:]) for m in maps), key=lambda size: size[0] * size[1])
    parts = [normalize(m, dim=1) for m in maps]
    resized = [p if tuple(p.shape[-2:]) == finest else interpolate(p, size=finest, mode="bilinear") for p in parts]
    return torch.cat(resized, dim=1)


def normalise_layer_indices(layers: Sequence[int], count: int) -> list[int]:
    """Return layer indices counted from the start, sorted; negative ones count from the end.

    >>> normalise_layer_indices([-1, 3], count=12)
    [3, 11]
    """
    invalid = [layer for layer in layers if not -count <= layer < count]
    if invalid or not layers:
        raise UserError(f"`backbone.layers` must be between {-count} and {count - 1} here, got {list(layers)}")
    return sorted({layer % count for layer in layers})
