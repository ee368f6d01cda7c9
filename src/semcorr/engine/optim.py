"""Optimiser and learning-rate schedule as plain constructors, and how many steps a schedule is laid out for."""

import math
from collections.abc import Iterable
from typing import Annotated

from lightning import Trainer
from torch.nn import Parameter
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from semcorr.core.errors import UserError
from semcorr.core.ranges import Range, Rate, Share, check_arguments
from semcorr.core.text_files import JsonMapping
from semcorr.data.datamodule import PairDataModule


@check_arguments("optimizer")
def adamw(
    head: Iterable[Parameter],
    backbone: Iterable[Parameter],
    lr: Rate = 1e-3,
    backbone_lr: Rate = 1e-5,
    weight_decay: Annotated[float, Range(least=0, most=100)] = 0.05,
) -> AdamW:
    """AdamW with a rate for the head and its own, smaller one for the backbone's moving weights."""
    groups = [
        {"params": list(head), "lr": lr, "name": "head"},
        {"params": list(backbone), "lr": backbone_lr, "name": "backbone"},
    ]
    return AdamW([group for group in groups if group["params"]], weight_decay=weight_decay)


@check_arguments("scheduler")
def one_cycle(optimizer: AdamW, steps: int, warmup: Share = 0.3) -> LRScheduler:
    """Up for the `warmup` share of the steps, then down along a cosine (GeoAware-SC on SPair-71k)."""
    rates, total = [group["lr"] for group in optimizer.param_groups], max(2, steps)
    share = float(warmup) if warmup * total != 1 else (1 + 1e-9) / total  # PyTorch divides by the length less one
    share = min(share, 1 - 0.5 / total)  # likewise by that of the way down
    return OneCycleLR(optimizer, max_lr=rates, total_steps=total, pct_start=share)


def constant_rate(optimizer: AdamW, steps: int) -> LRScheduler:
    """The same rate throughout."""
    return LambdaLR(optimizer, lambda step: 1.0)


def count_steps(trainer: Trainer, data: PairDataModule) -> int:
    """Optimiser steps of the whole run.

    Lightning's own estimate starts the training loader, before a resumed run knows its epoch.
    """
    epochs = math.ceil(len(data.stream()) / trainer.accumulate_grad_batches) * trainer.max_epochs
    return min(epochs, trainer.max_steps) if trainer.max_steps > 0 else epochs


def refuse_longer(checkpoint: JsonMapping, steps: int) -> None:
    """A schedule that has an end cannot go on beyond it: `steps` must not be more than it was laid out for."""
    laid_out = [state["total_steps"] for state in checkpoint["lr_schedulers"] if "total_steps" in state]
    if laid_out and steps > min(laid_out):
        raise UserError(
            f"`trainer.max_epochs`: the learning rate of this run was laid out for {min(laid_out)} steps, and would "
            f"have to last for {steps}. Go on with its own max_epochs, or train anew: a run that has "
            "scheduler=constant from the start can be made longer."
        )
