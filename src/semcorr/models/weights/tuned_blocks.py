"""Reading of the files that the unified benchmark's training leaves: the tuned blocks of a DINOv2, without names."""

import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonMapping
from semcorr.models.weights.checkpoints import read_weights_content, require_plain_tensors
from semcorr.models.weights.loading import load_weights
from semcorr.models.weights.state_dict_conversion import fuse_projections

OPTION = "finetune.block_weights"
# Parameters of a block of the transformers library's DINOv2 in their order, under the names of timm.
PARAMETERS = (
    *("norm1.weight", "norm1.bias"),
    *("attn.q.weight", "attn.q.bias", "attn.k.weight", "attn.k.bias", "attn.v.weight", "attn.v.bias"),
    *("attn.proj.weight", "attn.proj.bias", "ls1.gamma", "norm2.weight", "norm2.bias"),
    *("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias", "ls2.gamma"),
)


def load_tuned_blocks(blocks: Sequence[nn.Module], path: str | Path) -> None:
    """Load a file of the unified benchmark's training into the last of a backbone's tuned blocks.

    Args:
        blocks: The blocks that are tuned; the file has as many, or fewer: then it is of the last ones.
        path: Path of a `best_weights.pt` or `weights.pt`.

    Raises:
        UserError: The file is not such a file, has more blocks, or is of another network.
    """
    path = Path(path)
    content = read_weights_content(path, OPTION)
    parameters = find_parameters(content)
    if parameters is None:
        raise UserError(
            f"`{OPTION}`: {path} is not a file of tuned blocks, which holds a list named dino. Give the "
            "best_weights.pt of the unified benchmark's training; weights of a whole network are given as "
            "backbone.weights."
        )
    require_plain_tensors({f"dino[{i}]": value for i, value in enumerate(parameters)}, path, OPTION)
    count, rest = divmod(len(parameters), len(PARAMETERS))
    if rest or not 1 <= count <= len(blocks):
        has = (
            f"{count} blocks" if not rest else f"{len(parameters)} tensors, and a block of DINOv2 has {len(PARAMETERS)}"
        )
        raise UserError(
            f"`{OPTION}`: {path} has {has}, and {len(blocks)} are tuned: frozen blocks keep the weights of the "
            f"backbone. {'Give another file' if rest else f'Set finetune.blocks={count}'}."
        )
    names = [f"blocks.{i}.{name}" for i in range(count) for name in PARAMETERS]
    state = fuse_projections(dict(zip(names, parameters, strict=True)))
    tuned = nn.ModuleList(blocks[-count:])
    diagnosis = "It is of the last blocks of a DINOv2 without registers, as backbone=dinov2: give that backbone."
    load_weights(
        tuned, {re.sub(r"^blocks\.", "", key): value for key, value in state.items()}, path, (), OPTION, diagnosis
    )


def find_parameters(content: JsonMapping) -> list[Tensor] | None:
    """Return the parameters of a file of tuned blocks in their order; None if it is another file."""
    values = content.get("dino")
    if not isinstance(values, list) or not values or not all(isinstance(value, Tensor) for value in values):
        return None
    return [value.detach() for value in values]
