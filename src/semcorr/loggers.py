"""Scalars over time: always a CSV file, and W&B or TensorBoard beside it."""

import csv
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from semcorr.core.text_files import read_table
from semcorr.errors import UserError


class CSV(Logger):
    """`metrics.csv`: a row per step, a column per name.

    A resumed run continues the file. The whole file is written beside and renamed, so a killed run
    leaves a readable one.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self.steps: dict[int, dict[str, str]] = {}

    name, version = "csv", ""  # type: ignore[assignment]

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """They are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Remember; validation and test scores are written at once."""
        self.steps.setdefault(step or 0, {}).update({key: repr(value) for key, value in metrics.items()})
        if any(key.startswith(("val/", "test/")) for key in metrics):
            self.write()

    @rank_zero_only
    def resume(self, step: int) -> None:
        """Take over what an earlier process wrote up to `step`."""
        if self.path.is_file():
            remedy = "Take another copy of it, or move it away."
            rows = read_table(self.path, ("step",), remedy)
            try:
                earlier = {int(row.pop("step")): {k: v for k, v in row.items() if v} for _, row in rows}
            except ValueError as error:
                raise UserError(f"{self.path}: column `step` holds no numbers ({error}). {remedy}") from None
            self.steps = {at: row for at, row in earlier.items() if at <= step}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.write()

    def write(self) -> None:
        """The whole file, whole."""
        if not self.steps:
            return
        columns = ["step", *sorted({key for row in self.steps.values() for key in row})]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".metrics.csv.{os.getpid()}")
        with beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows({"step": step, **row} for step, row in sorted(self.steps.items()))
        beside.replace(self.path)


def wandb(save_dir: str | Path, project: str = "semcorr", group: str | None = None, **options: Any) -> WandbLogger:
    """W&B; offline unless a key is at hand, in WANDB_API_KEY or from `wandb login`.

    Args:
        save_dir: A run directory is one run: what goes on in it later goes on with the run.
        project: Of W&B.
        group: Of runs; a sweep gives its jobs its own.
        options: Of `wandb.init`.
    """
    import wandb as client

    if "mode" not in options and not client.login(prompt=False):
        options["mode"] = "offline"
    options |= {"id": _identity(Path(save_dir)), "resume": "allow"} if options.get("mode") != "offline" else {}
    return WandbLogger(save_dir=str(Path(save_dir).resolve()), project=project, group=group, **options)


def _identity(run_dir: Path) -> str:
    """A name for the run that outlives its process."""
    note = run_dir / "wandb" / "id.txt"
    if not note.is_file():
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(secrets.token_hex(6))
    return note.read_text()


def finish(loggers: Iterable[Logger]) -> None:
    """End a W&B run, so that the next job of a sweep starts its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def tensorboard(save_dir: str | Path) -> TensorBoardLogger:
    """Event files under `tensorboard/` of the run directory."""
    return TensorBoardLogger(save_dir=str(save_dir), name="tensorboard", version="", default_hp_metric=False)
