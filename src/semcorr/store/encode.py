"""Images to what is kept of them, each computed once: by one process, by all of a run, or by an earlier run."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from rich.progress import Progress
from torch import Tensor

from semcorr.core.finite import require_finite
from semcorr.data.image_variants import ImageVariant, content_hash
from semcorr.store import FeatureStore
from semcorr.store.cache import FeatureCache, cast_floating

Values = dict[str, Tensor]  # of a batch of images, first axis first
TRIES = 3  # walks through a store whose entries vanish while they are read


class ProcessGroup(NamedTuple):
    """This process, and how many share the work."""

    rank: int
    size: int
    device: torch.device


def encode_images(
    cache: FeatureCache,
    shown: Sequence[ImageVariant],
    data: Any,
    compute: Callable[[Tensor], Values],
    group: ProcessGroup,
) -> None:
    """Fill `cache` with every image of `shown` that it lacks.

    The images go in chunks of a fixed list, and process r of n computes every n-th chunk: what an
    image's features are, to the last bit, does not depend on the number of processes.

    Args:
        cache: Where the values go, by name.
        shown: The same on every process.
        data: Decodes images: `encoding(shown, chunks)`, `at_once` images at once.
        compute: A batch of images to values.
        group: Who shares the work.
    """
    missing = [one for one in shown if one.name not in cache]
    chunks = split_into_chunks(range(len(missing)), data.encoding_batch)
    mine = chunks[group.rank :: group.size]
    if not missing:
        return

    def computed() -> Iterator[tuple[Sequence[str], Values]]:
        for view in data.encoding(missing, mine):
            yield view.name, compute(view.image.to(group.device, non_blocking=True))

    with Progress(transient=True, disable=group.rank > 0) as bar:
        work = broadcast_chunks(computed(), len(chunks), group)
        for names, values in bar.track(work, total=len(chunks), description="Encoding images"):
            cache.add(names, values)
    cache.watch.settle()


def encode_through_store(
    cache: FeatureCache,
    store: FeatureStore,
    shown: Sequence[ImageVariant],
    data: Any,
    compute: Callable[[Tensor], Values],
    group: ProcessGroup,
) -> None:
    """The same, by way of a store on disk, which other processes may be filling, too.

    What cannot be stored stays in memory. An entry that was damaged, or that another process has
    thrown out, is computed again.
    """
    for _ in range(TRIES):
        lacking = {content_hash(one): one for one in shown if one.name not in cache}
        if not lacking:
            return
        _compute_missing(cache, store, lacking, data, compute, group)
        for entry, one in lacking.items():
            if one.name not in cache and (values := store.get(entry)) is not None:
                batch = {key: value[None] for key, value in values.items()}
                require_finite(f"`store.root`: {store.folder}", [one.name], batch, f"Remove {store.folder}, run again")
                cache.put(one.name, values)
        twins = {content_hash(one): one.name for one in shown if one.name in cache}
        for one in shown:  # files with the same content have one entry
            if one.name not in cache and content_hash(one) in twins:
                cache.put(one.name, cache[twins[content_hash(one)]])
    encode_images(cache, shown, data, compute, group._replace(rank=0, size=1))


def _compute_missing(
    cache: FeatureCache,
    store: FeatureStore,
    lacking: Mapping[str, ImageVariant],
    data: Any,
    compute: Any,
    group: ProcessGroup,
) -> None:
    entries, images = list(lacking), list(lacking.values())
    place = {entry: i for i, entry in enumerate(entries)}
    named = {one.name: entry for entry, one in lacking.items()}
    chunks = split_into_chunks(entries, data.encoding_batch)
    with Progress(transient=True, disable=group.rank > 0) as bar:
        task = bar.add_task("Encoding images", total=sum(entry not in store for entry in entries))
        busy = True
        while busy:  # a loader asks ahead, and while it does nobody waits for other processes
            busy = False
            claims = ([place[entry] for entry in some] for some in store.claims(chunks))
            for view in data.encoding(images, claims):
                busy = True
                values = compute(view.image.to(group.device, non_blocking=True))
                _put(cache, store, view.name, [named[name] for name in view.name], values)
                bar.advance(task, len(view.name))


def _put(
    cache: FeatureCache, store: FeatureStore, names: Sequence[str], entries: Sequence[str], values: Values
) -> None:
    """A batch into the store; into memory where that refuses."""
    values = {key: cast_floating(value, cache.dtype).cpu() for key, value in values.items()}
    require_finite(cache.watch.origin, names, values)
    for i, (name, entry) in enumerate(zip(names, entries, strict=True)):
        one = {key: value[i] for key, value in values.items()}
        if not store.put(entry, one, name):
            cache.put(name, one)
    store.release(entries)


def broadcast_chunks(
    mine: Iterable[tuple[Sequence[str], Values]], count: int, group: ProcessGroup
) -> Iterator[tuple[Sequence[str], Values]]:
    """All processes' chunks on every process, in order; process r computes every n-th of `count`."""
    own = iter(mine)
    for start in range(0, count, group.size):
        last = next(own, None)  # before anything is sent: all compute at once
        for owner in range(min(group.size, count - start)):
            yield _sent(last if owner == group.rank else None, owner, group)


def _sent(chunk: tuple[Sequence[str], Values] | None, owner: int, group: ProcessGroup) -> tuple[Sequence[str], Values]:
    """`owner`'s chunk, on every process."""
    if group.size == 1:
        assert chunk is not None
        return chunk
    shapes = {key: (value.shape, value.dtype) for key, value in chunk[1].items()} if chunk else None
    told: list[Any] = [chunk and list(chunk[0]), shapes]
    dist.broadcast_object_list(told, src=owner, device=group.device)
    names, shapes = told
    values = {key: torch.empty(shape, dtype=dtype, device=group.device) for key, (shape, dtype) in shapes.items()}
    if chunk:
        values = {key: value.contiguous() for key, value in chunk[1].items()}
    for value in values.values():
        dist.broadcast(value, src=owner)
    return names, values


def split_into_chunks(items: Sequence[Any], size: int) -> list[list[Any]]:
    """Consecutive chunks.

    >>> split_into_chunks("abcde", 2)
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
