"""python -m semcorr.store ls|verify|prune: what lies in the feature store, whether it is whole, less of it."""

import logging
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import track
from rich.table import Table

from semcorr.cli.errors import report_user_errors
from semcorr.cli.verb_line import Without
from semcorr.core.errors import UserError
from semcorr.core.files import remove_parts
from semcorr.core.interrupt import advise_on_interrupt
from semcorr.core.ranges import Range
from semcorr.core.terminal import Terminal, escape_controls
from semcorr.store import default_root
from semcorr.store.index import (
    KEY,
    StoreEntry,
    StoreFolder,
    key_damage,
    list_store_folders,
    remove_entries,
    remove_orphans,
    sort_by_use,
)
from semcorr.store.integrity import DamagedEntryError, entry_key_of, read_header, stored_image_name

COLUMNS = ("backbone", "depth", "size", "dtype")
DAY = 86400.0  # seconds

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
Root = Annotated[
    Path | None,
    typer.Option(
        "--root", readable=False, help="The store, if not SEMCORR_STORE or else ~/.cache/semcorr/features."
    ),
]  # fmt: skip


@app.callback()
def about() -> None:
    """Features that were computed once and are kept on disk."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")


@app.command("ls")
def list_store(root: Root = None) -> None:
    """What is stored: a line for everything that features can depend on but the image."""
    with _telling():
        root, found = _opened(root)
        Terminal().print(_table(root, found))


@app.command("verify")
def verify_store(
    root: Root = None,
    remove_damaged: Annotated[bool, typer.Option("--remove", help="Remove what is damaged.")] = False,
) -> None:
    """Read everything. The exit code is 1 if anything is damaged."""
    damaged: list[StoreEntry] = []
    with _telling(), advise_on_interrupt(lambda: _removed(damaged)):
        root, found = _opened(root)
        entries = sort_by_use(found)
        for entry in track(entries, "Reading", console=Console(stderr=True), transient=True):
            if why := _damage(entry.path):
                name = escape_controls(stored_image_name(entry.path))
                print(f"{name}: {entry.path} is damaged ({escape_controls(why)})")
                damaged.append(entry)
        keys = _damaged_keys(found)
        if remove_damaged:
            remove_entries(damaged)
            for path in keys:
                path.unlink(missing_ok=True)  # who uses the folder next writes it anew
    went = "; removed, they are computed again" if damaged and remove_damaged else ""
    print(f"{len(damaged)} of {len(entries)} images' features are damaged{went}")
    raise typer.Exit(1 if damaged or keys else 0)


def _damaged_keys(found: list[StoreFolder]) -> list[Path]:
    """Print which key.json are damaged, and why; return them."""
    damaged = []
    for folder in found:
        if why := key_damage(folder.path):
            print(f"{folder.path / KEY} is damaged ({why})")
            damaged.append(folder.path / KEY)
    return damaged


@app.command("prune")
def prune_store(
    root: Root = None,
    key: Annotated[
        str | None, Without("everything"), typer.Option(help="Only of this key; the beginning of its name will do.")
    ] = None,
    older_than: Annotated[
        float | None,
        Range(least=0),
        Without("everything"),
        typer.Option(metavar="DAYS", help="What no run has used for DAYS."),
    ] = None,
    max_gb: Annotated[
        float | None,
        Range(least=0),
        Without("everything"),
        typer.Option(metavar="X", help="The least recently used, down to X GB."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of it.")] = False,
) -> None:
    """Remove features, and what killed processes left.

    --key with --older-than or --max-gb removes only within that key; alone, all of it. Without any
    option only what killed processes left goes. A run that is using the features goes on with them.
    """
    going: list[StoreEntry] = []
    with _telling(), advise_on_interrupt(lambda: _removed(going)):
        root, found = _opened(root)
        chosen = found if key is None else [_called(key, root, found)]
        whole = everything or (key is not None and older_than is None and max_gb is None)
        going += sort_by_use(chosen) if whole else _too_much(sort_by_use(chosen), older_than, max_gb)
        gone = remove_entries(going)
        litter = sum(remove_orphans(folder.path) for folder in found) + len(remove_parts(root))
    left = f", and {litter} files that killed processes had left" if litter else ""
    print(f"{len(gone)} images' features, {_size(gone)}, are removed from {root}{left}")


def _removed(going: Sequence[StoreEntry]) -> str:
    """What an interruption left of what was to go."""
    gone = sum(not entry.path.exists() for entry in going)
    told = f"{gone} of {len(going)} images' features that were to go are removed" if gone else "Nothing was removed"
    return f"{told}. Run the same line again"


def _too_much(entries: list[StoreEntry], older_than: float | None, max_gb: float | None) -> list[StoreEntry]:
    """Of entries in the order of their use those that are too old, or more than fits."""
    old = sum(older_than is not None and time.time() - entry.used > older_than * DAY for entry in entries)
    size = sum(entry.size for entry in entries[old:])
    while max_gb is not None and size > max_gb * 1e9:
        size -= entries[old].size
        old += 1
    return entries[:old]


def _called(key: str, root: Path, found: list[StoreFolder]) -> StoreFolder:
    named = [folder for folder in found if folder.path.name.startswith(key)]
    if len(named) != 1:
        known = ", ".join(folder.path.name for folder in named or found) or "none"
        raise UserError(
            f"--key {key}: {'several keys begin' if named else 'no key begins'} so in {root}. There: {known}"
        )
    return named[0]


def _opened(root: Path | None) -> tuple[Path, list[StoreFolder]]:
    root = (root or default_root()).expanduser()
    if not root.is_dir():
        raise UserError(f"there is no store at {root}. Give --root DIR, or set SEMCORR_STORE=DIR")
    return root, list_store_folders(root)


def _damage(path: Path) -> str | None:
    try:
        with suppress(FileNotFoundError):  # evicted meanwhile
            if not stat.S_ISREG(path.stat().st_mode):
                return "it is no file"
            read_header(memoryview(path.read_bytes()), entry_key_of(path))
    except DamagedEntryError as damage:
        return str(damage)
    return None


def _table(root: Path, found: list[StoreFolder]) -> Table:
    table = Table(title=str(root), title_justify="left", show_footer=True)
    for column, total in zip(("key", *COLUMNS), ("total", *[""] * len(COLUMNS)), strict=True):
        table.add_column(column, total, overflow="fold")
    table.add_column("images", f"{sum(len(folder.entries) for folder in found)}", justify="right")
    table.add_column("GB", _gb(folder.size for folder in found), justify="right")
    table.add_column("last use")
    for folder in sorted(found, key=lambda folder: folder.used or 0.0, reverse=True):
        about = (_text(folder.key.get(column)) for column in COLUMNS)
        used = f"{datetime.fromtimestamp(folder.used):%Y-%m-%d %H:%M}" if folder.used else ""
        table.add_row(folder.path.name, *about, f"{len(folder.entries)}", _gb([folder.size]), used)
    return table


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _gb(sizes: "Iterator[int] | list[int]") -> str:
    return f"{sum(sizes) / 1e9:.3f}"


def _size(entries: list[StoreEntry]) -> str:
    return decimal(sum(entry.size for entry in entries))


@contextmanager
def _telling() -> Iterator[None]:
    """Mistakes, and disks and permissions that do not go along, in a sentence."""
    with report_user_errors("evaluate"):
        try:
            yield
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}. See to its permissions and run again") from None
