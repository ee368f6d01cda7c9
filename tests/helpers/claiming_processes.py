"""Processes that fill one store, the log of what each computes, and what they leave in it."""

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from semcorr.store import FeatureStore

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
