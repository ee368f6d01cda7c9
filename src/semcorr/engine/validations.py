"""Validations of a training: that they fit into its epochs."""

from lightning import Trainer

from semcorr.core.errors import UserError
from semcorr.data.datamodule import PairDataModule
from semcorr.engine.optim import count_epoch_batches


def require_validation(trainer: Trainer, data: PairDataModule) -> None:
    """Refuse a training whose validations are further apart than its epochs are long, before it begins.

    A `fast_dev_run`, whose limits are Lightning's own, is not checked.

    Args:
        trainer: Lightning's Trainer.
        data: Benchmark that is trained on, which knows the trainer.

    Raises:
        UserError: `trainer.val_check_interval` is more than the batches of an epoch.
    """
    if getattr(trainer, "fast_dev_run", False):
        return
    batches, every, interval = (
        count_epoch_batches(trainer, data),
        trainer.check_val_every_n_epoch,
        trainer.val_check_interval,
    )
    if isinstance(interval, int) and every is not None and interval > batches:
        raise UserError(
            f"`trainer.val_check_interval` must be at most {batches}, the steps of an epoch, got {interval}. Give a "
            "smaller number, a share as 0.5, or null for the end of the epoch."
        )
