"""Every loss without keypoints: gradients, saturated values, sizes, and where a training may not have it."""

import pytest
import torch
from posed_pairs import Whole
from random_pairs import made_pairs, made_sources, step_of
from torch._subclasses.fake_tensor import FakeTensorMode

from semcorr.models.losses import (
    CycleConsistency,
    ImageLevel,
    LossInputs,
    MaskConsistency,
    PseudoLabels,
    WarpConsistency,
    evaluate_loss,
    weighted_sum,
)

pytestmark = pytest.mark.integration

LOSSES = {
    "image_level": lambda: ImageLevel(temperature=0.2, points=3),
    "pseudo_labels": lambda: PseudoLabels(8, threshold=0.0, cycle=None, keep=1.0, student_temperature=0.2),
    "soft pseudo_labels": lambda: PseudoLabels(8, threshold=0.0, soft=True, balance=True, student_temperature=0.2),
    "cycle": lambda: CycleConsistency(8, temperature=0.2, keep=1.0),
    "warp": lambda: WarpConsistency(8, in_box=False, temperature=0.2, keep=1.0),
    "mask": lambda: MaskConsistency(temperature=0.2, points=3),
    "together": lambda: weighted_sum(dense=0, contrastive=0, image_level=1.0, cycle=0.1, warp=0.1, mask=1.0),
}
every_loss = pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)


def made_step(dtype: torch.dtype = torch.float32, **options) -> tuple[LossInputs, list[torch.Tensor]]:
    teacher, _ = made_pairs(dtype=dtype)
    pairs, leaves = made_pairs(dtype=dtype, **options)
    return step_of(pairs, teacher=teacher, sources=made_sources()), leaves


def evaluate(make, step: LossInputs) -> torch.Tensor:
    """The loss, of the same random points each time."""
    torch.manual_seed(7)
    return evaluate_loss(make(), step)


@every_loss
def test_a_gradient_is_the_slope_along_it(make):
    """In single precision, as cosines are: a step of a thousandth along the gradient changes the loss by its length."""
    step, leaves = made_step()
    loss = evaluate(make, step)
    gradients = torch.autograd.grad(loss, leaves)
    length = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    assert length > 0

    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf += sign * 5e-3 / length * gradient
            ends.append(evaluate(make, step).item())
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf -= sign * 5e-3 / length * gradient

    assert (ends[0] - ends[1]) / 1e-2 == pytest.approx(float(length), rel=2e-2)


@every_loss
def test_a_head_that_sees_both_images_gives_the_same(make):
    step, _ = made_step()
    whole = step._replace(pairs=step.pairs._replace(head=Whole()))

    torch.testing.assert_close(evaluate(make, step), evaluate(make, whole))


@every_loss
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e4])
def test_saturated_values_in_bfloat16_give_finite_losses_and_gradients(make, value):
    step, leaves = made_step(torch.bfloat16)
    with torch.no_grad():
        leaves[0].fill_(value)
        leaves[1].fill_(-value)
        leaves[1][..., 0, 0] = value

    loss = evaluate(make, step)
    loss.backward()

    assert loss.isfinite()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


@every_loss
def test_no_size_follows_from_values(make):
    """Tensors without values, as a GPU's are to the CPU until it waits for them, give every shape all the same."""
    with FakeTensorMode():
        step, leaves = made_step()
        loss = evaluate_loss(make(), step)
        loss.backward()
        assert loss.shape == ()
        assert leaves[0].grad.shape == leaves[0].shape
