"""Weights from a file, all of them or a sentence; and what they hash to."""

import hashlib
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import Tensor, nn

from semcorr.errors import UserError

HEADS = ("head", "fc", "classifier", "conv_head", "bn2")  # classifiers, which no backbone keeps


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict from safetensors, or from a pickle with `weights_only=True`."""
    try:
        content = load_state_dict(str(path), weights_only=True)
        return {key: value for key, value in content.items() if isinstance(value, Tensor)}
    except FileNotFoundError:
        raise UserError(f"`backbone.weights`: {path} does not exist. Give the path of a weights file.") from None
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, AttributeError) as error:
        raise UserError(
            f"`backbone.weights`: {path} is not a safetensors file or a plain PyTorch state dict ({_first(error)}). "
            "Give one that is."
        ) from None


def fill(
    module: nn.Module, weights: Mapping[str, Tensor], path: str | Path, spare: Collection[str] = frozenset()
) -> None:
    """Load `weights`, or name the first keys that do not fit.

    Surplus keys are no misfit where they are a classifier's or in `spare`: of parts that are not used.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    surplus = [key for key in weights if key not in own and key not in spare and not key.startswith(HEADS)]
    shapes = [
        f"{key} {tuple(weights[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    problems = {"missing": missing, "not known to this backbone": surplus, "of another shape": shapes}
    if any(problems.values()):
        told = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:3])}" for what, keys in problems.items() if keys)
        raise UserError(
            f"`backbone.weights`: {path} does not fit this backbone. {told}. Give weights of the same model."
        )
    module.load_state_dict({key: value for key, value in weights.items() if key in own}, strict=False)


def sha256(module: nn.Module) -> str:
    """Hash of all weights, by name: equal for equal weights, whatever file they came in."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
