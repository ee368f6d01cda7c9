"""Training mode only where something trains."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def keep_frozen_in_eval(backbone: nn.Module) -> None:
    """Put every module without a moving parameter back into eval mode, after `train()`.

    Batch norms stay there even where their scale trains: statistics of a few images would make a map
    depend on its neighbours in the batch.
    """
    for module in backbone.modules():
        frozen = not any(parameter.requires_grad for parameter in module.parameters())
        if frozen or isinstance(module, _BatchNorm):
            module.training = False
