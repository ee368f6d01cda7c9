import math
from itertools import permutations

import pytest
import torch

from semcorr.core.errors import UserError
from semcorr.metrics.pck import ALPHAS, PCK, pck

CATEGORIES = ("cat", "dog", "bus")


def random_batch(pairs: int, keypoints: int = 7, categories: int = 2) -> dict[str, torch.Tensor]:
    shared = torch.rand(pairs, keypoints) < 0.6
    return {
        "predicted": torch.rand(pairs, keypoints, 2) * 40,
        "target": torch.rand(pairs, keypoints, 2) * 40,
        "extent": torch.rand(pairs) * 150 + 50,
        "shared": shared,
        "ambiguous": shared & (torch.rand(pairs, keypoints) < 0.5),
        "category": torch.randint(categories, (pairs,)),
    }


def slow(batches: list[dict], alpha: float, subset: str, by: str, category: int | None = None) -> float | None:
    """The definition, one keypoint after the other."""
    per_pair = []
    for batch in batches:
        for i in range(len(batch["extent"])):
            if category is not None and batch["category"][i] != category:
                continue
            hits = []
            for j in range(batch["shared"].shape[1]):
                twin = bool(batch["ambiguous"][i, j])
                if not batch["shared"][i, j] or (subset == "geo" and not twin) or (subset == "std" and twin):
                    continue
                x, y = (batch["predicted"][i, j].double() - batch["target"][i, j].double()).tolist()
                hits.append(math.hypot(x, y) <= alpha * batch["extent"][i].item())
            if hits:
                per_pair.append(hits)
    if not per_pair:
        return None
    if by == "image":
        return sum(sum(hits) / len(hits) for hits in per_pair) / len(per_pair)
    return sum(map(sum, per_pair)) / sum(map(len, per_pair))


def scores(batches: list[dict]) -> dict:
    metric = PCK(CATEGORIES, keypoints=7)
    for batch in batches:
        metric.update(**batch)
    return metric.compute()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_pck_agrees_with_a_double_loop(alpha):
    batch = random_batch(20)

    values = pck(batch["predicted"], batch["target"], batch["extent"], alpha, batch["shared"])

    for i, value in enumerate(values.tolist()):
        one = {key: tensor[i : i + 1] for key, tensor in batch.items()}
        expected = slow([one], alpha, "all", "image")
        assert math.isnan(value) if expected is None else value == pytest.approx(expected)


@pytest.mark.parametrize(("alpha", "extent"), [(0.01, 500), (0.05, 100), (0.1, 50), (0.15, 100 / 3), (0.2, 25)])
def test_a_keypoint_exactly_on_the_boundary_is_correct(alpha, extent):
    factors = torch.arange(3, 300, 3).float()[:, None]  # distances of 15, 30, 45 ... pixels
    target = torch.zeros(1, 2)
    on, beyond = target + factors * torch.tensor([3.0, -4.0]), target + factors * torch.tensor([3.0, -4.0001])
    extents = (factors[:, 0].double() * extent).float()

    assert pck(on[:, None], torch.zeros(99, 1, 2), extents, alpha).tolist() == [1.0] * 99
    assert pck(beyond[:, None], torch.zeros(99, 1, 2), extents, alpha).tolist() == [0.0] * 99


def test_nothing_to_score_is_nan_and_not_zero():
    points = torch.zeros(2, 3, 2)
    mask = torch.tensor([[False, False, False], [True, False, False]])

    nothing, one = pck(points, points, torch.ones(2), mask=mask).tolist()

    assert math.isnan(nothing)
    assert one == 1.0


@pytest.mark.parametrize("subset", ["all", "geo", "std"])
@pytest.mark.parametrize("by", ["image", "point"])
def test_the_metric_agrees_with_a_loop_over_keypoints(subset, by):
    batches = [random_batch(9), random_batch(4), random_batch(1)]

    result = scores(batches)

    for alpha in ALPHAS:
        everything = result["pck"][subset][by][f"{alpha:g}"]
        assert everything == pytest.approx(slow(batches, alpha, subset, by), abs=1e-12)
        for i, name in enumerate(CATEGORIES):
            value, expected = result["category"][name][subset][by][f"{alpha:g}"], slow(batches, alpha, subset, by, i)
            assert value == (expected if expected is None else pytest.approx(expected, abs=1e-12))
    assert result["category"]["bus"][subset][by]["0.1"] is None  # no pair of it


def test_batches_in_any_order_give_the_same_digits():
    batches = [random_batch(n) for n in (7, 3, 12, 1)]

    first, *others = [scores(list(order)) for order in permutations(batches)]

    assert all(other == first for other in others)


def test_one_batch_or_many_give_the_same_digits():
    batch = random_batch(12)
    singles = [{key: tensor[i : i + 1] for key, tensor in batch.items()} for i in range(12)]

    assert scores(singles) == scores([batch])


def test_the_states_of_two_processes_add_up_to_one():
    batches = [random_batch(n) for n in (7, 3, 12, 1)]
    here, there = PCK(CATEGORIES, keypoints=7), PCK(CATEGORIES, keypoints=7)
    for metric, share in ((here, batches[::2]), (there, batches[1::2])):
        for batch in share:
            metric.update(**batch)

    here.correct, here.pairs = here.correct + there.correct, here.pairs + there.pairs

    assert here.compute() == scores(batches)


