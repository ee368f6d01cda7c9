"""Files of others in a run directory: a run replaces and removes only what a run has written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from semcorr.core.errors import UserError
from semcorr.core.ranks import is_first_process
from semcorr.engine.plain_yaml import read_plain_config
from semcorr.engine.run_dir import JOB_FILE, RESULTS, list_logs

CONFIG = "config.yaml"
UNFINISHED = ".unfinished"  # in the folder of a run that has logs, and no config.yaml yet
FOLDERS = ("checkpoints", "tensorboard", "wandb")  # that a run writes below its directory
SECTIONS = ("data", "backbone")  # of every run's config.yaml


def refuse_foreign_files(run_dir: Path, cfg: DictConfig) -> None:
    """Refuse a directory in which a run would replace or remove files that are of no run.

    Args:
        run_dir: Directory of the run.
        cfg: Configuration of the run.

    Raises:
        UserError: The directory holds such a file, or it is the folder of a benchmark.
    """
    for key in ("data", "test"):
        root = (cfg.get(key) or {}).get("root")
        if root and _writes_into(run_dir, Path(root)):
            raise UserError(
                f"`run_dir`: {run_dir} would write into {key}.root={root}, among the files of the benchmark. "
                "Choose another run_dir; a new folder below it will do."
            )
    if not is_first_process():  # the first may have begun to write
        return
    config = run_dir / CONFIG
    if config.is_file():
        saved = read_plain_config(config)
        foreign = None if all(section in saved for section in SECTIONS) else config.name
    else:
        foreign = None if any((run_dir / mark).is_file() for mark in (UNFINISHED, JOB_FILE)) else _find_output(run_dir)
    if foreign is not None:
        raise UserError(
            f"`run_dir`: {run_dir} holds {foreign}, which is of no run and would be replaced or removed. "
            "Choose another run_dir, such as a new folder."
        )


def _writes_into(run_dir: Path, folder: Path) -> bool:
    """Tell whether a run in `run_dir` would write into a folder: the same, or one of its own folders."""
    run_dir, folder = run_dir.resolve(), folder.resolve()
    return folder == run_dir or any(folder.is_relative_to(run_dir / name) for name in FOLDERS)


def _find_output(run_dir: Path) -> str | None:
    """Return the name of the first file in a directory that has the name of a run's output; None if there is none."""
    named = (run_dir / name for name in RESULTS if os.path.lexists(run_dir / name))
    paths = (*named, *sorted((run_dir / "checkpoints").glob("*")), *list_logs(run_dir))
    return paths[0].relative_to(run_dir).as_posix() if paths else None


def mark_unfinished(run_dir: Path) -> None:
    """Mark the directory of a run that has logs and no config.yaml yet: they are then known to be of a run."""
    if is_first_process() and not (run_dir / CONFIG).is_file():
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / UNFINISHED).touch()


def unmark_finished(run_dir: Path) -> None:
    """Remove the mark of an unfinished run, unless logs lie there without a config.yaml."""
    if is_first_process() and ((run_dir / CONFIG).is_file() or not list_logs(run_dir)):
        (run_dir / UNFINISHED).unlink(missing_ok=True)


@contextmanager
def mark_while_unfinished(run_dir: Path) -> Iterator[None]:
    """Mark the directory of a run that writes its config.yaml last, for as long as it has none."""
    mark_unfinished(run_dir)
    try:
        yield
    finally:
        unmark_finished(run_dir)
