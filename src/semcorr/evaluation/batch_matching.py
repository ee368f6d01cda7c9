"""Matching of a batch of pairs by every specification, from features to cells of the targets and their scores."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.core.device import copy_to_host
from semcorr.core.interfaces import SiameseHead
from semcorr.core.types import FeatureMap, PairBatch
from semcorr.data.record import PairRecord
from semcorr.evaluation.conventions import GroundTruth, query_points
from semcorr.evaluation.image_features import ImageFeatures
from semcorr.evaluation.protocols import Protocol, ScoringSpec
from semcorr.evaluation.target_groups import TargetGroup, group_by_target
from semcorr.matching.batched import (
    QueryOptions,
    TargetMatches,
    TargetQueries,
    match_at_full_resolution,
    match_to_targets,
    query_grid,
)
from semcorr.matching.readouts import Readout


class BatchPredictions(NamedTuple):
    """Predictions of one specification for a batch; only shared keypoints are filled in, the others are zero."""

    cells: Float[Tensor, "b n 2"]  # of the target's similarity; its original pixels where `grid` is None
    score: Float[Tensor, "b n"]  # similarity of the best cell
    stride: float = 1.0  # pixels per cell of the similarity, whose grid the head decides
    grid: tuple[int, int] | None = None  # its columns and rows; None at the images' own resolution


class BatchMatcher:
    """A matcher of batches, in one pass over their targets for each set of query points.

    Args:
        features: Features of the images, which the head of their module matches.
        specs: Protocols and readouts, as `fit_scoring_specs` returns them for the head.
        records: Pairs by name, for the sizes of their targets.
    """

    def __init__(
        self, features: ImageFeatures, specs: Sequence[ScoringSpec], records: Mapping[str, PairRecord]
    ) -> None:
        self.features, self.specs, self.records = features, specs, records

    def match(
        self,
        batch: PairBatch,
        annotations: GroundTruth | None,
        visit: Callable[[Sequence[TargetGroup]], None] | None = None,
    ) -> list[BatchPredictions]:
        """Match the shared keypoints of a batch, whose sources are in the pose that they come in.

        Args:
            batch: Batch of pairs, with annotations on the CPU.
            annotations: Ground truth of published protocols; None where the batch itself is enough.
            visit: Function that is called with the groups of targets after they have been matched, while their
                features are still in memory; None calls nothing.

        Returns:
            The predictions of every specification, in their order, on the CPU.
        """
        shared = batch.shared
        counts = shared.sum(-1).tolist()
        empty = torch.zeros_like(batch.source.keypoints)
        predictions = [BatchPredictions(empty.clone(), empty[..., 0].clone()) for _ in self.specs]
        passes: dict[tuple[object, ...], list[int]] = {}
        for i, spec in enumerate(self.specs):
            passes.setdefault(spec.source, []).append(i)
        points_by_query: dict[tuple[object, ...], Sequence[Tensor]] = {}
        matches_by_target: list[tuple[list[int], list[int], TargetMatches]] = []
        for groups in group_by_target(batch, self.features):
            for indices in passes.values():
                protocol = self.specs[indices[0]].protocol
                if protocol.query not in points_by_query:
                    grid = query_grid(self.features.module.head, groups[0].sources[0])
                    batch_points = self._query_points(batch, annotations, protocol, grid)
                    queries = batch_points[shared].to(self.features.group.device, non_blocking=True)
                    points_by_query[protocol.query] = queries.split(counts)
                matches = self._match_groups(batch, protocol, groups, points_by_query[protocol.query], indices)
                matches_by_target += [(indices, group.pairs, each) for group, each in zip(groups, matches, strict=True)]
                if protocol.decode != "native":
                    stride = matches[0].stride
                    columns_rows = _similarity_grid(groups[0].target, stride)
                    for i in indices:
                        predictions[i] = predictions[i]._replace(stride=stride, grid=columns_rows)
            if visit is not None:
                visit(groups)
        self._write_matches(predictions, matches_by_target, shared)
        return predictions

    def _write_matches(
        self,
        predictions: list[BatchPredictions],
        matches_by_target: Sequence[tuple[list[int], list[int], TargetMatches]],
        shared: Bool[Tensor, "b n"],
    ) -> None:
        """Write matches, each in the order of its pairs' shared keypoints, into the predictions of its specifications.

        Args:
            predictions: Predictions of every specification, which are filled in.
            matches_by_target: Indices of the specifications, indices of the pairs and their matches, for each target.
            shared: Keypoints that both images of a pair show.
        """
        values = iter(
            copy_to_host([tensor for *_, matches in matches_by_target for tensor in (*matches.cells, matches.score)])
        )
        for indices, pairs, _ in matches_by_target:
            mask = torch.zeros_like(shared)
            mask[pairs] = shared[pairs]
            cells = {name: next(values) for name in self._readouts_by_name(indices)}
            score = next(values)
            for i in indices:
                predictions[i].cells[mask], predictions[i].score[mask] = cells[self.specs[i].localise], score

    def _readouts_by_name(self, indices: Sequence[int]) -> dict[str, Readout]:
        """Return the readouts of specifications, by their names."""
        return {self.specs[i].localise: self.specs[i].readout for i in indices}

    def _query_points(
        self, batch: PairBatch, annotations: GroundTruth | None, protocol: Protocol, grid: int
    ) -> Float[Tensor, "b n 2"]:
        """Return the points at which the source's features are read, in pixels."""
        if annotations is None or protocol.query == Protocol().query:
            return batch.source.keypoints
        return query_points(annotations, protocol, grid, batch.source.image.shape[-1] / grid)

    def _match_groups(
        self,
        batch: PairBatch,
        protocol: Protocol,
        groups: Sequence[TargetGroup],
        points: Sequence[Tensor],
        indices: list[int],
    ) -> list[TargetMatches]:
        """Match the queries of pairs to the targets that they have in common."""
        readouts = list(self._readouts_by_name(indices).values())
        queries = [TargetQueries(group.target, group.sources, [points[i] for i in group.pairs]) for group in groups]
        if protocol.decode == "native":
            head = self.features.module.head
            assert isinstance(head, SiameseHead), "fit_scoring_specs comes first"
            sizes = [self.records[batch.pair[group.pairs[0]]].target.size for group in groups]
            return [
                match_at_full_resolution(head, *target_queries, readouts, size)
                for target_queries, size in zip(queries, sizes, strict=True)
            ]
        options = QueryOptions(protocol.normalise == "before", protocol.comparison == "product")
        return match_to_targets(self.features.module.head, queries, readouts, options=options)


def _similarity_grid(target: FeatureMap, stride: float) -> tuple[int, int]:
    """Return the columns and rows of similarities with a map whose cells are `stride` pixels apart."""
    h, w = (round(cells * target.stride / stride) for cells in target.values.shape[-2:])
    return w, h
