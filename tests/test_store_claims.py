"""Any number of processes fill one store, each image computed by one of them, whoever is killed on the way."""

import itertools
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from semcorr.store import FeatureStore, feature_store
from semcorr.store.entry import pack, read_entry

FORK = multiprocessing.get_context("fork")  # real processes, without eight imports of torch
ENTRIES = [f"{i:02x}" for i in range(40)]
PATIENCE = 15.0  # seconds until a test says that somebody hangs


def chunked(entries: Sequence[str], size: int = 4) -> list[Sequence[str]]:
    return [entries[start : start + size] for start in range(0, len(entries), size)]


def features(entry: str) -> dict[str, torch.Tensor]:
    return {"x": torch.full((500,), float(int(entry, 16)))}


def put(store: FeatureStore, entries: Sequence[str]) -> None:
    for entry in entries:
        assert store.put(entry, features(entry), f"{entry}.jpg")
    store.release(entries)


def note(log: Path, *words: str) -> None:
    """A line that no other process' line gets into."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (" ".join(words) + "\n").encode())
    os.close(file)


def noted(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def fill(root: Path, log: Path, chunks: Sequence[Sequence[str]], seconds: float = 0.001) -> None:
    """What a run does: compute what is missing, then use everything."""
    store = FeatureStore(root, {})
    for chunk in store.claims(chunks):
        for entry in chunk:
            time.sleep(seconds)
            note(log, str(os.getpid()), entry)
        put(store, chunk)
    for entry in itertools.chain(*chunks):
        values = store.get(entry)
        assert values is not None
        assert torch.equal(values["x"], features(entry)["x"])


@contextmanager
def running(*tasks: Callable[[], Any]) -> Iterator[list[BaseProcess]]:
    """Each in a process of its own, which ends well unless the test has killed it."""
    processes = [FORK.Process(target=task) for task in tasks]
    killed = -signal.SIGKILL
    try:
        for process in processes:
            process.start()
        yield processes
        for process in processes:
            process.join(PATIENCE)
            assert process.exitcode in (0, killed), "it failed" if process.exitcode is not None else "it hangs"
    finally:
        for process in processes:
            process.kill()
            process.join()


def soon(condition: Callable[[], Any]) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < PATIENCE
        time.sleep(0.005)


def left(root: Path) -> list[str]:
    """Everything in the store but entries and keys."""
    return [path.name for path in root.rglob("*") if path.is_file() and path.suffix not in (".safetensors", ".json")]


# -- many processes --


def test_eight_processes_compute_every_image_once(tmp_path):
    log = tmp_path / "log"
    with running(*[lambda: fill(tmp_path / "store", log, chunked(ENTRIES), 0.004)] * 8):
        pass

    assert sorted(entry for _, entry in noted(log)) == ENTRIES
    assert len({process for process, _ in noted(log)}) > 1, "the work is shared"
    assert left(tmp_path / "store") == []


def test_other_chunks_in_another_order_make_no_difference(tmp_path):
    log = tmp_path / "log"

    def task(seed: int) -> Callable[[], None]:
        draw = random.Random(seed)
        entries = [*draw.sample(ENTRIES, len(ENTRIES)), *draw.sample(ENTRIES, 10)]  # some of them twice
        return lambda: fill(tmp_path / "store", log, chunked(entries, 1 + seed % 5))

    with running(*map(task, range(8))):
        pass

    assert sorted(entry for _, entry in noted(log)) == ENTRIES
    assert left(tmp_path / "store") == []


def test_what_a_killed_process_was_computing_is_computed_by_the_others(tmp_path):
    """It is killed when all others have nothing left to do but wait for it."""
    log, chunks = tmp_path / "log", chunked(ENTRIES)

    def hang() -> None:
        claims = FeatureStore(tmp_path / "store", {}).claims(chunks)
        note(log, "hangs", *next(claims), *next(claims))
        time.sleep(1000)

    with running(hang) as [victim]:
        soon(lambda: noted(log))
        [hung] = noted(log)
        log.unlink()
        with running(*[lambda: fill(tmp_path / "store", log, chunks)] * 7):
            soon(lambda: len(noted(log)) == len(ENTRIES) - 8)
            time.sleep(0.2)
            assert len(noted(log)) == len(ENTRIES) - 8, "nobody takes what is being computed"
            victim.kill()

    assert sorted(entry for _, entry in noted(log)) == ENTRIES
    assert {entry for _, entry in noted(log)[-8:]} == set(hung[1:])
    assert left(tmp_path / "store") == []


def test_killed_while_it_writes_it_leaves_no_torn_entry(tmp_path):
    log, chunks = tmp_path / "log", chunked(ENTRIES)

    class Last(list[memoryview]):
        def __iter__(self):
            yield self[0][:1000]
            os.kill(os.getpid(), signal.SIGKILL)

    def die() -> None:
        packed = lambda values, name: (whole := pack(values, name))._replace(parts=Last(whole.parts))  # noqa: E731
        feature_store.pack = packed  # type: ignore[assignment]
        fill(tmp_path / "store", log, chunks)

    with running(die) as [victim]:
        victim.join(PATIENCE)
    assert len(left(tmp_path / "store")) == 1 + 4
    with running(*[lambda: fill(tmp_path / "store", log, chunks)] * 3):
        pass

    counts = Counter(entry for _, entry in noted(log))
    assert counts == Counter(ENTRIES) + Counter(chunks[0])  # the victim's, which it did not finish
    [torn] = left(tmp_path / "store")  # until `prune`; nobody takes it for an entry
    assert torn.endswith(".tmp")


def test_killed_at_any_moment_the_others_finish(tmp_path):
    draw = random.Random(3)
    for i in range(6):
        root, log = tmp_path / str(i), tmp_path / f"{i}.log"
        with running(*[lambda root=root, log=log: fill(root, log, chunked(ENTRIES))] * 3) as processes:
            soon(lambda log=log: noted(log))
            time.sleep(draw.uniform(0, 0.03))
            os.kill(processes[0].pid or 0, signal.SIGKILL)

        counts = Counter(entry for _, entry in noted(log))
        assert set(counts) == set(ENTRIES)
        assert counts.total() - len(ENTRIES) <= 4, "at most what it was at"
        for path in root.glob("*/*.safetensors"):
            read_entry(path)


# -- two of them, step by step --


@pytest.fixture
def two(tmp_path: Path) -> tuple[FeatureStore, FeatureStore]:
    """Locks of two stores exclude each other, also within one process."""
    return FeatureStore(tmp_path, {}), FeatureStore(tmp_path, {})


def test_a_chunk_is_claimed_when_it_is_asked_for_and_not_before(two):
    mine, other = two
    claims = mine.claims([["a"], ["b"]])
    assert next(claims) == ["a"]

    assert next(other.claims([["b"]])) == ["b"]


def test_of_a_chunk_only_what_is_missing_is_to_be_computed(two):
    mine, _ = two
    put(mine, ["0a", "0c"])

    assert list(two[1].claims([["0a", "0b", "0c", "0b", "0d"], ["0a"]])) == [["0b", "0d"]]


def test_what_appears_between_looking_and_locking_is_not_computed_again(two, monkeypatch):
    mine, other = two
    take = mine._claims.take

    def late(entries: Sequence[str]) -> bool:
        put(other, ["0b"])
        return take(entries)

    monkeypatch.setattr(mine._claims, "take", late)
    assert list(mine.claims([["0a", "0b"]])) == [["0a"]]
    assert left(mine.root) == ["0a.lock"]
    mine.release(["0a"])
    monkeypatch.setattr(mine._claims, "take", take)
    assert list(mine.claims([["0b"]])) == []


def test_a_chunk_is_claimed_as_a_whole_or_not_at_all(two, tmp_path):
    mine, other = two
    assert next(mine.claims([["0b"]])) == ["0b"]
    walk = other.claims([["0a", "0b"], ["0c"]])
    assert next(walk) == ["0c"]  # the first is put off

    assert next(FeatureStore(tmp_path, {}).claims([["0a"]])) == ["0a"]


def test_a_lock_that_came_too_late_leaves_no_file(two, tmp_path, monkeypatch):
    """One entry of a chunk was stored while another is still being computed."""
    mine, other = two
    assert next(mine.claims([["0b"]])) == ["0b"]
    take = other._claims.take

    def late(entries: Sequence[str]) -> bool:
        put(FeatureStore(tmp_path, {}), ["0a"])
        return take(entries)

    monkeypatch.setattr(other._claims, "take", late)
    assert other._take(["0a", "0b"]) is None
    assert left(tmp_path) == ["0b.lock"]


def test_it_comes_back_to_what_could_not_be_stored_elsewhere(two):
    mine, other = two
    claimed = next(mine.claims([["0a"]]))
    walk = other.claims([["0a"], ["0b"]])
    put(other, next(walk))
    mine.release(claimed)  # nothing was put

    assert list(walk) == [["0a"]]


def test_it_waits_for_what_another_process_is_computing(tmp_path):
    log = tmp_path / "log"

    def slow() -> None:
        store = FeatureStore(tmp_path / "store", {})
        for chunk in store.claims([["0a"]]):
            note(log, "claimed")
            time.sleep(0.4)
            note(log, "computed")
            put(store, chunk)

    with running(slow):
        soon(lambda: noted(log))
        store = FeatureStore(tmp_path / "store", {})
        assert list(store.claims([["0a"]])) == []
        assert noted(log) == [["claimed"], ["computed"]]
        assert "0a" in store


def test_nobody_waits_while_somebody_may_be_waiting_for_him(two):
    """Each asks ahead, holding a chunk that the other needs. Both would wait for ever."""
    mine, other = two
    walks = [mine.claims([["0a"], ["0b"]]), other.claims([["0b"], ["0a"]])]
    assert [next(walk) for walk in walks] == [["0a"], ["0b"]]

    start = time.monotonic()
    assert [next(walk, "the end, early") for walk in walks] == ["the end, early"] * 2
    assert time.monotonic() - start < 0.5


def test_what_this_process_holds_or_has_put_is_not_given_to_it_again(two):
    mine, _ = two
    walk = mine.claims([["0a", "0b"], ["0b", "0c"]])
    assert [next(walk), next(walk)] == [["0a", "0b"], ["0c"]]
    assert list(mine.claims([["0a", "0c"]])) == []
    put(mine, ["0a", "0b", "0c"])
    (mine.folder / "0a.safetensors").unlink()  # evicted by another process
    assert list(mine.claims([["0a", "0c"]])) == []


def test_what_could_not_be_stored_is_not_given_to_the_same_process_again(two, monkeypatch):
    mine, other = two
    with monkeypatch.context() as patch:
        patch.setattr(feature_store, "write_packed", full)
        for chunk in mine.claims([["0a"], ["0b"]]):
            assert [mine.put(entry, features(entry), entry) for entry in chunk] == [False]
            mine.release(chunk)
    assert list(mine.claims([["0a", "0b"]])) == []

    assert list(other.claims([["0a", "0b"]])) == [["0a", "0b"]]


def test_a_disk_with_no_room_for_a_lock_holds_nobody_up(two, monkeypatch):
    mine, _ = two
    monkeypatch.setattr(mine._claims, "take", full)
    assert list(mine.claims([["0a"], ["0b"]])) == [["0a"], ["0b"]]
    mine.release(["0a", "0b"])


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_released_locks_leave_no_files(two):
    mine, _ = two
    put(mine, next(mine.claims([["0a", "0b"]])))
    mine.release(["0a", "never claimed"])

    assert left(mine.root) == []


# -- loaders' processes --


class Decoded(Dataset[int]):
    """Slowly, in the loader's processes."""

    def __getitem__(self, index: int) -> int:
        time.sleep(0.001)
        return index


