"""Loading a head's weights from a file, with our own names or those of GeoAware-SC's aggregation network."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from semcorr.models.weights.checkpoints import read_weights
from semcorr.models.weights.loading import load_weights
from semcorr.models.weights.networks import recognise_weights

# From names in the files of GeoAware-SC and DIY-SC to ours, applied in this order. None matches a name of ours.
AGGREGATION = (
    (r"^mixing_weights$", "mixing"),
    (r"^bottleneck_layers\.(\d+)\.0\.(\w+)\.weight$", r"blocks.\1.\2.0.weight"),
    (r"^bottleneck_layers\.(\d+)\.0\.(\w+)\.norm\.", r"blocks.\1.\2.1."),
)
TEMPERATURES = ("logit_scale", "self_logit_scale")  # of their training losses; the network does not read them


def load_head_weights(head: nn.Module, path: str | Path) -> None:
    """Load weights from a file into a head; a key that is missing, unknown or of another shape is refused by name.

    `semcorr.export` writes such a file, head.safetensors.
    """
    state = read_weights(path, "head.weights")
    description = recognise_weights(state)
    network = "" if "head.weights" in description else description  # a head's: its shapes tell which
    load_weights(head, rename_head_keys(state), path, TEMPERATURES, "head.weights", network)


def rename_head_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename keys of GeoAware-SC's files to ours; other keys stay as they are.

    >>> import torch
    >>> list(rename_head_keys({"bottleneck_layers.3.0.shortcut.norm.bias": torch.zeros(1)}))
    ['blocks.3.shortcut.1.bias']
    """
    return {_rename_key(key): value for key, value in state.items()}


def _rename_key(key: str) -> str:
    """Return our name of a parameter of GeoAware-SC's aggregation network."""
    for pattern, replacement in AGGREGATION:
        key = re.sub(pattern, replacement, key)
    return key
