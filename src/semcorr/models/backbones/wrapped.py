"""Backbones whose features are those of another backbone, changed by a further step."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.types import BackboneState, FeatureMap, ImageMaps

COPIED = ("name", "size", "channels", "widths", "stride", "unit_layers", "layer_choices", "layers", "facet", "multiple")
STORES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")  # where a module keeps what is its own


class WrappedBackbone(Backbone, ABC):
    """A backbone with a step after its features.

    It holds the wrapped backbone's own parameters, buffers and modules under their own names. Checkpoints, tuned layers
    and exported weights are therefore named the same with the step and without it, and fit both.

    Args:
        backbone: Backbone whose features are changed. Features of one image must not depend on another.
        option: Option that asks for the step, for messages.

    Raises:
        UserError: The features of the backbone depend on both images of a pair.
    """

    inner: Backbone

    def __init__(self, backbone: Backbone, option: str) -> None:
        super().__init__()
        if backbone.needs_pair:
            raise UserError(
                f"`backbone.{option}` changes the features of one image, and those of {backbone.name} depend on both "
                f"images of a pair. Leave out backbone.{option}."
            )
        for store in STORES:
            vars(self)[store] = vars(backbone)[store]
        vars(self)["inner"] = backbone  # not as a child, by which every name would get a prefix
        for key in COPIED:
            if hasattr(backbone, key):
                setattr(self, key, getattr(backbone, key))

    @abstractmethod
    def join_maps(self, maps: ImageMaps) -> FeatureMap:
        """Make the features of each image of its maps, and change them."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The trainable units of the wrapped backbone."""
        return self.inner.blocks

    @property
    def norm(self) -> nn.Module | None:
        """The layer after the last block of the wrapped backbone; None where there is none."""
        return self.inner.norm

    @property
    def lora_targets(self) -> Sequence[str]:
        """The endings of the names of the modules that LoRA adapts in the wrapped backbone by default."""
        return self.inner.lora_targets

    @property
    def sha256(self) -> str:  # type: ignore[override]  # that of the wrapped backbone, whatever it is
        """The hash of the weights that the wrapped backbone was built with."""
        return self.inner.sha256

    @property
    def pairwise(self) -> bool:
        """False: the features of one image do not depend on another."""
        return False

    def train(self, mode: bool = True) -> "WrappedBackbone":
        """Set the mode of the wrapped backbone, which is not a child."""
        self.inner.training = mode
        super().train(mode)
        return self

    def forward(self, image: Float[Tensor, "b 3 height width"]) -> FeatureMap:
        """Compute the changed features of RGB images in [0, 1]."""
        return self.join_maps(self.read_maps(image))

    def read_maps(self, image: Float[Tensor, "b 3 height width"]) -> ImageMaps:
        """Compute the maps of the wrapped backbone."""
        return self.inner.read_maps(image)

    def prefix(self, image: Float[Tensor, "b 3 height width"], depth: int) -> BackboneState:
        """Compute the first `depth` blocks of the wrapped backbone."""
        return self.inner.prefix(image, depth)

    def finish_maps(self, state: BackboneState, depth: int) -> ImageMaps:
        """Compute the maps of the wrapped backbone from the state after `depth` blocks."""
        return self.inner.finish_maps(state, depth)

    def suffix(self, state: BackboneState, depth: int) -> FeatureMap:
        """Compute the changed features from the state after `depth` blocks."""
        return self.join_maps(self.finish_maps(state, depth))


def unwrap_backbone(backbone: Backbone) -> Backbone:
    """Return the backbone inside all steps; a backbone without any is returned as it is."""
    while isinstance(backbone, WrappedBackbone):
        backbone = backbone.inner
    return backbone
