"""iBOT (Zhou et al. 2022): a Vision Transformer whose weights are on no hub."""

from typing import Any

from semcorr.core.errors import UserError
from semcorr.models.backbones.timm_model import TimmModel

ADDRESS = "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot/"
# timm's names of the same networks that normalise images by ImageNet's statistics, as iBOT does; the plain
# `vit_*_patch16_224` do not.
NETWORKS = {
    "vits_16": "vit_small_patch16_224.dino",
    "vitb_16": "vit_base_patch16_224.dino",
    "vitl_16": "vit_large_patch16_224.mae",
}


class IBOT(TimmModel):
    """iBOT's teacher, from the authors' `checkpoint_teacher.pth` or from their full checkpoint.

    Args:
        name: Folder of the authors: `vits_16`, `vitb_16` or `vitl_16`.
        size: Side of the square images are resized to, in pixels.
        pretrained: Require `weights`, as nothing can be downloaded by name. If false, and without `weights`, they are
            random.
        weights: Local copy of the official file.
        options: Further options of `TimmModel`.
    """

    def __init__(
        self, name: str, size: int | None, pretrained: bool = True, weights: str | None = None, **options: Any
    ) -> None:
        if name not in NETWORKS:
            raise UserError(f"`backbone.name` must be one of {', '.join(NETWORKS)}, got {name!r}")
        if pretrained and weights is None:
            raise UserError(
                f"iBOT's weights are on no hub. Download {ADDRESS}{name}/checkpoint_teacher.pth (linked from "
                "https://github.com/bytedance/ibot#pre-trained-models) and give backbone.weights=FILE; "
                "backbone.pretrained=false is random."
            )
        super().__init__(NETWORKS[name], size, pretrained=False, weights=weights, **options)
        self.name = f"ibot_{name}"
