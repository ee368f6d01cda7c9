import math
from functools import partial
from itertools import product

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.nn.functional import grid_sample

from semcorr.errors import UserError
from semcorr.localise import soft_argmax
from semcorr.losses import (
    Dense,
    Descriptors,
    GaussianCrossEntropy,
    Step,
    SymmetricContrastive,
    Together,
    annealed,
    gaussian_cross_entropy,
    loss_of,
    soft_argmax_distance,
    symmetric_contrastive,
    together,
)
from semcorr.losses.temperature import Predicted

SIGMA = 1.5
DENSITY = {
    (dx, dy): math.exp(-(dx**2 + dy**2) / (2 * SIGMA**2)) / (2 * math.pi * SIGMA**2)
    for dx in range(-3, 4)
    for dy in range(-3, 4)
}
CELLS = torch.tensor(
    [[[5.3, 4.7], [0.0, 0.0], [11.0, 8.0]], [[0.2, 7.9], [10.6, 0.4], [-0.4, 3.2]]], dtype=torch.double
)  # inside, at corners, near borders and in the outer half of a border cell of a 9 x 12 map


def slow_loss(similarity: torch.Tensor, cells: torch.Tensor, mask: torch.Tensor, temperature: float) -> float:
    """As published: interpolate the probability, then take its log."""
    b, n, h, w = similarity.shape
    losses = []
    for i in range(b):
        for j in range(n):
            if not mask[i, j]:
                continue
            p = (similarity[i, j] / temperature).flatten().softmax(0).reshape(1, 1, h, w)
            loss = 0.0
            for (dx, dy), density in DENSITY.items():
                x, y = cells[i, j, 0] + dx, cells[i, j, 1] + dy
                if 0 <= x <= w - 1 and 0 <= y <= h - 1:
                    at = torch.stack((2 * x / (w - 1) - 1, 2 * y / (h - 1) - 1)).reshape(1, 1, 1, 2)
                    loss -= density * grid_sample(p, at, align_corners=True).log().item()
            losses.append(loss)
    return sum(losses) / len(losses)


def masked_loss(similarity: torch.Tensor, cells: torch.Tensor, mask: torch.Tensor, temperature: float) -> torch.Tensor:
    """In log space as ours, but on the points of the mask alone: their number is asked of the device."""
    log_p = (similarity / temperature).flatten(2).log_softmax(-1)[mask].unflatten(-1, similarity.shape[-2:])
    losses = []
    for p, (x, y) in zip(log_p, cells[mask], strict=True):
        for (dx, dy), density in DENSITY.items():
            across, down = x + dx, y + dy
            if not (0 <= across <= p.shape[1] - 1 and 0 <= down <= p.shape[0] - 1):
                continue
            i, j = int(down), int(across)
            corners = [
                p[k, m] + ((1 - abs(across - m)) * (1 - abs(down - k))).log()
                for k, m in product((i, i + 1), (j, j + 1))
                if abs(across - m) < 1 and abs(down - k) < 1
            ]
            losses.append(-density * torch.stack(corners).logsumexp(0))
    return torch.stack(losses).sum() / mask.sum()


@pytest.mark.parametrize("temperature", [0.03, 0.3])
def test_masking_without_selecting_is_selecting(temperature):
    similarity = torch.rand(2, 3, 9, 12, dtype=torch.double)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    ours, theirs = similarity.clone().requires_grad_(), similarity.clone().requires_grad_()

    loss, expected = (
        loss_of(s, CELLS, mask, temperature) for loss_of, s in ((gaussian_cross_entropy, ours), (masked_loss, theirs))
    )
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rubbish", [torch.nan, torch.inf, -torch.inf])
def test_rubbish_outside_the_mask_reaches_neither_loss_nor_gradient(rubbish):
    similarity, cells, mask = torch.rand(2, 3, 9, 12), CELLS.float().clone(), torch.zeros(2, 3, dtype=torch.bool)
    mask[0, 1] = True
    clean = gaussian_cross_entropy(similarity, cells, mask)
    similarity[~mask], cells[~mask] = rubbish, rubbish
    similarity.requires_grad_()

    loss = gaussian_cross_entropy(similarity, cells, mask)
    loss.backward()

    assert loss == clean
    assert similarity.grad.isfinite().all()
    assert not similarity.grad[~mask].any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_on_a_gpu_waits_for_nothing():
    similarity = torch.rand(2, 3, 9, 12, device="cuda", requires_grad=True)
    cells, mask = CELLS.float().cuda(), torch.tensor([[True, False, True], [True, True, False]]).cuda()
    gaussian_cross_entropy(similarity, cells, mask).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = gaussian_cross_entropy(similarity, cells, mask)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")

    expected = gaussian_cross_entropy(*(value.detach().cpu() for value in (similarity, cells, mask)))
    torch.testing.assert_close(loss.detach().cpu(), expected)


