"""Who may compute what: claims of two stores on one folder, step by step."""

import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from claiming_processes import features, left, note, noted, put, running, soon

from semcorr.store import FeatureStore, feature_store

pytestmark = pytest.mark.integration


@pytest.fixture
def two(tmp_path: Path) -> tuple[FeatureStore, FeatureStore]:
    """Locks of two stores exclude each other, also within one process."""
    return FeatureStore(tmp_path, {}), FeatureStore(tmp_path, {})


def test_a_chunk_is_claimed_when_it_is_asked_for_and_not_before(two):
    first, other = two
    claims = first.claims([["a"], ["b"]])
    assert next(claims) == ["a"]

    assert next(other.claims([["b"]])) == ["b"]


def test_of_a_chunk_only_what_is_missing_is_to_be_computed(two):
    first, _ = two
    put(first, ["0a", "0c"])

    assert list(two[1].claims([["0a", "0b", "0c", "0b", "0d"], ["0a"]])) == [["0b", "0d"]]


def test_an_entry_stored_before_the_lock_is_taken_is_not_computed_again(two, monkeypatch):
    first, other = two
    take = first._claims.take

    def late(entries: Sequence[str]) -> bool:
        put(other, ["0b"])
        return take(entries)

    monkeypatch.setattr(first._claims, "take", late)
    assert list(first.claims([["0a", "0b"]])) == [["0a"]]
    assert left(first.root) == ["0a.lock"]
    first.release(["0a"])
    monkeypatch.setattr(first._claims, "take", take)
    assert list(first.claims([["0b"]])) == []


def test_a_chunk_is_claimed_as_a_whole_or_not_at_all(two, tmp_path):
    first, other = two
    assert next(first.claims([["0b"]])) == ["0b"]
    walk = other.claims([["0a", "0b"], ["0c"]])
    assert next(walk) == ["0c"]  # the first is put off

    assert next(FeatureStore(tmp_path, {}).claims([["0a"]])) == ["0a"]


def test_a_lock_that_came_too_late_leaves_no_file(two, tmp_path, monkeypatch):
    """One entry of a chunk was stored while another is still being computed."""
    first, other = two
    assert next(first.claims([["0b"]])) == ["0b"]
    take = other._claims.take

    def late(entries: Sequence[str]) -> bool:
        put(FeatureStore(tmp_path, {}), ["0a"])
        return take(entries)

    monkeypatch.setattr(other._claims, "take", late)
    assert other._take(["0a", "0b"]) is None
    assert left(tmp_path) == ["0b.lock"]


def test_a_store_computes_what_another_process_could_not_store(two):
    first, other = two
    claimed = next(first.claims([["0a"]]))
    walk = other.claims([["0a"], ["0b"]])
    put(other, next(walk))
    first.release(claimed)  # nothing was put

    assert list(walk) == [["0a"]]


def test_a_store_waits_for_what_another_process_is_computing(tmp_path):
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


def test_no_process_waits_while_another_may_wait_for_it(two, monkeypatch):
    """Each asks ahead, holding a chunk that the other needs. Both would wait for ever."""
    first, other = two
    walks = [first.claims([["0a"], ["0b"]]), other.claims([["0b"], ["0a"]])]
    assert [next(walk) for walk in walks] == [["0a"], ["0b"]]

    monkeypatch.setattr("semcorr.store.feature_store.time.sleep", lambda seconds: pytest.fail("it waits"))
    assert [next(walk, "the end, early") for walk in walks] == ["the end, early"] * 2


def test_what_this_process_holds_or_has_put_is_not_given_to_it_again(two):
    first, _ = two
    walk = first.claims([["0a", "0b"], ["0b", "0c"]])
    assert [next(walk), next(walk)] == [["0a", "0b"], ["0c"]]
    assert list(first.claims([["0a", "0c"]])) == []
    put(first, ["0a", "0b", "0c"])
    (first.folder / "0a.safetensors").unlink()  # evicted by another process
    assert list(first.claims([["0a", "0c"]])) == []


def test_what_could_not_be_stored_is_not_given_to_the_same_process_again(two, monkeypatch):
    first, other = two
    with monkeypatch.context() as patch:
        patch.setattr(feature_store, "write_packed", full)
        for chunk in first.claims([["0a"], ["0b"]]):
            assert [first.put(entry, features(entry), entry) for entry in chunk] == [False]
            first.release(chunk)
    assert list(first.claims([["0a", "0b"]])) == []

    assert list(other.claims([["0a", "0b"]])) == [["0a", "0b"]]


def test_a_disk_with_no_room_for_a_lock_blocks_no_process(two, monkeypatch):
    first, _ = two
    monkeypatch.setattr(first._claims, "take", full)
    assert list(first.claims([["0a"], ["0b"]])) == [["0a"], ["0b"]]
    first.release(["0a", "0b"])


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_released_locks_leave_no_files(two):
    first, _ = two
    put(first, next(first.claims([["0a", "0b"]])))
    first.release(["0a", "never claimed"])

    assert left(first.root) == []


def test_a_chunk_that_is_not_had_leaves_no_files(two):
    first, other = two
    assert next(first.claims([["0b"]])) == ["0b"]
    assert not other._claims.take(["0a", "0b", "0c"])
    assert left(first.root) == ["0b.lock"]


def test_a_store_that_ends_while_it_computes_leaves_no_files(tmp_path):
    store = FeatureStore(tmp_path, {})
    assert next(store.claims([["0a", "0b"]])) == ["0a", "0b"]
    with running(lambda: pickle.loads(pickle.dumps(store))):  # one that a loader's process has
        pass
    assert sorted(left(tmp_path)) == ["0a.lock", "0b.lock"]

    del store
    assert left(tmp_path) == []


@pytest.mark.slow
def test_an_interrupted_program_leaves_no_files(tmp_path):
    program = f"""
from pathlib import Path
from semcorr.store import FeatureStore
store = FeatureStore(Path({str(tmp_path)!r}), {{}})
assert next(store.claims([["0a", "0b"]])) == ["0a", "0b"]
raise KeyboardInterrupt
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "KeyboardInterrupt" in ended.stderr
    assert left(tmp_path) == []
    assert [path.name for path in tmp_path.rglob("*.json")] == ["key.json"]
