"""Pairs of a batch grouped by their target, with the features of their images."""

from collections.abc import Iterator
from typing import NamedTuple

from semcorr.core.finite import FiniteWatch
from semcorr.core.types import FeatureMap, PairBatch, View
from semcorr.evaluation.image_features import ImageFeatures, transformed_feature_origin
from semcorr.evaluation.pose.alignment import select_rows
from semcorr.store.encode import split_into_chunks


class TargetGroup(NamedTuple):
    """Pairs of a batch with one target, by their positions, and the features of their images."""

    pairs: list[int]
    target: FeatureMap
    sources: list[FeatureMap]  # of each pair


def group_by_target(batch: PairBatch, features: ImageFeatures) -> Iterator[list[TargetGroup]]:
    """Yield the pairs of each target with the features of their images.

    All groups come in one list where images have features of their own. Where the features depend on both images of a
    pair, each pair is a group in a list by itself, so that memory holds a few pairs.

    Raises:
        UserError: Features of pairs are not finite; on a GPU it may be raised as late as after the last group.
    """
    if not features.module.backbone.needs_pair:
        images = {*batch.source.name, *batch.target.name}
        maps_by_name = {name: features(name) for name in images}  # each image goes to the device once
        yield [
            TargetGroup(pairs, maps_by_name[name], [maps_by_name[batch.source.name[i]] for i in pairs])
            for name, pairs in _pairs_by_target(batch).items()
        ]
        return
    watch = FiniteWatch(transformed_feature_origin(features.module))
    for pairs, *maps in _pair_features(batch, features):
        sources, targets = map(features.transform, maps)
        for view, transformed in ((batch.source, sources), (batch.target, targets)):
            watch.record([view.name[i] for i in pairs], {"maps": transformed.values})
        for row, i in enumerate(pairs):
            yield [TargetGroup([i], _select_image(targets, row), [_select_image(sources, row)])]
    watch.check()  # once, when all is matched: a GPU is waited for


def _pair_features(batch: PairBatch, features: ImageFeatures) -> Iterator[tuple[list[int], FeatureMap, FeatureMap]]:
    """Yield the indices of a few pairs, and the features of their sources and targets, which depend on both images.

    There are as many pairs at once as images are encoded at once: a network that runs once for each pair encodes a
    target as often as it has sources.
    """
    backbone, most = features.module.backbone, features.data.encoding_batch
    if backbone.needs_pixels:
        for pairs in split_into_chunks(range(len(batch.pair)), most):
            views = (_select_images(view, pairs) for view in batch[:2])
            yield pairs, *features.module.pair_features(*views)
        return
    for name, of_target in _pairs_by_target(batch).items():
        target = backbone.prepare_target(features.image_maps([name]))
        for pairs in split_into_chunks(of_target, most):
            sources = features.image_maps([batch.source.name[i] for i in pairs])
            yield pairs, *backbone.join_pair(sources, target)


def _pairs_by_target(batch: PairBatch) -> dict[str, list[int]]:
    """Group the pairs of a batch by their target."""
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(batch.target.name):
        groups.setdefault(name, []).append(i)
    return groups


def _select_images(view: View, rows: list[int]) -> View:
    """Return a view of some images alone."""
    return View._make(select_rows(column, rows) for column in view)


def _select_image(maps: FeatureMap, i: int) -> FeatureMap:
    """Return the features of image `i` alone."""
    return FeatureMap(maps.values[i : i + 1], maps.stride)
