import random
from itertools import chain
from pathlib import Path

import pytest
import torch

from semcorr.core.errors import UserError
from semcorr.data.datamodule import choose_pairs
from semcorr.data.loaders import SampleIndex, TrainingStream, batches_by_target, divide_stream, shard
from semcorr.data.record import ImageRecord, PairRecord


def stream(epoch: int = 0, **options: int) -> list[list[int]]:
    """The pairs of every batch."""
    return [[draw.pair for draw in batch] for batch in draws(epoch, **options)]


def draws(epoch: int = 0, **options: int) -> list[list[SampleIndex]]:
    given = {"length": 12, "batch_size": 3, "steps": 2, "seed": 0} | options
    return list(TrainingStream(**given, epoch=lambda: epoch))


def image(name: str) -> ImageRecord:
    return ImageRecord(name, Path(name), (8, 8), torch.zeros(1, 2), torch.ones(1, dtype=torch.bool), (0, 0, 4, 4))


def random_pairs(count: int) -> list[PairRecord]:
    chance = random.Random(0)
    ends = [chance.sample("abcdef", 2) for _ in range(count)]
    return [PairRecord(f"{i}", "cat", image(a), image(b), 4.0) for i, (a, b) in enumerate(ends)]


def test_a_choice_of_pairs_has_so_many_of_each_category_in_their_order():
    categories = ["cat"] * 20 + ["dog"] * 3
    pairs = [pair._replace(category=name) for pair, name in zip(random_pairs(23), categories, strict=True)]

    chosen = choose_pairs(pairs, 5, seed=0)

    assert [pair.category for pair in chosen] == ["cat"] * 5 + ["dog"] * 3
    assert [int(pair.name) for pair in chosen] == sorted(int(pair.name) for pair in chosen)
    assert {pair.name for pair in chosen} < {pair.name for pair in choose_pairs(pairs, 6, seed=0)}
    assert choose_pairs(pairs, 5, seed=1) != chosen
    assert choose_pairs(pairs[::-1], 5, seed=0) == chosen[::-1]  # whatever the order of the list
    assert choose_pairs(pairs, 99, seed=0) == pairs


@pytest.mark.parametrize("turn", [0, 1, 5])
def test_a_pass_visits_every_pair_once(turn):
    batches = stream(epoch=turn, steps=4)

    assert sorted(chain(*batches)) == list(range(12))
    assert [len(batch) for batch in batches] == [3, 3, 3, 3]


def test_a_pass_that_does_not_divide_repeats_nothing():
    batches = stream(length=13, steps=4)

    assert len(set(chain(*batches))) == 12


