"""Features to similarity: pure functions on feature maps and points."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from semcorr.coords import to_grid


def sample(features: Float[Tensor, "b c h w"], points: Float[Tensor, "b n 2"], stride: float) -> Float[Tensor, "b n c"]:
    """Bilinear descriptors at `points`, given in image pixels.

    Cells are read at their centres. A point in the outer half of a border cell gets that cell. Points
    keep their precision whatever that of the features: bfloat16 has 8 bits, a coordinate needs more.
    """
    h, w = features.shape[-2:]
    size = torch.tensor([w, h], dtype=points.dtype, device=points.device)
    grid = (2 * to_grid(points, stride) + 1) / size - 1  # align_corners=False puts -1 at the corner
    sampled = grid_sample(features.float(), grid.float()[:, :, None], padding_mode="border", align_corners=False)
    return sampled[..., 0].transpose(1, 2).to(features.dtype)


def cosine(descriptors: Float[Tensor, "b n c"], features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n h w"]:
    """Cosine of every descriptor with every cell, in [-1, 1].

    >>> features = torch.eye(2).reshape(1, 2, 1, 2)  # two cells with orthogonal descriptors
    >>> cosine(torch.tensor([[[3.0, 0.0]]]), features)
    tensor([[[[1., 0.]]]])
    """
    h, w = features.shape[-2:]
    cells = normalize(features.flatten(2), dim=1)
    return (normalize(descriptors, dim=-1) @ cells).unflatten(-1, (h, w))
