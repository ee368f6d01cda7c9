"""Weights of the tiny backbone that are the same on every processor, to the last bit.

Random ones are not: PyTorch's truncated normal depends on the number of threads and on the instruction set, and a run
remembers the checksum of the weights that it was trained on.
"""

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor


def write_exact_weights(path: Path) -> Path:
    """Write the weights of `backbone=tiny`: scaled bit patterns, no product and no root. None is resized on loading."""
    model = timm.create_model("vit_tiny_patch16_224", patch_size=8, embed_dim=48, depth=4, num_heads=3, num_classes=0)
    state = model.state_dict()
    save_file({name: _fill(values, seed) for seed, (name, values) in enumerate(state.items())}, path)
    return path


def _fill(values: Tensor, seed: int) -> Tensor:
    """Return numbers from -1/32 to 1/32, by xorshift; those of a norm's scale lie around 1."""
    bits = torch.arange(1, values.numel() + 1) * 7919 + seed * 104729
    for _ in range(3):
        bits = bits ^ (bits << 13) & 0xFFFFFFFF
        bits = bits ^ (bits >> 17)
        bits = bits ^ (bits << 5) & 0xFFFFFFFF
    small = ((bits & 0xFFFF).float() / 65536 - 0.5) / 16
    is_scale = values.ndim == 1 and bool((values == 1).all())
    return (small + 1 if is_scale else small).view_as(values)
