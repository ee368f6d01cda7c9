"""Tensors and arrays whose values can all be read, as a caller hands them over."""

import numpy as np
import torch
from torch import Tensor

from semcorr.core.errors import UserError


def to_plain_tensor(tensor: Tensor, name: str) -> Tensor:
    """Return a tensor of a caller without its graph, on the CPU.

    Args:
        tensor: The tensor.
        name: Argument that holds it, for messages.

    Raises:
        UserError: It is sparse, nested or quantised, or on the device `meta`, where there are no values.
    """
    if tensor.device.type == "meta":
        raise UserError(f"`{name}`: a tensor on the device meta has no values. Give one on the CPU or a GPU")
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "a nested" if tensor.is_nested else f"a {str(tensor.layout).removeprefix('torch.')}"
        remedy = "Give one of one shape" if tensor.is_nested else "Give tensor.to_dense()"
        raise UserError(f"`{name}` must be a dense tensor, got {kind} one. {remedy}")
    if tensor.is_quantized:
        raise UserError(f"`{name}` must be a plain tensor, got a quantised one. Give tensor.dequantize()")
    return tensor.detach().cpu()


def require_unmasked(values: object, name: str) -> None:
    """Refuse a masked array, or a list of them, with values that are masked: they would count as any other.

    Args:
        values: Anything that a caller gave.
        name: Argument that holds it, for messages.
    """
    rows = values if isinstance(values, list | tuple) else [values]
    if any(isinstance(row, np.ma.MaskedArray) and np.ma.is_masked(row) for row in rows):
        raise UserError(
            f"`{name}`: a masked array holds values that are masked. Give array.filled(VALUE), or leave them out"
        )
