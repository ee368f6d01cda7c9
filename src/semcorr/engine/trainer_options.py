"""Checks of the options of Lightning's Trainer that it accepts and that cannot work here, before any training."""

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Annotated, Literal, TypeGuard

import torch
from hydra._internal.utils import _locate
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.plugins import Precision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, ListConfig

from semcorr.core.device import float32_products
from semcorr.core.errors import UserError
from semcorr.core.ranges import BUILT, Count, Pattern, Positive, Range, Whole, require
from semcorr.core.ranks import read_launch_number
from semcorr.core.text_files import JsonMapping, JsonObject

AUTO = "auto"  # bf16-mixed on a GPU that has it, else 32-true; config.yaml says which it was
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
PROCESSES = 8  # processes that may share a CPU, however few cores it has
SHORT_PRECISIONS = ("32", "bf16", "16")  # Lightning's short names of these precisions
LIGHTNING_ERRORS = (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError)  # errors of Lightning

OPTIONS: JsonObject = {  # types and ranges; Lightning's own checks let NaN, 1e30 and text crash
    "devices": Annotated[int, Range(least=-1)] | str | Sequence[Whole],
    "num_nodes": Count,
    "max_epochs": int | None,
    "min_epochs": Count | None,
    "max_steps": Annotated[int, Range(least=-1)],
    "min_steps": Count | None,
    "gradient_clip_val": Annotated[float, Range(least=0)] | None,
    "accumulate_grad_batches": Count,
    "log_every_n_steps": Count | None,
    "check_val_every_n_epoch": Count | None,
    "val_check_interval": Positive | None,
    "num_sanity_val_steps": Annotated[int, Range(least=-1)] | None,
    "fast_dev_run": bool | Whole,
    "limit_train_batches": Positive | None,
    "limit_val_batches": Annotated[float, Range(least=0)] | None,
    "limit_test_batches": Positive | None,
    "enable_model_summary": bool | None,
    "accelerator": str,
    "strategy": str,
    "precision": str | int | None,
    "limit_predict_batches": Annotated[float, Range(least=0)] | None,
    "max_time": Annotated[str, Pattern(r"\d\d(:\d\d){3}", "days, hours, minutes and seconds as 00:12:00:00")] | None,
    "enable_checkpointing": bool | None,
    "enable_progress_bar": bool | None,
    "gradient_clip_algorithm": Literal["norm", "value"] | None,
    "deterministic": bool | Literal["warn"] | None,
    "benchmark": bool | None,
    "inference_mode": bool,
    "profiler": Literal["simple", "advanced", "pytorch"] | None,
    "detect_anomaly": bool,
    "sync_batchnorm": bool,
    "enable_autolog_hparams": bool,
}
ORDINARY = {
    "_target_": "lightning.Trainer",
    "accelerator": "cpu",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "val_check_interval": 0.25,
}
INDEPENDENT_OPTIONS = (  # options in which Lightning takes all that we let through, whatever the others are
    "precision",
    "max_epochs",
    "gradient_clip_val",
    "accumulate_grad_batches",
    "log_every_n_steps",
    "fast_dev_run",
    "num_sanity_val_steps",
    "use_distributed_sampler",
    "enable_model_summary",
    "enable_progress_bar",
)
BUILDABLE = ("accelerator", "strategy", "profiler", "plugins")  # options that may be objects, by a _target_
REFUSED_OPTIONS = {  # options that a run sets itself, unless they are null or off, and what to give instead
    "logger": "loggers are chosen by `logger`: logger=csv writes metrics.csv alone, logger=[wandb,tensorboard] both",
    "callbacks": "callbacks are given by `callbacks`, as +callbacks.mine._target_=my.Callback",
    "default_root_dir": "a run has one directory. Give run_dir=DIR",
    "barebones": "a run writes its scores, which a bare one leaves out. Give trainer.enable_progress_bar=false",
    "model_registry": "checkpoints stay in the run directory. Leave it out",
    "overfit_batches": "batches are drawn by our own loaders. Give trainer.limit_train_batches=N",
    "reload_dataloaders_every_n_epochs": "every epoch is drawn again by the same loaders. Leave it out",
    "use_distributed_sampler": "the loaders share pairs over processes themselves, none twice. Leave it out",
}