def test_loaders_that_ask_ahead_share_the_work_and_come_to_an_end(tmp_path):
    """With two processes of its own each loader holds four chunks beyond the one that is being computed."""
    log = tmp_path / "log"

    def task() -> None:
        store = FeatureStore(tmp_path / "store", {})

        def walk() -> int:
            chunks = ([int(entry, 16) for entry in chunk] for chunk in store.claims(chunked(ENTRIES)))
            loader = DataLoader(Decoded(), batch_sampler=chunks, num_workers=2, multiprocessing_context="fork")
            walked = 0
            for batch in loader:
                entries = [f"{int(i):02x}" for i in batch]
                for entry in entries:
                    note(log, str(os.getpid()), entry)
                put(store, entries)
                walked += 1
            return walked

        while walk():
            pass
        assert all(entry in store for entry in ENTRIES)

    with running(task, task):
        pass
    assert sorted(entry for _, entry in noted(log)) == ENTRIES
    assert left(tmp_path / "store") == []


def test_a_process_that_was_forked_neither_keeps_nor_frees_its_parents_claims(tmp_path):
    log = tmp_path / "log"

    def parent() -> None:
        store = FeatureStore(tmp_path / "store", {})
        assert next(store.claims([["0a"]])) == ["0a"]
        if os.fork() == 0:
            store.release(["0b"])
            del store  # and what it holds
            note(log, "child", str(os.getpid()))
            time.sleep(1000)
        time.sleep(1000)

    store = FeatureStore(tmp_path / "store", {})
    with running(parent) as [process]:
        soon(lambda: noted(log))
        [[_, child]] = noted(log)
        try:
            assert store._take(["0a"]) is None, "the parent has it"
            process.kill()
            process.join()
            soon(lambda: store._take(["0a"]) == ["0a"])
        finally:
            os.kill(int(child), signal.SIGKILL)
