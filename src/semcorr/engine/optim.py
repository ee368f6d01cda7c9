"""Constructors of the optimiser and the learning-rate schedule, and the number of steps of a schedule."""

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from lightning import Trainer
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, Range, Rate, Share, check_arguments
from semcorr.core.text_files import JsonMapping
from semcorr.data.datamodule import PairDataModule
from semcorr.models.finetune.rates import group_by_rate


@check_arguments("optimizer")
def adamw(
    head: Iterable[Parameter],
    backbone: Iterable[Parameter],
    lr: Rate = 1e-4,
    backbone_lr: Rate = 1e-4,
    weight_decay: Annotated[float, Range(least=0, most=100)] = 0.05,
    lr_scaling: Literal["linear", "sqrt"] | None = None,
    lr_batch_size: Count | None = None,
) -> AdamW:
    """Make AdamW with one learning rate for the head and another for the trainable weights of the backbone.

    The rates and the decay are those of the unified benchmark's code. Their scaling stands in the groups, from where
    `scale_rates` takes it: how many pairs a step has is known to the trainer.

    Args:
        head: Trainable parameters of the head.
        backbone: Trainable parameters of the backbone.
        lr: Rate of the head.
        backbone_lr: Rate of the backbone; times a factor, where `finetune` has one for some of its weights.
        weight_decay: Decay of both.
        lr_scaling: Growth of the rates with the pairs of a step; None: the rates are as given.
        lr_batch_size: Pairs of the step that the rates are for.

    Raises:
        UserError: Only one of the last two is given.
    """
    _require_scaling(lr_scaling, lr_batch_size)
    scaling = {"lr_scaling": lr_scaling, "lr_batch_size": lr_batch_size} if lr_scaling else {}
    groups = [{"params": list(head), "lr": lr, "name": "head", **scaling}]
    for factor, parameters in group_by_rate(backbone).items():
        name = "backbone" if factor == 1 else f"backbone x {factor:g}"
        groups.append({"params": parameters, "lr": backbone_lr * factor, "name": name, **scaling})
    return AdamW([group for group in groups if group["params"]], weight_decay=weight_decay)


def check_rates(content: JsonMapping) -> None:
    """Refuse a scaling of the rates of which an option is missing, or for which a step has no fixed number of pairs.

    Args:
        content: Resolved configuration of a command.
    """
    optimizer, data = content.get("optimizer") or {}, content.get("data") or {}
    rule, base = optimizer.get("lr_scaling"), optimizer.get("lr_batch_size")
    _require_scaling(rule, base)
    if rule is not None and data.get("all_pairs") is not None:
        raise UserError(
            "`optimizer.lr_scaling` goes by the pairs of a step, and with data.all_pairs these are as many as its "
            "images happen to share. Give the rates themselves and optimizer.lr_scaling=null"
        )


def _require_scaling(rule: object, base: object) -> None:
    """Refuse a scaling of the rates of which only the rule or only the number of pairs is given."""
    if (rule is None) != (base is None):
        missing, present, value = (
            ("lr_batch_size", "lr_scaling", rule) if base is None else ("lr_scaling", "lr_batch_size", base)
        )
        raise UserError(
            f"`optimizer.{present}` is {value}, and optimizer.{missing} is null. Give both: the rates are "
            "for steps of lr_batch_size pairs, and lr_scaling is linear or sqrt"
        )


def scale_rates(optimizer: Optimizer, step_pairs: int) -> None:
    """Scale the rates of an optimiser from the pairs of a step that they are for to those that a step has.

    >>> optimizer = adamw([Parameter()], [], lr=0.1, lr_scaling="sqrt", lr_batch_size=8)
    >>> scale_rates(optimizer, step_pairs=32)
    >>> optimizer.param_groups[0]["lr"]
    0.2
    """
    for group in optimizer.param_groups:
        if rule := group.get("lr_scaling"):
            ratio = step_pairs / group["lr_batch_size"]
            group["lr"] *= math.sqrt(ratio) if rule == "sqrt" else ratio


def count_step_pairs(trainer: Trainer, data: PairDataModule) -> int:
    """Return the training pairs of an optimiser step, of all processes and accumulated batches."""
    batch = data.global_batch_size or min(data.batch_size, len(data.pairs("train"))) * trainer.world_size
    return batch * trainer.accumulate_grad_batches


