"""A feature store keeps to its disk and its budget, and says so when they are full."""

import errno
import os
import subprocess
import sys

import pytest
from stored_features import KEY, bits, failing, features, files, put

from semcorr.store import FeatureStore, feature_store
from semcorr.store import index as room
from semcorr.store.entry_file import pack_entry
from semcorr.store.integrity import EntryKey

pytestmark = pytest.mark.integration


def age(store: FeatureStore, *entries: str) -> None:
    """As if they had been used long ago, the first longest."""
    for i, name in enumerate(entries):
        os.utime(store.folder / f"{name}.safetensors", (i + 1, i + 1))


SIZE = pack_entry(features(), "x.jpg", EntryKey("0" * 16, "old000")).size / 1e9  # GB


# -- a full disk --


def test_a_full_disk_is_reported_once_and_what_is_there_stays(tmp_path):
    """A real refusal (EFBIG): files of more than 20 kB are not had."""
    code = """
import logging, resource, sys
from pathlib import Path
import torch
from semcorr.store import FeatureStore
logging.basicConfig(level=logging.WARNING, format="told %(message)s", stream=sys.stdout)
store = FeatureStore(Path(sys.argv[1]), {})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for entry, cells in [("small", 10), ("large", 10_000), ("larger", 20_000), ("another", 10)]:
    for chunk in store.claims([[entry]]):
        print(entry, store.put(entry, {"x": torch.ones(cells)}, entry))
        store.release(chunk)
print("left", list(store.claims([["small", "large"], ["larger"], ["another"]])))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)

    message, *output = sorted((line for line in done.stdout.splitlines() if line), key=lambda line: line[:4] != "told")
    assert output == ["small True", "large False", "larger False", "another True", "left []"], done.stderr
    assert f"told {tmp_path} takes no more features (File too large): 40." in message
    assert "kB would be needed for the next image. They stay in memory" in message
    assert files(tmp_path) == ["another.safetensors", "small.safetensors"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_in_the_middle_leaves_no_part(tmp_path, monkeypatch, code, caplog):
    store = FeatureStore(tmp_path, KEY)
    packed, seen = failing(tmp_path, OSError(code, os.strerror(code)))
    with monkeypatch.context() as patch:
        patch.setattr(feature_store, "pack_entry", packed)
        assert put(store, "a1", "a2") == [False, False]

    [message] = caplog.messages
    assert os.strerror(code) in message
    assert len(seen) == 2
    assert files(tmp_path) == []
    assert put(store, "a3") == [True], "there is room again"


def test_other_failures_are_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    store = FeatureStore(tmp_path, KEY)
    packed, _ = failing(tmp_path, PermissionError(errno.EACCES, "Permission denied"))
    monkeypatch.setattr(feature_store, "pack_entry", packed)
    with pytest.raises(PermissionError):
        put(store, "a1")


# -- a budget --


def test_the_least_recently_used_goes_first(tmp_path):
    before = FeatureStore(tmp_path, KEY)
    put(before, "a", "b", "c")
    age(before, "b", "a", "c")
    store = FeatureStore(tmp_path, KEY, max_gb=3 * SIZE)

    assert put(store, "d") == [True]
    assert files(tmp_path) == ["a.safetensors", "c.safetensors", "d.safetensors"]
    put(store, "e")
    assert files(tmp_path) == ["c.safetensors", "d.safetensors", "e.safetensors"]


def test_reading_an_entry_counts_as_use(tmp_path):
    before = FeatureStore(tmp_path, KEY)
    put(before, "a", "b", "c")
    age(before, "a", "b", "c")
    FeatureStore(tmp_path, KEY).get("a")  # by another process

    put(FeatureStore(tmp_path, KEY, max_gb=3 * SIZE), "d")
    assert files(tmp_path) == ["a.safetensors", "c.safetensors", "d.safetensors"]


def test_what_this_run_uses_stays_and_the_rest_is_kept_in_memory(tmp_path, caplog):
    before = FeatureStore(tmp_path, KEY)
    put(before, "a", "b")
    age(before, "a", "b")
    store = FeatureStore(tmp_path, KEY, max_gb=2 * SIZE)
    store.get("a")
    age(before, "a")

    assert put(store, "c", "d", "e") == [True, False, False]
    assert files(tmp_path) == ["a.safetensors", "c.safetensors"]
    [message] = caplog.messages
    assert "`store.max_gb` is" in message
    assert "memory" in message


def test_a_budget_is_over_all_keys_and_foreign_files_are_not_touched(tmp_path):
    old = FeatureStore(tmp_path, KEY | {"depth": 7})
    put(old, "a", "b")
    age(old, "a", "b")
    (tmp_path / "thesis.safetensors").write_bytes(bytes(5000))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.safetensors").write_bytes(bytes(5000))
    store = FeatureStore(tmp_path, KEY, max_gb=2 * SIZE)

    assert put(store, "c") == [True]
    assert files(old.folder) == ["b.safetensors"]
    assert put(store, "d") == [True]
    assert files(tmp_path) == ["c.safetensors", "d.safetensors", "mine.safetensors", "thesis.safetensors"]


def test_an_evicted_entry_is_computed_again_by_who_needs_it(tmp_path):
    one = FeatureStore(tmp_path, KEY)
    put(one, "a")
    values = one.get("a")
    age(one, "a")
    put(FeatureStore(tmp_path, KEY, max_gb=SIZE), "b")

    assert bits(values or {}) == bits(features())
    assert list(one.claims([["a"]])) == []  # had, and not asked for again
    assert one.get("a") is None
    assert list(one.claims([["a"]])) == [["a"]]


def test_an_entry_used_since_the_walk_is_not_evicted(tmp_path):
    """With a budget of many entries the list of what is oldest may be an old one."""
    old = [f"old{i:03d}" for i in range(600)]
    before = FeatureStore(tmp_path, KEY)
    put(before, *old)
    age(before, *old)
    store = FeatureStore(tmp_path, KEY, max_gb=600 * SIZE)
    put(store, "new0")
    FeatureStore(tmp_path, KEY).get("old001")
    put(store, "new1")

    assert [name for name in old if name not in store] == ["old000", "old002"]


@pytest.mark.slow
def test_the_store_is_walked_seldom_and_stays_near_its_budget_with_others_writing(tmp_path, monkeypatch):
    walks, real = [], room.list_store_folders
    monkeypatch.setattr(room, "list_store_folders", lambda root: walks.append(root) or real(root))
    stores = [FeatureStore(tmp_path, KEY | {"depth": i}, max_gb=1000 * SIZE) for i in range(3)]
    most = 0
    for i in range(450):
        for store in stores:
            store._used.clear()  # as if each image had a process of its own
            put(store, f"{i}")
        if i % 25 == 0:
            most = max(most, len(files(tmp_path)))

    assert 950 < most <= 1020
    assert len(walks) < 1350 / 4
