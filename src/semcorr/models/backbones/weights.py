"""Weights into a network, all of them or a sentence; and what they hash to."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from semcorr.core.errors import UserError

HEADS = ("head", "fc", "classifier", "conv_head", "bn2")  # classifiers, which no backbone keeps


def load_weights(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    path: str | Path,
    spare: Collection[str] = frozenset(),
    option: str = "backbone.weights",
    of: str = "",
) -> None:
    """Load `weights`, or name the first keys that do not fit.

    Surplus keys are no misfit where they are a classifier's or in `spare`: of parts that are not used.
    `option` is what the path was given as; `of` is a sentence on which network the file is of.
    """
    part = "model" if option == "pose.sam_weights" else option.split(".")[0]
    own = module.state_dict()
    weights = _without_prefix(weights, own)
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    surplus = [key for key in weights if key not in own and key not in spare and not key.startswith(HEADS)]
    shapes = [
        f"{key} {tuple(weights[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    whole = [
        f"{key} {weights[key].dtype} for {own[key].dtype}".replace("torch.", "")
        for key in own
        if key in weights and own[key].is_floating_point() and not weights[key].is_floating_point()
    ]
    problems = {
        "missing": missing, f"not known to this {part}": surplus, "of another shape": shapes,
        "of whole numbers": whole,
    }  # fmt: skip
    if any(problems.values()):
        told = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:3])}" for what, keys in problems.items() if keys)
        raise UserError(
            f"`{option}`: {path} does not fit this {part}. {told}. {of or 'Give weights of the same model.'}"
        )
    fitting = {key: _converted(value, own[key]) for key, value in weights.items() if key in own}
    require_finite_weights(fitting, f"`{option}`: {path}")
    module.load_state_dict(fitting, strict=False)


def _without_prefix(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Take what stands whole under one name of a script's own, such as `model.`, for what stands under none."""
    needed = [key for key in own if not key.endswith("num_batches_tracked")]
    if not needed or any(key in weights for key in needed):
        return weights
    names = [key.removesuffix(needed[0]) for key in weights if key.endswith(f".{needed[0]}")]
    whole = [name for name in names if all(name + key in weights for key in needed)]
    if len(whole) != 1:
        return weights
    return {key.removeprefix(whole[0]): value for key, value in weights.items() if key.startswith(whole[0])}


def _converted(value: Tensor, like: Tensor) -> Tensor:
    """In the precision of the network, before it is looked at: what is finite in 64 bits may not be in 32."""
    return value.to(like.dtype) if like.is_floating_point() and value.is_floating_point() else value


def require_finite_weights(state: Mapping[str, Tensor], origin: str) -> None:
    """Refuse weights with a NaN or an infinite number in them: every feature would be one, or quietly be zero.

    Args:
        state: Parameters and buffers by name, as in a state dict.
        origin: Where they come from, with the file if there is one.

    Raises:
        UserError: It names the first of them.
    """
    for name, value in state.items():
        if (value.is_floating_point() or value.is_complex()) and not _is_finite(value.detach()):
            wrong = int((~torch.isfinite(value)).sum())
            raise UserError(
                f"{origin}: {wrong} of the {value.numel()} numbers in {name} are not finite (NaN or infinite). "
                "Give another copy of the weights."
            )


def _is_finite(value: Tensor) -> bool:
    """First by a sum, which writes no flag per number; what overflows that may still be finite."""
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


def weights_sha256(module: nn.Module) -> str:
    """Hash of all weights, by name: equal for equal weights, whatever file they came in."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
