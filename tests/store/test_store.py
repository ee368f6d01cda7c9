"""A feature store gives back what was put, bit for bit, or nothing, to every process that uses it."""

import json
import os
import pickle

import pytest
from stored_features import KEY, bits, features, files, put

from semcorr.core.errors import UserError
from semcorr.store import FeatureStore
from semcorr.store.entry_file import read_entry

# -- the store --


def test_what_was_put_is_there_for_every_store_of_the_same_key(tmp_path):
    one, other = FeatureStore(tmp_path, KEY), FeatureStore(tmp_path, dict(reversed(KEY.items())))
    different = FeatureStore(tmp_path, KEY | {"depth": 3})
    assert one.put("a1", features(), "cat.jpg")

    assert "a1" in one
    assert "a1" in other
    assert "a1" not in different
    assert different.get("a1") is None
    values = other.get("a1")
    assert values is not None
    assert bits(values) == bits(features())
    assert files(tmp_path) == ["a1.safetensors"]


def test_the_folder_says_what_its_features_depend_on(tmp_path):
    store = FeatureStore(tmp_path, KEY)
    assert json.loads((store.folder / "key.json").read_text()) == KEY
    assert len(store.folder.name) == 16
    (store.folder / "key.json").write_text("{")  # a power cut

    FeatureStore(tmp_path, KEY)
    assert json.loads((store.folder / "key.json").read_text()) == KEY


def test_what_is_damaged_is_reported_once_and_computed_again(tmp_path, caplog):
    FeatureStore(tmp_path, KEY).put("a1", features(), "cat.jpg")
    store = FeatureStore(tmp_path, KEY)
    path = store.folder / "a1.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")

    assert store.get("a1") is None
    assert store.get("a1") is None
    [message] = caplog.messages
    assert f"{path}, cat.jpg, is damaged (its checksum does not fit its content); it is computed again" in message
    assert list(store.claims([["a1"]])) == [["a1"]]
    assert store.put("a1", features(), "cat.jpg")
    store.release(["a1"])
    assert bits(store.get("a1") or {}) == bits(features())


def test_what_this_process_put_is_checked_as_well(tmp_path):
    store = FeatureStore(tmp_path, KEY)
    store.put("a1", features(), "cat.jpg")
    path = store.folder / "a1.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")

    assert store.get("a1") is None
    assert list(store.claims([["a1"]])) == [["a1"]]


def test_a_checksum_is_computed_once_per_process_and_entry(tmp_path, monkeypatch):
    store = FeatureStore(tmp_path, KEY)
    store.put("a1", features(), "cat.jpg")
    checks = []
    read = read_entry
    monkeypatch.setattr(
        "semcorr.store.feature_store.read_entry", lambda path, check: checks.append(check) or read(path, check)
    )
    for _ in range(3):
        store.get("a1")
    assert checks == [True, False, False]


def test_a_pruned_folder_is_made_again(tmp_path):
    store = FeatureStore(tmp_path, KEY)
    (store.folder / "claims").rmdir()
    (store.folder / "key.json").unlink()
    store.folder.rmdir()

    for chunk in store.claims([["a1"]]):
        assert store.put("a1", features(), "cat.jpg")
        store.release(chunk)
    assert store.get("a1") is not None
    assert json.loads((store.folder / "key.json").read_text()) == KEY


# -- mistakes --


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"`store\.root`: .*file cannot be written .*store\.root=DIR"):
        FeatureStore(tmp_path / "file", KEY)


def test_a_root_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    """Also where the folder is there already. (The superuser may write anywhere: the answer is forced.)"""
    FeatureStore(tmp_path, KEY)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"`store\.root`: .* cannot be written \(Permission denied\)"):
        FeatureStore(tmp_path, KEY)


@pytest.mark.parametrize("most", [0, -1, float("nan")])
def test_a_budget_is_more_than_nothing(tmp_path, most):
    with pytest.raises(UserError, match=r"`store\.max_gb` is"):
        FeatureStore(tmp_path, KEY, most)


# -- processes --


def test_a_store_goes_to_loader_processes_without_its_claims(tmp_path):
    store = FeatureStore(tmp_path, KEY, max_gb=1)
    assert next(store.claims([["a"]])) == ["a"]
    copy = pickle.loads(pickle.dumps(store))
    copy.release(["a"])

    assert files(tmp_path) == ["a.lock"]
    assert list(FeatureStore(tmp_path, KEY)._take(["a"]) or []) == []
    put(store, "a")
    assert copy.get("a") is not None
