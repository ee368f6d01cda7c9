"""Frozen blocks of a backbone: where they end, and their features of images, cached as long as they are needed."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import NotEmpty, Positive, require_fields
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.core.types import BackboneState, FeatureMap, ImageMaps
from semcorr.data.datamodule import PairDataModule
from semcorr.data.image_variants import ImageVariant
from semcorr.store import FeatureStore
from semcorr.store.cache import PLACES, FeatureCache
from semcorr.store.encode import ProcessGroup, Values, encode_images, encode_through_store

CELLS = "cells"  # key of features in the cache
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class FeatureCacheConfig:
    """Place and type of cached features (conf/store).

    Args:
        root: Folder that outlives the run, shared with all others; None stores nothing.
        dtype: Type of the cached values: float16, bfloat16 or float32; as computed if None.
        max_gb: Limit on the size of `root` in GB, beyond which the least recently used go; None for no limit.
        place: `gpu`, `memory` or `disk`; `auto`, the first of them with room; `off` computes frozen blocks at
            every training step.
    """

    root: NotEmpty | None = None
    dtype: str | None = None
    max_gb: Positive | None = None
    place: str = "auto"

    def __post_init__(self) -> None:
        require_fields(self, "store")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UserError(f"`store.dtype` must be one of {', '.join(DTYPES)} or null, got {self.dtype!r}")
        if self.place not in (*PLACES, "off"):
            raise UserError(f"`store.place` must be one of {', '.join(PLACES)}, off, got {self.place!r}")

    @property
    def type(self) -> torch.dtype | None:
        """Type that values are converted to, if any."""
        return DTYPES[self.dtype] if self.dtype else None

    def restore(self, values: Values) -> Values:
        """Return values that a network goes on with, in single precision if they are cached in another type."""
        if self.dtype is None:
            return values
        return {key: value.float() if value.is_floating_point() else value for key, value in values.items()}

    @property
    def storage(self) -> str:
        """Place of what is cached in any case."""
        return "auto" if self.place == "off" else self.place


class FrozenPrefix:
    """The first blocks of a backbone, if they are frozen; or the whole of it.

    Args:
        backbone: Backbone, with its trainable parameters chosen.
        cache_config: Place and type of the cached values.
        key: What the values depend on besides weights, depth and type; part of the key of a store on disk.
    """

    def __init__(self, backbone: Backbone, cache_config: FeatureCacheConfig, key: JsonMapping) -> None:
        self.backbone, self.cache_config, self.key = backbone, cache_config, key
        self.depth = frozen_depth(backbone)
        self.cache: FeatureCache | None = None

    @property
    def is_whole_backbone(self) -> bool:
        """Whether the whole backbone is frozen."""
        return self.depth is None

    @property
    def is_cacheable(self) -> bool:
        """Whether there is anything to cache: frozen blocks, of one image at a time."""
        return self.depth != 0 and not self.backbone.needs_pixels

    def has_features(self, name: str) -> bool:
        """Tell whether the features of an image are cached; otherwise they are still to be made of what is."""
        return self.depth is None and self.cache is not None and CELLS in self.cache[name]

    @property
    def origin(self) -> str:
        """Origin of the values, for messages."""
        return feature_origin(self.backbone) + (f", after block {self.depth}" if self.depth else "")

    def compute(self, image: Tensor) -> Values:
        """Compute the values to cache of a batch of images."""
        if self.depth is None:
            maps = self.backbone.read_maps(image)
            return maps.values if self.backbone.joint else lay_out_maps(self.backbone, maps)
        return self.backbone.prefix(image, self.depth).values

    def features(self, names: Sequence[str], size: tuple[int, int], device: torch.device) -> FeatureMap:
        """Compute the backbone's output for cached images, in the order of their names.

        Args:
            names: Names of the images.
            size: Height and width of the images, in pixels.
            device: Device of the result.
        """
        assert self.cache is not None
        values = self.cache.stack(names, device)
        if self.depth is None and CELLS in values:
            return from_channels_last(values, self.backbone.stride)
        values = self.cache_config.restore(values)
        if self.depth is None:
            return join_laid_out_maps(self.backbone, values)
        return self.backbone.suffix(BackboneState(values, size), self.depth)

    def image_maps(self, names: Sequence[str], size: tuple[int, int], device: torch.device) -> ImageMaps:
        """Compute the maps that a joint backbone joins, for cached images, in the order of their names.

        Args:
            names: Names of the images.
            size: Height and width of the images, in pixels.
            device: Device of the result.
        """
        assert self.cache is not None
        values = self.cache_config.restore(self.cache.stack(names, device))
        if self.depth is None:
            return ImageMaps(values)
        return self.backbone.finish_maps(BackboneState(values, size), self.depth)

    def fill(
        self,
        images: Sequence[ImageVariant],
        data: PairDataModule,
        group: ProcessGroup,
        context: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """Compute the values that are not cached yet, or read them from a store on disk.

        Args:
            images: Images, the same on every process.
            data: The benchmark, which decodes images.
            group: Processes that share the work.
            context: Function that returns a context in whose precision the values are computed.

        Raises:
            UserError: Values of an image are not finite, or the store cannot be written.
        """
        if self.cache is None:
            self.cache = FeatureCache(
                len(images), group.device, self.cache_config.storage, self.cache_config.type, group.local, self.origin
            )
        self.cache.expect(image.name for image in images)

        def compute(image: Tensor) -> Values:
            with context():
                return self.compute(image)

        with torch.no_grad():
            if self.cache_config.root is None:
                encode_images(self.cache, images, data, compute, group)
            else:
                store = FeatureStore(
                    Path(self.cache_config.root).expanduser(), self._key(data), self.cache_config.max_gb
                )
                encode_through_store(self.cache, store, images, data, compute, group)

    def clear(self) -> None:
        """Free the cached values."""
        self.cache = None

    @property
    def _has_several_maps(self) -> bool:
        """Whether the cached features are several maps, which may be on grids of their own."""
        reads = type(self.backbone).read_maps is not Backbone.read_maps
        return self.depth is None and reads and len(self.backbone.widths) > 1

    def _key(self, data: PairDataModule) -> JsonObject:
        depth = "all" if self.depth is None else self.depth
        geometry: JsonObject = {"size": self.backbone.size, "resize": data.resize}
        if self._has_several_maps:  # the words change with what is stored
            geometry["maps"] = "own grids, by layer" if self.backbone.joint else "own grids"
        base = {"backbone": self.backbone.name, "sha256": self.backbone.sha256}
        return {**base, "depth": depth, "dtype": self.cache_config.dtype or "as computed", **geometry, **self.key}


def feature_origin(backbone: Backbone, head: nn.Module | None = None) -> str:
    """Name the origin of features: the network, its layers, and the head where one has changed them."""
    layers = getattr(backbone, "layers", None)
    layer_text = f", layers {list(layers)}" if layers is not None else ""
    return f"`backbone`: {backbone.name}{layer_text}" + (
        f", through head {type(head).__name__}" if head is not None else ""
    )


def to_channels_last(maps: FeatureMap) -> Values:
    """Lay out features for the cache: a cell's channels side by side, so that a point reads four runs of memory."""
    return {CELLS: maps.values.permute(0, 2, 3, 1).contiguous()}


