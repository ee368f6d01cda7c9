"""Loading: sizes of batches and numbers of processes, and the order of batches as pure functions of seed and place."""

import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple, TypeVar

import torch
from torch.utils.data import Sampler

from semcorr.core.errors import UserError
from semcorr.core.limits import SHARED_MEMORY
from semcorr.data.record import PairRecord

log = logging.getLogger(__name__)

PREFETCH = (2, 1)  # batches that a loader process makes before they are requested, where shared memory has room
PROCESSES = 64  # that share an evaluation, for each of which a batch is left before small ones are joined
MAX_WORKERS = 128  # loader processes that are of use on any machine, at least


def count_cores() -> int:
    """Return the number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encoding_batch_size(batch_size: int | None, on_gpu: bool) -> int:
    """Return the number of images to encode at once: the number that is given, else 8 on a GPU and 1 on a CPU.

    On a CPU a batch does not fit into the caches, and convolutional networks take 1.5 times as long then.
    """
    return batch_size or (8 if on_gpu else 1)


def num_loader_workers(workers: int | None, on_gpu: bool, processes: int = 1) -> int:
    """Return the number of loader processes of each process of the run on this machine.

    A GPU encodes faster than any one core decodes, so there are as many as cores, up to 16. On a CPU they take
    the cores away from the process that encodes, so there are a quarter as many, which of 2 cores is none.

    Args:
        workers: Number that a user has given; None: chosen here.
        on_gpu: Whether features are computed on a GPU.
        processes: Number of processes of the run on this machine, which share its cores.
    """
    if workers is not None:
        return workers
    return min(16, count_cores() // processes) if on_gpu else count_cores() // processes // 4


def require_workers(workers: object) -> None:
    """Refuse a number of loader processes that no machine can start.

    Args:
        workers: The number of loader processes; None: as `num_loader_workers` chooses.

    Raises:
        UserError: The number is not whole, negative, or beyond all reason.
    """
    most = max(MAX_WORKERS, 4 * count_cores())
    if workers is None or (type(workers) is int and 0 <= workers <= most):
        return
    raise UserError(
        f"`data.workers` must be null or a whole number from 0, which loads in the process itself, to {most}, "
        f"got {workers}"
    )


class BatchSize(NamedTuple):
    """What a batch of images takes.

    Args:
        images: Images of the largest batch.
        side: Side of their squares, in pixels.
        value_bytes: Bytes of a pixel's colour: 1 as decoded, 4 if augmentation has made floats of them.
    """

    images: int
    side: int
    value_bytes: int = 1

    @property
    def bytes(self) -> int:
        """Bytes of the pixels of all images."""
        return self.images * 3 * self.side * self.side * self.value_bytes


class LoaderPlan(NamedTuple):
    """How batches are loaded."""

    workers: int  # number of loader processes; 0: the process itself loads
    prefetch: int | None  # batches that each of them makes ahead; None without any


def plan_loading(batch: BatchSize, workers: int, typed: bool, processes: int = 1) -> LoaderPlan:
    """Choose how many batches loader processes make ahead, and how many processes: what shared memory has room for.

    With more they would end by a bus error. One batch more is there than is made ahead: the one in use.

    Args:
        batch: Size of a batch.
        workers: Number of loader processes, as `num_loader_workers` returns it.
        typed: Whether a user has given the number, which is then used or refused.
        processes: Number of processes of the run on this machine, each with as many loader processes.

    Raises:
        UserError: The batches of so many loader processes as were typed need more memory than is free.
    """
    if not workers or not SHARED_MEMORY.is_dir():
        return LoaderPlan(workers, PREFETCH[0] if workers else None)
    free, room = _shared_room(batch, processes)
    for prefetch in PREFETCH:
        if workers * prefetch <= room:
            return LoaderPlan(workers, prefetch)
    if typed:
        needed = (workers * PREFETCH[-1] + 1) * batch.bytes
        raise UserError(
            f"`data.workers`: {workers} loader processes pass {needed / 1e9:.2f} GB through shared memory, of which "
            f"{free / 1e9:.2f} GB are free ({SHARED_MEMORY}). Give fewer (data.workers=0: none), or enlarge it "
            "(docker run --shm-size)"
        )
    _warn_fewer_workers(batch, workers, processes)
    return LoaderPlan(room, PREFETCH[-1] if room else None)


def _shared_room(batch: BatchSize, processes: int) -> tuple[int, int]:
    """Return the free bytes of shared memory of each process, and the batches that fit beside the one in use."""
    free = shutil.disk_usage(SHARED_MEMORY).free // processes
    return free, max(0, free // max(1, batch.bytes) - 1)


@lru_cache  # a validation makes its loaders again, and would repeat it
def _warn_fewer_workers(batch: BatchSize, workers: int, processes: int) -> None:
    """Warn once that shared memory has no room for the batches of all loader processes."""
    free, room = _shared_room(batch, processes)
    log.warning(
        "%s of %d loader processes load: %.2f GB of shared memory are free (%s) for batches of %.3f GB. Enlarge it "
        "(docker run --shm-size), or lower data.encode_batch or data.batch_size",
        room or "none",
        workers,
        free / 1e9,
        SHARED_MEMORY,
        batch.bytes / 1e9,
    )


class SampleIndex(NamedTuple):
    """A training pair and its unique number in the stream of all processes."""

    pair: int
    number: int


BatchIndex = TypeVar("BatchIndex")  # the index that a training dataset takes: a batch


class BatchStream(Sampler[BatchIndex], ABC):
    """An endless, seeded stream of batches, cut into epochs of `steps`.

    Batch i of the stream depends on the seed and i alone. An epoch is a slice of it, so a run resumed
    at the start of an epoch sees what the uninterrupted one saw, and validation and checkpoints can be
    more frequent than passes over 53,340 pairs. Process r of n takes every n-th batch: all processes
    make the same number of steps.

    `epoch` is called whenever the stream is iterated. Lightning would announce it by `set_epoch`, but on a
    resume only after loader processes have begun to fetch.

    Args:
        steps: Number of batches of each process in an epoch; at least 1 is made.
        rank: Rank of this process.
        world: Number of processes.
        epoch: Function that returns the number of epochs that are done.
    """

    def __init__(self, steps: int, rank: int = 0, world: int = 1, epoch: Callable[[], int] = lambda: 0) -> None:
        self.steps, self.rank, self.world, self.epoch = max(1, steps), rank, world, epoch

    @abstractmethod
    def batch(self, number: int) -> BatchIndex:
        """Return batch `number` of the stream of all processes."""

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[BatchIndex]:
        first = self.epoch() * self.steps
        return (self.batch(step * self.world + self.rank) for step in range(first, first + self.steps))

    def batches_ahead(self, epochs: int, steps: int | None = None) -> Iterator[BatchIndex]:
        """Yield the batches that all processes draw from now on.

        Args:
            epochs: Number of epochs at the end of training, those that are done included.
            steps: Number of steps made of each epoch; None: all.
        """
        steps = min(steps or self.steps, self.steps)
        for epoch in range(self.epoch(), epochs):
            first = epoch * self.steps * self.world
            yield from map(self.batch, range(first, first + steps * self.world))


class TrainingStream(BatchStream[list[SampleIndex]]):
    """Batches of pairs, pass after pass over all of them in a new order each.

    With a `part` all processes iterate over the same stream, which does not depend on their number, and each takes its
    part of every batch.

    Args:
        length: Number of pairs.
        batch_size: Number of pairs in a batch; at most `length` are taken.
        steps: Number of batches of each process in an epoch; None: a pass over the pairs.
        seed: Seed of the order of each pass.
        rank: Rank of this process.
        world: Number of processes that take turns; 1 with a `part`.
        epoch: Function that returns the number of epochs that are done.
        part: Part of each batch that this process takes; None: all of it.

    >>> stream = TrainingStream(length=5, batch_size=2, steps=2, seed=0)
    >>> len(stream), [draw.number for batch in stream for draw in batch]
    (2, [0, 1, 2, 3])
    >>> stream = TrainingStream(length=6, batch_size=4, steps=1, seed=0, part=slice(2, 4))
    >>> [draw.number for batch in stream for draw in batch]
    [2, 3]
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        steps: int | None,
        seed: int,
        rank: int = 0,
        world: int = 1,
        epoch: Callable[[], int] = lambda: 0,
        part: slice | None = None,
    ) -> None:
        assert part is None or world == 1, "processes share each batch, or the stream"
        self.part = part
        self.length, self.batch_size, self.seed = length, min(batch_size, length), seed
        self.per_pass = length // self.batch_size  # the remainder waits for another pass's shuffle
        super().__init__(steps or self.per_pass // world, rank, world, epoch)

    def batch(self, number: int) -> list[SampleIndex]:
        """Return batch `number`, a slice of its pass."""
        pass_number, i = divmod(number, self.per_pass)
        indices = _shuffled_indices(self.length, self.seed * 1_000_003 + pass_number)[
            i * self.batch_size : (i + 1) * self.batch_size
        ]
        return [SampleIndex(index, number * self.batch_size + k) for k, index in enumerate(indices)]

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        batches = super().__iter__()
        return batches if self.part is None else (batch[self.part] for batch in batches)


@lru_cache(maxsize=2)  # a pass is requested batch by batch
def _shuffled_indices(length: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist())


def divide_batch(batch_size: int, processes: int) -> int:
    """Return each process's pairs of a step of `batch_size` pairs.

    Raises:
        UserError: A remainder is left: gradients are averaged over processes, whose pairs would not count alike.

    >>> divide_batch(8, processes=2)
    4
    """
    part, remainder = divmod(batch_size, processes)
    if remainder:
        near = sorted({max(part, 1) * processes, (part + 1) * processes})
        raise UserError(
            f"`data.global_batch_size` must be a multiple of {processes}, the number of processes, got {batch_size}: "
            f"each takes as many pairs of a step. Give {' or '.join(map(str, near))}, or other trainer.devices"
        )
    return part


def divide_stream(
    length: int, batch_size: int, steps: int | None, seed: int, rank: int, world: int, epoch: Callable[[], int]
) -> TrainingStream:
    """Return a process's part of batches of pairs that do not depend on the number of processes.

    Args:
        length: Number of pairs.
        batch_size: Number of pairs in a batch of all processes together.
        steps: Number of batches in an epoch; None: a pass over the pairs.
        seed: Seed of the order of each pass.
        rank: Rank of this process.
        world: Number of processes.
        epoch: Function that returns the number of epochs that are done.

    Raises:
        UserError: There are fewer pairs than in a batch, or the processes cannot have as many each.

    >>> streams = [divide_stream(6, 4, 1, seed=0, rank=rank, world=2, epoch=lambda: 0) for rank in range(2)]
    >>> [[draw.number for batch in stream for draw in batch] for stream in streams]
    [[0, 1], [2, 3]]
    """
    count = divide_batch(batch_size, world)
    if batch_size > length:
        raise UserError(
            f"`data.global_batch_size` must be at most {length}, the number of training pairs, got {batch_size}"
        )
    part = slice(rank * count, (rank + 1) * count)
    return TrainingStream(length, batch_size, steps, seed, epoch=epoch, part=part)


def batches_by_target(pairs: Sequence[PairRecord], max_pairs: int) -> list[list[int]]:
    """Group pairs with the same target image into batches, in a fixed order; targets of few pairs share a batch.

    The batches do not depend on how many processes share them, so neither do their results: of few pairs there are
    many batches.

    Args:
        pairs: Pairs of a split.
        max_pairs: Most pairs in a batch.

    Returns:
        Indices of the pairs of each batch.
    """
    order = sorted(range(len(pairs)), key=lambda i: (pairs[i].target.name, pairs[i].source.name, i))
    groups = (list(group) for _, group in groupby(order, key=lambda i: pairs[i].target.name))
    joined = min(max_pairs, len(pairs) // PROCESSES)
    batches: list[list[int]] = []
    for part in (group[start : start + max_pairs] for group in groups for start in range(0, len(group), max_pairs)):
        if batches and len(batches[-1]) + len(part) <= joined:
            batches[-1] += part
        else:
            batches.append(part)
    return batches


def shard(batches: Sequence[list[int]], rank: int, world: int) -> list[list[int]]:
    """Return this process's batches: every batch is on exactly one process, none repeated.

    >>> shard([[0], [1], [2]], rank=1, world=2)
    [[1]]
    """
    return list(batches[rank::world])


def require_enough_batches(batches: Sequence[list[int]], world: int) -> None:
    """Refuse fewer batches than processes: Lightning skips a process without any, and the others would wait for it."""
    if len(batches) < world:
        raise UserError(
            f"`trainer.devices` must be at most {len(batches)} here, got {world} processes: they share what is scored "
            "by target image, or by video."
        )
