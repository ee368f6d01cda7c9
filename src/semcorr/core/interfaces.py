"""Interfaces of backbones, heads and benchmarks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.types import BackboneState, FeatureMap, ImageMaps


class Head(Protocol):
    """A head, an `nn.Module`: from features of both images to the similarity of source points and target cells."""

    def __call__(
        self, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "b n 2"]
    ) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of every point, in source pixels, to every target cell."""


@runtime_checkable
class SiameseHead(Protocol):
    """A head that takes one image at a time until the end: `compare(describe(transform(a), points), transform(b))`.

    The query points of all sources of a target are matched in one product, and each image is transformed once, whatever
    number of pairs it is in.
    """

    def transform(self, maps: FeatureMap) -> FeatureMap:
        """Transform the features of images, each by itself. The grid may become finer."""

    def describe(self, source: FeatureMap, points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n c"]:
        """Compute descriptors of points, in source pixels; `source` is transformed."""

    def compare(self, descriptors: Float[Tensor, "b n c"], target: FeatureMap) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of descriptors to every target cell; `target` is transformed."""


@runtime_checkable
class PenalisedHead(Protocol):
    """A head that adds a term of its own to the loss of a training step."""

    def take_penalty(self) -> Float[Tensor, ""]:
        """Return the term for all calls of the head since the last time."""


@runtime_checkable
class BatchedHead(SiameseHead, Protocol):
    """A Siamese head that takes several sources or targets at once: optional, for speed."""

    def describe_sources(
        self, sources: Sequence[FeatureMap], points: Sequence[Float[Tensor, "_ 2"]]
    ) -> Float[Tensor, "q c"]:
        """Compute what `describe` gives for the points of each source, of one image each, in their order."""

    def compare_targets(
        self, descriptors: Float[Tensor, "q c"], counts: Sequence[int], targets: Sequence[FeatureMap]
    ) -> Float[Tensor, "1 q h w"]:
        """Compute what `compare` gives for the next `counts` descriptors and each target, of one image and one size."""


@runtime_checkable
class FineHead(Protocol):
    """A head of both images at once whose similarities are on a finer grid than the features.

    Attributes:
        fineness: Cells of a similarity along a side of a cell of the features.
    """

    fineness: int


class Backbone(nn.Module):
    """A dense feature extractor: images to a feature map, with its weights in blocks.

    It takes RGB in [0, 1] and normalises by its own statistics. Image sides must be multiples of its
    largest stride.

    Attributes:
        name: Name in tables, messages and keys of cached features.
        size: Side of the square that it is evaluated at by default, in pixels.
        channels: Channels of its map.
        widths: Channels of the maps that it concatenates, in their order; their sum is `channels`.
        stride: Image pixels per cell.
        blocks: Trainable units, first to last, up to the last layer that is read.
        norm: Layer after the last block; None where there is none.
        sha256: Hash of the weights that it was built with.
        lora_targets: Endings of the names, inside a block, of the modules that LoRA adapts by default.
        pairwise: Whether the network itself runs once for each pair, because it is conditioned on both images; such a
            backbone has `pair`.
        joint: Whether the maps of two images are made the features of a pair together, by a `join_pair` of its own:
            projected onto common components, or, if the backbone is also `pairwise`, run through the network.
        unit_layers: Whether each of several maps is brought to unit length before they are concatenated. Backbones
            that are fused set it to false in their parts, unless theirs are to be normalised by layer.
        layer_choices: Every layer that its option `layers` may name, from the first; none where there is no choice.
    """

    name: str
    size: int
    channels: int
    widths: Sequence[int]
    stride: int
    sha256: str
    unit_layers: bool = True
    layer_choices: Sequence[int] = ()

    if TYPE_CHECKING:  # attributes or properties

        @property
        def blocks(self) -> Sequence[nn.Module]:
            """Trainable units."""

        @property
        def norm(self) -> nn.Module | None:
            """Layer after the last block."""

        @property
        def lora_targets(self) -> Sequence[str]:
            """Endings of the names of the modules that LoRA adapts by default."""

        @property
        def pairwise(self) -> bool:
            """Whether the network itself runs once for each pair."""

        def __call__(self, image: Float[Tensor, "b 3 height width"]) -> FeatureMap:
            """Compute the features of a batch of images, by `forward`."""

    def read_maps(self, image: Float[Tensor, "b 3 height width"]) -> ImageMaps:
        """Compute the maps that features are made of: `join_maps(read_maps(x)) == self(x)`.

        Coarse ones are smaller to cache than what they are enlarged to.
        """
        return ImageMaps({"map": self(image).values})

    def finish_maps(self, state: BackboneState, depth: int) -> ImageMaps:
        """Compute the maps by the remaining blocks: `finish_maps(prefix(x, d), d) == read_maps(x)`."""
        return ImageMaps({"map": self.suffix(state, depth).values})

    def join_maps(self, maps: ImageMaps) -> FeatureMap:
        """Make the features of each image of its maps, without any weights."""
        return FeatureMap(maps.values["map"], self.stride)

    def prepare_target(self, target: ImageMaps) -> ImageMaps:
        """Add what `join_pair` of one target with many sources has in common; it may be as large as the maps."""
        return target

    def join_pair(self, source: ImageMaps, target: ImageMaps) -> tuple[FeatureMap, FeatureMap]:
        """Make the features of pairs of their maps; a single target is that of all sources, once for each."""
        a, b = self.join_maps(source), self.join_maps(target)
        return a, FeatureMap(b.values.expand(len(a.values), -1, -1, -1), b.stride)

    def prefix(self, image: Float[Tensor, "b 3 height width"], depth: int) -> BackboneState:
        """Compute the embedding and the first `depth` blocks: if frozen, they need not be computed twice."""
        raise NotImplementedError(f"{type(self).__name__} has no prefix")

    def suffix(self, state: BackboneState, depth: int) -> FeatureMap:
        """Compute the remaining blocks: `suffix(prefix(x, d), d) == backbone(x)`."""
        raise NotImplementedError(f"{type(self).__name__} has no suffix")

    @property
    def joint(self) -> bool:
        """Whether the maps of two images are made the features of a pair together."""
        return False

    @property
    def needs_pair(self) -> bool:
        """Whether one image alone has no features."""
        return self.pairwise or self.joint

    @property
    def needs_pixels(self) -> bool:
        """Whether nothing is computed of an image alone, so that pairs come with their pixels."""
        return self.pairwise and not self.joint

    def pair(self, source: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 i j"]) -> tuple[FeatureMap, FeatureMap]:
        """Compute the features of two images that are seen together."""
        if not self.joint:
            raise NotImplementedError(f"{type(self).__name__} sees one image at a time")
        return self.join_pair(self.read_maps(source), self.read_maps(target))