@pytest.mark.parametrize("temperature", [0.03, 0.3])
def test_the_loss_is_the_published_one(temperature):
    similarity = torch.rand(2, 3, 9, 12, dtype=torch.double) / 2  # a wider range drowns in grid_sample's rounding
    mask = torch.tensor([[True, True, True], [True, True, True]])

    loss = gaussian_cross_entropy(similarity, CELLS, mask, temperature)

    assert loss.item() == pytest.approx(slow_loss(similarity, CELLS, mask, temperature), rel=1e-5)


def test_the_mean_is_over_the_points_in_the_mask():
    similarity = torch.rand(2, 3, 9, 12, dtype=torch.double) / 2
    mask = torch.tensor([[True, False, True], [False, False, True]])

    loss = gaussian_cross_entropy(similarity, CELLS, mask)

    assert loss.item() == pytest.approx(slow_loss(similarity, CELLS, mask, 0.03), rel=1e-5)


def test_a_flat_map_costs_the_log_of_its_size():
    loss = gaussian_cross_entropy(torch.zeros(1, 1, 9, 12), torch.tensor([[[5.0, 4.0]]]), torch.tensor([[True]]))

    assert loss.item() == pytest.approx(sum(DENSITY.values()) * math.log(9 * 12), rel=1e-5)


def test_an_underflowing_softmax_gives_a_finite_loss_and_gradient():
    similarity = torch.full((1, 1, 15, 20), -1.0)
    similarity[0, 0, 2, 17] = 1.0
    similarity.requires_grad_()
    assert (similarity / 1e-3).flatten().softmax(0)[0] == 0  # p is 0 in float32 all around the true cell

    loss = gaussian_cross_entropy(similarity, torch.tensor([[[5.3, 8.6]]]), torch.tensor([[True]]), temperature=1e-3)
    loss.backward()

    assert loss.item() == pytest.approx(2000 * sum(DENSITY.values()), rel=1e-5)  # log p = -2 / 1e-3
    assert similarity.grad.isfinite().all()
    assert similarity.grad[0, 0, 9, 5] < 0 < similarity.grad[0, 0, 2, 17]  # up at the true cell, down at the peak


def test_points_outside_the_mask_do_not_matter():
    similarity = torch.rand(1, 3, 9, 12, requires_grad=True)
    cells, mask = CELLS[:1].float(), torch.tensor([[True, False, True]])
    loss = gaussian_cross_entropy(similarity, cells, mask)
    loss.backward()

    other = torch.where(mask[..., None, None], similarity.detach(), -7.0)
    elsewhere = torch.where(mask[..., None], cells, torch.nan)

    assert gaussian_cross_entropy(other, elsewhere, mask) == loss
    assert similarity.grad.flatten(2).abs().sum(-1).bool().tolist() == [[True, False, True]]


def test_nothing_to_score_is_no_loss_and_no_gradient():
    similarity = torch.rand(1, 3, 9, 12, requires_grad=True)

    loss = gaussian_cross_entropy(similarity, CELLS[:1].float(), torch.zeros(1, 3, dtype=torch.bool))
    loss.backward()

    assert loss == 0
    assert not similarity.grad.any()


@pytest.mark.parametrize(("x", "y"), [(6, 3), (0, 0), (11, 8)])
def test_the_loss_is_least_with_the_peak_at_the_true_cell(x, y):
    losses = {}
    for row in range(9):
        for column in range(12):
            similarity = torch.zeros(1, 1, 9, 12)
            similarity[0, 0, row, column] = 0.1
            true = torch.tensor([[[x, y]]]).float()
            losses[column, row] = gaussian_cross_entropy(similarity, true, torch.tensor([[True]])).item()

    assert min(losses, key=losses.get) == (x, y)


