"""Every loss: gradients, what is masked, weights, and the sum of several."""

from functools import partial

import pytest
import torch
from random_steps import made_step
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from semcorr.core.errors import UserError
from semcorr.models.losses import (
    Descriptors,
    GaussianCrossEntropy,
    LossInputs,
    SoftArgmaxDistance,
    SymmetricContrastive,
    WeightedSum,
    evaluate_loss,
    gaussian_cross_entropy,
    soft_argmax_distance,
    weighted_sum,
)

pytestmark = pytest.mark.integration

# -- every loss --

LOSSES = {
    "gaussian": lambda: partial(gaussian_cross_entropy, temperature=0.1, kernel=3),
    "renormalised": lambda: partial(gaussian_cross_entropy, temperature=0.1, kernel=3, renormalise=True, epsilon=1e-6),
    "annealed": lambda: GaussianCrossEntropy(temperature=0.1, kernel=5, sigma=3.5, sigma_end=1.0, warmup=1, until=9),
    "one temperature": lambda: GaussianCrossEntropy(temperature=0.1, learn="scalar", kernel=3),
    "a temperature per point": lambda: GaussianCrossEntropy(temperature=0.1, learn="point", kernel=3),
    "contrastive": lambda: SymmetricContrastive(scale=3.0),
    "contrastive without flips": lambda: SymmetricContrastive(scale=3.0, flips=False),
    "distance": lambda: partial(soft_argmax_distance, temperature=0.1),
    "dense": lambda: SoftArgmaxDistance(temperature=0.1, noise=0.0),
    "dense in a window": lambda: SoftArgmaxDistance(temperature=0.1, noise=0.0, window=3),
    "released": lambda: SoftArgmaxDistance(temperature=0.1, noise=0.0, integer_source=True, trained_grid=5),
    "together": lambda: weighted_sum(cross_entropy=0.5, noise=0.0, temperature=0.1),
}
every_loss = pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)


def gradients(leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def whole(loss):
    return loss.double() if isinstance(loss, torch.nn.Module) else loss


def unmirrored_step(mask: torch.Tensor) -> LossInputs:
    """A step without variants of its pairs."""
    step, _ = made_step(mask)
    return step._replace(descriptors=step.descriptors._replace(original=torch.ones(len(mask), dtype=torch.bool)))


def halves(step: LossInputs) -> list[LossInputs]:
    """The first and the last pairs of a step, as two processes have them."""
    middle, described = len(step.mask) // 2, step.descriptors
    found = []
    for part in (slice(None, middle), slice(middle, None)):
        inner = Descriptors(*(value[part] for value in described)) if described else None
        tensors = {key: getattr(step, key)[part] for key in ("similarity", "cells", "mask", "starts", "extent")}
        found.append(step._replace(**tensors, descriptors=inner))
    return found


@every_loss
def test_the_mean_of_two_processes_is_the_loss_of_all_their_pairs(make):
    """However many points the pairs have; but a process all of whose pairs have none counts as much as another."""
    points = torch.tensor([[True, True, False], [True, False, False], [True, True, True], [False, True, True]])
    loss, step = whole(make()), unmirrored_step(points)
    together = [evaluate_loss(loss, part) for part in halves(step)]
    torch.testing.assert_close(sum(together) / 2, evaluate_loss(loss, step))

    step = unmirrored_step(points & torch.tensor([True, True, True, False])[:, None])
    first, second = (evaluate_loss(loss, part) for part in halves(step))
    torch.testing.assert_close((2 * first + second) / 3, evaluate_loss(loss, step))


@pytest.mark.sampled(4)
@every_loss
def test_every_gradient_is_that_of_finite_differences(make):
    """Of similarity, descriptors, and what a loss learns."""
    step, leaves = made_step(torch.tensor([[True, True, False], [True, True, True]]))
    loss = whole(make())
    learned = list(loss.parameters()) if isinstance(loss, torch.nn.Module) else []
    inputs = tuple(x for x in (*leaves, *learned))

    def of(similarity, source, target, *_):
        descriptors = step.descriptors._replace(source=source, target=target)
        return evaluate_loss(loss, step._replace(similarity=similarity, descriptors=descriptors))

    assert torch.autograd.gradcheck(of, inputs)
    assert all(grad is None or grad.any() for grad in torch.autograd.grad(of(*inputs), inputs, allow_unused=True))


@every_loss
def test_saturated_values_in_bfloat16_give_finite_losses_and_gradients(make):
    """Peaks a thousand temperatures high at the wrong cell, opposite descriptors; and everything equal."""
    for value in (0.0, 100.0, -100.0):
        step, leaves = made_step(torch.tensor([[True, True, False]]), torch.bfloat16)
        with torch.no_grad():
            leaves[0].fill_(-value)
            leaves[0][..., 0, 0] = value
            leaves[1].fill_(value)
            leaves[2].fill_(-value)
        step = step._replace(cells=torch.full((1, 3, 2), 4.0), extent=step.extent.float(), starts=step.starts.float())

        loss = evaluate_loss(make(), step)
        loss.backward()

        assert loss.isfinite()
        assert gradients(leaves)
        assert all(grad.isfinite().all() for grad in gradients(leaves))


@every_loss
@pytest.mark.parametrize("weights", [False, True], ids=["mask", "weights"])
def test_what_does_not_count_reaches_neither_loss_nor_gradient(make, weights):
    mask = torch.tensor([[True, False, True], [False, True, True]])
    if weights:
        mask = mask * torch.tensor([[0.5, 0.7, 0.25], [0.7, 2.0, 0.1]], dtype=torch.double)
    step, leaves = made_step(mask)
    loss = whole(make())
    clean = evaluate_loss(loss, step).item()
    with torch.no_grad():
        for values in (*leaves, step.cells, step.starts):
            values[mask == 0] = torch.nan

    found = evaluate_loss(loss, step)
    found.backward()

    assert found.item() == clean
    for grad in gradients(leaves):
        assert grad.isfinite().all()
        assert not grad[mask == 0].any()


@every_loss
def test_with_nothing_that_counts_a_loss_is_zero(make):
    step, leaves = made_step(torch.zeros(2, 3, dtype=torch.bool))

    loss = evaluate_loss(whole(make()), step)
    loss.backward()

    assert loss == 0
    assert not any(grad.any() for grad in gradients(leaves))


@every_loss
def test_a_mean_by_weights_is_that_of_repeated_rows(make):
    """A row that counts twice is a row that is there twice; for every loss but the one that counts what it omits."""
    row = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.double)
    step, _ = made_step(torch.cat((row, 2 * row)))
    index = torch.tensor([0, 1, 1])
    twice = LossInputs(
        *(value[index] for value in (step.similarity, step.cells, (step.mask > 0), step.starts, step.extent)),
        number=step.number,
        descriptors=Descriptors(*(value[index] for value in step.descriptors[:2]), step.mask[index] > 0, index == 0),
    )
    loss = whole(make())

    torch.testing.assert_close(evaluate_loss(loss, step), evaluate_loss(loss, twice))


