"""Inputs of the loss of a training step, from a batch and the features of its images."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import dropout

from semcorr.core.coords import from_view, to_grid, to_image
from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone, SiameseHead
from semcorr.core.types import FeatureMap, ImageBatch, PairBatch, View
from semcorr.data.pose_variants import LossTerm, PoseVariant, image_weights, point_weights
from semcorr.evaluation.conventions import EPSILON
from semcorr.matching.batched import (
    all_pairs_similarity,
    all_pairs_similarity_from_descriptors,
    describe_unit_cells,
    query_grid,
    transform_features,
)
from semcorr.models.losses import (
    Descriptors,
    ExtraInput,
    Loss,
    LossInputs,
    PairMaps,
    list_reads,
    point_lookup,
    reads_descriptors,
)


@runtime_checkable
class FeatureExtractor(Protocol):
    """A backbone with what it takes to compute the features of a batch."""

    backbone: Backbone

    def features(self, names: Sequence[str], image: Shaped[Tensor, "b 3 h w"]) -> FeatureMap:
        """Compute the features of a batch of images; without pixels, from the cached features of the frozen blocks."""

    def pair_features(self, source: View, target: View) -> tuple[FeatureMap, FeatureMap]:
        """Compute the features of two batches of images; without pixels, from the cache of the frozen blocks."""


def validate_training_options(
    backbone: Backbone, head: nn.Module, loss: Loss | None, variants: PoseVariant, share: float
) -> None:
    """Refuse options that do not go together, before anything is computed.

    Args:
        backbone: The backbone.
        head: The head.
        loss: The loss; None without training.
        variants: Weights of a pair's variants; false if there are none.
        share: Share of the features' elements that are dropped in a training step.

    Raises:
        UserError: A share is out of range, or the head or backbone does not support the loss or the variants.
    """
    if not 0 <= share < 1:
        raise UserError(f"`feature_dropout` must be at least 0, which is off, and less than 1, got {share}")
    if reads_descriptors(loss) and not isinstance(head, SiameseHead):
        raise UserError(
            f"`loss` compares descriptors of keypoints, and the head {type(head).__name__} has none: it must see both "
            "images. Choose a loss of similarity, as loss=gaussian_cross_entropy, or head=cosine."
        )
    if {ExtraInput.OTHERS, ExtraInput.PIXELS} & {*list_reads(loss)} and backbone.needs_pair:
        raise UserError(
            f"`loss`: {backbone.name} sees images in pairs, and this loss needs features of each image alone. Give "
            "another backbone, or a loss of keypoints, as loss=gaussian_cross_entropy."
        )
    if variants and backbone.needs_pair:
        raise UserError(
            f"`pairs`: {backbone.name} sees images in pairs, and variants of a pair are made from features of one "
            "image each. Set pairs=plain."
        )


def batch_features(module: FeatureExtractor, batch: PairBatch | ImageBatch) -> FeatureMap:
    """Compute the features of all images of a batch: of pairs all sources and then all targets, then mirror images.

    Raises:
        UserError: The backbone sees images in pairs, and the batch has images.
    """
    if not module.backbone.needs_pair:
        return module.features(*batch_views(batch))
    if isinstance(batch, ImageBatch):
        raise UserError(f"`data.all_pairs`: {module.backbone.name} sees images in pairs. Set data.all_pairs=null.")
    a, b = module.pair_features(batch.source, batch.target)
    return FeatureMap(torch.cat((a.values, b.values)), a.stride)


def batch_views(batch: PairBatch | ImageBatch) -> tuple[list[str], Shaped[Tensor, "k 3 h w"]]:
    """Return names and pixels, bytes or floats, of all images of a batch, and then of their mirror images."""
    views = [batch.view] if isinstance(batch, ImageBatch) else [batch.source, batch.target]
    names = [name for view in (*views, *batch.mirrored) for name in view.name]
    flipped = [view.image.flip(-1) for view in views[: len(batch.mirrored)]]  # of a pair, possibly the source alone
    return names, torch.cat([*(view.image for view in views), *flipped])


def batch_names(batch: PairBatch | ImageBatch) -> tuple[list[str], list[str]]:
    """Return the names of all images of a batch, ordered as in `batch_features`, and of its first pair or image."""
    views = [batch.view] if isinstance(batch, ImageBatch) else [batch.source, batch.target]
    names = [name for view in (*views, *batch.mirrored) for name in view.name]
    return names, [f"image {batch.view.name[0]}"] if isinstance(batch, ImageBatch) else [f"pair {batch.pair[0]}"]


def feature_dropout(maps: FeatureMap, share: float) -> FeatureMap:
    """Drop elements of the features at random ("Telling Left from Right", 4.2)."""
    return maps._replace(values=dropout(maps.values, share)) if share else maps


def build_loss_inputs(
    head: nn.Module,
    maps: FeatureMap,
    batch: PairBatch | ImageBatch,
    variants: PoseVariant,
    step: int,
    loss: Loss | None,
) -> LossInputs:
    """Compute all inputs of the loss for a batch.

    Args:
        head: Head, from features to similarity. A `SiameseHead` transforms and describes each image once.
        maps: Features of the images of the batch, as `batch_features` returns them.
        batch: Pairs or images, with mirrored views if there are variants.
        variants: Weights of the pairs' variants.
        step: Number of optimiser steps before this one.
        loss: Loss, which decides whether descriptors are returned, and where features are read; None reads features
            between cells.
    """
    maps = transform_features(head, maps)
    if isinstance(batch, ImageBatch):
        return _image_inputs(head, maps, batch, variants, step, loss)
    parts = maps.values.chunk(2 + len(batch.mirrored))
    return _pair_inputs(head, [FeatureMap(part, maps.stride) for part in parts], batch, variants, step, loss)


def _pair_inputs(
    head: nn.Module, maps: Sequence[FeatureMap], batch: PairBatch, variants: PoseVariant, step: int, loss: Loss | None
) -> LossInputs:
    """Compute the inputs of the pairs, one per row, and then of their variants, in the order of `PoseVariant.terms`."""
    views, terms = [batch.source, batch.target, *batch.mirrored], variants.terms
    sources, targets = [views[term.source] for term in terms], [views[term.target] for term in terms]
    points = [_feature_points(view, query_grid(head, maps[0]), loss) for view in views]
    similarity, descriptors = _compare_terms(head, maps, points, terms, loss)
    masks = torch.stack([a.visible & b.visible for a, b in zip(sources, targets, strict=True)])
    weights = point_weights(masks, [term.weight for term in terms]) if variants else masks
    mask, cell = weights.flatten(0, 1), batch.source.image.shape[-1] / similarity.shape[-1]
    original = torch.arange(len(mask), device=mask.device) < len(batch.pair)
    return LossInputs(
        similarity=similarity,
        cells=torch.cat([_true_cells(view, similarity, loss) for view in targets]),
        mask=mask,
        starts=torch.cat([_true_cells(view, similarity, loss) for view in sources]),
        extent=torch.cat([view_extent(view) for view in targets])[:, None].expand(-1, mask.shape[1], -1) / cell,
        number=step,
        descriptors=Descriptors(*descriptors, mask, original) if descriptors else None,
        pairs=pair_maps(head, maps, batch) if ExtraInput.PAIRS in list_reads(loss) else None,
    )


def pair_maps(head: nn.Module, maps: Sequence[FeatureMap], batch: PairBatch) -> PairMaps:
    """Return the pairs of a batch, with the maps of sources and targets, as the head compares them."""
    source, target = batch.source, batch.target
    categories = [batch.category] if isinstance(batch.category, str) else batch.category
    pairs = PairMaps(head, maps[0], maps[1], source.box, target.box, source.image.shape[-1], categories)
    return pairs._replace(masks=(batch.masks[0], batch.masks[1])) if batch.masks else pairs


def _compare_terms(
    head: nn.Module, maps: Sequence[FeatureMap], points: Sequence[Tensor], terms: Sequence[LossTerm], loss: Loss | None
) -> tuple[Float[Tensor, "r n h w"], tuple[Tensor, Tensor] | None]:
    """Compute the similarity of all terms, and for a loss that reads them the descriptors of both images' keypoints."""
    if not isinstance(head, SiameseHead):
        return torch.cat([head(maps[a], maps[b], points[a]) for a, b, _ in terms]).float(), None
    describe = reads_descriptors(loss)
    to_describe = {i for a, b, _ in terms for i in ((a, b) if describe else (a,))}
    descriptors = {i: _describe(head, maps[i], points[i], loss) for i in sorted(to_describe)}
    similarity = torch.cat([head.compare(descriptors[a], maps[b]) for a, b, _ in terms]).float()
    if not describe:
        return similarity, None
    return similarity, (
        torch.cat([descriptors[a] for a, _, _ in terms]),
        torch.cat([descriptors[b] for _, b, _ in terms]),
    )


