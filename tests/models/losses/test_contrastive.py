"""The contrastive loss is CLIP's, on every pair's own keypoints."""

import pytest
import torch
from random_steps import made_step

from semcorr.models.losses import SymmetricContrastive, symmetric_contrastive


def slow_contrastive(source: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """Pair by pair as CLIP's, on the keypoints of the mask alone; pairs weigh alike."""
    total = []
    for a, b, some in zip(source, target, mask, strict=True):
        a, b = (x[some] / x[some].norm(dim=-1, keepdim=True) for x in (a, b))
        labels = torch.arange(len(a))
        for logits in (scale * a @ b.T, scale * b @ a.T):
            total.append(torch.nn.functional.cross_entropy(logits, labels) / 2)
    return torch.stack(total).sum() / len(mask)


def test_the_contrastive_loss_is_clips_on_every_pairs_own_keypoints():
    source, target = torch.randn(2, 3, 5, 7, dtype=torch.double)
    mask = torch.tensor([[True] * 5, [True, False, True, False, True], [False, True, False, False, False]])

    loss = symmetric_contrastive(source, target, mask, 14.0)

    torch.testing.assert_close(loss, slow_contrastive(source, target, mask, 14.0))
    assert symmetric_contrastive(target, source, mask, 14.0) == pytest.approx(loss.item(), rel=1e-12)


def test_one_keypoint_teaches_nothing():
    source, target = torch.randn(2, 1, 3, 7, requires_grad=True)

    assert symmetric_contrastive(source, target, torch.tensor([[False, True, False]])) == 0


def test_without_flips_the_contrastive_loss_is_that_of_the_pairs_themselves_among_all_weights():
    """One pair of three counts 0.4 of its variants' 1.0."""
    step, _ = made_step(torch.tensor([[0.2, 0.2, 0.0], [0.3, 0.1, 0.0], [0.0, 0.2, 0.0]], dtype=torch.double))
    source, target, mask, _ = step.descriptors

    loss = SymmetricContrastive(flips=False).double()(step)

    torch.testing.assert_close(loss, 0.4 * symmetric_contrastive(source[:1], target[:1], mask[:1] > 0))
