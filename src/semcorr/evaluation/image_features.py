"""Every image of the pairs ahead, encoded once and adapted by the head, on whichever process it is asked for."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from semcorr.core.interfaces import SiameseHead
from semcorr.core.types import FeatureMap
from semcorr.data.image_variants import ImageVariant
from semcorr.store.cache import FeatureCache
from semcorr.store.encode import ProcessGroup, Values, broadcast_chunks, encode_images, split_into_chunks
from semcorr.store.frozen import FeatureCacheConfig, FrozenPrefix, feature_origin, from_channels_last, to_channels_last


def adapted_feature_origin(module: Any) -> str:
    """Name what features come from that a head has adapted."""
    head: Any = module.head
    changes = isinstance(head, SiameseHead) and any(True for _ in head.parameters())  # type: ignore[attr-defined]
    return feature_origin(module.backbone, head if changes else None)


class ImageFeatures:
    """Features by the names of images.

    Args:
        module: Its backbone and head.
        data: The benchmark.
        group: Who shares the work.
        context: The precision that features are computed in.
    """

    def __init__(
        self, module: Any, data: Any, group: ProcessGroup, context: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.module, self.data, self.group, self.context = module, data, group, context
        self.cache = FeatureCache(0, group.device)

    def __call__(self, name: str) -> FeatureMap:
        """Of one image."""
        values = {key: value[None].to(self.group.device, non_blocking=True) for key, value in self.cache[name].items()}
        return from_channels_last(values, self.module.backbone.size / values["cells"].shape[2])

    def adapted(self, maps: FeatureMap) -> FeatureMap:
        """What the head makes of the features of images, if it looks at each by itself."""
        return self.module.head.adapt(maps) if isinstance(self.module.head, SiameseHead) else maps

    @property
    def _origin(self) -> str:
        return adapted_feature_origin(self.module)

    def encode(self, shown: list[ImageVariant], reuse: bool) -> None:
        """These images; with `reuse` from what the frozen blocks made of them, which is kept for the next time."""

        def make() -> FeatureCache:
            return self._reused(shown) if reuse else self._direct(shown)

        sweep_cache: Callable[..., FeatureCache] | None = self.module.sweep_cache if self.group.size == 1 else None
        self.cache = make() if sweep_cache is None else sweep_cache(shown, make)

    def _direct(self, shown: list[ImageVariant]) -> FeatureCache:
        """From pixels, kept for this pass."""

        def compute(image: Tensor) -> Values:
            with self.context():
                return to_channels_last(self.adapted(self.module.backbone(image)))

        cache_config: FeatureCacheConfig = self.module.frozen.cache_config
        cache = FeatureCache(
            len(shown), self.group.device, cache_config.where, cache_config.type, self.group.size, self._origin
        )
        encode_images(cache, shown, self.data, compute, self.group)
        return cache

    def _reused(self, shown: list[ImageVariant]) -> FeatureCache:
        """From what the frozen blocks made of the images; the rest of the backbone and the head, each its share."""
        frozen: FrozenPrefix = self.module.frozen
        frozen.fill(shown, self.data, self.group, self.context)
        size, device = (self.module.backbone.size,) * 2, self.group.device
        one = frozen.features([shown[0].name], size, device) if frozen.is_whole_backbone else None
        if one is not None and self.adapted(one) is one:  # nothing is left to do
            assert frozen.cache is not None
            return frozen.cache
        chunks = split_into_chunks([one.name for one in shown], self.data.encoding_batch)

        def computed() -> Iterator[tuple[list[str], Values]]:
            for some in chunks[self.group.rank :: self.group.size]:
                with self.context():
                    yield some, to_channels_last(self.adapted(frozen.features(some, size, device)))

        cache = FeatureCache(
            len(shown), device, frozen.cache_config.where, frozen.cache_config.type, self.group.size, self._origin
        )
        for some, values in broadcast_chunks(computed(), len(chunks), self.group):
            cache.add(some, values)
        cache.watch.settle()
        return cache
