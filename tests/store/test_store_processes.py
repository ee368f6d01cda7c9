"""Any number of processes fill one store, each image computed by one of them, whoever is killed on the way."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest
from claiming_processes import ENTRIES, PATIENCE, chunked, fill, left, note, noted, put, running, soon
from torch.utils.data import DataLoader, Dataset

from semcorr.store import FeatureStore, feature_store
from semcorr.store.entry_file import pack_entry, read_entry

pytestmark = pytest.mark.integration


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
        packed = lambda *given: (whole := pack_entry(*given))._replace(parts=Last(whole.parts))  # noqa: E731
        feature_store.pack_entry = packed  # type: ignore[assignment]
        fill(tmp_path / "store", log, chunks)

    with running(die) as [victim]:
        victim.join(PATIENCE)
    assert len(left(tmp_path / "store")) == 1 + 4
    with running(*[lambda: fill(tmp_path / "store", log, chunks)] * 3):
        pass

    counts = Counter(entry for _, entry in noted(log))
    assert counts == Counter(ENTRIES) + Counter(chunks[0])  # the victim's, which it did not finish
    assert left(tmp_path / "store") == [], "the next that opened the store has removed the torn file"


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
