"""Loggers of scalars: always a CSV file, and W&B or TensorBoard beside it.

A run does not depend on its logs: it warns once of a log that cannot be written, and continues.
"""

import csv
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from semcorr.core.errors import UserError
from semcorr.core.extras import require_extra
from semcorr.core.files import replace_file, write_text
from semcorr.core.ranges import OptionsOf, Pattern, check_arguments
from semcorr.core.tables import read_table
from semcorr.core.terminal import escape_controls
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.engine.run_name import LONGEST_TAG

log = logging.getLogger(__name__)


@contextmanager
def warn_once_on_failure(logger: object) -> Iterator[None]:
    """Continue where a log cannot be written, with a warning the first time."""
    try:
        yield
    except Exception as error:
        expected = (OSError, UserError, *getattr(logger, "failures", ()))
        if not isinstance(error, expected) and not isinstance(error.__cause__, expected):  # Lightning wraps some
            raise
        if not getattr(logger, "has_failed", False):
            vars(logger)["has_failed"] = True
            log.warning("The log of %s lacks entries: %s", type(logger).__name__, escape_controls(str(error)))


class SideLoggerMixin:
    """A mixin for loggers that a run does not depend on: it warns once of a log that cannot be written."""

    def log_metrics(self, *args: object, **kwargs: object) -> None:
        """Log scalars."""
        self._write_log("log_metrics", *args, **kwargs)

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """Log the configuration."""
        self._write_log("log_hyperparams", *args, **kwargs)

    def save(self) -> None:
        """Write what is pending."""
        self._write_log("save")

    def finalize(self, status: str) -> None:
        """Write what is left."""
        self._write_log("finalize", status)

    def _write_log(self, method: str, /, *args: object, **kwargs: object) -> None:
        """Call a method of the logger itself; warn the first time that it fails."""
        with warn_once_on_failure(self):
            getattr(super(), method)(*args, **kwargs)


class WandbSideLogger(SideLoggerMixin, WandbLogger):
    """A logger to W&B that a run does not depend on."""

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """The errors of W&B itself."""
        import wandb as client

        return (client.errors.Error,)


class TensorBoardSideLogger(SideLoggerMixin, TensorBoardLogger):
    """A logger to TensorBoard that a run does not depend on."""


