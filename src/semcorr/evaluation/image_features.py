"""Features of all images of a split, encoded once, transformed by the head, and available on every process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from semcorr.core.interfaces import Backbone, SiameseHead
from semcorr.core.types import FeatureMap, ImageMaps, View
from semcorr.data.datamodule import PairDataModule
from semcorr.data.image_variants import ImageVariant
from semcorr.matching.batched import transform_features
from semcorr.store.cache import FeatureCache
from semcorr.store.encode import ProcessGroup, Values, broadcast_chunks, encode_images, split_into_chunks
from semcorr.store.frozen import (
    FrozenPrefix,
    feature_origin,
    from_channels_last,
    to_channels_last,
)

# From images, and a function that computes their features, to the features that are shared with other evaluations.
SharedCache = Callable[[list[ImageVariant], Callable[[], FeatureCache]], FeatureCache]


@runtime_checkable
class CorrespondenceModel(Protocol):
    """A backbone with a head, as the evaluator sees it.

    Attributes:
        backbone: Network from images to features.
        head: Module from features and query points to similarity.
        frozen: Frozen blocks of the backbone, with their cached features.
    """

    backbone: Backbone
    head: nn.Module
    frozen: FrozenPrefix

    def pair_features(self, source: View, target: View) -> tuple[FeatureMap, FeatureMap]:
        """Compute the features of two batches of images, from their pixels."""


class EvaluationSetup(NamedTuple):
    """A module, the split that it is evaluated on, and where.

    Attributes:
        module: Module with the backbone and the head.
        data: The benchmark.
        split: Name of its split.
        group: Processes that share the work.
        context: Function that makes the context of the precision that features are computed in.
        shared_cache: Function that returns the features, for an evaluation on one process; None: they are computed.
    """

    module: CorrespondenceModel
    data: PairDataModule
    split: str
    group: ProcessGroup
    context: Callable[[], AbstractContextManager[object]]
    shared_cache: SharedCache | None = None


def transformed_feature_origin(module: CorrespondenceModel) -> str:
    """Name the origin of features that a head has transformed."""
    head = module.head
    changes = isinstance(head, SiameseHead) and any(True for _ in head.parameters())
    return feature_origin(module.backbone, head if changes else None)


class ImageFeatures:
    """Features of the images of a split by their names, available after `encode`.

    Args:
        setup: The module that computes them, and the split whose images they are of.
    """

    def __init__(self, setup: EvaluationSetup) -> None:
        self.module, self.data, _, self.group, self.context, self.shared_cache = setup
        self.cache = FeatureCache(0, self.group.device)

    def __call__(self, name: str) -> FeatureMap:
        """Return the features of one image, a batch of one, transformed if the head is a `SiameseHead`."""
        values = {key: value[None].to(self.group.device, non_blocking=True) for key, value in self.cache[name].items()}
        return from_channels_last(values, self.module.backbone.size / values["cells"].shape[2])

    def image_maps(self, names: Sequence[str]) -> ImageMaps:
        """Return the maps of several images, which a joint backbone joins, in the order of the names."""
        return ImageMaps(self.module.frozen.cache_config.restore(self.cache.stack(names, self.group.device)))

    def transform(self, maps: FeatureMap) -> FeatureMap:
        """Transform the features of images by the head, if it is a `SiameseHead`."""
        return transform_features(self.module.head, maps)

    @property
    def _origin(self) -> str:
        """Origin of the features, for messages."""
        return transformed_feature_origin(self.module)

    def encode(self, images: list[ImageVariant], use_cached_features: bool) -> None:
        """Encode images, or take their features from the shared cache, if there is one and this is the only process.

        Args:
            images: The images and variants.
            use_cached_features: Start from the cached features of the frozen blocks; missing ones are computed.
        """

        def make() -> FeatureCache:
            """Encode the images into a new cache."""
            return self._encode_cached(images) if use_cached_features else self._encode_pixels(images)

        shared_cache = self.shared_cache if self.group.size == 1 else None
        self.cache = make() if shared_cache is None else shared_cache(images, make)

    def _encode_pixels(self, images: list[ImageVariant]) -> FeatureCache:
        """Encode images from their pixels, cached for this pass."""
        backbone = self.module.backbone

        def compute(image: Tensor) -> Values:
            """Encode a batch of images and transform its features."""
            with self.context():
                if backbone.joint:  # the head transforms what is joined
                    return backbone.read_maps(image).values
                return to_channels_last(self.transform(backbone(image)))

        cache_config = self.module.frozen.cache_config
        cache = FeatureCache(
            len(images), self.group.device, cache_config.storage, cache_config.type, self.group.local, self._origin
        )
        encode_images(cache, images, self.data, compute, self.group)
        return cache

    def _encode_cached(self, images: list[ImageVariant]) -> FeatureCache:
        """Encode images from the features of the frozen blocks; each process computes the rest for its share."""
        frozen = self.module.frozen
        frozen.fill(images, self.data, self.group, self.context)
        size, device = (self.module.backbone.size,) * 2, self.group.device
        assert frozen.cache is not None
        if frozen.is_whole_backbone and self._is_final(images[0].name):
            return frozen.cache
        chunks = split_into_chunks([image.name for image in images], self.data.encoding_batch)

        def compute_chunks() -> Iterator[tuple[list[str], Values]]:
            """Yield the names and features of this process's chunks."""
            for chunk in chunks[self.group.rank :: self.group.size]:
                with self.context():
                    yield chunk, self._finish(chunk, size)

        cache = FeatureCache(
            len(images), device, frozen.cache_config.storage, frozen.cache_config.type, self.group.local, self._origin
        )
        for chunk, values in broadcast_chunks(compute_chunks(), len(chunks), self.group):
            cache.add(chunk, values)
        cache.watch.check()
        return cache

    def _is_final(self, name: str) -> bool:
        """Tell whether what is cached of the whole backbone is what pairs are matched from."""
        if self.module.backbone.joint:
            return True
        if not self.module.frozen.has_features(name):
            return False
        maps = self.module.frozen.features([name], (self.module.backbone.size,) * 2, self.group.device)
        return self.transform(maps) is maps

    def _finish(self, names: Sequence[str], size: tuple[int, int]) -> Values:
        """Compute what pairs are matched from, from the cached features of the frozen blocks."""
        frozen, device = self.module.frozen, self.group.device
        if self.module.backbone.joint:
            return frozen.image_maps(names, size, device).values
        return to_channels_last(self.transform(frozen.features(names, size, device)))