def _image_inputs(
    head: nn.Module, maps: FeatureMap, batch: ImageBatch, variants: PoseVariant, step: int, loss: Loss | None
) -> LossInputs:
    """Compute the inputs of all ordered pairs of a few images, and their variants, in one row with many keypoints.

    The weights of a pair's keypoints add up to 1, so that every pair counts alike.
    """
    views = [batch.view, *batch.mirrored]
    source, keypoint, target = batch.queries.unbind(-1)
    grid, describe = query_grid(head, maps), reads_descriptors(loss)
    feature_points = torch.cat([_feature_points(view, grid, loss) for view in views])
    if isinstance(head, SiameseHead):
        descriptors = _describe(head, maps, feature_points, loss)
        similarity = all_pairs_similarity_from_descriptors(head, descriptors, maps, batch.queries).float()
    else:
        similarity = all_pairs_similarity(head, maps, feature_points, batch.queries).float()
    cell = batch.view.image.shape[-1] / similarity.shape[-1]
    cells = torch.cat([_true_cells(view, similarity, loss) for view in views])
    weights = image_weights(views[0].visible, views[1].visible if variants else None, variants)
    mask = weights[source, keypoint, target]
    return LossInputs(
        similarity=similarity[None],
        cells=cells[target, keypoint][None],
        mask=mask[None],
        starts=cells[source, keypoint][None],
        extent=torch.cat([view_extent(view) for view in views])[target][None] / cell,
        number=step,
        descriptors=_all_pairs_descriptors(descriptors, weights, len(batch.view.name)) if describe else None,
    )


