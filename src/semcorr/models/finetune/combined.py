"""Fine-tuning of a fused backbone, each of whose parts is tuned in a way of its own, all together."""

from collections.abc import Callable, Mapping
from typing import cast

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import Positive, check_arguments, require
from semcorr.models.backbones.fuse import FusedBackbone
from semcorr.models.finetune.rates import set_rate_factor

Way = Callable[[Backbone], None]


@check_arguments("finetune")
def combine(backbone: Backbone, ways: Mapping[str, Way | None], rates: Mapping[str, float] | None = None) -> None:
    """Tune every part of a fused backbone in its own way.

    The unified benchmark (Table VI) trains Stable Diffusion's conditional prompt and the last block of DINOv2 together.

    Args:
        backbone: Fused backbone, whose parts are changed in place.
        ways: Function that tunes each part, in the order of the parts, by any names; None freezes the part.
        rates: Factors of `optimizer.backbone_lr` by the same names; 1 where nothing is given.

    Raises:
        UserError: The backbone has other parts, or a rate belongs to none.
    """
    if not isinstance(backbone, FusedBackbone):
        raise UserError(
            f"`finetune.ways` tunes the parts of a fused backbone, and {backbone.name} has none. Give "
            "backbone=sd21_dinov2, or one way, as finetune=last_blocks."
        )
    parts, factors = cast("list[Backbone]", list(backbone.parts)), dict(rates or {})
    if len(ways) != len(parts):
        raise UserError(
            f"`finetune.ways` must have a way, or null, for each part of this backbone: "
            f"{', '.join(part.name for part in parts)}. It has {', '.join(ways) or 'none'}."
        )
    if unknown := [name for name in factors if name not in ways]:
        raise UserError(f"`finetune.rates.{unknown[0]}` is of no part. There are {', '.join(ways)}.")
    for part, (name, way) in zip(parts, ways.items(), strict=True):
        part.requires_grad_(False)
        if way is not None:
            way(part)
        if name in factors:
            require(f"finetune.rates.{name}", factors[name], Positive)
            set_rate_factor(part, factors[name])
