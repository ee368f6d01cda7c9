"""Positional debiasing: directions in which the features of a blank image vary are projected out of every map."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import Count
from semcorr.core.types import FeatureMap, ImageMaps
from semcorr.models.backbones.wrapped import WrappedBackbone

WeightsVersion = tuple[tuple[int, int], ...]


class PositionalBasis(NamedTuple):
    """Directions in which the features of a blank image vary, by the weights that they were computed with."""

    directions: Float[Tensor, "c k"]
    version: WeightsVersion


class DebiasedBackbone(WrappedBackbone):
    """A backbone without the leading positional directions of its features (INSID3, arXiv 2603.28480).

    A blank image shows nothing, so all that differs between its cells is where they are. INSID3's blank image is black,
    zeros in [0, 1] that are then normalised as any image, of the size that is matched. Its cells are brought to unit
    length and centred, and the K leading left singular vectors of channels x cells are removed from the features of
    every image. INSID3 brings features to unit length before and after; a projection does not depend on the length,
    cosines neither, and a head that is trained gets the features at their own scale: lengths are left as they are.

    The basis is that of the present weights, and a constant to gradients. While a backbone is tuned it is computed for
    every batch, by one image without gradients. A basis of the weights at the start would be cheaper, but no checkpoint
    holds it, and other image sizes in evaluation would need weights that are gone; this way features are a function of
    weights and image alone. Where nothing is tuned, the basis of each size of image is computed once.

    Args:
        backbone: Backbone whose features are debiased, of one layer or several, concatenated.
        components: Number of directions that are removed; INSID3 removes 20 to match keypoints.

    Raises:
        UserError: No features would be left, or there are no more cells than directions.
    """

    def __init__(self, backbone: Backbone, components: Count) -> None:
        super().__init__(backbone, "debias")
        cells = round(backbone.size / backbone.stride) ** 2
        most = min(backbone.channels, cells) - 1  # centring takes a direction of the cells
        if not most:
            few, remedy = ("channel", "") if cells > 1 else ("cell", ", or give a larger backbone.size")
            raise UserError(
                f"`backbone.debias`: maps of {backbone.name} at {backbone.size} pixels have one {few}, which has no "
                f"positional direction. Leave out backbone.debias{remedy}."
            )
        if components > most:
            raise UserError(
                f"`backbone.debias` must be at most {most} for {backbone.name}, whose maps at {backbone.size} pixels "
                f"have {backbone.channels} channels and {cells} cells, got {components}. Give backbone.debias=N."
            )
        self.components = components
        self.bases = dict[tuple[int, int, torch.device], PositionalBasis]()

    def join_maps(self, maps: ImageMaps) -> FeatureMap:
        """Make the features of each image of its maps, without their positional directions."""
        features = self.inner.join_maps(maps)
        return FeatureMap(project_out(features.values, self.positional_basis(features)), features.stride)

    def positional_basis(self, features: FeatureMap) -> Float[Tensor, "c k"]:
        """Return the basis for maps of this size, of the present weights; it is reused where they have not changed.

        Raises:
            UserError: The features of a blank image vary in fewer directions than are to be removed.
        """
        height, width = (round(cells * features.stride) for cells in features.values.shape[-2:])
        key = (height, width, features.values.device)
        if torch.compiler.is_compiling():  # a graph takes the basis as it is
            return self.bases[key].directions
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in self.inner.parameters()):
            self.bases.clear()  # fused optimisers change weights without a trace in their versions
            return self._compute_basis(height, width, features.values.device)
        version = weights_version(self.inner)
        if key not in self.bases or self.bases[key].version != version:
            self.bases[key] = PositionalBasis(self._compute_basis(height, width, features.values.device), version)
        return self.bases[key].directions

    @torch.no_grad()
    def _compute_basis(self, height: int, width: int, device: torch.device) -> Float[Tensor, "c k"]:
        """Compute the basis of a blank image, in evaluation mode and the precision of the weights."""
        floating = (value.dtype for value in self.inner.parameters() if value.is_floating_point())
        blank = torch.zeros(1, 3, height, width, device=device, dtype=next(floating, torch.float32))
        with torch.autocast(device.type, enabled=False), evaluation_mode(self.inner):
            features = self.inner(blank).values
        basis = leading_directions(features[0], self.components)
        if basis.shape[1] < self.components:
            raise UserError(
                f"`backbone.debias` must be at most {basis.shape[1]} here, the directions in which the features of a "
                f"blank image of {height} x {width} pixels vary in {self.name}, got {self.components}. "
                + ("Give fewer." if basis.shape[1] else "It has no positional component: leave out backbone.debias.")
            )
        return basis.to(torch.promote_types(blank.dtype, torch.float32))


def leading_directions(features: Float[Tensor, "c h w"], count: int) -> Float[Tensor, "c _"]:
    """Return the leading left singular vectors of the unit-length, centred cells of a map.

    They are computed and returned in double precision, from the smaller of the two matrices of products. Directions
    that vary by no more than the features are rounded are left out, so there may be fewer than `count`.

    Args:
        features: Features of one image.
        count: Number of directions.
    """
    cells = normalize(features.flatten(1).double(), dim=0)
    cells = cells - cells.mean(dim=1, keepdim=True)
    channels, number = cells.shape
    is_wide = number < channels
    values, vectors = torch.linalg.eigh(cells.mT @ cells if is_wide else cells @ cells.mT)
    singular = values.clamp(min=0).sqrt().flip(0)[:count]
    vectors = vectors.flip(1)[:, :count]
    # The norm of random errors of that size in cells of unit length, and what a network adds to them.
    rounding = 16 * torch.finfo(features.dtype).eps * (1 + (number / channels) ** 0.5)
    vectors = vectors[:, singular > rounding]
    return torch.linalg.qr(cells @ vectors).Q if is_wide else vectors


def project_out(values: Float[Tensor, "b c h w"], basis: Float[Tensor, "c k"]) -> Float[Tensor, "b c h w"]:
    """Remove the part of every cell that lies in the span of orthonormal directions, at least in single precision."""
    with torch.autocast(values.device.type, enabled=False):
        cells = values.flatten(2).to(torch.promote_types(values.dtype, torch.float32))
        basis = basis.to(cells.dtype)
        return (cells - basis @ (basis.mT @ cells)).unflatten(2, values.shape[2:]).to(values.dtype)


def weights_version(module: nn.Module) -> WeightsVersion:
    """Return what changes when a weight or buffer of a module is replaced or written to, except by fused optimisers."""
    tensors = [*module.parameters(), *module.buffers()]
    return tuple((x.data_ptr(), 0 if x.is_inference() else x._version) for x in tensors)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module and all in it into evaluation mode, and back into the modes that they had."""
    in_training = [part for part in module.modules() if part.training]
    for part in in_training:
        part.training = False
    try:
        yield
    finally:
        for part in in_training:
            part.training = True
