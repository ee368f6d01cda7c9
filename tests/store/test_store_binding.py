"""An entry of the store is taken for what it was stored as, and for nothing else, whatever was done to its file."""

import json
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import xxhash
from stored_features import KEY, bits, features

from semcorr.store import FeatureStore
from semcorr.store import __main__ as verb
from semcorr.store.integrity import LENGTH

OTHER = KEY | {"depth": 3}
NAMES = {f"{i:032x}": i for i in range(3)}  # ids, and the seed of their features


@pytest.fixture
def stores(tmp_path: Path) -> tuple[FeatureStore, FeatureStore]:
    """Two keys with the same three images, of other features each."""
    pair = FeatureStore(tmp_path, KEY), FeatureStore(tmp_path, OTHER)
    for entry, seed in NAMES.items():
        pair[0].put(entry, features(seed), f"cat_{seed}.jpg")
        pair[1].put(entry, features(10 + seed), f"cat_{seed}.jpg")
    return pair


def path_of(store: FeatureStore, number: int) -> Path:
    return store.folder / f"{number:032x}.safetensors"


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def as_of_format_1(path: Path) -> None:
    """Write an entry as versions did that named neither the format nor the place, whole and with its checksum."""
    content = path.read_bytes()
    begin = LENGTH.size + LENGTH.unpack(content[: LENGTH.size])[0]
    header = json.loads(content[LENGTH.size : begin])
    header["__metadata__"] = {"name": header["__metadata__"]["name"]}
    state = xxhash.xxh3_128(json.dumps(header, sort_keys=True).encode())
    state.update(content[begin:])
    header["__metadata__"]["xxh3_128"] = state.hexdigest()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH.size + len(text)) % 64)
    path.write_bytes(LENGTH.pack(len(text)) + text + content[begin:])


def verified(monkeypatch: pytest.MonkeyPatch, root: Path, *options: str) -> int:
    """Run `python -m semcorr.store verify`; the exit code."""
    return verb.main(["verify", "--root", str(root), *options])


MISPLACED: dict[str, tuple[Callable[[FeatureStore, FeatureStore], object], Iterable[int]]] = {
    "swapped": (lambda ours, _: swap(path_of(ours, 0), path_of(ours, 1)), [0, 1]),
    "copied over another": (lambda ours, _: path_of(ours, 0).write_bytes(path_of(ours, 1).read_bytes()), [0]),
    "of another key": (lambda ours, other: path_of(ours, 0).write_bytes(path_of(other, 0).read_bytes()), [0]),
    "renamed": (lambda ours, _: path_of(ours, 1).replace(path_of(ours, 0)), [0]),
    "linked": (lambda ours, _: (path_of(ours, 0).unlink(), path_of(ours, 0).symlink_to(path_of(ours, 1))), [0]),
}


@pytest.mark.parametrize("kind", MISPLACED)
def test_an_entry_in_anothers_place_is_noticed_when_it_is_read_and_by_verify(
    kind, stores, tmp_path, caplog, capfd, monkeypatch
):
    change, noticed = MISPLACED[kind]
    change(*stores)

    assert verified(monkeypatch, tmp_path) == 1
    out = capfd.readouterr().out
    for number in noticed:
        assert f"{path_of(stores[0], number)} is damaged (it was stored as " in out

    fresh = FeatureStore(tmp_path, KEY)
    for number in noticed:
        entry = f"{number:032x}"
        assert fresh.get(entry) is None
        assert f"{path_of(fresh, number)}, cat_" in caplog.text
        assert "it was stored as" in caplog.text
        assert list(fresh.claims([[entry]])) == [[entry]], "it is computed again"
        fresh.put(entry, features(number), "cat.jpg")
        fresh.release([entry])
        assert bits(fresh.get(entry) or {}) == bits(features(number))


def test_an_entry_that_is_swapped_after_its_check_is_noticed_as_well(stores):
    ours = stores[0]
    entry = f"{0:032x}"
    assert ours.get(entry) is not None
    swap(path_of(ours, 0), path_of(ours, 1))

    assert ours.get(entry) is None


def test_the_folder_of_a_key_under_the_name_of_another_gives_nothing(stores, tmp_path, caplog):
    ours, other = stores
    away = tmp_path / "away"
    ours.folder.rename(away)
    other.folder.rename(ours.folder)

    fresh = FeatureStore(tmp_path, KEY)
    assert [fresh.get(entry) for entry in NAMES] == [None] * 3
    assert "key.json does not hold the key of its folder" in caplog.text
    assert json.loads((fresh.folder / "key.json").read_text()) == KEY


