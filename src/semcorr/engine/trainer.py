"""Lightning's Trainer of a run, with the loggers, callbacks and checkpoint files that its configuration names."""

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from omegaconf import DictConfig

from semcorr.core.errors import UserError
from semcorr.core.terminal import Terminal
from semcorr.engine.callbacks import StageLines, ThroughputMonitor, TrainingProgressBar
from semcorr.engine.checkpoints import CheckpointFiles, weight_settings
from semcorr.engine.contracts import explain_failure
from semcorr.engine.foreign_files import mark_unfinished
from semcorr.engine.launcher import KeepSignals, watch_processes
from semcorr.engine.loggers import CSVScalarLogger, logger_nodes
from semcorr.engine.options import accepted_options
from semcorr.engine.pages import PagesCallback
from semcorr.engine.run_dir import code_versions, list_logs, remove_logs
from semcorr.engine.run_name import label_run
from semcorr.engine.saved_config import to_plain_types
from semcorr.engine.teacher import EMATeacher
from semcorr.engine.trainer_options import (
    LIGHTNING_ERRORS,
    check_precision,
    check_training,
    device_precision,
    refuse_options,
)

PROFILERS: dict[str, Callable[..., object]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}


def build_trainer(
    cfg: DictConfig, run_dir: Path, resumes: bool = False, callbacks: Sequence[Callback] = (), **options: object
) -> Trainer:
    """Build Lightning's Trainer with the loggers, progress bar and checkpoint files of semcorr.

    Args:
        cfg: Configuration of the run. Its precision `auto` is replaced by the one that it stands for on this device.
        run_dir: Directory of the run; logs of an earlier run there are removed, unless `resumes`.
        resumes: Whether an earlier run is resumed.
        callbacks: Callbacks besides the built-in ones and those of the group `callbacks`.
        options: Other arguments of the Trainer.

    Raises:
        UserError: An option of the trainer, a callback or a logger is refused.
    """
    check_precision(cfg.trainer.precision)
    cfg.trainer.precision = device_precision(to_plain_types(cfg.trainer))
    if "loss" in cfg:
        check_training(cfg.trainer, any(isinstance(callback, ModelCheckpoint) for callback in callbacks))
    silence_lightning()
    arranged, has_bar = arrange_callbacks(cfg, callbacks)
    if not resumes:
        remove_logs(run_dir)
    options.setdefault("enable_progress_bar", has_bar)
    if isinstance(cfg.trainer.get("profiler"), str):
        options["profiler"] = PROFILERS[cfg.trainer.profiler](dirpath=str(run_dir), filename="profile")
    loggers = build_loggers(cfg, run_dir)
    if list_logs(run_dir):
        mark_unfinished(run_dir)
    try:
        trainer: Trainer = instantiate(
            cfg.trainer,
            callbacks=arranged,
            logger=loggers,
            default_root_dir=str(run_dir),
            **options,
        )
    except InstantiationException as error:
        if isinstance(error.__cause__, LIGHTNING_ERRORS):
            raise refuse_options(error) from error
        raise
    watch_processes(trainer)
    settings = weight_settings(to_plain_types(cfg))
    trainer.strategy.checkpoint_io = CheckpointFiles(settings)
    return trainer


def silence_lightning() -> None:
    """Suppress the messages and warnings of Lightning that a run has no use for."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no tips, no device lists
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # metrics are summed over processes already
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # frozen parts are
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # Lightning on a newer PyTorch
    warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging interval.*")


def arrange_callbacks(cfg: DictConfig, callbacks: Sequence[Callback]) -> tuple[list[Callback], bool]:
    """Return all callbacks of a run in their order, and whether there is a progress bar.

    Args:
        cfg: Configuration of the run.
        callbacks: Callbacks besides the built-in ones and those of the group `callbacks`.

    Raises:
        UserError: A bar is switched off, and one of the group `callbacks` is a bar.
    """
    user_callbacks = build_user_callbacks(cfg)
    has_user_bar = any(isinstance(callback, ProgressBar) for callback in user_callbacks)
    wants_bar = cfg.trainer.get("enable_progress_bar")
    if has_user_bar and wants_bar is False:
        raise UserError(
            "`trainer.enable_progress_bar` is false, and one of `callbacks` is a progress bar. Leave out either."
        )
    has_bar = has_user_bar or (Terminal().is_terminal if wants_bar is None else wants_bar)
    own_bar = [TrainingProgressBar()] if has_bar and not has_user_bar else []
    own = [*own_bar, StageLines(has_bar), PagesCallback(), ThroughputMonitor(), KeepSignals()]
    return [*own, *callbacks, *user_callbacks], has_bar


def build_user_callbacks(cfg: DictConfig) -> list[Callback]:
    """Build the callbacks of the group `callbacks`, which run beside the built-in ones."""
    callbacks = {}
    for name, node in (cfg.get("callbacks") or {}).items():
        with explain_failure(f"callbacks.{name}", node.get("_target_", "semcorr")):
            callbacks[name] = instantiate(node)
    for name, callback in callbacks.items():
        if not isinstance(callback, Callback):
            raise UserError(f"`callbacks.{name}` must be a callback of Lightning, got a {type(callback).__name__}")
        if isinstance(callback, EMATeacher) and "loss" not in cfg:
            raise UserError(f"`callbacks.{name}` is a teacher, and nothing is trained here. Leave it out.")
    return [*callbacks.values()]


def build_loggers(cfg: DictConfig, run_dir: Path) -> list[Logger]:
    """Build the CSV logger, always and first, and those of the group `logger`, which log the configuration too."""
    resolved = to_plain_types(cfg)
    loggers: list[Logger] = [CSVScalarLogger(run_dir)]
    for key, node in logger_nodes(resolved["logger"]).items():
        options = accepted_options(node["_target_"], node)
        takes_folder = options is None or options.is_open or "save_dir" in options.annotations
        labels = label_run(cfg, node)
        logger = instantiate({**node, **labels}, **({"save_dir": str(run_dir)} if takes_folder else {}))
        if not isinstance(logger, Logger):
            raise UserError(f"`{key}` must be a logger of Lightning, got a {type(logger).__name__}")
        if not isinstance(logger, CSVScalarLogger):
            logger.log_hyperparams({**resolved, "provenance": code_versions()})
            loggers.append(logger)
    return loggers
