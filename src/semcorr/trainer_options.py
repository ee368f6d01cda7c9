"""Options of Lightning's Trainer that it takes and that cannot work here, refused before anything is trained."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig

from semcorr.core.ranges import Count, Positive, Whole, Within, require
from semcorr.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
SHORT = ("32", "bf16", "16")  # Lightning's other names for them


OPTIONS: dict[str, Any] = {  # what may be given by number; Lightning's own checks leave NaN, 1e30 and text to crash
    "devices": Annotated[int, Within(least=-1)] | str | Sequence[Whole],
    "num_nodes": Count,
    "max_epochs": int | None,
    "min_epochs": Count | None,
    "max_steps": Annotated[int, Within(least=-1)],
    "min_steps": Count | None,
    "gradient_clip_val": Annotated[float, Within(least=0)] | None,
    "accumulate_grad_batches": Count,
    "log_every_n_steps": Count,
    "check_val_every_n_epoch": Count | None,
    "val_check_interval": Positive | None,
    "num_sanity_val_steps": Annotated[int, Within(least=-1)],
    "fast_dev_run": bool | Whole,
    "overfit_batches": Annotated[float, Within(least=0)],
    "limit_train_batches": Annotated[float, Within(least=0)] | None,
    "limit_val_batches": Annotated[float, Within(least=0)] | None,
    "limit_test_batches": Annotated[float, Within(least=0)] | None,
    "use_distributed_sampler": bool,
    "enable_model_summary": bool,
    "accelerator": str,
    "strategy": str,
    "precision": str | int | None,
}


def check_numbers(trainer: Mapping[str, Any]) -> None:
    """Every option of the Trainer that is given is of a type, and in a range, that it can work with.

    Args:
        trainer: The node of the configuration.

    Raises:
        UserError: One is not.
    """
    for key, hint in OPTIONS.items():
        if key in trainer and not isinstance(trainer[key], Mapping):
            require(f"trainer.{key}", trainer[key], hint)
    if trainer.get("devices") in (0, "0", "", []):
        raise UserError("`trainer.devices` must be at least 1, auto or -1 for all there are, got 0")
    if isinstance(trainer.get("devices"), str) and not re.fullmatch(r"auto|-1|\d+(,\d+)*", trainer["devices"]):
        raise UserError(f"`trainer.devices` must be a number, auto or a list as 0,1, got {trainer['devices']!r}")
    if trainer.get("accelerator") == "cpu" and trainer.get("devices") in (-1, "-1"):
        raise UserError("`trainer.devices` must be at least 1 on a CPU, the number of processes, got -1")


def refuse_options(error: Exception) -> UserError:
    """What to tell where Lightning refuses to make a trainer."""
    reason = re.sub(r"\s+", " ", str(error.__cause__ or error).strip())
    return UserError(f"`trainer`: Lightning refuses these options: {reason}")


def check_precision(given: str | int | None) -> None:
    """Weights and pixels stay in single precision; Lightning's default, for null, is that too."""
    if given is not None and str(given) not in (*PRECISIONS, *SHORT):
        raise UserError(f"`trainer.precision` must be one of {', '.join(PRECISIONS)}, got {given}")


def check_training(trainer: DictConfig, callbacks: Sequence[Callback]) -> None:
    """Epochs are counted ahead; and where the best of them is kept, one must be validated.

    In a fast_dev_run, whose limits are Lightning's own, nothing of this is asked for.
    """
    epochs, every = trainer.max_epochs, trainer.get("check_val_every_n_epoch", 1)
    if trainer.get("fast_dev_run"):
        return
    if epochs is None or epochs < 1:
        raise UserError(f"`trainer.max_epochs` must be at least 1, got {epochs}: the learning rate is laid out for it")
    if not any(isinstance(each, ModelCheckpoint) for each in callbacks):
        return
    if trainer.get("limit_val_batches") == 0:
        raise UserError(
            "`trainer.limit_val_batches` must be more than 0, got 0: the best epoch is kept, by its validation. "
            "Give 1 for a batch of it."
        )
    if every is not None and every > epochs:
        raise UserError(
            f"`trainer.check_val_every_n_epoch` must be at most {epochs}, the number of epochs, got {every}: "
            "the best epoch is kept, by its validation"
        )
