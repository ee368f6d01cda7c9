"""Validations of a training: which of them count for the best weights, and that there is one."""

import math
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from semcorr.core.errors import UserError
from semcorr.data.datamodule import PairDataModule
from semcorr.engine.optim import count_epoch_batches


def is_counted(done: int, interval: float, batches: float, keep_from: float, end: float | None = None) -> bool:
    """Tell whether a validation in the first epoch counts: from `keep_from` of it on, or where no other will follow.

    Args:
        done: Batches of the epoch before the validation.
        interval: Batches from one validation to the next.
        batches: Batches of the epoch.
        keep_from: Share of the epoch.
        end: Batches of the epoch that are trained on; None: all.

    >>> [is_counted(done, interval=25, batches=103, keep_from=0.6) for done in (25, 50, 75, 100)]
    [False, False, True, True]
    >>> is_counted(50, interval=50, batches=90, keep_from=0.6)
    True
    >>> [is_counted(done, interval=5, batches=20, keep_from=0.6, end=10) for done in (5, 10)]
    [False, True]
    """
    return done >= keep_from * batches or done + interval > (batches if end is None else end)


def counts_validation(trainer: Trainer, keep_from: float) -> bool:
    """Tell whether the validation that a trainer has just done counts for the best weights.

    Where the training ends in its first epoch, by `max_steps`, by `max_time` or by a callback, the last one counts.

    Args:
        trainer: Lightning's Trainer.
        keep_from: Share of the first epoch.
    """
    loop, interval = trainer.fit_loop, trainer.val_check_batch
    if trainer.current_epoch > 0 or trainer.sanity_checking or (trainer.should_stop and loop._can_stop_early):
        return True
    done, batches = loop.epoch_loop.batch_progress.current.ready, trainer.num_training_batches
    end = trainer.max_steps * trainer.accumulate_grad_batches if trainer.max_steps >= 0 else batches
    return is_counted(done, math.inf if interval is None else interval, batches, keep_from, min(end, batches))


def require_validation(trainer: Trainer, data: PairDataModule, begins: bool = True) -> None:
    """Refuse a training in which no validation takes place, before it begins.

    A `fast_dev_run`, whose limits are Lightning's own, is not checked.

    Args:
        trainer: Lightning's Trainer.
        data: Benchmark that is trained on, which knows the trainer.
        begins: Whether the training begins; one that is resumed may have been validated before.

    Raises:
        UserError: Validations are further apart than an epoch is long, or the first is due after the training's end.
    """
    if getattr(trainer, "fast_dev_run", False):
        return
    batches, every, interval = (
        count_epoch_batches(trainer, data),
        trainer.check_val_every_n_epoch,
        trainer.val_check_interval,
    )
    if isinstance(interval, float):  # a share of an epoch
        interval = max(1, int(batches * interval))
    elif every is not None and interval > batches:
        raise UserError(
            f"`trainer.val_check_interval` must be at most {batches}, the steps of an epoch, got {interval}. Give a "
            "smaller number, a share as 0.5, or null for the end of the epoch."
        )
    assert trainer.max_epochs is not None, "our configurations set it"
    end = _count_batches(trainer, batches)
    first = interval if every is None else (every - 1) * batches + interval
    if begins and first > end:
        raise UserError(_describe_absence(trainer, batches, first, end))


def _count_batches(trainer: Trainer, batches: int) -> int:
    """Return the batches of a whole training, which `max_steps` may end; a step has some, at the end of an epoch fewer.

    Args:
        trainer: Lightning's Trainer.
        batches: Batches of an epoch.
    """
    assert trainer.max_epochs is not None, "our configurations set it"
    if trainer.max_steps < 0:
        return trainer.max_epochs * batches
    epochs, steps = divmod(trainer.max_steps, math.ceil(batches / trainer.accumulate_grad_batches))
    return min(trainer.max_epochs * batches, epochs * batches + steps * trainer.accumulate_grad_batches)


def _describe_absence(trainer: Trainer, batches: int, first: int, end: int) -> str:
    """Return the sentence for a training that ends before its first validation."""
    assert trainer.max_epochs is not None, "our configurations set it"
    by_steps = end < trainer.max_epochs * batches
    option, value = ("max_steps", trainer.max_steps) if by_steps else ("val_check_interval", trainer.val_check_interval)
    epochs, rest = divmod(first, batches)
    accumulated = trainer.accumulate_grad_batches
    steps = epochs * math.ceil(batches / accumulated) + math.ceil(rest / accumulated)
    remedies = [f"trainer.max_steps={steps} or more"] if by_steps else []
    if end > 0 and (by_steps or trainer.check_val_every_n_epoch is None):
        interval = f"trainer.val_check_interval={min(end, batches)} or less"
        several = trainer.check_val_every_n_epoch not in (None, 1)
        remedies.append(f"trainer.check_val_every_n_epoch=1 and {interval}" if several else interval)
    return (
        f"`trainer.{option}` is {value}: the training ends after batch {end}, and its first validation, by which the "
        f"best weights are kept, is due after batch {first}. Give {', or '.join(remedies)}."
    )


def require_best(run_dir: Path, trainer: Trainer) -> None:
    """Refuse to score a training that has ended before a validation, as by `max_time`: it has no best weights.

    Args:
        run_dir: Directory of the run.
        trainer: Lightning's Trainer, after the training.

    Raises:
        UserError: There is no best.ckpt.
    """
    checkpoints = run_dir / "checkpoints"
    best = checkpoints / "best.ckpt"
    if best.is_file():
        return
    savers = (saver for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint))
    if any(saver.monitor is not None and saver.best_model_score is not None for saver in savers):
        raise UserError(
            f"{best}, which this training has written, does not exist any more. Train again in another run_dir."
        )
    last = checkpoints / "last.ckpt"
    saved = (
        f"Its last weights are in {last}. Go on with checkpoint={run_dir} and more time or epochs"
        if last.is_file()
        else "Nothing was saved. Train again with more time"
    )
    raise UserError(
        f"the training was ended at step {trainer.global_step}, by trainer.max_time or a callback, before the first "
        f"validation, by which the best weights are kept. {saved}."
    )
