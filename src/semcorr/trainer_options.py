"""Options of Lightning's Trainer that it takes and that cannot work here, refused before anything is trained."""

from collections.abc import Sequence

from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig

from semcorr.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
SHORT = ("32", "bf16", "16")  # Lightning's other names for them


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
