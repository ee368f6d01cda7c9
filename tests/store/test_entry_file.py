"""One file of features gives back what was written, bit for bit, or is damaged and says why."""

import mmap
import os
import random

import pytest
import torch
from safetensors.torch import load_file, safe_open
from stored_features import bits, failing, features, files

from semcorr.store.entry_file import read_entry, write_entry, write_packed
from semcorr.store.integrity import DamagedEntryError, EntryKey


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_every_bit_comes_back(tmp_path, dtype):
    numbers = torch.randint(-(2**63), 2**63 - 1, (17, 12), generator=torch.Generator().manual_seed(1))
    values = {"x": numbers.view(dtype)}
    write_entry(tmp_path / "a", values, "cat.jpg")

    assert bits(read_entry(tmp_path / "a")) == bits(values)


def test_several_tensors_come_back_whatever_lay_between_them_in_memory(tmp_path):
    batch = features()["tokens"].view(4, 9, 8)
    values = {**features(), "slice": batch[2], "turned": batch[1].T, "graph": torch.ones(2, requires_grad=True)}
    write_entry(tmp_path / "a", values, "cat.jpg")

    assert bits(read_entry(tmp_path / "a")) == bits({key: value.detach() for key, value in values.items()})


def test_the_file_is_what_safetensors_says_it_is(tmp_path):
    write_entry(tmp_path / "a", features(), "Katze für Ähm.jpg")

    assert bits(load_file(tmp_path / "a")) == bits(features())
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata()["name"] == "Katze für Ähm.jpg"


def test_what_is_read_is_the_files_own_memory(tmp_path):
    """Bytes that another hand changes in the file show in tensors that were read before."""
    write_entry(tmp_path / "a", {"x": torch.zeros(5000)}, "cat.jpg")
    values = read_entry(tmp_path / "a")["x"]
    with (tmp_path / "a").open("r+b") as file, mmap.mmap(file.fileno(), 0) as pages:
        pages[-4:] = b"\x00\x00\x80\x3f"

    assert values[-1] == 1
    assert values[:-1].sum() == 0


def test_writing_to_what_is_read_changes_no_file(tmp_path):
    write_entry(tmp_path / "a", {"x": torch.zeros(5000)}, "cat.jpg")
    read_entry(tmp_path / "a")["x"].fill_(1)

    assert read_entry(tmp_path / "a")["x"].sum() == 0


def test_what_is_read_keeps_no_file_open(tmp_path):
    write_entry(tmp_path / "a", features(), "cat.jpg")
    before = len(os.listdir("/proc/self/fd"))
    kept = [read_entry(tmp_path / "a") for _ in range(20)]

    assert len(os.listdir("/proc/self/fd")) == before
    assert len(kept) == 20


def test_a_mapping_outlives_its_file(tmp_path):
    write_entry(tmp_path / "a", features(), "cat.jpg")
    values = read_entry(tmp_path / "a")
    (tmp_path / "a").unlink()

    assert bits(values) == bits(features())


def test_one_flipped_bit_anywhere_is_damage_or_no_difference(tmp_path):
    write_entry(tmp_path / "a", features(cells=5), "cat.jpg")
    whole = (tmp_path / "a").read_bytes()
    draw, noticed = random.Random(2), 0
    for place in [*range(400), *draw.sample(range(400, len(whole)), 200)]:
        other = bytes([whole[place] ^ (1 << draw.randrange(8))])
        (tmp_path / "a").write_bytes(whole[:place] + other + whole[place + 1 :])
        try:
            assert bits(read_entry(tmp_path / "a")) == bits(features(cells=5)), place
        except DamagedEntryError:
            noticed += 1
    assert noticed > 550


def test_a_file_cut_off_anywhere_or_prolonged_is_damaged(tmp_path):
    write_entry(tmp_path / "a", features(cells=5), "cat.jpg")
    whole = (tmp_path / "a").read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        (tmp_path / "a").write_bytes(whole[:length])
        with pytest.raises(DamagedEntryError):
            read_entry(tmp_path / "a")
    (tmp_path / "a").write_bytes(whole + b"\0")
    with pytest.raises(DamagedEntryError):
        read_entry(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"abc", "3 bytes"),
        (b"\xff" * 100, "within its header"),
        (b"\x10" + bytes(7) + b"[" * 16, "header cannot be read"),
        (b"\xa0\x86\x01" + bytes(5) + b"[" * 100_000, "header cannot be read"),
        (b"\x02" + bytes(7) + b"[]", "header cannot be read"),
        (b"\x13" + bytes(7) + b'{"__metadata__":{}}', "no checksum of ours"),
    ],
)
def test_a_foreign_file_is_damaged_and_says_why(tmp_path, content, why):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DamagedEntryError, match=why):
        read_entry(tmp_path / "a")


def test_a_file_that_changes_after_its_check_is_damaged_when_read_again_in_part(tmp_path):
    write_entry(tmp_path / "a", features(), "cat.jpg")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-100])
    with pytest.raises(DamagedEntryError):
        read_entry(tmp_path / "a", check=False)


def test_a_file_appears_under_its_name_whole(tmp_path):
    """While it is written nothing lies at its name; if that fails nothing lies anywhere."""
    packed, seen = failing(tmp_path, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write_packed(tmp_path / "a", packed(features(), "cat.jpg", EntryKey("key", "a")))

    assert len(seen) == 1
    assert seen != ["a"]
    assert files(tmp_path) == []


@pytest.mark.parametrize("check", [True, False])
def test_what_is_read_is_the_file_itself_and_no_copy_of_it(tmp_path, check):
    """A byte that changes in the file afterwards changes in the tensor: all processes share its pages."""
    path, values = tmp_path / "a", {"x": torch.zeros(3601, 768).half()}
    write_entry(path, values, "x.jpg")
    read = read_entry(path, check)["x"]
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(torch.ones(1).half().view(torch.uint8).numpy().tobytes()[1:])

    assert read[-1, -1] == 1
    assert torch.count_nonzero(read) == 1
