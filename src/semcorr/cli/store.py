"""Command `python -m semcorr.store ls|verify|prune`: list, check and remove what is in the feature store."""

import stat
import time
from collections.abc import Iterable, Iterator, Sequence
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

app = typer.Typer(
    help="Manage features that were computed once and are kept on disk.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
Root = Annotated[
    Path | None,
    typer.Option(
        "--root", readable=False, help="Folder of the store; default: $SEMCORR_STORE or ~/.cache/semcorr/features."
    ),
]


@app.command("ls")
def list_store(root: Root = None) -> None:
    """List what is stored: a line for everything that features can depend on but the image."""
    with _report_errors():
        root, folders = _open_store(root)
        Terminal().print_table(_build_table(root, folders))


@app.command("verify")
def verify_store(
    root: Root = None,
    remove_damaged: Annotated[bool, typer.Option("--remove", help="Remove damaged entries.")] = False,
) -> None:
    """Read everything. The exit code is 1 if anything is damaged."""
    damaged: list[StoreEntry] = []
    with _report_errors(), advise_on_interrupt(lambda: _describe_removal(damaged)):
        root, folders = _open_store(root)
        entries = sort_by_use(folders)
        for entry in track(entries, "Reading", console=Console(stderr=True), transient=True):
            if damage := _find_damage(entry.path):
                name = escape_controls(stored_image_name(entry.path))
                print(f"{name}: {entry.path} is damaged ({escape_controls(damage)})")
                damaged.append(entry)
        keys = _report_damaged_keys(folders)
        if remove_damaged:
            remove_entries(damaged)
            for path in keys:
                path.unlink(missing_ok=True)  # it is written again when the folder is used next
    outcome = "; removed, they are computed again" if damaged and remove_damaged else ""
    print(f"{len(damaged)} of {len(entries)} images' features are damaged{outcome}")
    raise typer.Exit(1 if damaged or keys else 0)


def _report_damaged_keys(folders: list[StoreFolder]) -> list[Path]:
    """Print which key.json are damaged, and why; return them."""
    damaged = []
    for folder in folders:
        if damage := key_damage(folder.path):
            print(f"{folder.path / KEY} is damaged ({damage})")
            damaged.append(folder.path / KEY)
    return damaged


@app.command("prune")
def prune_store(
    root: Root = None,
    key: Annotated[
        str | None,
        Without("everything"),
        typer.Option(help="Remove only features of this key, given by the beginning of its name."),
    ] = None,
    older_than: Annotated[
        float | None,
        Range(least=0),
        Without("everything"),
        typer.Option(metavar="DAYS", help="Remove features that no run has used for DAYS."),
    ] = None,
    max_gb: Annotated[
        float | None,
        Range(least=0),
        Without("everything"),
        typer.Option(metavar="X", help="Remove the least recently used, until X GB remain."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove everything.")] = False,
) -> None:
    """Remove features, and what killed processes left.

    --key with --older-than or --max-gb removes only within that key; alone, all of it. Without any
    option only what killed processes left goes. A run that is using the features goes on with them.
    """
    unneeded: list[StoreEntry] = []
    with _report_errors(), advise_on_interrupt(lambda: _describe_removal(unneeded)):
        root, folders = _open_store(root)
        candidates = sort_by_use(folders if key is None else [_find_folder(key, root, folders)])
        removes_all = everything or (key is not None and older_than is None and max_gb is None)
        unneeded += candidates if removes_all else _select_excess(candidates, older_than, max_gb)
        entries = remove_entries(unneeded)
        orphans = sum(remove_orphans(folder.path) for folder in folders) + len(remove_parts(root))
    suffix = f", and {orphans} files that killed processes had left" if orphans else ""
    print(f"{len(entries)} images' features, {_format_size(entries)}, are removed from {root}{suffix}")


def _describe_removal(entries: Sequence[StoreEntry]) -> str:
    """Say how many of the entries to remove were removed before an interruption."""
    count = sum(not entry.path.exists() for entry in entries)
    message = f"{count} of {len(entries)} images' features that were to go are removed"
    return f"{message if count else 'Nothing was removed'}. Run the same line again"


def _select_excess(entries: list[StoreEntry], older_than: float | None, max_gb: float | None) -> list[StoreEntry]:
    """Select, of entries in the order of their use, those that are too old or more than fit."""
    count = sum(older_than is not None and time.time() - entry.used > older_than * DAY for entry in entries)
    size = sum(entry.size for entry in entries[count:])
    while max_gb is not None and size > max_gb * 1e9:
        size -= entries[count].size
        count += 1
    return entries[:count]


def _find_folder(key: str, root: Path, folders: list[StoreFolder]) -> StoreFolder:
    """Find the folder whose name begins with a key."""
    matches = [folder for folder in folders if folder.path.name.startswith(key)]
    if len(matches) != 1:
        known = ", ".join(folder.path.name for folder in matches or folders) or "none"
        raise UserError(
            f"--key {key}: {'several keys begin' if matches else 'no key begins'} so in {root}. There: {known}"
        )
    return matches[0]


def _open_store(root: Path | None) -> tuple[Path, list[StoreFolder]]:
    """Return the root of the store, by default the user's, and its folders."""
    root = (root or default_root()).expanduser()
    if not root.is_dir():
        raise UserError(f"there is no store at {root}. Give --root DIR, or set SEMCORR_STORE=DIR")
    return root, list_store_folders(root)


def _find_damage(path: Path) -> str | None:
    """Say what is wrong with the file of an entry; None if nothing is."""
    try:
        with suppress(FileNotFoundError):  # evicted meanwhile
            if not stat.S_ISREG(path.stat().st_mode):
                return "it is not a file"
            read_header(memoryview(path.read_bytes()), entry_key_of(path))
    except DamagedEntryError as damage:
        return str(damage)
    return None


def _build_table(root: Path, folders: list[StoreFolder]) -> Table:
    """Build a table with one row per folder, the last used first."""
    table = Table(title=str(root), title_justify="left", show_footer=True)
    for column, total in zip(("key", *COLUMNS), ("total", *[""] * len(COLUMNS)), strict=True):
        table.add_column(column, total, overflow="fold")
    table.add_column("images", f"{sum(len(folder.entries) for folder in folders)}", justify="right")
    table.add_column("GB", _format_gb(folder.size for folder in folders), justify="right")
    table.add_column("last use")
    for folder in sorted(folders, key=lambda folder: folder.used or 0.0, reverse=True):
        cells = (_format_cell(folder.key.get(column)) for column in COLUMNS)
        used = f"{datetime.fromtimestamp(folder.used):%Y-%m-%d %H:%M}" if folder.used else ""
        table.add_row(folder.path.name, *cells, f"{len(folder.entries)}", _format_gb([folder.size]), used)
    return table


def _format_cell(value: object) -> str:
    """Format a value of a key; empty if the key has none."""
    return "" if value is None else str(value)


def _format_gb(sizes: Iterable[int]) -> str:
    """Format the sum of sizes, in GB."""
    return f"{sum(sizes) / 1e9:.3f}"


def _format_size(entries: list[StoreEntry]) -> str:
    """Format the size of entries, in a fitting unit."""
    return decimal(sum(entry.size for entry in entries))


@contextmanager
def _report_errors() -> Iterator[None]:
    """Report users' mistakes, and errors of disks and permissions, in a sentence."""
    with report_user_errors("evaluate"):
        try:
            yield
        except OSError as error:
            place = error.filename or "the store"
            raise UserError(f"{place}: {error.strerror}. See to its permissions and run again") from None