def _feature_points(view: View, grid: int, loss: Loss | None) -> Float[Tensor, "b n 2"]:
    """Return the pixels, in our own convention, at which features are read for the keypoints of a view.

    `grid` is the number of cells along a side that the loss counts in.
    """
    lookup, stride = point_lookup(loss), view.image.shape[-1] / grid
    if lookup == "centre":
        return view.keypoints
    if lookup == "aligned":
        return to_image(aligned_cells(view, grid), stride)
    return to_image(to_grid(view.keypoints, stride).add(0.5).floor(), stride)


def _describe(
    head: SiameseHead, maps: FeatureMap, points: Float[Tensor, "b n 2"], loss: Loss | None
) -> Float[Tensor, "b n c"]:
    """Read descriptors of keypoints: for `aligned` from features of unit length, as its recipe has it."""
    if point_lookup(loss) == "aligned":
        return describe_unit_cells(head, maps, points)
    return head.describe(maps, points)


def _true_cells(view: View, similarity: Float[Tensor, "*q h w"], loss: Loss | None) -> Float[Tensor, "b n 2"]:
    """Return the keypoints of a view in cells of a similarity."""
    grid = similarity.shape[-1]
    if point_lookup(loss) == "aligned":
        return aligned_cells(view, grid)
    return to_grid(view.keypoints, view.image.shape[-1] / grid)


def aligned_cells(view: View, grid: int) -> Float[Tensor, "b n 2"]:
    """Return the keypoints of a squashed view in cells, corner cells on corner pixels, as Visual-AI's code has them.

    x (S - 1) / (W - 1) for an original of W pixels and a view of S, kept 1e-4 pixels inside; then x (g - 1) / (S - 1).

    >>> view = View(torch.zeros(1, 3, 0, 840), torch.tensor([[[-0.5, 419.5]]]), *[None] * 2, torch.tensor([[2.0, 8.0]]),
    ...             torch.zeros(1, 2), "")  # of 420 x 105 pixels: the point is at (-0.5, 52)
    >>> round(float(aligned_cells(view, grid=61)[0, 0, 1]), 4)
    30.0
    """
    side, original = view.image.shape[-1], from_view(view.keypoints, view.scale, view.offset)
    ratio = (side - 1) / (side / view.scale - 1)
    inside = (original * ratio[:, None]).clamp(EPSILON, side - 1 - EPSILON)
    return inside * ((grid - 1) / (side - 1))


def _all_pairs_descriptors(
    descriptors: Float[Tensor, "k n c"], weights: Float[Tensor, "k n k"], count: int
) -> Descriptors:
    """Return the descriptors of every ordered pair of images, also of pairs without shared keypoints.

    To leave these out, their number would have to be copied from the GPU.
    """
    k = len(weights)
    images = torch.arange(k, device=weights.device)
    first, second = images[:, None].expand(-1, k).flatten(), images.repeat(k)
    original = (first < count) & (second < count)
    return Descriptors(descriptors[first], descriptors[second], weights.transpose(1, 2).flatten(0, 1), original)


def view_extent(view: View) -> Float[Tensor, "b 2"]:
    """Return the longer side of the box, measured in original pixels, in pixels of the view along x and along y."""
    sides = (view.box[:, 2:] - view.box[:, :2]) / view.scale
    return sides.amax(-1, keepdim=True) * view.scale