def from_channels_last(values: Values, stride: float) -> FeatureMap:
    """Convert cached features to a feature map, without copying."""
    return FeatureMap(values[CELLS].permute(0, 3, 1, 2), stride)


def lay_out_maps(backbone: Backbone, maps: ImageMaps) -> Values:
    """Lay out what features are made of for the cache: the features, or maps that are smaller on grids of their own.

    Maps keep their memory layout, because the last bit of what is made of them depends on it: channels side by side,
    which their key says, or plain.
    """
    values = maps.values.items()
    if len({value.shape[-2:] for _, value in values}) == 1:
        return to_channels_last(backbone.join_maps(maps))
    return {
        **{f"{CELLS}/{key}": value.movedim(1, -1).contiguous() for key, value in values if value.stride(1) == 1},
        **{f"plain/{key}": value.contiguous() for key, value in values if value.stride(1) != 1},
    }


def join_laid_out_maps(backbone: Backbone, values: Values) -> FeatureMap:
    """Make the features of maps that `lay_out_maps` has left apart, to the last bit those of the backbone."""
    split = {key.partition("/")[::2]: value for key, value in values.items()}
    maps = {key: value.movedim(-1, 1) if kind == CELLS else value for (kind, key), value in split.items()}
    return from_channels_last(to_channels_last(backbone.join_maps(ImageMaps(maps))), backbone.stride)


def frozen_depth(backbone: Backbone) -> int | None:
    """Count the first blocks that are frozen with all that they depend on; None: the whole backbone is frozen.

    What is trained outside the blocks and the norm after them may change the input of the first block.
    """
    trainable = {id(parameter) for parameter in backbone.parameters() if parameter.requires_grad}
    if not trainable:
        return None
    block_parameters = [{id(parameter) for parameter in block.parameters()} for block in backbone.blocks]
    after = [*backbone.norm.parameters()] if backbone.norm is not None else []
    if trainable.difference(*block_parameters, map(id, after)):
        return 0
    return next((i for i, block in enumerate(block_parameters) if block & trainable), len(block_parameters))