def test_the_gradient_is_that_of_finite_differences():
    similarity = torch.rand(1, 2, 4, 5, dtype=torch.double, requires_grad=True)
    cells = torch.tensor([[[2.3, 1.6], [0.0, 2.9]]], dtype=torch.double)
    loss = partial(gaussian_cross_entropy, cells=cells, mask=torch.tensor([[True, True]]), temperature=0.3, kernel=3)

    assert torch.autograd.gradcheck(loss, similarity)


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
    "dense": lambda: Dense(temperature=0.1, noise=0.0),
    "released": lambda: Dense(temperature=0.1, noise=0.0, integer_source=True, trained_grid=5),
    "together": lambda: together(cross_entropy=0.5, noise=0.0, temperature=0.1),
}
SIDE, WIDTH = 5, 4
every_loss = pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)


def made_step(
    mask: torch.Tensor, dtype: torch.dtype = torch.double, number: int = 4
) -> tuple[Step, list[torch.Tensor]]:
    """A step of random values, and those of it that have a gradient."""
    b, n = mask.shape
    similarity = (torch.rand(b, n, SIDE, SIDE, dtype=torch.double) - 0.5).to(dtype).requires_grad_()
    source, target = (torch.randn(b, n, WIDTH, dtype=torch.double).to(dtype).requires_grad_() for _ in range(2))
    cells, starts = (torch.rand(b, n, 2, dtype=torch.double) * (SIDE - 1) for _ in range(2))
    original = torch.arange(b, device=mask.device) == 0
    descriptors = Descriptors(source, target, mask, original)
    extent = torch.full((b, n, 2), 3.0, dtype=torch.double)
    return Step(similarity, cells, mask, starts, extent, number, descriptors), [similarity, source, target]


def gradients(leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def whole(loss):
    return loss.double() if isinstance(loss, torch.nn.Module) else loss


@every_loss
def test_every_gradient_is_that_of_finite_differences(make):
    """Of similarity, descriptors, and what a loss learns."""
    step, leaves = made_step(torch.tensor([[True, True, False], [True, True, True]]))
    loss = whole(make())
    learned = list(loss.parameters()) if isinstance(loss, torch.nn.Module) else []
    inputs = tuple(x for x in (*leaves, *learned))

    def of(similarity, source, target, *_):
        descriptors = step.descriptors._replace(source=source, target=target)
        return loss_of(loss, step._replace(similarity=similarity, descriptors=descriptors))

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

        loss = loss_of(make(), step)
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
    clean = loss_of(loss, step).item()
    with torch.no_grad():
        for values in (*leaves, step.cells, step.starts):
            values[mask == 0] = torch.nan

    found = loss_of(loss, step)
    found.backward()

    assert found.item() == clean
    for grad in gradients(leaves):
        assert grad.isfinite().all()
        assert not grad[mask == 0].any()


@every_loss
def test_with_nothing_that_counts_a_loss_is_zero(make):
    step, leaves = made_step(torch.zeros(2, 3, dtype=torch.bool))

    loss = loss_of(whole(make()), step)
    loss.backward()

    assert loss == 0
    assert not any(grad.any() for grad in gradients(leaves))


@every_loss
def test_a_mean_by_weights_is_that_of_repeated_rows(make):
    """A row that counts twice is a row that is there twice; for every loss but the one that counts what it omits."""
    row = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.double)
    step, _ = made_step(torch.cat((row, 2 * row)))
    index = torch.tensor([0, 1, 1])
    twice = Step(
        *(value[index] for value in (step.similarity, step.cells, (step.mask > 0), step.starts, step.extent)),
        number=step.number,
        descriptors=Descriptors(*(value[index] for value in step.descriptors[:2]), step.mask[index] > 0, index == 0),
    )
    loss = whole(make())

    torch.testing.assert_close(loss_of(loss, step), loss_of(loss, twice))


@every_loss
def test_no_size_follows_from_values(make):
    """Tensors without values, as a GPU's are to the CPU until it waits for them, give every shape all the same."""
    with FakeTensorMode():
        step, _ = made_step(torch.ones(2, 3, dtype=torch.bool), torch.float)
        loss = loss_of(make(), step)
        loss.backward()
        assert loss.shape == ()
        with pytest.raises(DynamicOutputShapeException):  # what selecting by a mask would do
            step.similarity[step.mask]


# -- what is special to each --


