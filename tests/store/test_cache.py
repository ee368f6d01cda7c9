"""Where features of images are kept: chosen by the room there is, again when more come; and stacked on the device."""

import pytest
import torch

from semcorr.store import cache as kept
from semcorr.store.cache import ALIGNMENT, FeatureCache, PinnedMemory
from semcorr.store.encode import ProcessGroup

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SIZE = 400  # bytes of the features of an image: 100 floats


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with a GPU, as far as the cache can tell; half of what is free may be taken."""
    free = {"gpu": 0, "memory": 0}
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free["gpu"], 10**12))
    monkeypatch.setattr(kept, "free_memory", lambda: free["memory"])
    monkeypatch.setattr(kept, "copy_to_device", lambda value, device: value)
    monkeypatch.setattr(kept, "allocate_pinned", lambda size: torch.empty(size, dtype=torch.uint8))
    return free


def fill(cache: FeatureCache, names: str) -> dict[str, torch.Tensor]:
    values = {name: torch.full((100,), float(ord(name))) for name in names}
    cache.expect(names)
    for name, value in values.items():
        if name not in cache:
            cache.add([name], {"cells": value[None]})
    return values


def same(cache: FeatureCache, values: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(cache[name]["cells"], value) for name, value in values.items())


@pytest.mark.parametrize(
    ("gpu", "memory", "processes", "place"),
    [
        (2 * 4 * SIZE, 0, 1, "gpu"),
        (2 * 4 * SIZE - 1, 2 * 4 * SIZE, 1, "memory"),
        (2 * 4 * SIZE - 1, 2 * 4 * SIZE - 1, 1, "disk"),
        (2 * 4 * SIZE, 0, 8, "gpu"),  # each has its own
        (0, 8 * 2 * 4 * SIZE, 8, "memory"),  # which they share
        (0, 8 * 2 * 4 * SIZE - 1, 8, "disk"),
    ],
)
def test_the_place_is_the_first_with_room_for_all_images(machine, gpu, memory, processes, place):
    machine.update(gpu=gpu, memory=memory)
    cache = FeatureCache(4, GPU, processes=processes)

    values = fill(cache, "abcd")

    assert cache.place == place
    assert same(cache, values)


def test_the_place_is_chosen_again_when_more_images_come_than_were_planned(machine):
    machine.update(gpu=2 * 2 * SIZE)
    cache = FeatureCache(2, GPU)
    first = fill(cache, "ab")
    places, on_gpu = [cache.place], cache["a"]["cells"]

    fill(cache, "ab")  # no more of them
    places.append(cache.place)
    machine.update(gpu=2 * 2 * SIZE - 1, memory=2 * 2 * SIZE)  # for two more
    second = fill(cache, "abcd")
    places.append(cache.place)
    in_memory = cache["c"]["cells"]
    machine.update(gpu=10**9, memory=0)  # where there is room again, but they may have gone elsewhere
    third = fill(cache, "abcde")
    places.append(cache.place)
    fill(cache, "abcdef")
    places.append(cache.place)

    assert places == ["gpu", "gpu", "memory", "disk", "disk"]
    assert same(cache, first | second | third)
    assert cache["a"]["cells"] is on_gpu
    assert cache["c"]["cells"] is in_memory  # nothing was moved


def test_a_place_that_was_asked_for_is_kept_however_many_images_come(machine):
    cache = FeatureCache(1, GPU, place="memory")

    fill(cache, "a")
    fill(cache, "abcdef")

    assert cache.place == "memory"


@pytest.mark.parametrize(("device", "pinned"), [(GPU, True), (CPU, False)])
def test_memory_is_page_locked_for_a_gpu_alone(machine, monkeypatch, device, pinned):
    pieces = []
    monkeypatch.setattr(
        kept, "allocate_pinned", lambda size: pieces.append(size) or torch.empty(size, dtype=torch.uint8)
    )
    cache = FeatureCache(3, device, place="memory")

    values = fill(cache, "abc")

    assert pieces == ([2048] if pinned else [])  # three times 400, each from a multiple of 64 bytes on
    assert same(cache, values)


def test_page_locked_memory_keeps_values_and_layouts(monkeypatch):
    monkeypatch.setattr(kept, "allocate_pinned", lambda size: torch.empty(size, dtype=torch.uint8))
    monkeypatch.setattr(kept, "PIECE", 2048)
    batch = torch.randn(2, 6, 5, 4).to(memory_format=torch.channels_last)
    given = [batch[0], batch[1].half(), torch.randn(3, 300).T, torch.tensor(True), torch.randn(8)[::2],
             torch.arange(700), torch.empty(0), torch.tensor(3.0)]  # fmt: skip
    memory = PinnedMemory(10**9)

    found = [memory.store(value) for value in given]

    for value, stored in zip(given, found, strict=True):
        assert torch.equal(stored, value)
        assert stored.dtype == value.dtype
        assert stored.data_ptr() % ALIGNMENT == found[0].data_ptr() % ALIGNMENT or not value.numel()
    assert [stored.stride() for stored in found[:3]] == [value.stride() for value in given[:3]]


def test_a_stack_is_that_of_the_images_wherever_each_is(machine):
    machine.update(gpu=2 * SIZE)
    cache = FeatureCache(1, GPU)
    values = fill(cache, "a") | fill(cache, "abc")  # the first on the GPU, the others on a disk

    found = cache.stack(["c", "a", "b", "a"], CPU)["cells"]

    assert torch.equal(found, torch.stack([values[name] for name in "caba"]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_features_in_page_locked_memory_reach_a_gpu():
    cache = FeatureCache(3, GPU, place="memory")
    values = fill(cache, "abc")

    assert cache["a"]["cells"].is_pinned()
    assert torch.equal(cache.stack("cab", GPU)["cells"].cpu(), torch.stack([values[name] for name in "cab"]))


def test_memory_is_shared_by_the_processes_of_this_machine_alone(machine):
    group = ProcessGroup(0, 16, GPU, local=2)  # of eight machines
    machine.update(memory=2 * 2 * 4 * SIZE)
    cache = FeatureCache(4, group.device, processes=group.local)

    fill(cache, "abcd")

    assert cache.place == "memory"