@every_loss
def test_no_size_follows_from_values(make):
    """Tensors without values, as a GPU's are to the CPU until it waits for them, give every shape all the same."""
    with FakeTensorMode():
        step, _ = made_step(torch.ones(2, 3, dtype=torch.bool), torch.float)
        loss = evaluate_loss(make(), step)
        loss.backward()
        assert loss.shape == ()
        with pytest.raises(DynamicOutputShapeException):  # what selecting by a mask would do
            step.similarity[step.mask]


# -- several together, and odd ones --


def test_losses_together_are_the_weighted_sum():
    step, _ = made_step(torch.tensor([[True, True, False]]))
    parts = {
        "one": gaussian_cross_entropy,
        "two": SoftArgmaxDistance(noise=0.0).double(),
        "three": SymmetricContrastive().double(),
    }

    loss = WeightedSum(parts, {"one": 0.5, "two": 2.0, "three": 3.0})(step)

    expected = 0.5 * gaussian_cross_entropy(*step[:3]) + 2 * parts["two"](step) + 3 * parts["three"](step)
    torch.testing.assert_close(loss, expected)
    assert not WeightedSum({"one": gaussian_cross_entropy}, {"one": 1.0}).reads_descriptors
    assert [name for name, _ in weighted_sum(contrastive=0).named_parameters()] == []
    assert [name for name, _ in weighted_sum().named_parameters()] == ["learned.contrastive.t"]


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: GaussianCrossEntropy(learn="pixel"), "`loss.learn` must be null or one of scalar, point, got 'pixel'"),
        (
            lambda: GaussianCrossEntropy(0.0005, learn="scalar"),
            "`loss.temperature` must be more than 0.001 to be learned, got 0.0005",
        ),
        (lambda: GaussianCrossEntropy(until=10), "`loss.until` must be at least `loss.warmup`, 1000, got 10"),
        (lambda: SoftArgmaxDistance(noise=-1), "`loss.noise` must be 0, which is off, or more, got -1"),
        (lambda: SoftArgmaxDistance(trained_grid=1), "`loss.trained_grid` must be null or at least 2 cells, got 1"),
        (
            lambda: weighted_sum(dense=0, contrastive=0),
            "`loss`: one of the weights dense, contrastive, cross_entropy, image_level, pseudo_labels, cycle, warp, "
            "mask, mined_matches must be more than 0, and all are 0",
        ),
        (
            lambda: WeightedSum({"a": gaussian_cross_entropy}, {}),
            "`loss`: a need a weight each, got weights of nothing",
        ),
        (
            lambda: WeightedSum({"a": gaussian_cross_entropy}, {"a": -1}),
            "`loss.weights.a` must be 0, which is off, or more, got -1",
        ),
        (
            lambda: WeightedSum({"a": gaussian_cross_entropy}, {"a": 0}),
            "`loss.weights`: one must be more than 0, and all are 0",
        ),
    ],
)
def test_an_odd_loss_is_refused_with_what_is_allowed(attempt, message):
    with pytest.raises(UserError) as error:
        attempt()

    assert str(error.value) == message