@check_arguments("scheduler")
def one_cycle(optimizer: Optimizer, steps: int, epoch_steps: int, warmup: Share = 0.3) -> LRScheduler:
    """Make a schedule that rises for a share of all steps, then falls along a cosine.

    It is the schedule of GeoAware-SC on SPair-71k.

    Args:
        optimizer: The optimiser, whose rates are the highest of the schedule.
        steps: Optimiser steps of the run.
        epoch_steps: Optimiser steps of an epoch, which this schedule does not depend on.
        warmup: Share of the steps in which the rates rise.
    """
    rates, total = [group["lr"] for group in optimizer.param_groups], max(2, steps)
    share = float(warmup) if warmup * total != 1 else (1 + 1e-9) / total  # PyTorch divides by the length less one
    share = min(share, 1 - 0.5 / total)  # likewise by the length of the fall
    return OneCycleLR(optimizer, max_lr=rates, total_steps=total, pct_start=share)


@check_arguments("scheduler")
def step_decay(
    optimizer: Optimizer, steps: int, epoch_steps: int, milestones: Sequence[Count] = (1, 2), factor: Share = 0.5
) -> LRScheduler:
    """Make a schedule that multiplies the rate by `factor` after each of the epochs in `milestones`.

    The unified benchmark's code halves it after epochs 1 and 2. The rate of a step follows from its number alone, so
    that a resumed run has the rates of an uninterrupted one, and a run can be made longer.

    Args:
        optimizer: The optimiser.
        steps: Optimiser steps of the run, which this schedule does not depend on.
        epoch_steps: Optimiser steps of an epoch.
        milestones: Epochs after which the rate falls, each once.
        factor: What the rate is multiplied by.
    """
    falls = [epoch * epoch_steps for epoch in milestones]
    return LambdaLR(optimizer, lambda step: factor ** sum(step >= fall for fall in falls))


def constant_rate(optimizer: Optimizer, steps: int, epoch_steps: int) -> LRScheduler:
    """Make a schedule of a constant rate, which depends on neither number of steps."""
    return LambdaLR(optimizer, lambda step: 1.0)


def count_steps(trainer: Trainer, data: PairDataModule) -> int:
    """Return the number of optimiser steps of the whole run.

    Lightning's own estimate starts the training loader, before a resumed run knows its epoch.
    """
    assert trainer.max_epochs is not None, "our configurations set it"
    epochs = count_epoch_steps(trainer, data) * trainer.max_epochs
    return min(epochs, trainer.max_steps) if trainer.max_steps > 0 else epochs


def count_epoch_steps(trainer: Trainer, data: PairDataModule) -> int:
    """Return the number of optimiser steps of an epoch, which `trainer.limit_train_batches` may cut."""
    return math.ceil(count_epoch_batches(trainer, data) / trainer.accumulate_grad_batches)


def count_epoch_batches(trainer: Trainer, data: PairDataModule) -> int:
    """Return the number of batches of an epoch on each process, which `trainer.limit_train_batches` may cut."""
    batches, limit = len(data.stream()), trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)  # a number, or a share


def refuse_longer(checkpoint: JsonMapping, steps: int) -> None:
    """Refuse more steps than the schedule of a checkpoint, or the momentum of its teacher, was laid out for.

    Args:
        checkpoint: Content of the checkpoint.
        steps: Optimiser steps of the whole run.
    """
    callbacks = [state for state in checkpoint["callbacks"].values() if isinstance(state, dict)]
    for states, name, remedy in (
        (checkpoint["lr_schedulers"], "learning rate", "scheduler=constant"),
        (callbacks, "teacher's momentum", "callbacks.ema_teacher.momentum_end=null"),
    ):
        totals = [state["total_steps"] for state in states if "total_steps" in state]
        if totals and steps > min(totals):
            raise UserError(
                f"`trainer.max_epochs`: the {name} of this run was laid out for {min(totals)} steps, and would have "
                f"to last for {steps}. Go on with its own max_epochs, or train again: a run that has {remedy} from the "
                "start can be made longer."
            )
