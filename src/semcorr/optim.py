"""Optimiser and learning-rate schedule as plain constructors."""

from collections.abc import Iterable

from torch.nn import Parameter
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR


def adamw(
    head: Iterable[Parameter],
    backbone: Iterable[Parameter],
    lr: float = 1e-3,
    backbone_lr: float = 1e-5,
    weight_decay: float = 0.05,
) -> AdamW:
    """AdamW with a rate for the head and its own, smaller one for the backbone's moving weights."""
    groups = [
        {"params": list(head), "lr": lr, "name": "head"},
        {"params": list(backbone), "lr": backbone_lr, "name": "backbone"},
    ]
    return AdamW([group for group in groups if group["params"]], weight_decay=weight_decay)


def one_cycle(optimizer: AdamW, steps: int, warmup: float = 0.3) -> LRScheduler:
    """Up for the `warmup` share of the steps, then down along a cosine (GeoAware-SC on SPair-71k)."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, max_lr=rates, total_steps=max(2, steps), pct_start=warmup)


def constant(optimizer: AdamW, steps: int) -> LRScheduler:
    """The same rate throughout."""
    return LambdaLR(optimizer, lambda step: 1.0)
