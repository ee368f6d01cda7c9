"""Plain gradient descent: rounding of a gradient stays rounding of a weight, which AdamW's division would enlarge."""

from collections.abc import Iterable

from torch.nn import Parameter
from torch.optim import SGD


def sgd(
    head: Iterable[Parameter],
    backbone: Iterable[Parameter],
    lr: float,
    backbone_lr: float,
    weight_decay: float,
    lr_scaling: None = None,
    lr_batch_size: None = None,
) -> SGD:
    groups = [{"params": list(head), "lr": lr}, {"params": list(backbone), "lr": backbone_lr}]
    return SGD([group for group in groups if group["params"]], weight_decay=weight_decay)
