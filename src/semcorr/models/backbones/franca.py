"""Franca (Venkataramanan et al. 2025): Vision Transformers in DINOv2's layout whose weights are on no hub."""

from typing import Any

from timm.layers.mlp import SwiGLUPacked

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count
from semcorr.models.backbones.timm_model import TimmModel

ADDRESS = "https://github.com/valeoai/Franca/releases"
# timm's network of DINOv2 of the same size, the hidden width of the gated layer, both of its halves, per channel, and
# the side of the images that the file's position embeddings are of.
NETWORKS = {
    "vitb14": ("vit_base_patch14_dinov2.lvd142m", 4096 / 768, 518),
    "vitl14": ("vit_large_patch14_dinov2.lvd142m", 5472 / 1024, 518),
    "vitg14": ("vit_giant_patch14_dinov2.lvd142m", 8192 / 1536, 224),
}


class Franca(TimmModel):
    """Franca's teacher, from the authors' release file.

    All sizes have DINOv2's gated layers (SwiGLU), which DINOv2 itself has in its largest network alone.

    Args:
        name: Authors' name of the size: `vitb14`, `vitl14` or `vitg14`.
        size: Side of the square images are resized to, in pixels.
        pretrained: Require `weights`, as nothing can be downloaded by name. If false, and without `weights`, they are
            random.
        weights: Local copy of the official file.
        img_size: Side in pixels of the images that the file's position embeddings are of; 224 for the releases whose
            name says so. That of the first release if left out.
        options: Further options of `TimmModel`.
    """

    def __init__(
        self,
        name: str,
        size: Count | None,
        pretrained: bool = True,
        weights: str | None = None,
        img_size: Count | None = None,
        **options: Any,
    ) -> None:
        if name not in NETWORKS:
            raise UserError(f"`backbone.name` must be one of {', '.join(NETWORKS)}, got {name!r}")
        if pretrained and weights is None:
            raise UserError(
                f"Franca's weights are on no hub. Download franca_{name}_*.pth from {ADDRESS} and give "
                "backbone.weights=FILE; backbone.pretrained=false is random."
            )
        network, mlp_ratio, side = NETWORKS[name]
        gated: dict[str, Any] = {
            "mlp_ratio": mlp_ratio,
            "mlp_layer": SwiGLUPacked,
            "act_layer": "silu",
            "img_size": side if img_size is None else img_size,
        }
        super().__init__(network, size, pretrained=False, weights=weights, **(gated | options))
        self.name = f"franca_{name}"