class CSVScalarLogger(Logger):
    """A logger to `metrics.csv`: a row per step, a column per name.

    A resumed run continues the file. The whole file is written under another name and renamed, so a killed run leaves
    a readable one.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self.steps: dict[int, dict[str, str]] = {}

    @property
    def name(self) -> str:
        """The name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """The version of the log, which has none."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """Ignore the configuration, which is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Collect scalars; write the file at once if there are validation or test scores."""
        self.steps.setdefault(step or 0, {}).update({key: repr(value) for key, value in metrics.items()})
        if any(key.startswith(("val/", "test/")) for key in metrics):
            self.write()

    @rank_zero_only
    def resume(self, step: int) -> None:
        """Load the rows of an earlier process up to `step`; ignore a damaged file, with a warning."""
        if not self.path.is_file():
            return
        try:
            rows = read_table(self.path, ("step",), "")
            earlier = {int(row.pop("step")): {k: v for k, v in row.items() if v} for _, row in rows}
        except (UserError, ValueError) as error:
            log.warning("%s is damaged (%s): it begins again at step %d", self.path, escape_controls(str(error)), step)
            return
        self.steps = {earlier_step: row for earlier_step, row in earlier.items() if earlier_step <= step}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.write()

    def write(self) -> None:
        """Write the whole file, in one piece."""
        if not self.steps:
            return
        columns = ["step", *sorted({key for row in self.steps.values() for key in row})]
        with warn_once_on_failure(self):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, restval="")
                writer.writeheader()
                writer.writerows({"step": step, **row} for step, row in sorted(self.steps.items()))


def _wandb_option_targets(mode: object) -> list[Callable[..., object]]:
    """Return the callables that take further options of W&B."""
    import wandb as client

    return [WandbLogger, client.init]


Project = Annotated[
    str, Pattern(r"[^/\\#?%:\s][^/\\#?%:]{0,127}", "a name of at most 128 characters without / \\ # ? % :")
]


@check_arguments("logger")
def build_wandb_logger(
    save_dir: str | Path,
    project: Project = "semcorr",
    group: str | None = None,
    **options: Annotated[Any, OptionsOf(_wandb_option_targets, by="mode")],
) -> WandbLogger:
    """Build a logger to W&B, offline unless there is a key, in WANDB_API_KEY or from `wandb login`.

    Args:
        save_dir: Run directory; a run that is resumed in it continues the same run of W&B, unless W&B is offline.
        project: Project in W&B.
        group: Group of runs in W&B; the jobs of a sweep share one.
        options: Options of `wandb.init`.
    """
    import wandb as client

    _check_variables()
    options.setdefault("mode", os.environ.get("WANDB_MODE"))
    if options["mode"] is None and not client.login(prompt=False):
        options["mode"] = "offline"
    require_tags(options.get("tags"))
    is_offline = options["mode"] in ("offline", "dryrun")
    options |= {} if is_offline else {"id": _read_or_create_id(Path(save_dir)), "resume": "allow"}
    # Its address is all that W&B is to print: online by itself, unless $WANDB_SILENT; offline in `finish_loggers`.
    settings = client.Settings(quiet=True, silent=True) if is_offline else client.Settings(quiet=True)
    options.setdefault("settings", settings)
    logger = WandbSideLogger(save_dir=str(Path(save_dir).resolve()), project=project, group=group, **options)
    logger._wandb_init.pop("anonymous", None)  # Lightning's, of which W&B warns that it has no effect
    return logger


def _check_variables() -> None:
    """Refuse variables of the environment that W&B refuses by a traceback; an empty WANDB_MODE is unset."""
    import wandb as client

    if not os.environ.get("WANDB_MODE"):
        os.environ.pop("WANDB_MODE", None)
    try:
        client.Settings().update_from_env_vars(dict(os.environ))
    except ValueError as error:  # of pydantic: a title, then a line for the field and one for the reason
        _, field, reason, *_ = [*str(error).splitlines(), "", "", ""]
        name = f"WANDB_{field.upper()}"
        reason = reason.strip().partition(" [")[0]
        raise UserError(
            f"the environment variable {name}: {reason}, got {os.environ.get(name, '')!r:.60}. Correct or unset it"
        ) from None


def require_tags(tags: object) -> None:
    """Refuse tags that W&B would refuse once the run has begun."""
    given = [tags] if isinstance(tags, str) else tags
    for tag in given if isinstance(given, Sequence) else ():
        if not isinstance(tag, str) or not 1 <= len(tag) <= LONGEST_TAG:
            raise UserError(f"`logger.tags` must be texts of 1 to {LONGEST_TAG} characters, got {tag!r:.100}")


def _read_or_create_id(run_dir: Path) -> str:
    """Return the id of the W&B run of a directory, which is created once and kept in a file."""
    path = run_dir / "wandb" / "id.txt"
    if not path.is_file() or not re.fullmatch("[0-9a-f]{12}", path.read_text(encoding="utf-8", errors="replace")):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, secrets.token_hex(6), "run_dir")
    return path.read_text()


def logger_nodes(node: JsonMapping) -> dict[str, JsonObject]:
    """Return the loggers of the section `logger` by their keys: the section itself if it is one, and those in it.

    >>> both = {"_target_": "a", "group": None, "second": {"_target_": "b"}}
    >>> logger_nodes(both)
    {'logger': {'_target_': 'a', 'group': None}, 'logger.second': {'_target_': 'b'}}
    """
    inner = {key: value for key, value in node.items() if isinstance(value, Mapping) and "_target_" in value}
    options = {key: value for key, value in node.items() if key not in inner}
    return ({"logger": options} if "_target_" in options else {}) | {
        f"logger.{key}": dict(value) for key, value in inner.items()
    }


EXTRAS = {f"semcorr.engine.loggers.build_{name}_logger": name for name in ("wandb", "tensorboard")}  # target: package


def require_logger_packages(node: JsonMapping) -> None:
    """Refuse a logger of the section `logger` whose package is not installed."""
    for options in logger_nodes(node).values():
        if (name := EXTRAS.get(options["_target_"])) is not None:
            require_extra(f"logger={name}", name, name)


def finish_loggers(loggers: Iterable[Logger]) -> None:
    """Finish the W&B run, so that the next job of a sweep starts its own; say where one is that is offline."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.finalize("success")  # writes what was logged after the test
        if isinstance(logger, WandbLogger):
            with warn_once_on_failure(logger):
                run = logger.experiment
                run.finish()
                if getattr(run, "offline", False):
                    print(f"W&B is offline: wandb sync {Path(run.dir).parent} sends the run.")


def build_tensorboard_logger(save_dir: str | Path) -> TensorBoardLogger:
    """Build a logger of event files under `tensorboard/` of the run directory."""
    return TensorBoardSideLogger(save_dir=str(save_dir), name="tensorboard", version="", default_hp_metric=False)