def test_renormalised_weights_of_a_point_sum_to_one_wherever_it_lies():
    """On a flat map every step costs log 108: at the corner a quarter of the steps is left."""
    flat, mask = torch.zeros(1, 2, 9, 12), torch.tensor([[True, True]])
    for cell in ([0.0, 0.0], [5.5, 4.0]):
        cells = torch.tensor([[cell, cell]])
        loss = gaussian_cross_entropy(flat, cells, mask, renormalise=True)
        assert loss.item() == pytest.approx(math.log(108), rel=1e-5)

    quarter = sum(DENSITY[dx, dy] for dx in range(4) for dy in range(4)) * math.log(108)
    assert gaussian_cross_entropy(flat, torch.zeros(1, 2, 2), mask).item() == pytest.approx(quarter, rel=1e-5)


def test_epsilon_is_added_to_the_probability():
    similarity = torch.rand(1, 1, 5, 5, dtype=torch.double)
    cells, mask = torch.tensor([[[2.25, 1.5]]], dtype=torch.double), torch.tensor([[True]])
    p = (similarity / 0.1).flatten().softmax(0).view(5, 5) + 0.01
    read = 0.375 * (p[1, 2] + p[2, 2]) + 0.125 * (p[1, 3] + p[2, 3])

    loss = gaussian_cross_entropy(similarity, cells, mask, 0.1, kernel=1, sigma=1.0, epsilon=0.01)

    assert loss.item() == pytest.approx(-read.log().item() / (2 * math.pi), rel=1e-6)


def test_the_gaussian_narrows_with_the_step():
    loss = GaussianCrossEntropy(kernel=15, sigma=3.5, sigma_end=1.0, warmup=1000, until=12000)
    for number in (0, 999, 4000, 12000, 50000):
        step, _ = made_step(torch.ones(1, 3, dtype=torch.bool), number=number)
        expected = gaussian_cross_entropy(*step[:3], kernel=15, sigma=annealed(number))
        torch.testing.assert_close(loss(step), expected)
    assert [round(annealed(step), 2) for step in (0, 1000, 3000, 10000)] == [3.5, 3.5, 3.3, 1.2]


def test_a_learned_temperature_starts_where_it_is_told_and_weight_decay_leaves_it_there():
    step, _ = made_step(torch.ones(1, 3, dtype=torch.bool))
    expected = gaussian_cross_entropy(*step[:3], 0.05)
    for kind in ("scalar", "point"):
        loss = GaussianCrossEntropy(temperature=0.05, learn=kind).double()
        torch.testing.assert_close(loss(step), expected)
        assert not any(parameter.any() for parameter in loss.parameters())


def test_a_learned_temperature_finds_the_one_that_costs_least():
    """Of a map whose softmax at 0.2 is the target, 0.2 is the best temperature."""
    similarity = torch.tensor([[[[0.0, 0.2 * math.log(3.0)]]]]).expand(1, 4, 1, 2)  # probabilities 1/4 and 3/4 at 0.2
    cells = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]])  # and so are they drawn
    step = Step(similarity, cells, torch.ones(1, 4, dtype=torch.bool), cells, torch.ones(1, 4, 2), 0)
    loss = GaussianCrossEntropy(temperature=0.03, learn="scalar", kernel=1)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()

    assert loss.temperature(similarity).item() == pytest.approx(0.2, rel=0.02)


def test_a_predicted_temperature_depends_on_its_own_point_alone():
    predicted = Predicted()
    torch.nn.init.normal_(predicted.linear.weight)
    similarity = torch.rand(2, 3, 4, 4)

    alone = [predicted(similarity[i : i + 1, j : j + 1]) for i in range(2) for j in range(3)]

    torch.testing.assert_close(predicted(similarity).flatten(), torch.cat(alone).flatten())
    assert predicted(similarity).std() > 0


