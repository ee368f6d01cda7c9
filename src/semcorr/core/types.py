"""Types that pass between the parts: a view, a batch of pairs or images, a feature map.

NamedTuples, because PyTorch's collate, pinned memory and Lightning's device transfer all carry
nested ones as they are.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


class View(NamedTuple):
    """One image of a pair, in the pixels of the backbone's input.

    ``image`` holds RGB: bytes, as loaders pass them on, or floating point in [0, 1], as augmentation leaves them;
    ``data.views.to_unit_range`` converts them for the backbone, which applies its own mean and standard deviation.
    Where images are encoded once, ahead of the pairs, pairs travel without pixels: with an image of zero height and its
    true width.
    """

    image: Float[Tensor, "*b 3 h w"] | UInt8[Tensor, "*b 3 h w"]
    keypoints: Float[Tensor, "*b n 2"]  # (x, y), one row per ORIGINAL keypoint id, never compressed
    visible: Bool[Tensor, "*b n"]
    box: Float[Tensor, "*b 4"]  # x1 y1 x2 y2
    scale: Float[Tensor, "*b 2"]  # this image's pixels per original pixel, (x, y)
    offset: Float[Tensor, "*b 2"]  # where the original's corner went; see coords.to_view
    name: Sequence[str] | str  # the image's id, unique in its benchmark


class PairBatch(NamedTuple):
    """Pairs of one benchmark, whose source keypoints are transferred to the target."""

    source: View
    target: View
    ambiguous: Bool[Tensor, "*b n"]  # geometry-aware: a twin is also visible in the target
    extent: Float[Tensor, "*b"]  # what alpha is a fraction of, in ORIGINAL target pixels
    category: Sequence[str] | str
    pair: Sequence[str] | str  # the pair's id: the key back to its record
    # Mirror images of the source, or of both, without pixels: where training meets pairs in variants of pose.
    mirrored: Sequence[View] = ()
    # Masks of the objects, of the source and of the target, in the pixels of the views: where a training reads them.
    masks: Sequence[Bool[Tensor, "*b s s"]] = ()

    @property
    def shared(self) -> Bool[Tensor, "*b n"]:
        """Keypoints visible in both images, which are the ones that are scored."""
        return self.source.visible & self.target.visible


class ImageBatch(NamedTuple):
    """Images of one category, of which every ordered pair is trained on."""

    view: View
    category: str
    # (source image, keypoint, target image): a keypoint visible in both. Listed where the batch is made,
    # on the CPU, so that a step on a GPU need not wait for the size of a mask. Mirror images come after all images.
    queries: Int[Tensor, "r 3"]
    mirrored: Sequence[View] = ()  # mirror images of all of them, without pixels, as in `PairBatch`


class FeatureMap(NamedTuple):
    """Dense features of a batch of images."""

    values: Float[Tensor, "b c h w"]
    stride: float  # image pixels per cell


class ImageMaps(NamedTuple):
    """What a backbone computes of each image alone, of which features are made: of the image, or of a pair."""

    values: dict[str, Tensor]  # each batch first, and each map on its own grid, so that they can be stored compactly


class BackboneState(NamedTuple):
    """Backbone values up to a depth: all that the remaining blocks need."""

    values: dict[str, Tensor]  # each batch first, so that they can be stored image by image
    size: tuple[int, int]  # height and width of the images in pixels