def check_numbers(trainer: JsonMapping) -> None:
    """Refuse options of the Trainer that are not of a type, or not in a range, that it can work with.

    Args:
        trainer: The node of the configuration.

    Raises:
        UserError: An option is refused.
    """
    for key, reason in REFUSED_OPTIONS.items():
        is_off = key != "logger" and trainer.get(key) in (False, 0)
        if trainer.get(key) is not None and not is_off:
            raise UserError(f"`trainer.{key}`: {reason}.")
    for key, hint in OPTIONS.items():
        if key in trainer and not (key in BUILDABLE and _is_built(trainer[key])):
            require(f"trainer.{key}", trainer[key], hint)
    _check_plugins(trainer.get("plugins"))
    if trainer.get("devices") in (0, "0", "", []):
        raise UserError("`trainer.devices` must be at least 1, auto or -1 for all there are, got 0")
    if isinstance(trainer.get("devices"), str) and not re.fullmatch(r"auto|-1|\d+(,\d+)*", trainer["devices"]):
        raise UserError(f"`trainer.devices` must be a number, auto or a list as 0,1, got {trainer['devices']!r}")
    if trainer.get("accelerator") == "cpu" and trainer.get("devices") in (-1, "-1"):
        raise UserError("`trainer.devices` must be at least 1 on a CPU, the number of processes, got -1")


def check_trainer(cfg: DictConfig) -> None:
    """Refuse options that Lightning refuses, or that a training cannot use, before anything is built.

    Args:
        cfg: Configuration of train or evaluate.
    """
    is_training = "loss" in cfg
    check_processes(cfg.trainer)
    if is_training and cfg.trainer.get("enable_checkpointing") is False:
        raise UserError(
            "`trainer.enable_checkpointing`: the best epoch of a training is scored, from its checkpoint. Leave it out."
        )
    if is_training:
        check_training(cfg.trainer, keeps_best=True)
    if is_ordinary(cfg.trainer):
        return
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no tips, no device lists
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the trainer that is used warns again
            instantiate(cfg.trainer, logger=False, callbacks=None, enable_progress_bar=False)
    except InstantiationException as error:
        if isinstance(error.__cause__, LIGHTNING_ERRORS):
            raise refuse_options(error) from error
        raise


def is_ordinary(trainer: JsonMapping) -> bool:
    """Tell whether Lightning takes these options for sure: building a trainer on trial takes 10 ms.

    Args:
        trainer: Options that `check_numbers` has let through.
    """
    others = {key: value for key, value in trainer.items() if key not in INDEPENDENT_OPTIONS}
    return others == ORDINARY


def _check_plugins(plugins: object) -> None:
    """Refuse plugins of a kind that a run sets itself: they would be replaced."""
    for node in [] if plugins is None else plugins if isinstance(plugins, list) else [plugins]:
        if not _is_built(node):
            raise UserError(f"`trainer.plugins` must be {BUILT}, or a list of such, got {node!r:.60}")
        try:
            plugin = _locate(node["_target_"])
        except ImportError:  # the error of the call will say so
            continue
        if isinstance(plugin, type) and issubclass(plugin, CheckpointIO):
            raise UserError("`trainer.plugins`: checkpoints are written by our own CheckpointIO. Leave this one out.")
        if isinstance(plugin, type) and issubclass(plugin, Precision):
            raise UserError("`trainer.plugins`: precision is given by trainer.precision. Leave the plugin out.")


def _is_built(node: object) -> TypeGuard[Mapping]:
    return isinstance(node, Mapping) and "_target_" in node


def refuse_options(error: Exception) -> UserError:
    """Return the error for options by which Lightning refuses to make a trainer."""
    reason = re.sub(r"\s+", " ", str(error.__cause__ or error).strip())
    return UserError(f"`trainer`: Lightning refuses these options: {reason}")


def check_precision(precision: str | int | None) -> None:
    """Refuse precisions other than single and mixed, in which weights and pixels stay single; null is single, too."""
    if precision is not None and str(precision) not in (AUTO, *PRECISIONS, *SHORT_PRECISIONS):
        raise UserError(f"`trainer.precision` must be one of {', '.join((AUTO, *PRECISIONS))}, got {precision}")


def resolve_precision(precision: str | int | None, on_gpu: bool, has_bf16: bool) -> str | int | None:
    """Return the precision that `auto` stands for on a device; any other is returned as it is.

    It is mixed on a GPU that computes in bfloat16. The unified benchmark trains in fp16, whose loss has to be scaled.

    >>> resolve_precision("auto", on_gpu=True, has_bf16=True), resolve_precision("auto", on_gpu=False, has_bf16=True)
    ('bf16-mixed', '32-true')
    """
    if precision != AUTO:
        return precision
    return "bf16-mixed" if on_gpu and has_bf16 else "32-true"


def device_precision(trainer: Mapping[str, object]) -> str | int | None:
    """Return the precision of a run on this machine's device.

    Args:
        trainer: Options of Lightning's Trainer.
    """
    precision = trainer.get("precision")
    assert isinstance(precision, str | int | None), "its type has been checked"
    on_gpu = _is_on_gpu(str(trainer.get("accelerator", "auto")))
    return resolve_precision(precision, on_gpu, on_gpu and torch.cuda.is_bf16_supported())


