"""Encoding of images into a cache, each computed once: by one process, by all of a run, or by an earlier run."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from semcorr.core.finite import require_finite
from semcorr.core.terminal import Stage
from semcorr.data.datamodule import PairDataModule
from semcorr.data.image_variants import ImageVariant, content_hash
from semcorr.data.views import to_unit_range
from semcorr.store import FeatureStore
from semcorr.store.cache import FeatureCache, cast_floating

Values = dict[str, Tensor]  # of a batch of images by key, batch first
Item = TypeVar("Item")
TRIES = 3  # attempts at a store whose entries are evicted while they are read


class ProcessGroup(NamedTuple):
    """Processes that share the work.

    Attributes:
        rank: Rank of this process.
        size: Number of processes.
        device: Device of this process.
        local: Number of the processes on this machine, which share its memory.
    """

    rank: int
    size: int
    device: torch.device
    local: int


def encode_images(
    cache: FeatureCache,
    images: Sequence[ImageVariant],
    data: PairDataModule,
    compute: Callable[[Tensor], Values],
    group: ProcessGroup,
) -> None:
    """Fill `cache` with all images that it lacks.

    The images go in chunks of a fixed list, and process r of n computes every n-th chunk: what an
    image's features are, to the last bit, does not depend on the number of processes.

    Args:
        cache: Cache of the values, by name.
        images: Images, the same on every process.
        data: The benchmark, which decodes images.
        compute: Function from a batch of images, RGB in [0, 1] on the group's device, to values.
        group: Processes that share the work.

    Raises:
        UserError: Values of an image are not finite.
    """
    missing = [image for image in images if image.name not in cache]
    chunks = split_into_chunks(range(len(missing)), data.encoding_batch)
    local_chunks = chunks[group.rank :: group.size]
    if not missing:
        return

    def compute_chunks() -> Iterator[tuple[Sequence[str], Values]]:
        """Yield the names and values of this process's chunks."""
        for view in data.encoding_loader(missing, local_chunks):
            yield view.name, compute(to_unit_range(view.image.to(group.device, non_blocking=True)))

    with Stage(f"Encoding {len(missing):,} images on {group.device}", len(missing)) as stage:
        work = broadcast_chunks(compute_chunks(), len(chunks), group)
        for names, values in work:
            cache.add(names, values)
            stage.advance(len(names))
    cache.watch.check()


def encode_through_store(
    cache: FeatureCache,
    store: FeatureStore,
    images: Sequence[ImageVariant],
    data: PairDataModule,
    compute: Callable[[Tensor], Values],
    group: ProcessGroup,
) -> None:
    """Fill `cache` by way of a store on disk, which other processes may be filling, too.

    What cannot be stored stays in memory. An entry that was damaged, or that another process has
    evicted, is computed again.

    Args:
        cache: Cache of the values, by name.
        store: Store of the values, by a hash of the image's content.
        images: Images; those with the same content share an entry.
        data: The benchmark, which decodes images.
        compute: Function from a batch of images, RGB in [0, 1] on the group's device, to values.
        group: Processes of this run; they share the work by the store alone.

    Raises:
        UserError: Values of an image are not finite.
    """
    for _ in range(TRIES):
        missing = {content_hash(image): image for image in images if image.name not in cache}
        if not missing:
            return
        _compute_missing(cache, store, missing, data, compute, group)
        for entry, image in missing.items():
            if image.name not in cache and (values := store.get(entry)) is not None:
                batch = {key: value[None] for key, value in values.items()}
                require_finite(
                    f"`store.root`: {store.folder}", [image.name], batch, f"Remove {store.folder}, run again"
                )
                cache.put(image.name, values)
        names_by_content = {content_hash(image): image.name for image in images if image.name in cache}
        for image in images:  # files with the same content have one entry
            if image.name not in cache and content_hash(image) in names_by_content:
                cache.put(image.name, cache[names_by_content[content_hash(image)]])
    encode_images(cache, images, data, compute, group._replace(rank=0, size=1))


def _compute_missing(
    cache: FeatureCache,
    store: FeatureStore,
    missing: Mapping[str, ImageVariant],
    data: PairDataModule,
    compute: Callable[[Tensor], Values],
    group: ProcessGroup,
) -> None:
    """Compute the missing entries that no other process is computing, and store them."""
    entries, images = list(missing), list(missing.values())
    index = {entry: i for i, entry in enumerate(entries)}
    entry_by_name = {image.name: entry for entry, image in missing.items()}
    chunks = split_into_chunks(entries, data.encoding_batch)
    absent = sum(entry not in store for entry in entries)
    work = f"Encoding {absent:,} images on {group.device}, to be kept in" if absent else "Reading features from"
    with Stage(f"{work} {store.folder}", absent) as stage:
        busy = True
        while busy:  # a loader prefetches, and meanwhile no process waits for others
            busy = False
            claims = ([index[entry] for entry in chunk] for chunk in store.claims(chunks))
            for view in data.encoding_loader(images, claims):
                busy = True
                values = compute(to_unit_range(view.image.to(group.device, non_blocking=True)))
                _put(cache, store, view.name, [entry_by_name[name] for name in view.name], values)
                stage.advance(len(view.name))


def _put(
    cache: FeatureCache, store: FeatureStore, names: Sequence[str], entries: Sequence[str], values: Values
) -> None:
    """Put a batch into the store, or into memory where the store refuses."""
    values = {key: cast_floating(value, cache.dtype).cpu() for key, value in values.items()}
    require_finite(cache.watch.origin, names, values)
    for i, (name, entry) in enumerate(zip(names, entries, strict=True)):
        image_values = {key: value[i] for key, value in values.items()}
        if not store.put(entry, image_values, name):
            cache.put(name, image_values)
    store.release(entries)


def broadcast_chunks(
    own_chunks: Iterable[tuple[Sequence[str], Values]], count: int, group: ProcessGroup
) -> Iterator[tuple[Sequence[str], Values]]:
    """Yield all processes' chunks on every process, in order; process r of n computes every n-th chunk.

    Args:
        own_chunks: Names and values of this process's chunks; computed as they are needed.
        count: Number of chunks of all processes.
        group: Processes that share the work.
    """
    local_chunks = iter(own_chunks)
    for start in range(0, count, group.size):
        local_chunk = next(local_chunks, None)  # before anything is sent: all compute at once
        for owner in range(min(group.size, count - start)):
            yield _broadcast_chunk(local_chunk if owner == group.rank else None, owner, group)


def _broadcast_chunk(
    chunk: tuple[Sequence[str], Values] | None, owner: int, group: ProcessGroup
) -> tuple[Sequence[str], Values]:
    """Broadcast `owner`'s chunk to every process."""
    if group.size == 1:
        assert chunk is not None
        return chunk
    shapes = {key: (value.shape, value.dtype) for key, value in chunk[1].items()} if chunk else None
    message: list = [chunk and list(chunk[0]), shapes]
    dist.broadcast_object_list(message, src=owner, device=group.device)
    names, shapes = message
    values = {key: torch.empty(shape, dtype=dtype, device=group.device) for key, (shape, dtype) in shapes.items()}
    if chunk:
        values = {key: value.contiguous() for key, value in chunk[1].items()}
    for value in values.values():
        dist.broadcast(value, src=owner)
    return names, values


def split_into_chunks(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Split items into consecutive chunks.

    >>> split_into_chunks("abcde", 2)
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