def test_entries_of_an_earlier_format_are_computed_again_and_that_is_reported_once(
    stores, tmp_path, caplog, capfd, monkeypatch
):
    for number in range(3):
        as_of_format_1(path_of(stores[0], number))

    assert verified(monkeypatch, tmp_path) == 1
    out = capfd.readouterr().out
    assert out.count("is damaged (it is of format 1, this version writes 2)") == 3
    assert "3 of 6 images' features are damaged" in out

    fresh = FeatureStore(tmp_path, KEY)
    assert [fresh.get(entry) for entry in NAMES] == [None] * 3
    [message] = caplog.messages
    assert f"{fresh.folder} holds features of another version of semcorr" in message
    assert not list(fresh.folder.glob("*.safetensors"))


def test_types_and_shapes_are_under_the_checksum(stores):
    path = path_of(stores[0], 0)
    content = path.read_bytes()
    for old, new in ((b'"F16"', b'"I16"'), (b"[36,8]", b"[8,36]"), (b'"2"', b'"3"')):
        assert old in content
        path.write_bytes(content.replace(old, new))
        fresh = FeatureStore(stores[0].root, KEY)
        assert fresh.get(f"{0:032x}") is None, old


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "it cannot be read"),
        (b"", "it cannot be read"),
        (b"\xff\xfe\x00", "it cannot be read"),
        (b"[" * 100_000, "it cannot be read"),
        (json.dumps(OTHER).encode(), "it is the key of another folder"),
    ],
)
def test_a_key_file_that_is_damaged_or_anothers_is_reported(stores, tmp_path, caplog, capfd, monkeypatch, content, why):
    about = stores[0].folder / "key.json"
    about.write_bytes(content)

    assert verified(monkeypatch, tmp_path) == 1
    out = capfd.readouterr().out
    assert f"{about} is damaged ({why})" in out
    assert "0 of 6 images' features are damaged" in out

    assert FeatureStore(tmp_path, KEY).get(f"{0:032x}") is not None
    assert f"{about} does not hold the key of its folder" in caplog.text
    assert verified(monkeypatch, tmp_path) == 0


def test_what_is_no_file_in_the_place_of_an_entry_is_neither_read_nor_removed(stores, tmp_path, caplog):
    path = path_of(stores[0], 0)
    path.unlink()
    (path / "inside").mkdir(parents=True)
    fifo = path_of(stores[0], 1)
    fifo.unlink()
    os.mkfifo(fifo)

    fresh = FeatureStore(tmp_path, KEY)
    assert fresh.get(f"{0:032x}") is None
    assert fresh.get(f"{1:032x}") is None
    assert caplog.text.count("it is not a file") == 2
    assert (path / "inside").is_dir()


def test_names_from_a_file_cannot_write_to_the_terminal(stores, tmp_path, caplog, capfd, monkeypatch):
    stores[0].put("f" * 32, features(), "cat\x1b[2J\r.jpg")
    path = stores[0].folder / f"{'f' * 32}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")

    assert verified(monkeypatch, tmp_path) == 1
    FeatureStore(tmp_path, KEY).get("f" * 32)
    for text in (capfd.readouterr().out, caplog.text):
        assert r"cat\x1b[2J\r.jpg" in text
        assert "\x1b" not in text


def damaged(draw: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Return what a disk, a person or a program might make of a file."""
    at, other = draw.randrange(len(content)), draw.choice(others)
    length = draw.randrange(1, 200)
    kinds = [
        lambda: content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :],
        lambda: content[:at],
        lambda: content + draw.randbytes(length),
        lambda: content[:at] + draw.randbytes(length) + content[at + length :],
        lambda: content[:at] + bytes(length) + content[at + length :],
        lambda: content[:at] + content[at + length :],
        lambda: content[:at] + other[at:],
        lambda: other,
        lambda: draw.randbytes(length),
        lambda: LENGTH.pack(draw.choice([0, 1, 2**63, 2**64 - 1, len(content)])) + content[8:],
        lambda: content.replace(b"data_offsets", b"data_0ffsets"),
        lambda: content.replace(b'"F32"', draw.choice([b'"F64"', b"[1,2]", b'"xyz"', b"10e99"])),
    ]
    return draw.choice(kinds)()


@pytest.mark.parametrize("seeds", [range(60), pytest.param(range(60, 560), marks=pytest.mark.slow)])
def test_no_damage_gives_another_value_or_another_error(seeds, stores, tmp_path, caplog):
    """Seeded, to entries read for the first time and to entries that this process has checked before."""
    paths = [path_of(store, number) for store in stores for number in range(3)]
    whole = {path: path.read_bytes() for path in paths}
    refused_count = 0
    for seed in seeds:
        draw = random.Random(seed)
        number = draw.randrange(3)
        path, entry = path_of(stores[0], number), f"{number:032x}"
        store = FeatureStore(tmp_path, KEY)
        content = damaged(draw, whole[path], [whole[other] for other in paths if other != path])
        path.write_bytes(content)
        caplog.clear()
        values = store.get(entry)
        assert values is None or bits(values) == bits(features(number)), seed
        assert (values is None) == ("it is computed again" in caplog.text), seed
        refused_count += values is None
        path.write_bytes(whole[path])
    assert refused_count > 0.9 * len(seeds)
