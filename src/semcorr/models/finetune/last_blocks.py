"""Fine-tuning of the last blocks of a backbone, or of none."""

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import check_arguments
from semcorr.models.finetune.targets import require_blocks
from semcorr.models.weights.tuned_blocks import load_tuned_blocks


@check_arguments("finetune")
def last_blocks(backbone: Backbone, blocks: int = 0, norm: bool = True, block_weights: str | None = None) -> None:
    """Unfreeze the last `blocks` blocks, and the norm after them or not; 0 freezes the whole backbone.

    The unified benchmark's best is 2 of DINOv2-B's 12 (its `stage11`), where the final norm is applied and stays out of
    the optimiser: conf/finetune/last_blocks.yaml has norm: false. True, the default here, is what configurations mean
    that were saved before there was the option.

    Args:
        backbone: Backbone, which is changed in place.
        blocks: Number of its last blocks.
        norm: Whether the norm after the last block, if it is applied, is trained as well.
        block_weights: File of the unified benchmark's training that the blocks start from; None starts from the
            backbone's weights.

    Raises:
        UserError: The backbone has fewer blocks, or none; or the file does not fit them.
    """
    if blocks:
        require_blocks(backbone)
    depth = len(backbone.blocks)
    if not 0 <= blocks <= depth:
        raise UserError(f"`finetune.blocks` must be between 0 and {depth}, the depth of this backbone, got {blocks}")
    if block_weights is not None:
        load_tuned_blocks(list(backbone.blocks)[depth - blocks :], block_weights)
    backbone.requires_grad_(False)
    if blocks:
        for module in [*backbone.blocks[-blocks:], *([backbone.norm] if norm and backbone.norm is not None else [])]:
            module.requires_grad_(True)
