"""Detections of every keypoint that the source shows, whether or not the target shows it, from similarities."""

from collections.abc import Sequence

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.coords import cell_centres, from_view
from semcorr.core.device import copy_to_host
from semcorr.core.errors import UserError
from semcorr.core.finite import are_finite
from semcorr.core.interfaces import SiameseHead
from semcorr.core.text_files import JsonObject
from semcorr.core.types import FeatureMap, PairBatch
from semcorr.matching.batched import cell_stride
from semcorr.metrics.kap import KAP_ALPHAS, SCHEMA, inside_outside
from semcorr.metrics.predictions import gather_tables


def detect_keypoints(
    head: nn.Module, target: FeatureMap, sources: Sequence[FeatureMap], batch: PairBatch, pairs: Sequence[int]
) -> pa.Table:
    """Detect the keypoints of pairs with the same target, at every alpha of KAP, with one product per pair.

    Args:
        head: The head, which turns features and points into similarities.
        target: Features of the target image; transformed, if the head is a `SiameseHead`.
        sources: Features of the source images, one image each; transformed as the target.
        batch: Batch that the pairs are part of.
        pairs: Indices of the pairs in the batch, one per source.

    Returns:
        A row for each pair, alpha and keypoint that the source shows, with the columns of `metrics.kap.SCHEMA`.

    Raises:
        UserError: A similarity is not finite.
    """
    tables = []
    for i, source in zip(pairs, sources, strict=True):
        keypoint = batch.source.visible[i].nonzero().flatten()
        points, device = batch.source.keypoints[i, keypoint], source.values.device
        similarity = _similarity(head, source, target, points.to(device, non_blocking=True)).float()
        if not bool(are_finite(similarity).all()):
            raise UserError(f"`kap`: the similarities of pair {batch.pair[i]} are not finite. Check the head's weights")
        fit = [part[i][None].to(device, non_blocking=True) for part in (batch.target.scale, batch.target.offset)]
        stride = cell_stride(target, similarity)
        centres = cell_centres((similarity.shape[-2], similarity.shape[-1]), stride, similarity.device).flatten(0, 1)
        places = from_view(torch.stack((centres, centres + 0.5 - stride / 2)), *(part.expand(2, -1) for part in fit))
        truth = from_view(batch.target.keypoints[i, keypoint][None].to(device, non_blocking=True), *fit)[0]
        for alpha in KAP_ALPHAS:
            radius = alpha * float(batch.extent[i])
            scores = [
                values
                for cells in places.unflatten(1, similarity.shape[-2:])
                for values in inside_outside(similarity, cells, truth, radius)
            ]
            columns: JsonObject = {
                "pair": [batch.pair[i]] * len(keypoint),
                "category": [batch.category[i]] * len(keypoint),
                "keypoint": keypoint.tolist(),
                "visible": batch.target.visible[i, keypoint].tolist(),
                "alpha": [alpha] * len(keypoint),
                **{name: values.tolist() for name, values in zip(SCHEMA.names[-4:], copy_to_host(scores), strict=True)},
            }
            tables.append(pa.table(columns, schema=SCHEMA))
    return pa.concat_tables(tables)


def gather_detections(tables: Sequence[pa.Table]) -> pa.Table:
    """Gather the detections of all processes on every process, sorted by pair, alpha and keypoint."""
    return gather_tables(tables, SCHEMA, ("pair", "alpha", "keypoint"))


def _similarity(
    head: nn.Module, source: FeatureMap, target: FeatureMap, points: Float[Tensor, "n 2"]
) -> Float[Tensor, "n h w"]:
    """Compute the similarity of the points of a source with the cells of the target."""
    if isinstance(head, SiameseHead):
        return head.compare(head.describe(source, points[None]), target)[0]
    return head(source, target, points[None])[0]
