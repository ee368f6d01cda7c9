"""What a training step asks: batches and features of their images to what a loss is told."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import dropout

from semcorr.core.coords import to_grid, to_image
from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone, SiameseHead
from semcorr.core.types import FeatureMap, ImageBatch, PairBatch, View
from semcorr.data.pose_variants import LossTerm, PoseVariant, image_weights, point_weights
from semcorr.matching.batched import all_pairs_similarity, all_pairs_similarity_from_descriptors
from semcorr.models.losses import Descriptors, Loss, LossInputs, reads_descriptors, reads_whole_cells


@runtime_checkable
class FeatureExtractor(Protocol):
    """A backbone with what it takes to compute the features of a batch."""

    backbone: Backbone

    def features(self, names: Sequence[str], image: Float[Tensor, "b 3 h w"]) -> FeatureMap:
        """Compute the features of a batch of images; without pixels, from the cached features of the frozen blocks."""

    def pair_features(self, source: View, target: View) -> tuple[FeatureMap, FeatureMap]:
        """Compute the features of two batches of images, from their pixels."""


def validate_training_options(
    backbone: Backbone, head: nn.Module, loss: Loss | None, variants: PoseVariant, share: float
) -> None:
    """Refuse, before anything is computed, what cannot be asked."""
    if not 0 <= share < 1:
        raise UserError(f"`feature_dropout` must be at least 0, which is off, and less than 1, got {share}")
    if reads_descriptors(loss) and not isinstance(head, SiameseHead):
        raise UserError(
            f"`loss` compares descriptors of keypoints, and the head {type(head).__name__} has none: it must see both "
            "images. Choose a loss of similarity, as loss=gaussian_cross_entropy, or head=cosine."
        )
    if variants and backbone.pairwise:
        raise UserError(
            f"`pairs`: {backbone.name} sees images in pairs, and variants of a pair are made from features of one "
            "image each. Set pairs=plain."
        )


def batch_features(module: FeatureExtractor, batch: PairBatch | ImageBatch) -> FeatureMap:
    """Features of all images of a batch, then of their mirror images."""
    if not module.backbone.pairwise:
        return module.features(*batch_views(batch))
    if isinstance(batch, ImageBatch):
        raise UserError(f"`data.all_pairs`: {module.backbone.name} sees images in pairs. Set data.all_pairs=null.")
    a, b = module.pair_features(batch.source, batch.target)
    return FeatureMap(torch.cat((a.values, b.values)), a.stride)


def batch_views(batch: PairBatch | ImageBatch) -> tuple[list[str], Float[Tensor, "k 3 h w"]]:
    """Names and pixels of all images of a batch, and then of their mirror images."""
    views = [batch.view] if isinstance(batch, ImageBatch) else [batch.source, batch.target]
    names = [name for view in (*views, *batch.mirrored) for name in view.name]
    turned = [view.image.flip(-1) for view in views[: len(batch.mirrored)]]  # of a pair, the source alone may be
    return names, torch.cat([*(view.image for view in views), *turned])


def batch_names(batch: PairBatch | ImageBatch) -> tuple[list[str], list[str]]:
    """The images of a batch in the order of `maps_of`, and what it is a batch of: its pairs, or its images."""
    views = [batch.view] if isinstance(batch, ImageBatch) else [batch.source, batch.target]
    names = [name for view in (*views, *batch.mirrored) for name in view.name]
    return names, [f"image {batch.view.name[0]}"] if isinstance(batch, ImageBatch) else [f"pair {batch.pair[0]}"]


def feature_dropout(maps: FeatureMap, share: float) -> FeatureMap:
    """Feature dropout, element by element ("Telling Left from Right", 4.2)."""
    return maps._replace(values=dropout(maps.values, share)) if share else maps


def build_loss_inputs(
    head: nn.Module,
    maps: FeatureMap,
    batch: PairBatch | ImageBatch,
    variants: PoseVariant,
    step: int,
    loss: Loss | None,
) -> LossInputs:
    """All that a loss may know of a batch.

    Args:
        head: Features to similarity. One that is separable adapts and describes each image once.
        maps: Of the images of `views_of`.
        batch: With mirrored views, if there are variants.
        variants: What is asked besides the pairs.
        step: Optimiser steps made before.
        loss: Whether it reads descriptors, and where features are read for it.
    """
    maps = head.adapt(maps) if isinstance(head, SiameseHead) else maps
    if isinstance(batch, ImageBatch):
        return _of_images(head, maps, batch, variants, step, loss)
    parts = maps.values.chunk(2 + len(batch.mirrored))
    return _of_pairs(head, [FeatureMap(part, maps.stride) for part in parts], batch, variants, step, loss)


def _of_pairs(
    head: nn.Module, maps: Sequence[FeatureMap], batch: PairBatch, variants: PoseVariant, step: int, loss: Loss | None
) -> LossInputs:
    """The pairs, row by row; then their variants. Images are counted as in `pose_variant`."""
    views, terms = [batch.source, batch.target, *batch.mirrored], variants.terms
    sources, targets = [views[term.source] for term in terms], [views[term.target] for term in terms]
    points = [_read_at(view.keypoints, maps[0].stride, loss) for view in views]
    similarity, descriptors = _compared(head, maps, points, terms, reads_descriptors(loss))
    masks = torch.stack([a.visible & b.visible for a, b in zip(sources, targets, strict=True)])
    weights = point_weights(masks, [term.weight for term in terms]) if variants else masks
    mask, cell = weights.flatten(0, 1), batch.source.image.shape[-1] / similarity.shape[-1]
    original = torch.arange(len(mask), device=mask.device) < len(batch.pair)
    return LossInputs(
        similarity=similarity,
        cells=to_grid(torch.cat([view.keypoints for view in targets]), cell),
        mask=mask,
        starts=to_grid(torch.cat([view.keypoints for view in sources]), cell),
        extent=torch.cat([view_extent(view) for view in targets])[:, None].expand(-1, mask.shape[1], -1) / cell,
        number=step,
        descriptors=Descriptors(*descriptors, mask, original) if descriptors else None,
    )


def _compared(
    head: nn.Module, maps: Sequence[FeatureMap], points: Sequence[Tensor], terms: Sequence[LossTerm], describe: bool
) -> tuple[Float[Tensor, "r n h w"], tuple[Tensor, Tensor] | None]:
    """Similarity of all terms, and the descriptors of both ends if asked for."""
    if not isinstance(head, SiameseHead):
        return torch.cat([head(maps[a], maps[b], points[a]) for a, b, _ in terms]).float(), None
    wanted = {place for a, b, _ in terms for place in ((a, b) if describe else (a,))}
    described = {place: head.describe(maps[place], points[place]) for place in sorted(wanted)}
    similarity = torch.cat([head.compare(described[a], maps[b]) for a, b, _ in terms]).float()
    if not describe:
        return similarity, None
    return similarity, (torch.cat([described[a] for a, _, _ in terms]), torch.cat([described[b] for _, b, _ in terms]))


def _of_images(
    head: nn.Module, maps: FeatureMap, batch: ImageBatch, variants: PoseVariant, step: int, loss: Loss | None
) -> LossInputs:
    """All ordered pairs of a few images, and their variants, as one pair with very many keypoints.

    The loss is a mean over points, whichever pair they are from.
    """
    views = [batch.view, *batch.mirrored]
    points, visible = torch.cat([view.keypoints for view in views]), torch.cat([view.visible for view in views])
    source, keypoint, target = batch.queries.unbind(-1)
    read, describe = _read_at(points, maps.stride, loss), reads_descriptors(loss)
    if isinstance(head, SiameseHead):
        described = head.describe(maps, read)
        similarity = all_pairs_similarity_from_descriptors(head, described, maps, batch.queries).float()
    else:
        similarity = all_pairs_similarity(head, maps, read, batch.queries).float()
    cell = batch.view.image.shape[-1] / similarity.shape[-1]
    every = image_weights(views[0].visible, views[1].visible, variants) if variants else None
    mask = torch.ones_like(keypoint, dtype=torch.bool) if every is None else every[source, keypoint, target]
    return LossInputs(
        similarity=similarity[None],
        cells=to_grid(points[target, keypoint], cell)[None],
        mask=mask[None],
        starts=to_grid(points[source, keypoint], cell)[None],
        extent=torch.cat([view_extent(view) for view in views])[target][None] / cell,
        number=step,
        descriptors=_all_descriptors(described, visible, every, len(batch.view.name)) if describe else None,
    )


def _read_at(points: Float[Tensor, "*b n 2"], stride: float, loss: Loss | None) -> Float[Tensor, "*b n 2"]:
    """Where features are read for points: there, or at the centre of the cell they fall in."""
    return to_image(to_grid(points, stride).add(0.5).floor(), stride) if reads_whole_cells(loss) else points


def _all_descriptors(
    described: Float[Tensor, "k n c"],
    visible: Bool[Tensor, "k n"],
    weights: Float[Tensor, "k n k"] | None,
    count: int,
) -> Descriptors:
    """Of every ordered pair of images, also where nothing is shared: how many are not would have to be waited for."""
    k = len(visible)
    if weights is None:
        others = ~torch.eye(k, dtype=torch.bool, device=visible.device)
        mask: Tensor = visible[:, :, None] & visible.T[None] & others[:, None]
    else:
        mask = weights
    every = torch.arange(k, device=visible.device)
    first, second = every[:, None].expand(-1, k).flatten(), every.repeat(k)
    original = (first < count) & (second < count)
    return Descriptors(described[first], described[second], mask.transpose(1, 2).flatten(0, 1), original)


def view_extent(view: View) -> Float[Tensor, "b 2"]:
    """The longer side of the box, measured in original pixels, in pixels of the view along x and along y."""
    sides = (view.box[:, 2:] - view.box[:, :2]) / view.scale
    return sides.amax(-1, keepdim=True) * view.scale
