"""Several backbones as one: each sees the image at its own size, and their features are concatenated."""

import hashlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import lcm
from typing import Annotated, Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import OptionsOf, check_arguments
from semcorr.core.types import BackboneState, FeatureMap, ImageMaps
from semcorr.models.backbones.diffusion import StableDiffusion
from semcorr.models.backbones.sequential import CellGrid
from semcorr.models.backbones.timm_model import TimmModel

Normalisation = Literal["layer", "part", "none"]  # what is brought to unit length, cell by cell


class FusedBackbone(Backbone):
    """Features of several backbones on one grid, normalised, weighted and concatenated.

    The image comes at the largest of the parts' sizes, and is resized for each of the others in
    proportion (bilinear with antialiasing; sd-dino resizes the original with Lanczos, which is not
    available here). Maps are brought to the finest grid (bilinear) before a part is normalised.

    Its blocks are those of its parts, one part after the other, and its norm is the last part's.

    Args:
        parts: Backbones to fuse.
        balance: Weight of each part: a cosine of fused features is the mean of the parts' cosines with these
            weights. None gives all parts the same weight, as sd-dino's (1, 1) and the unified benchmark's 0.5 do.
        normalise: What is brought to unit length. `layer`: each layer of a part that has several, then each part, so
            that all layers of a part count alike. `part`: each part, all its channels jointly, so that a layer counts
            by its scale, as in sd-dino and GeoAware-SC without training. `none`: nothing, as in what GeoAware-SC's
            post-processor takes; weights of parts have no meaning then. Principal components always keep their scale.

    Raises:
        UserError: The weights do not fit the parts, or the finest grid does not divide the largest image.
    """

    @check_arguments("backbone")
    def __init__(
        self, parts: Sequence[Backbone], balance: Sequence[float] | None = None, normalise: Normalisation = "layer"
    ) -> None:
        super().__init__()
        balance = [1.0] * len(parts) if balance is None else list(balance)
        if not parts or len(balance) != len(parts) or min(balance) < 0 or sum(balance) <= 0:
            raise UserError(f"`backbone.balance` must be {len(parts)} weights, none negative, not all 0; got {balance}")
        if normalise == "none" and len(set(balance)) > 1:
            raise UserError(
                f"`backbone.balance` weights parts of unit length, got {balance} with `backbone.normalise` none: give "
                "equal weights, or normalise by layer or part"
            )
        for part in parts:
            part.unit_layers = normalise == "layer"
        self.normalise, self.parts = normalise, nn.ModuleList(parts)
        self.shares = [(weight / sum(balance)) ** 0.5 for weight in balance]
        self.name = "+".join(part.name for part in parts)
        self.size: int = max(part.size for part in parts)
        self.widths: list[int] = [width for part in parts for width in part.widths]
        self.channels: int = sum(self.widths)
        cells = max(Fraction(part.size, part.stride) for part in parts)
        if self.size % cells:
            sizes = ", ".join(f"{part.name}: {part.size} pixels, {part.size // part.stride} cells" for part in parts)
            raise UserError(f"Fused backbones need a grid that divides the largest image. Change a size: {sizes}.")
        self.stride = int(self.size / cells)
        # Every part's side must come out as a multiple of what that part needs.
        multiples = [Fraction(getattr(part, "multiple", part.stride) * self.size, part.size) for part in parts]
        self.multiple = lcm(self.stride, *(multiple.numerator for multiple in multiples))

    @property
    def blocks(self) -> list[nn.Module]:
        """The parts' blocks, one part after the other."""
        return [block for part in self._parts for block in part.blocks]

    @property
    def norm(self) -> nn.Module | None:
        """The final norm of the last part."""
        return self._parts[-1].norm

    @property
    def lora_targets(self) -> list[str]:
        """The LoRA targets of the parts, each once."""
        return list(dict.fromkeys(target for part in self._parts for target in part.lora_targets))

    @property
    def sha256(self) -> str:  # type: ignore[override]  # that of its parts, which tuning may change
        """The hash of the parts' hashes."""
        return hashlib.sha256(" ".join(part.sha256 for part in self._parts).encode()).hexdigest()

    @property
    def pairwise(self) -> bool:
        """Whether the network of any part runs for each pair."""
        return any(part.pairwise for part in self._parts)

    @property
    def joint(self) -> bool:
        """Whether any part needs both images, and each that does is joint."""
        needing = [part for part in self._parts if part.needs_pair]
        return bool(needing) and all(part.joint for part in needing)

    def forward(self, image: Float[Tensor, "b 3 height width"]) -> FeatureMap:
        """Compute the features of RGB images in [0, 1]."""
        self._require_features_of_one()
        sizes = self._part_sizes((image.shape[-2], image.shape[-1]))
        return self._concatenate_maps(
            [part(resize_image(image, size)) for part, size in zip(self._parts, sizes, strict=True)]
        )

    def read_maps(self, image: Float[Tensor, "b 3 height width"]) -> ImageMaps:
        """Compute the maps of all parts, each on its own grid."""
        sizes = self._part_sizes((image.shape[-2], image.shape[-1]))
        maps = [part.read_maps(resize_image(image, size)) for part, size in zip(self._parts, sizes, strict=True)]
        return ImageMaps(merge_parts([part_maps.values for part_maps in maps]))

    def join_maps(self, maps: ImageMaps) -> FeatureMap:
        """Concatenate the features of the parts, each made of its own maps."""
        self._require_features_of_one()
        split = zip(self._parts, self._split_maps(maps), strict=True)
        return self._concatenate_maps([part.join_maps(part_maps) for part, part_maps in split])

    def pair(self, source: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 i j"]) -> tuple[FeatureMap, FeatureMap]:
        """Compute the features of two images, seen together by the parts that need both."""
        a, b = list[FeatureMap](), list[FeatureMap]()
        sizes = [self._part_sizes((image.shape[-2], image.shape[-1])) for image in (source, target)]
        for part, source_size, target_size in zip(self._parts, *sizes, strict=True):
            images = resize_image(source, source_size), resize_image(target, target_size)
            maps = part.pair(*images) if part.needs_pair else [part(image) for image in images]
            a.append(maps[0])
            b.append(maps[1])
        return self._concatenate_maps(a), self._concatenate_maps(b)

    def prefix(self, image: Float[Tensor, "b 3 height width"], depth: int) -> BackboneState:
        """Compute the first `depth` blocks: those of whole parts and of one more part, and embeddings of the rest."""
        if self.needs_pixels:
            self._require_features_of_one()
        size = (image.shape[-2], image.shape[-1])
        split = zip(self._parts, self._part_sizes(size), self._part_depths(depth), strict=True)
        states = [part.prefix(resize_image(image, part_size), part_depth) for part, part_size, part_depth in split]
        return BackboneState(merge_parts([state.values for state in states]), size)

    def suffix(self, state: BackboneState, depth: int) -> FeatureMap:
        """Compute the features from the state after `depth` blocks."""
        return self.join_maps(self.finish_maps(state, depth))

    def finish_maps(self, state: BackboneState, depth: int) -> ImageMaps:
        """Compute the maps of all parts from the state after `depth` blocks."""
        sizes, depths = self._part_sizes(state.size), self._part_depths(depth)
        states = [BackboneState(select_part(state.values, i), size) for i, size in enumerate(sizes)]
        split = zip(self._parts, states, depths, strict=True)
        maps = [part.finish_maps(part_state, part_depth) for part, part_state, part_depth in split]
        return ImageMaps(merge_parts([part_maps.values for part_maps in maps]))

    def prepare_target(self, target: ImageMaps) -> ImageMaps:
        """Add what the joins of each part have in common."""
        split = zip(self._parts, self._split_maps(target), strict=True)
        return ImageMaps(merge_parts([part.prepare_target(maps).values for part, maps in split]))

    def join_pair(self, source: ImageMaps, target: ImageMaps) -> tuple[FeatureMap, FeatureMap]:
        """Concatenate the features of the parts, each made of its own maps of both images."""
        split = zip(self._parts, self._split_maps(source), self._split_maps(target), strict=True)
        a, b = zip(*(part.join_pair(*maps) for part, *maps in split), strict=True)
        return self._concatenate_maps(a), self._concatenate_maps(b)

    def _require_features_of_one(self) -> None:
        """Refuse to compute features of an image without the other."""
        if self.needs_pair:
            raise UserError(f"The features of {self.name} depend on both images of a pair here: use `pair`.")

    def _split_maps(self, maps: ImageMaps) -> list[ImageMaps]:
        """Return the maps of each part."""
        return [ImageMaps(select_part(maps.values, i)) for i in range(len(self.parts))]

    @property
    def _parts(self) -> list[Backbone]:
        """The parts, as backbones."""
        return cast("list[Backbone]", list(self.parts))

    def _part_depths(self, depth: int) -> list[int]:
        """Count the blocks of each part among the first `depth` of all."""
        if not 0 <= depth <= len(self.blocks):
            raise UserError(f"`depth` must be between 0 and {len(self.blocks)}, the blocks of {self.name}, got {depth}")
        depths = []
        for part in self._parts:
            depths.append(min(depth, len(part.blocks)))
            depth -= depths[-1]
        return depths

    def _part_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Compute the height and width at which each part sees an image."""
        if any(side % self.multiple for side in size):
            raise UserError(f"Image sides must be multiples of {self.multiple} pixels for {self.name}, got {size}")
        return [(size[0] * part.size // self.size, size[1] * part.size // self.size) for part in self._parts]

    def _concatenate_maps(self, maps: Sequence[FeatureMap]) -> FeatureMap:
        """Concatenate the maps of the parts on the finest grid, normalised and weighted where they are to be."""
        finest = max((m.values.shape[-2:] for m in maps), key=lambda size: size[0] * size[1])
        resized = [interpolate(m.values, size=tuple(finest), mode="bilinear") for m in maps]
        if self.normalise == "none":
            return FeatureMap(torch.cat(resized, dim=1), self.stride)
        weighted = [share * normalize(values, dim=1) for share, values in zip(self.shares, resized, strict=True)]
        return FeatureMap(torch.cat(weighted, dim=1), self.stride)


def merge_parts(values: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Merge the values of all parts, their keys after the number of the part."""
    return {f"{i}/{key}": value for i, part_values in enumerate(values) for key, value in part_values.items()}


def select_part(values: Mapping[str, Tensor], part: int) -> dict[str, Tensor]:
    """Select the values of one part, whose keys begin with its number, by the part's own keys."""
    prefix = f"{part}/"
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def resize_image(image: Float[Tensor, "b 3 h w"], size: tuple[int, int]) -> Float[Tensor, "b 3 i j"]:
    """Resize images to `size`, (height, width), antialiased; return them as they are if they have it."""
    if tuple(image.shape[-2:]) == size:
        return image
    return interpolate(image, size=size, mode="bilinear", antialias=True)


@check_arguments("backbone")
def sd_dinov2(
    size: int | None = 960,
    grid: int | None = None,
    pretrained: bool = True,
    weights: str | None = None,
    layers: Sequence[int] = (1, 4, 7),
    dino: str = "vit_base_patch14_dinov2.lvd142m",
    dino_weights: str | None = None,
    dino_layers: Sequence[int] = (-1,),
    norm: bool = False,
    balance: Sequence[float] = (1, 1),
    normalise: Normalisation = "layer",
    **diffusion: Annotated[Any, OptionsOf(StableDiffusion)],
) -> FusedBackbone:
    """Fuse Stable Diffusion and DINOv2 on one grid: 60 cells at 960 and 840 pixels in sd-dino and GeoAware-SC.

    Args:
        size: Side of the square that Stable Diffusion's images are resized to, in pixels, 16 to a cell.
        grid: Cells along the side of an image, given instead of `size`.
        pretrained: Download the weights of both. If false, those without a local copy are random.
        weights: Local directory of Stable Diffusion to read instead.
        layers: Decoder steps of Stable Diffusion whose outputs are read.
        dino: timm's name of the DINOv2 transformer.
        dino_weights: Local file of DINOv2's weights to read instead.
        dino_layers: Blocks of DINOv2 whose outputs are read.
        norm: Apply DINOv2's final LayerNorm, which both papers do not.
        balance: Weights of the two cosines, Stable Diffusion's first.
        normalise: What is brought to unit length: every `layer` and then both parts, each `part` with all its layers
            jointly, or `none`.
        diffusion: Further options of `StableDiffusion`.
    """
    cells = CellGrid(16, 64).side("sd_dinov2", size, grid) // 16
    return FusedBackbone(
        [
            StableDiffusion(size=16 * cells, pretrained=pretrained, weights=weights, layers=layers, **diffusion),
            TimmModel(dino, None, cells, pretrained=pretrained, weights=dino_weights, layers=dino_layers, norm=norm),
        ],
        balance,
        normalise,
    )
