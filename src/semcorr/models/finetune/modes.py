"""Training mode only for modules with trainable parameters."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def keep_frozen_in_eval(backbone: nn.Module) -> None:
    """Put every part whose parameters are all frozen back into eval mode, after `train()`.

    Batch norms stay in eval mode even if their scale is trained: statistics of a few images would make a map
    depend on its neighbours in the batch.
    """
    parameters = list(backbone.parameters())
    if (parameters and not any(parameter.requires_grad for parameter in parameters)) or isinstance(
        backbone, _BatchNorm
    ):
        backbone.eval()
        return
    for child in backbone.children():
        keep_frozen_in_eval(child)
