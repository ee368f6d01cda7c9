"""A training step of random values, as a loss is given it."""

import torch

from semcorr.models.losses import Descriptors, LossInputs

SIDE, WIDTH = 5, 4


def made_step(
    mask: torch.Tensor, dtype: torch.dtype = torch.double, number: int = 4
) -> tuple[LossInputs, list[torch.Tensor]]:
    """A step of random values, and those of it that have a gradient."""
    b, n = mask.shape
    similarity = (torch.rand(b, n, SIDE, SIDE, dtype=torch.double) - 0.5).to(dtype).requires_grad_()
    source, target = (torch.randn(b, n, WIDTH, dtype=torch.double).to(dtype).requires_grad_() for _ in range(2))
    cells, starts = (torch.rand(b, n, 2, dtype=torch.double) * (SIDE - 1) for _ in range(2))
    original = torch.arange(b, device=mask.device) == 0
    descriptors = Descriptors(source, target, mask, original)
    extent = torch.full((b, n, 2), 3.0, dtype=torch.double)
    return LossInputs(similarity, cells, mask, starts, extent, number, descriptors), [similarity, source, target]