def test_per_image_and_per_point_differ_where_pairs_differ_in_keypoints():
    """A pair with none of its 1 right and a pair with all of its 3 right."""
    shared = torch.tensor([[True, False, False], [True, True, True]])
    predicted = torch.zeros(2, 3, 2)
    predicted[0] = 50.0
    metric = PCK(["cat"], keypoints=3, alphas=[0.1])

    nothing = torch.zeros(2, 3, dtype=torch.bool)
    metric.update(predicted, torch.zeros(2, 3, 2), torch.full((2,), 100.0), shared, nothing, torch.zeros(2).long())

    assert metric.compute()["pck"] == {
        "all": {"image": {"0.1": 0.5}, "point": {"0.1": 0.75}},
        "geo": {"image": {"0.1": None}, "point": {"0.1": None}},
        "std": {"image": {"0.1": 0.5}, "point": {"0.1": 0.75}},
    }


def test_a_pair_with_nothing_to_score_does_not_lower_the_mean():
    shared = torch.tensor([[True, True], [False, False]])
    zeros = torch.zeros(2, 2, 2)
    metric = PCK(["cat"], keypoints=2, alphas=[0.1])

    metric.update(zeros, zeros, torch.ones(2), shared, torch.zeros_like(shared), torch.zeros(2).long())

    assert metric.compute()["pck"]["all"]["image"] == {"0.1": 1.0}


BROADCAST = {  # arguments that PyTorch would accept
    "one keypoint": ({"target": lambda x: x[:, :1]}, "`target` must be of the shape (4, 7, 2) to go with `predicted`"),
    "one pair": ({"target": lambda x: x[:1]}, "`target` must be of the shape (4, 7, 2)"),
    "one extent": ({"extent": lambda x: x[:1]}, "`extent` must be of the shape (4,) to go with `predicted`, got (1,)"),
    "one row": ({"shared": lambda x: x[:1]}, "`shared` must be of the shape (4, 7)"),
    "few categories": ({"category": lambda x: x[:1]}, "`category` must be of the shape (4,)"),
    "one error": ({"errors": lambda _: torch.zeros(4, 1)}, "`errors` must be of the shape (4, 7)"),
    "numbers as a mask": ({"shared": lambda x: x.long() * 255}, "`shared` must hold booleans, got torch.int64. Give a"),
    "floats as indices": ({"category": lambda x: x.float()}, "`category` must hold whole numbers, got torch.float32"),
    "a list": (
        {"extent": lambda x: x.tolist()},
        "`extent` must be a tensor, got list. Convert it",
    ),
    "negative": ({"extent": lambda x: -x}, "`extent` must be positive, got -"),
    "NaN as extent": ({"extent": lambda x: x * math.nan}, "`extent` must be positive, got nan"),
    "NaN": ({"predicted": lambda x: x * math.nan}, "`predicted` or `target` is NaN at a keypoint to score"),
    "below 0": ({"category": lambda x: x - 5}, "`category` must be an index into the 3 categories, from 0 to 2, got -"),
    "beyond": ({"category": lambda x: x + 3}, "`category` must be an index into the 3 categories, from 0 to 2, got "),
}


@pytest.mark.parametrize("case", BROADCAST)
def test_a_batch_that_does_not_fit_together_is_refused(case):
    changes, message = BROADCAST[case]
    batch = random_batch(4)
    batch |= {"shared": torch.ones_like(batch["shared"])}
    batch |= {key: change(batch.get(key)) for key, change in changes.items()}

    with pytest.raises(UserError) as error:
        PCK(CATEGORIES, keypoints=7).update(**batch)
    assert message in str(error.value)
    if not batch.keys() & {"errors"} and "category" not in changes:
        with pytest.raises(UserError) as error:
            pck(batch["predicted"], batch["target"], batch["extent"], mask=batch["shared"])
        assert message.replace("shared", "mask") in str(error.value)


def test_indices_of_a_narrow_type_count_alike():
    batch = random_batch(4)

    metric = PCK(CATEGORIES, keypoints=7)
    metric.update(**batch | {"category": batch["category"].to(torch.int8)})

    assert metric.compute() == scores([batch])


def test_more_keypoints_than_are_counted_are_refused():
    with pytest.raises(UserError, match=r"`shared` has 7 keypoints .* counts up to 5\. Build it with keypoints=7"):
        PCK(CATEGORIES, keypoints=5).update(**random_batch(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"categories": ["x", "x"]}, "`categories` has x twice"),
        ({"categories": "xy"}, "`categories` must be a list of names, got 'xy'. Give ['xy']"),
        ({"keypoints": -1}, "`keypoints` must be at least 0, got -1"),
        ({"pooling": "bogus"}, "`pooling` must be one of image, point, category, category_by_pairs, got 'bogus'"),
        ({"alphas": (0.1, 0.1)}, "`alphas` has 0.1 twice"),
        ({"alphas": (math.nan,)}, "`alphas` must be a list, each entry positive"),
    ],
)
def test_options_of_the_metric_are_refused(options, message):
    with pytest.raises(UserError) as error:
        PCK(**{"categories": CATEGORIES, "keypoints": 7, **options})
    assert message in str(error.value)


def test_a_tolerance_that_is_none_is_refused():
    with pytest.raises(UserError, match="`alpha` must be positive, got nan"):
        pck(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), torch.ones(1), math.nan)
