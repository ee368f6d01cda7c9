"""Head of a bottleneck for each of several maps, mixed, then cosines: GeoAware-SC's post-processor, and DIY-SC's."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, Dropout, Whole, check_arguments
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
# Channels of the four maps of GeoAware-SC's file in its order, Stable Diffusion's finest map first (s3, s4, s5, then
# DINOv2), and of the same maps in that of our decoder, coarsest first; and the block of the file for each of ours.
AUTHORS_MAPS, DECODER_MAPS, DECODER_ORDER = [640, 1280, 1280, 768], [1280, 1280, 640, 768], [2, 1, 0, 3]
TEMPERATURES = ("logit_scale", "self_logit_scale")  # of their training losses; the network does not read them


def load_aggregation_weights(head: "Aggregation", path: str | Path, order: Sequence[int] | None = None) -> None:
    """Load weights from a file into the head; a key that is missing, unknown or of another shape is refused by name.

    A file of `semcorr.export`, head.safetensors, has its blocks in the order of `head.maps`. One with the names of
    GeoAware-SC and DIY-SC is taken to have them in the order of their code: Stable Diffusion's maps from the finest to
    the coarsest (640, 1280, 1280 channels: s3, s4, s5), then DINOv2's (768). They are put in the order of `head.maps`.

    Args:
        head: Head to load the weights into.
        path: Path of the file.
        order: For each block of the head, the number of its block in the file, from 0. None leaves it to the names and
            the channels of the file's tensors; with several steps, blocks are in the order of the layers.

    Raises:
        UserError: The file does not fit, or is of another code's maps, several of which have the same channels, so that
            it does not tell which of its blocks is for which map.
    """
    content = read_weights(path, "head.weights")
    description = recognise_weights(content)
    network = "" if "head.weights" in description else description  # a head's: its shapes tell which
    state, maps = rename_head_keys(content), head.maps[:: head.steps]
    is_own = state.keys() == content.keys()
    if head.steps > 1 and not is_own and len(state.get("mixing", ())) == len(head.maps):
        state["mixing"] = state["mixing"].view(head.steps, len(maps)).T.flatten()  # theirs are timestep by timestep
    if order is None:
        order = list(range(len(maps))) if is_own or head.steps > 1 else _find_order(state, maps, path)
    if sorted(order) != list(range(len(maps))):
        raise UserError(f"`head.weights_order` must hold each number from 0 to {len(maps) - 1} once, got {list(order)}")
    load_weights(head, reorder_blocks(state, order), path, TEMPERATURES, "head.weights", network)


def reorder_blocks(state: Mapping[str, Tensor], order: Sequence[int]) -> dict[str, Tensor]:
    """Reorder the blocks of a file, and their shares, one or several for each: block `order[i]` becomes block i.

    >>> import torch
    >>> blocks = {"blocks.0.w": torch.tensor(5), "blocks.1.w": torch.tensor(6), "mixing": torch.tensor([0.1, 0.9])}
    >>> reorder_blocks(blocks, [1, 0])
    {'blocks.1.w': tensor(5), 'blocks.0.w': tensor(6), 'mixing': tensor([0.9000, 0.1000])}
    """
    numbers = {str(old): str(new) for new, old in enumerate(order)}

    def rename(match: re.Match[str]) -> str:
        return f"{match[1]}blocks.{numbers.get(match[2], match[2])}."

    renamed = {re.sub(r"(^|\.)blocks\.(\d+)\.", rename, key): value for key, value in state.items()}
    shares = {
        key
        for key, value in state.items()
        if re.search(r"(^|\.)mixing$", key) and value.ndim == 1 and len(value) % len(order) == 0
    }
    return {
        key: value.unflatten(0, (len(order), -1))[list(order)].flatten() if key in shares else value
        for key, value in renamed.items()
    }


def _find_order(state: Mapping[str, Tensor], maps: Sequence[int], path: str | Path) -> list[int]:
    """Find the block for each map in a file of the authors' layout, under our names."""
    first = re.compile(r"blocks\.\d+\.conv1\.0\.weight")
    inputs = {key: value.shape[1] for key, value in state.items() if first.fullmatch(key) and value.ndim == 4}
    widths = [inputs[key] for key in sorted(inputs, key=lambda key: int(key.split(".")[1]))]
    if widths == AUTHORS_MAPS and list(maps) == DECODER_MAPS:
        return DECODER_ORDER
    if sorted(widths) != sorted(maps):
        return list(range(len(maps)))  # it does not fit, whatever the order: loading says why
    if len(set(widths)) < len(widths):
        raise UserError(
            f"`head.weights`: {path} has blocks for maps of {', '.join(map(str, widths))} channels, and does not tell "
            f"which is for which of the backbone's {', '.join(map(str, maps))}. Give `head.weights_order`: for each of "
            f"these the number of its block in the file, from 0; {list(range(len(maps)))} where the order is the same."
        )
    return [widths.index(channels) for channels in maps]


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
    each of Stable Diffusion's three maps and one for DINOv2's. With DINOv2's alone it is DIY-SC's adapter. With several
    `steps` it is the aggregation of Diffusion Hyperfeatures (Luo et al. 2023): the maps of a layer at all timesteps go
    through the same bottleneck, and each has a share of its own.

    Args:
        maps: Channels of each part, in the order in which the backbone concatenates them.
        out: Output channels of every bottleneck.
        width: Channels in the middle of every bottleneck.
        groups: Groups of every group norm.
        dropout: Share of the input's elements that is set to zero in a training step.
        steps: Timesteps that each layer is read at: so many maps in succession share a bottleneck.
        weights: Weight file to start from; those of GeoAware-SC and DIY-SC are understood, too, and with several steps
            those of Diffusion Hyperfeatures, whose timesteps must be in the backbone's order.
        weights_order: For each map, the number of its block in that file, from 0. If left out, the order of maps for
            our own files, and that of GeoAware-SC's code for files of its layout.

    Raises:
        UserError: The maps are not `steps` for each layer, or the file does not fit.
    """

    @check_arguments("head")
    def __init__(
        self,
        maps: Sequence[Count],
        out: Count = 768,
        width: Count = 192,
        groups: int = 32,
        dropout: Dropout = 0.2,
        steps: Count = 1,
        weights: str | None = None,
        weights_order: Sequence[Whole] | None = None,
    ) -> None:
        super().__init__()
        self.maps = list(maps)
        if not self.maps:
            raise UserError("`head.maps` must name the channels of at least one map, or be null for the backbone's")
        self.steps = steps
        if any({*self.maps[i : i + steps]} != {self.maps[i]} for i in range(0, len(self.maps), steps)) or (
            len(self.maps) % steps
        ):
            raise UserError(
                f"`head.steps` is {steps}, and the backbone's maps of {', '.join(map(str, self.maps))} channels are "
                "not so many for each layer. Give the number of its timesteps: backbone.timestep=[50,250] head.steps=2."
            )
        if weights_order is not None and weights is None:
            raise UserError("`head.weights_order` is that of a file: give `head.weights`, or no order")
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(ResidualBottleneck(channels, out, width, groups) for channels in self.maps[::steps])
        self.mixing = nn.Parameter(torch.ones(len(self.maps)))
        if weights is not None:
            load_aggregation_weights(self, weights, weights_order)

    def transform(self, maps: FeatureMap) -> FeatureMap:
        """Return the sum of the bottlenecks' outputs, in shares that add up to one."""
        parts = self.dropout(maps.values.to(self.mixing.dtype)).split(self.maps, dim=1)
        blocks = [block for block in self.blocks for _ in range(self.steps)]
        branches = zip(self.mixing.softmax(0), blocks, parts, strict=True)
        mixed = sum((share * block(part) for share, block, part in branches), start=self.mixing.new_zeros(()))
        return FeatureMap(mixed, maps.stride)
