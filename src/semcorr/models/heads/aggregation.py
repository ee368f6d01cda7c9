"""Head of a bottleneck for each of several maps, mixed, then cosines: GeoAware-SC's post-processor, and DIY-SC's."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, Dropout, check_arguments
from semcorr.core.types import FeatureMap
from semcorr.models.heads.bottleneck import ResidualBottleneck
from semcorr.models.heads.cosine import Cosine
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


class Aggregation(Cosine):
    """A bottleneck for each part of the channels, added up with learned shares, then cosine similarity.

    "Four bottleneck layers with 5M parameters" (Zhang et al. 2024) are four side by side, not in series: one for
    each of Stable Diffusion's three maps and one for DINOv2's. With DINOv2's alone it is DIY-SC's adapter.

    Args:
        maps: Channels of each part, in the order in which the backbone concatenates them.
        out: Output channels of every bottleneck.
        width: Channels in the middle of every bottleneck.
        groups: Groups of every group norm.
        dropout: Share of the input's elements that is set to zero in a training step.
        weights: Weight file to start from; those of GeoAware-SC and DIY-SC are understood, too.
    """

    @check_arguments("head")
    def __init__(
        self,
        maps: Sequence[Count],
        out: Count = 768,
        width: Count = 192,
        groups: int = 32,
        dropout: Dropout = 0.2,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        self.maps = list(maps)
        if not self.maps:
            raise UserError("`head.maps` must name the channels of at least one map, or be null for the backbone's")
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(ResidualBottleneck(channels, out, width, groups) for channels in self.maps)
        self.mixing = nn.Parameter(torch.ones(len(self.maps)))
        if weights is not None:
            load_head_weights(self, weights)

    def adapt(self, maps: FeatureMap) -> FeatureMap:
        """Return the sum of the bottlenecks' outputs, in shares that add up to one."""
        parts = self.dropout(maps.values.to(self.mixing.dtype)).split(self.maps, dim=1)
        branches = zip(self.mixing.softmax(0), self.blocks, parts, strict=True)
        mixed = sum((share * block(part) for share, block, part in branches), start=self.mixing.new_zeros(()))
        return FeatureMap(mixed, maps.stride)
