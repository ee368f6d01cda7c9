"""Fine-tuning of the last blocks of a backbone, or of none."""

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import check_arguments


@check_arguments("finetune")
def last_blocks(backbone: Backbone, blocks: int = 0) -> None:
    """Unfreeze the last `blocks` blocks and the norm after them; 0 freezes the whole backbone.

    The unified benchmark's best is 2 of DINOv2-B's 12 (its `stage11`). There the final norm stayed out
    of the optimiser; here it is trained with the blocks it follows.
    """
    depth = len(backbone.blocks)
    if not 0 <= blocks <= depth:
        raise UserError(f"`finetune.blocks` must be between 0 and {depth}, the depth of this backbone, got {blocks}")
    backbone.requires_grad_(False)
    if blocks:
        for module in [*backbone.blocks[-blocks:], *filter(None, [backbone.norm])]:
            module.requires_grad_(True)
