"""Made-up features for a store, bit by bit, and ways in which writing them fails."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from semcorr.store import FeatureStore
from semcorr.store.entry_file import PackedEntry, pack_entry
from semcorr.store.integrity import EntryKey

KEY = {"backbone": "tiny", "size": 96, "depth": 2, "dtype": "float16"}


def features(seed: int = 0, cells: int = 36) -> dict[str, Tensor]:
    """Of several types, with every bit in use."""
    draw = torch.Generator().manual_seed(seed)
    half = torch.randint(-(2**15), 2**15, (cells, 8), generator=draw).to(torch.int16)
    return {
        "tokens": half.view(torch.float16),
        "map": torch.randn(3, 5, 7, generator=draw),
        "late": half[:, :3].clone().view(torch.bfloat16),
        "seen": torch.rand(11, generator=draw) > 0.5,
        "count": torch.tensor(5),
        "none": torch.zeros(0, 4),
    }


def bits(values: dict[str, Tensor]) -> dict[str, tuple[object, ...]]:
    """Unlike ==, tells NaN from NaN and 0 from -0."""
    return {
        key: (value.dtype, value.shape, value.reshape(-1).view(torch.uint8).numpy().tobytes())
        for key, value in values.items()
    }


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != "key.json")


def put(store: FeatureStore, *entries: str) -> list[bool]:
    return [store.put(name, features(), "x.jpg") for name in entries]


class Failing(list[memoryview]):
    """A tensor's bytes, after which writing fails."""

    error: BaseException
    seen: list[str]
    folder: Path

    def __iter__(self):
        yield from list.__iter__(self)
        self.seen += files(self.folder)
        raise self.error


def failing(folder: Path, error: BaseException) -> tuple[Callable[..., PackedEntry], list[str]]:
    """Like pack, but what it returns cannot be written to the end; and what lies in `folder` then."""

    def packed(values: dict[str, Tensor], name: str, place: EntryKey) -> PackedEntry:
        whole = pack_entry(values, name, place)
        parts = Failing(whole.parts)
        parts.error, parts.seen, parts.folder = error, seen, folder
        return whole._replace(parts=parts)

    seen: list[str] = []
    return packed, seen