def uses_tf32(precision: str | int | None, on_gpu: bool) -> bool:
    """Tell whether products of single precision may be in TF32: on a GPU, unless the run is in single precision.

    Where features are in half precision, what is left in single is the head's and the loss's own. Similarities never
    are: see `core.device.full_float32`.

    >>> uses_tf32("bf16-mixed", on_gpu=True), uses_tf32("32-true", on_gpu=True), uses_tf32("bf16-mixed", on_gpu=False)
    (True, False, False)
    """
    return on_gpu and str(precision) in ("bf16-mixed", "16-mixed", "bf16", "16")


@contextmanager
def run_products(trainer: Trainer) -> Iterator[None]:
    """Set how the products of a run are computed on its GPU, and restore afterwards what the process had before."""
    on_gpu = trainer.strategy.root_device.type == "cuda"
    with float32_products(uses_tf32(trainer.precision, on_gpu)) if on_gpu else nullcontext():
        yield


def describe_precision(trainer: Trainer) -> str:
    """Name the precision of a run, and that of its products."""
    tf32 = uses_tf32(trainer.precision, trainer.strategy.root_device.type == "cuda")
    return f"{trainer.precision}{', TF32 products' if tf32 else ''}"


def check_training(trainer: DictConfig, keeps_best: bool) -> None:
    """Require a number of epochs and, if the best of them is kept, that at least one is validated.

    A fast_dev_run, whose limits are Lightning's own, is not checked.

    Args:
        trainer: Options of Lightning's Trainer.
        keeps_best: Whether the best epoch is kept, by its validation.

    Raises:
        UserError: The training could not be scheduled, or has no validation.
    """
    epochs, interval = trainer.max_epochs, trainer.get("check_val_every_n_epoch", 1)
    if trainer.get("fast_dev_run"):
        return
    if epochs is None or epochs < 1:
        raise UserError(f"`trainer.max_epochs` must be at least 1, got {epochs}: the learning rate is laid out for it")
    if not keeps_best:
        return
    if trainer.get("limit_val_batches") == 0:
        raise UserError(
            "`trainer.limit_val_batches` must be more than 0, got 0: the best epoch is kept, by its validation. "
            "Give 1 for a batch of it."
        )
    if interval is not None and interval > epochs:
        raise UserError(
            f"`trainer.check_val_every_n_epoch` must be at most {epochs}, the number of epochs, got {interval}: "
            "the best epoch is kept, by its validation"
        )


def check_processes(trainer: DictConfig) -> None:
    """Refuse devices and nodes that do not exist, before anything waits for them.

    Args:
        trainer: Options of Lightning's Trainer, as typed.

    Raises:
        UserError: `devices` or `num_nodes` is not a number, zero, or more than there are.
    """
    nodes = trainer.get("num_nodes", 1)
    if type(nodes) is not int or nodes < 1:
        raise UserError(f"`trainer.num_nodes` must be a whole number, at least 1, got {nodes}")
    if nodes > 1 and not {"MASTER_ADDR", "SLURM_NTASKS"} & {*os.environ}:
        raise UserError(
            f"`trainer.num_nodes`: nobody has started the processes of {nodes} nodes. Use scripts/torchrun.sh with "
            "NODES and MASTER on each of them, or leave it out"
        )
    _check_devices(trainer.get("devices", "auto"), _is_on_gpu(str(trainer.get("accelerator", "auto"))), nodes)


def _check_devices(devices: object, on_gpu: bool, nodes: int) -> None:
    if devices == "auto" or (on_gpu and str(devices) == "-1"):
        return
    available = torch.cuda.device_count() if on_gpu else max(PROCESSES, os.cpu_count() or 1)
    numbers = _parse_numbers(devices) or []
    if on_gpu and (isinstance(devices, ListConfig) or "," in str(devices)):
        count = len(numbers) if {*numbers} <= {*range(available)} and len({*numbers}) == len(numbers) else 0
    else:
        count = numbers[0] if len(numbers) == 1 else 0
    if not 1 <= count <= available:
        kind = f"of the {available} GPUs here" if on_gpu else f"from 1 to {available} processes of a CPU"
        raise UserError(f"`trainer.devices` must be auto or a number {kind}, got {devices}")
    started = read_launch_number("WORLD_SIZE", 1) if "TORCHELASTIC_RUN_ID" in os.environ else count * nodes
    if started != count * nodes:
        raise UserError(
            f"`trainer.devices`: torchrun has started {started} processes, got {devices} on {nodes} nodes. "
            "scripts/torchrun.sh gives both"
        )


def _is_on_gpu(accelerator: str) -> bool:
    return accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()


def _parse_numbers(devices: object) -> list[int] | None:
    """Return `2`, `"2"`, `[0, 1]` and `"0,1"` as a list of numbers; None if they are none."""
    parts = list(devices) if isinstance(devices, ListConfig) else str(devices).split(",")
    texts = [str(part).strip() for part in parts if str(part).strip()]
    return [int(text) for text in texts] if all(re.fullmatch(r"-?\d{1,9}", text) for text in texts) else None
