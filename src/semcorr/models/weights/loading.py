"""Loading of weights into a network, all of them or an error, and the hash of weights."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from semcorr.core.errors import UserError

HEADS = ("head", "fc", "classifier", "conv_head", "bn2")  # classifiers, which no backbone has


def load_weights(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    path: str | Path,
    spare: Collection[str] = frozenset(),
    option: str = "backbone.weights",
    diagnosis: str = "",
) -> None:
    """Load weights into a network, all that it needs or none.

    Surplus keys are allowed if they are a classifier's or in `spare`.

    Args:
        module: Network to load the weights into.
        weights: Tensors by name.
        path: Path or name of the weights, for messages.
        spare: Names of tensors in parts that are not used.
        option: Option that the path was given as, for messages.
        diagnosis: Sentence on which network the file is of, for messages; empty where that is not known.

    Raises:
        UserError: Weights do not fit, and the message names the first keys; or a number is not finite.
    """
    part = {"pose.sam_weights": "model", "finetune.block_weights": "backbone"}.get(option, option.split(".")[0])
    module_state = module.state_dict()
    weights = _remove_prefix(weights, module_state)
    missing = [key for key in module_state if key not in weights and not key.endswith("num_batches_tracked")]
    surplus = [key for key in weights if key not in module_state and key not in spare and not key.startswith(HEADS)]
    shapes = [
        f"{key} {tuple(weights[key].shape)} for {tuple(module_state[key].shape)}"
        for key in module_state
        if key in weights and weights[key].shape != module_state[key].shape
    ]
    integers = [
        f"{key} {weights[key].dtype} for {module_state[key].dtype}".replace("torch.", "")
        for key in module_state
        if key in weights and module_state[key].is_floating_point() and not weights[key].is_floating_point()
    ]
    problems = {
        "missing": missing,
        f"not known to this {part}": surplus,
        "of another shape": shapes,
        "of whole numbers": integers,
    }
    if any(problems.values()):
        summary = "; ".join(
            f"{len(keys)} {problem}: {', '.join(keys[:3])}" for problem, keys in problems.items() if keys
        )
        raise UserError(
            f"`{option}`: {path} does not fit this {part}. {summary}. {diagnosis or 'Give weights of the same model.'}"
        )
    fitting = {
        key: _convert_precision(value, module_state[key]) for key, value in weights.items() if key in module_state
    }
    require_finite_weights(fitting, f"`{option}`: {path}")
    module.load_state_dict(fitting, strict=False)


def _remove_prefix(weights: Mapping[str, Tensor], module_state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Remove the one prefix of a script, such as `model.`, that a whole network is under, if none is without."""
    needed = [key for key in module_state if not key.endswith("num_batches_tracked")]
    if not needed or any(key in weights for key in needed):
        return weights
    candidates = [key.removesuffix(needed[0]) for key in weights if key.endswith(f".{needed[0]}")]
    prefixes = [prefix for prefix in candidates if all(prefix + key in weights for key in needed)]
    if len(prefixes) != 1:
        return weights
    return {key.removeprefix(prefixes[0]): value for key, value in weights.items() if key.startswith(prefixes[0])}


def _convert_precision(value: Tensor, reference: Tensor) -> Tensor:
    """Convert to the precision of the network, before values are checked: finite in 64 bits may be infinite in 32."""
    return value.to(reference.dtype) if reference.is_floating_point() and value.is_floating_point() else value


def require_finite_weights(
    state: Mapping[str, Tensor], origin: str, remedy: str = "Give another copy of the weights."
) -> None:
    """Refuse weights with a NaN or an infinite number in them: every feature would be one, or silently be zero.

    Args:
        state: Parameters and buffers by name, as in a state dict.
        origin: Source of the weights for the message, with the file if there is one.
        remedy: Sentence on what to do.

    Raises:
        UserError: A number is not finite; the message names the first such tensor.
    """
    for name, value in state.items():
        if (value.is_floating_point() or value.is_complex()) and not _is_finite(value.detach()):
            count = int((~torch.isfinite(value)).sum())
            raise UserError(
                f"{origin}: {count} of the {value.numel()} numbers in {name} are not finite (NaN or infinite). {remedy}"
            )


def _is_finite(value: Tensor) -> bool:
    """Tell whether all numbers are finite: by their sum, which needs no flag per number, and if it is not, by each."""
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


def weights_sha256(module: nn.Module) -> str:
    """Hash all weights by name: equal for equal weights, whatever file they came in."""
    return hash_weights(module.state_dict())


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """Hash weights by name, such as some of a network's."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