def test_every_pair_has_its_turn_where_a_pass_does_not_divide():
    assert set(chain(*stream(length=13, steps=40))) == set(range(13))


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_epochs_are_slices_of_one_stream(steps):
    epochs = [stream(epoch=k, steps=steps) for k in range(30 // steps)]

    assert list(chain(*epochs)) == stream(steps=30)


def test_resuming_at_an_epoch_gives_the_batches_of_the_uninterrupted_run():
    count = 0
    uninterrupted = TrainingStream(length=12, batch_size=3, steps=2, seed=0, epoch=lambda: count)
    seen = []
    for count in range(4):  # noqa: B007  (the stream reads it)
        seen.append(list(uninterrupted))

    assert draws(epoch=3) == seen[3]
    assert seen[3] != seen[2]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_stream_of_one_process(world):
    alone = draws(steps=6 * world)
    ranks = [draws(steps=6, rank=rank, world=world) for rank in range(world)]

    for rank, batches in enumerate(ranks):
        assert batches == alone[rank::world]


def test_two_ranks_see_disjoint_halves_of_a_pass():
    first, second = (set(chain(*stream(rank=rank, world=2))) for rank in range(2))

    assert len(first) == len(second) == 6
    assert first.isdisjoint(second)


@pytest.mark.parametrize("world", [1, 2])
def test_every_draw_of_the_stream_has_a_number_of_its_own(world):
    """13 pairs in batches of 3: a pass leaves one out, and no number."""
    every = [draws(epoch=k, length=13, rank=rank, world=world) for k in range(6) for rank in range(world)]

    numbers = sorted(draw.number for batches in every for batch in batches for draw in batch)
    assert numbers == list(range(36 * world))


def test_passes_and_seeds_differ():
    assert stream(steps=4) != stream(steps=4, epoch=1)
    assert stream(steps=4) != stream(steps=4, seed=1)
    assert stream(steps=4, seed=1) == stream(steps=4, seed=1)


def test_without_steps_an_epoch_is_a_whole_pass_shared_by_all_ranks():
    assert len(TrainingStream(length=12, batch_size=3, steps=None, seed=0)) == 4
    assert len(TrainingStream(length=12, batch_size=3, steps=None, seed=0, world=2)) == 2


def test_fewer_pairs_than_a_batch_make_a_smaller_batch():
    assert [sorted(batch) for batch in stream(length=2)] == [[0, 1], [0, 1]]


def divided(rank: int = 0, world: int = 1, epoch: int = 0, **options: int | None) -> TrainingStream:
    given = {"length": 13, "batch_size": 6, "steps": 5, "seed": 0} | options
    return divide_stream(**given, rank=rank, world=world, epoch=lambda: epoch)


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_a_global_batch_holds_the_same_draws_over_any_number_of_processes(world):
    """13 pairs make two batches of 6 a pass: batches of 3, of each of two processes, would make four passes of five."""
    alone = draws(epoch=1, length=13, batch_size=6, steps=5)
    parts = [list(divided(rank, world, epoch=1)) for rank in range(world)]

    assert [list(chain(*step)) for step in zip(*parts, strict=True)] == alone
    assert {len(part) for batches in parts for part in batches} == {6 // world}


@pytest.mark.parametrize("world", [1, 3])
def test_a_pass_of_global_batches_has_the_same_steps_over_any_number_of_processes(world):
    stream = divided(world - 1, world, steps=None)

    assert len(stream) == 2
    assert list(chain(*stream.batches_ahead(epochs=2))) == list(chain(*draws(length=13, batch_size=6, steps=4)))


@pytest.mark.parametrize(
    ("size", "world", "message"),
    [
        (8, 3, "must be a multiple of 3, the number of processes, got 8: .* Give 6 or 9, or other trainer.devices"),
        (2, 4, "must be a multiple of 4, the number of processes, got 2: .* Give 4, or other trainer.devices"),
        (14, 2, "must be at most 13, the number of training pairs, got 14"),
    ],
)
def test_a_global_batch_that_cannot_be_divided_is_refused(size, world, message):
    with pytest.raises(UserError, match=f"^`data.global_batch_size` {message}"):
        divided(world=world, batch_size=size)


@pytest.mark.parametrize("at_most", [1, 4, 100])
def test_batches_by_target_hold_every_pair_once_and_of_few_pairs_one_target_each(at_most):
    pairs = random_pairs(60)

    batches = batches_by_target(pairs, at_most)

    assert sorted(chain(*batches)) == list(range(60))
    assert all(len({pairs[i].target.name for i in batch}) == 1 for batch in batches)
    counts = [sum(pair.target.name == name for pair in pairs) for name in "abcdef"]
    assert len(batches) == sum(-(-count // at_most) for count in counts)  # no more than needed
    assert max(map(len, batches)) <= at_most


@pytest.mark.parametrize(("at_most", "size"), [(32, 8), (7, 4), (1, 1)])
def test_targets_of_few_pairs_share_a_batch_while_64_processes_have_one_each(at_most, size):
    """640 pairs, 4 of each target: batches of up to 10, a 64th of the pairs, which hold whole targets."""
    pairs = [PairRecord(f"{i}", "cat", image(f"s{i}"), image(f"t{i // 4:03}"), 4.0) for i in range(640)]

    batches = batches_by_target(pairs, at_most)

    assert sorted(chain(*batches)) == list(range(640))
    assert {len(batch) for batch in batches} == {size}
    assert len({pairs[batch[0]].target.name for batch in batches}) == 640 // max(4, size)
    assert len(batches) >= 64


def test_batches_by_target_do_not_depend_on_the_order_of_the_pairs():
    pairs = random_pairs(60)
    shuffled = random.Random(1).sample(pairs, 60)

    def ends(listed: list[PairRecord]) -> list[list[tuple[str, str]]]:
        batches = batches_by_target(listed, max_pairs=4)
        return [[(listed[i].source.name, listed[i].target.name) for i in batch] for batch in batches]

    assert ends(shuffled) == ends(pairs)


@pytest.mark.parametrize(("count", "world"), [(7, 2), (7, 3), (2, 4), (0, 2)])
def test_every_batch_is_on_one_process_and_none_repeated(count, world):
    batches = [[i] for i in range(count)]

    shares = [shard(batches, rank, world) for rank in range(world)]

    assert sorted(chain(*shares)) == batches
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
