"""Scalars over time: always a CSV file, and W&B or TensorBoard beside it.

A run does not depend on them: what cannot be written of a log is warned of once, and the run goes on.
"""

import csv
import logging
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from semcorr.core.errors import UserError
from semcorr.core.files import replace_file, write_text
from semcorr.core.ranges import OptionsOf, Pattern, check_arguments
from semcorr.core.tables import read_table
from semcorr.core.terminal import escape_controls
from semcorr.core.text_files import JsonMapping, JsonObject

log = logging.getLogger(__name__)


@contextmanager
def warn_once_on_failure(logger: object) -> Iterator[None]:
    """Let the run go on where a log cannot be written; warn of it the first time."""
    try:
        yield
    except Exception as error:
        kinds = (OSError, UserError, *getattr(logger, "failures", ()))
        if not isinstance(error, kinds) and not isinstance(error.__cause__, kinds):  # Lightning wraps some
            raise
        if not getattr(logger, "has_failed", False):
            logger.has_failed = True
            log.warning("The log of %s lacks entries: %s", type(logger).__name__, escape_controls(str(error)))


class SideLoggerMixin:
    """What a logger writes, as `side_file` does."""

    def log_metrics(self, *args: object, **kwargs: object) -> None:
        """Log scalars."""
        with warn_once_on_failure(self):
            super().log_metrics(*args, **kwargs)  # type: ignore[misc]

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """Log the configuration."""
        with warn_once_on_failure(self):
            super().log_hyperparams(*args, **kwargs)  # type: ignore[misc]

    def save(self) -> None:
        """Write what is pending."""
        with warn_once_on_failure(self):
            super().save()  # type: ignore[misc]

    def finalize(self, status: str) -> None:
        """Write what is left."""
        with warn_once_on_failure(self):
            super().finalize(status)  # type: ignore[misc]


class WandbSideLogger(SideLoggerMixin, WandbLogger):
    """W&B's logger."""

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """Errors of its own."""
        import wandb as client

        return (client.errors.Error,)


class TensorBoardSideLogger(SideLoggerMixin, TensorBoardLogger):
    """TensorBoard's logger."""


class CSVScalarLogger(Logger):
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
    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """They are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Remember; validation and test scores are written at once."""
        self.steps.setdefault(step or 0, {}).update({key: repr(value) for key, value in metrics.items()})
        if any(key.startswith(("val/", "test/")) for key in metrics):
            self.write()

    @rank_zero_only
    def resume(self, step: int) -> None:
        """Take over what an earlier process wrote up to `step`; of a damaged file nothing, which is warned of."""
        if not self.path.is_file():
            return
        try:
            rows = read_table(self.path, ("step",), "")
            earlier = {int(row.pop("step")): {k: v for k, v in row.items() if v} for _, row in rows}
        except (UserError, ValueError) as error:
            log.warning("%s is damaged (%s): it begins anew at step %d", self.path, escape_controls(str(error)), step)
            return
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
        with warn_once_on_failure(self):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(self.path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, restval="")
                writer.writeheader()
                writer.writerows({"step": step, **row} for step, row in sorted(self.steps.items()))


def _of_wandb(mode: object) -> list[object]:
    """Who takes what else W&B is given."""
    import wandb as client

    return [WandbLogger, client.init]


Project = Annotated[
    str, Pattern(r"[^/\\#?%:\s][^/\\#?%:]{0,127}", "a name of at most 128 characters without / \\ # ? % :")
]


@check_arguments("logger")
def wandb(
    save_dir: str | Path,
    project: Project = "semcorr",
    group: str | None = None,
    **options: Annotated[Any, OptionsOf(_of_wandb, by="mode")],
) -> WandbLogger:
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
    return WandbSideLogger(save_dir=str(Path(save_dir).resolve()), project=project, group=group, **options)


def _identity(run_dir: Path) -> str:
    """A name for the run that outlives its process."""
    note = run_dir / "wandb" / "id.txt"
    if not note.is_file() or not re.fullmatch("[0-9a-f]{12}", note.read_text(encoding="utf-8", errors="replace")):
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, secrets.token_hex(6), "run_dir")
    return note.read_text()


def logger_nodes(node: JsonMapping) -> dict[str, JsonObject]:
    """The loggers of the section `logger`, by their keys: itself where it is one, and those in it.

    >>> both = {"_target_": "a", "group": None, "second": {"_target_": "b"}}
    >>> logger_nodes(both)
    {'logger': {'_target_': 'a', 'group': None}, 'logger.second': {'_target_': 'b'}}
    """
    inner = {key: value for key, value in node.items() if isinstance(value, Mapping) and "_target_" in value}
    own = {key: value for key, value in node.items() if key not in inner}
    return ({"logger": own} if "_target_" in own else {}) | {f"logger.{key}": dict(each) for key, each in inner.items()}


def finish_loggers(loggers: Iterable[Logger]) -> None:
    """End a W&B run, so that the next job of a sweep starts its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            with warn_once_on_failure(logger):
                logger.experiment.finish()


def tensorboard(save_dir: str | Path) -> TensorBoardLogger:
    """Event files under `tensorboard/` of the run directory."""
    return TensorBoardSideLogger(save_dir=str(save_dir), name="tensorboard", version="", default_hp_metric=False)