def slow_contrastive(source: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """Pair by pair as CLIP's, on the keypoints of the mask alone; points weigh alike."""
    total = []
    for a, b, some in zip(source, target, mask, strict=True):
        a, b = (x[some] / x[some].norm(dim=-1, keepdim=True) for x in (a, b))
        labels = torch.arange(len(a))
        for logits in (scale * a @ b.T, scale * b @ a.T):
            total.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none") / 2)
    return torch.cat(total).sum() / mask.sum()


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


def test_the_noise_puts_the_radius_of_pck_at_two_standard_deviations():
    """Similarity so sharp that soft-argmax is the true cell: what is left is the noise, along x twice that along y."""
    similarity = torch.zeros(1, 4000, 3, 3)
    similarity[..., 1, 1] = 1e3
    cells, mask = torch.ones(1, 4000, 2), torch.ones(1, 4000, dtype=torch.bool)
    step = Step(similarity, cells, mask, cells, torch.tensor([40.0, 20.0]).expand(1, 4000, 2), 0)
    torch.manual_seed(0)

    loss = Dense(noise=0.1)(step)

    expected = (torch.randn(10**6, 2) * torch.tensor([2.0, 1.0])).norm(dim=-1).mean()  # 0.1 * extent / 2
    assert loss.item() == pytest.approx(expected.item(), rel=0.03)
    assert Dense(noise=0.0)(step) == pytest.approx(0, abs=1e-5)


def test_the_whole_source_cell_moves_the_truth_by_what_was_cut_away():
    """Of a source 0.2 cells right of its cell's centre, 0.7 are cut away from its corner; half of one is right."""
    similarity = torch.zeros(1, 1, 5, 5)
    similarity[0, 0, 2, 2] = 1e3
    step = Step(similarity, torch.tensor([[[2.0, 2.0]]]), torch.tensor([[True]]), torch.tensor([[[3.2, 1.0]]]),
                torch.ones(1, 1, 2), 0)  # fmt: skip

    assert Dense(noise=0.0, integer_source=True)(step).item() == pytest.approx(0.2, abs=1e-4)
    assert Dense(noise=0.0)(step).item() == pytest.approx(0.0, abs=1e-4)


def test_a_trained_grid_starts_as_the_cells_and_moves():
    step, _ = made_step(torch.ones(1, 3, dtype=torch.bool), torch.float)
    free, fixed = Dense(noise=0.0, trained_grid=SIDE), Dense(noise=0.0)
    torch.testing.assert_close(free(step), fixed(step), check_dtype=False)

    free(step).backward()

    assert free.grid.shape == (2, SIDE)
    assert free.grid.grad.any()
    with pytest.raises(UserError, match=r"`loss\.trained_grid` must be the cells along a side, 5 x 5 here, got 60"):
        Dense(trained_grid=60)(step)


def test_the_dense_loss_is_the_mean_distance_in_cells():
    step, _ = made_step(torch.tensor([[True, True, False]]))
    found = soft_argmax(step.similarity, 0.02)
    expected = [math.dist(found[0, i].tolist(), step.cells[0, i].tolist()) for i in range(2)]

    assert soft_argmax_distance(*step[:3]).item() == pytest.approx(sum(expected) / 2)


def test_together_is_the_weighted_sum():
    step, _ = made_step(torch.tensor([[True, True, False]]))
    parts = {"one": gaussian_cross_entropy, "two": Dense(noise=0.0).double(), "three": SymmetricContrastive().double()}

    loss = Together(parts, {"one": 0.5, "two": 2.0, "three": 3.0})(step)

    expected = 0.5 * gaussian_cross_entropy(*step[:3]) + 2 * parts["two"](step) + 3 * parts["three"](step)
    torch.testing.assert_close(loss, expected)
    assert not Together({"one": gaussian_cross_entropy}, {"one": 1.0}).reads_descriptors
    assert [name for name, _ in together(contrastive=0).named_parameters()] == []
    assert [name for name, _ in together().named_parameters()] == ["learned.contrastive.t"]


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: GaussianCrossEntropy(learn="pixel"), "`loss.learn` must be null or one of scalar, point, got 'pixel'"),
        (
            lambda: GaussianCrossEntropy(0.0005, learn="scalar"),
            "`loss.temperature` must be more than 0.001 to be learned, got 0.0005",
        ),
        (lambda: GaussianCrossEntropy(until=10), "`loss.until` must be at least `loss.warmup`, 1000, got 10"),
        (lambda: Dense(noise=-1), "`loss.noise` must be 0, which is off, or more, got -1"),
        (lambda: Dense(trained_grid=1), "`loss.trained_grid` must be null or at least 2 cells, got 1"),
        (
            lambda: together(dense=0, contrastive=0),
            "`loss`: weights must be 0 or more, and one of them more, got dense=0, contrastive=0, cross_entropy=0",
        ),
        (lambda: Together({"a": gaussian_cross_entropy}, {}), "`loss`: a need a weight each, got weights of nothing"),
    ],
)
def test_an_odd_loss_is_told_what_is_allowed(attempt, message):
    with pytest.raises(UserError) as error:
        attempt()

    assert str(error.value) == message
