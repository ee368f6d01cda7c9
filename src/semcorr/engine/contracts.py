"""Checks of what plug-ins of other packages promise: the map of a backbone, the grid of a head, the value of a loss.

Shapes are enough to tell, so networks run once on PyTorch's meta device, in milliseconds; one that cannot run there
runs on black images. What this package has itself is held to the same by its tests.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone, FineHead, SiameseHead
from semcorr.core.types import FeatureMap

IMAGES, POINTS = 2, 3  # numbers that no channel or side is likely to equal by accident
ATTRIBUTES = ("name", "size", "channels", "widths", "stride", "blocks", "sha256")


def require_backbone(backbone: nn.Module) -> None:
    """Refuse a backbone that gives another map than its attributes say.

    Args:
        backbone: What `backbone._target_` has built.

    Raises:
        UserError: An attribute is missing, or the map of an image has another type, shape or stride.
    """
    if _is_own(backbone):
        return
    origin = f"`backbone._target_`: {_describe_class(backbone)}"
    if not isinstance(backbone, Backbone):
        raise UserError(f"{origin} is not a backbone. Inherit semcorr.core.interfaces.Backbone.")
    if absent := [key for key in ATTRIBUTES if not hasattr(backbone, key)]:
        raise UserError(f"{origin} has no {', '.join(absent)}. Add what semcorr.core.interfaces.Backbone lists.")
    if backbone.needs_pair:
        return
    size, channels, stride = backbone.size, backbone.channels, backbone.stride
    maps = _run_without_values(backbone, lambda device: (torch.zeros(IMAGES, 3, size, size, device=device),))
    if not isinstance(maps, FeatureMap):
        raise UserError(f"{origin} must return a FeatureMap of an image, got {_describe_value(maps)}.")
    cells = round(size / stride)
    expected = (IMAGES, channels, cells, cells)
    if tuple(maps.values.shape) != expected or maps.stride != stride or not maps.values.is_floating_point():
        raise UserError(
            f"{origin} says that it has {channels} channels and a stride of {stride} pixels. Of {IMAGES} images of "
            f"{size} x {size} pixels its map must be {expected} of stride {stride}, got "
            f"{_describe_value(maps.values)} of stride {maps.stride}."
        )


def require_head(head: nn.Module, backbone: Backbone) -> None:
    """Refuse a head whose similarities are on no grid of the whole image.

    Args:
        head: What `head._target_` has built for the backbone.
        backbone: The backbone.

    Raises:
        UserError: A map or a similarity has another type or shape, or a stride that does not fit its grid.
    """
    if _is_own(head):
        return
    origin, cells = f"`head._target_`: {_describe_class(head)}", round(backbone.size / backbone.stride)
    compare = _Comparison(head, origin, backbone.stride)
    shape = (IMAGES, backbone.channels, cells, cells)
    similarity = _run_without_values(
        compare,
        lambda device: (torch.zeros(shape, device=device), torch.full((IMAGES, POINTS, 2), 1.0, device=device)),
    )
    if not isinstance(similarity, Tensor) or not similarity.is_floating_point() or similarity.dim() != 4:
        kind = "similarities (images, points, rows, columns)"
        raise UserError(f"{origin} must return {kind}, got {_describe_value(similarity)}.")
    images, points, h, w = similarity.shape
    if (images, points) != (IMAGES, POINTS) or h != w or h == 0 or h % cells:
        raise UserError(
            f"{origin} must return the similarity of each point with each of {cells} x {cells} cells, or of several "
            f"times as many along both sides: of {IMAGES} pairs of {POINTS} points {(IMAGES, POINTS, cells, cells)}, "
            f"got {tuple(similarity.shape)}."
        )
    fineness = head.fineness if isinstance(head, FineHead) else 1
    if not isinstance(head, SiameseHead) and h != fineness * cells:
        raise UserError(
            f"{origin} returns similarities with {h} x {h} cells for features of {cells} x {cells}. Give it an "
            f"attribute fineness = {h // cells}."
        )


def require_terms(terms: Mapping[str, object]) -> None:
    """Refuse a loss that is not a number which the trained weights can follow.

    Args:
        terms: Values of a loss by the names of its terms.

    Raises:
        UserError: A value is not a tensor of one number, or none has a gradient.
    """
    for name, value in terms.items():
        if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
            raise UserError(f"`loss`: {name} must return a tensor of one number, got {_describe_value(value)}.")
    has_gradient = any(isinstance(value, Tensor) and value.requires_grad for value in terms.values())
    if torch.is_grad_enabled() and not has_gradient:
        raise UserError(
            f"`loss`: {', '.join(terms)} depends on no trainable weight, so nothing can be learned. Does a backbone, "
            "head or loss of your own detach its result?"
        )


class _Comparison(nn.Module):
    """A head's way from features and points to similarities, with a check of the grid in between."""

    def __init__(self, head: nn.Module, origin: str, stride: int) -> None:
        super().__init__()
        self.head, self.origin, self.stride = head, origin, stride

    def forward(self, features: Tensor, points: Tensor) -> object:
        maps = FeatureMap(features, self.stride)
        if not isinstance(self.head, SiameseHead):
            return self.head(maps, maps, points)
        image = features.shape[-1] * self.stride
        transformed: object = self.head.transform(maps)
        if not isinstance(transformed, FeatureMap):
            raise UserError(f"{self.origin}.transform must return a FeatureMap, got {_describe_value(transformed)}.")
        values, stride = transformed.values, transformed.stride
        if values.dim() != 4 or len(values) != IMAGES or any(side * stride != image for side in values.shape[2:]):
            raise UserError(
                f"{self.origin}.transform must return a map of the whole image, whose stride is its pixels per cell: "
                f"of {IMAGES} images of {image} x {image} pixels got {_describe_value(values)} of stride {stride}."
            )
        return self.head.compare(self.head.describe(transformed, points), transformed)


def _run_without_values(module: nn.Module, build_inputs: Callable[[str], tuple[Tensor, ...]]) -> object:
    """Run a module for the shapes of what it returns, as in an evaluation.

    Args:
        module: The module.
        build_inputs: Function from a device to the arguments of its `forward`.
    """
    tensors = [*module.named_parameters(), *module.named_buffers()]
    weights = {key: torch.empty_like(value, device="meta") for key, value in tensors}
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            try:
                return functional_call(module, weights, build_inputs("meta"))
            except UserError:
                raise
            except Exception:  # an operation without shapes alone; one that fails here as well is the author's to see
                return module(*build_inputs("cpu"))
    finally:
        module.train(was_training)


def _is_own(module: nn.Module) -> bool:
    """Tell whether a class is one of this package."""
    return type(module).__module__.partition(".")[0] == "semcorr"


def _describe_class(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _describe_value(value: object) -> str:
    if not isinstance(value, Tensor):
        return "None" if value is None else f"a {type(value).__name__}"
    return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
