"""One pass over a split: every image encoded once, every target matched once, every pair scored by every reading."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.core.coords import from_view, to_image
from semcorr.core.errors import UserError
from semcorr.core.finite import require_finite
from semcorr.core.types import FeatureMap, PairBatch
from semcorr.data.record import PairRecord
from semcorr.evaluation import detection
from semcorr.evaluation.ground_truth import GroundTruth, ground_truth, query_points, score_predictions
from semcorr.evaluation.image_features import ImageFeatures, adapted_feature_origin
from semcorr.evaluation.pose import alignment as adaptive
from semcorr.evaluation.protocols import Protocol
from semcorr.evaluation.scoring_specs import ScoringSpec, check_scoring_specs, metrics_dict
from semcorr.matching.batched import TargetMatches, match_at_full_resolution, match_to_target
from semcorr.metrics.pck import PCK, normalised_error
from semcorr.metrics.predictions_table import build_rows, gather_tables, with_predictions
from semcorr.store.encode import ProcessGroup


class BatchPredictions(NamedTuple):
    """A batch by one reading; only shared keypoints are filled in."""

    cells: Float[Tensor, "b n 2"]
    score: Float[Tensor, "b n"]  # similarity of the best cell


class EvaluationResult(NamedTuple):
    """Scores of a split, the same on every process, and the rows that they follow from.

    Attributes:
        specs: Protocols and read-outs; the first is the one reported.
        each: Scores of each of them.
        scores: Scores as metrics.json has them.
        tables: Rows by name: `predictions`, and `poses` and `detections` where they were asked for; none for a
            validation.
        grid: Columns and rows of the similarities; None where features were matched at the image's own resolution.
        seconds: Time by stage.
    """

    specs: Sequence[ScoringSpec]
    each: list[dict[str, Any]]
    scores: dict[str, Any]
    tables: dict[str, pa.Table]
    grid: tuple[int, int] | None
    seconds: dict[str, float]


class Evaluator:
    """Encode every image of a split once, match every target once, and score every pair by every specification.

    Args:
        module: Its backbone and head.
        data: The benchmark.
        split: Of it.
        group: Who shares the work.
        context: The precision that features are computed in.
        specs: Protocols and read-outs; all of them see the same features.
        keeps_rows: Keep a row per keypoint and reading, and not the scores alone.
        pose: Poses that sources are tried in.
        kap: Ask also after keypoints that the target does not show.
    """

    def __init__(
        self,
        module: Any,
        data: Any,
        split: str,
        group: ProcessGroup,
        context: Callable[[], AbstractContextManager[Any]],
        specs: Sequence[ScoringSpec],
        keeps_rows: bool = True,
        pose: adaptive.AdaptivePose | None = None,
        kap: bool = False,
    ) -> None:
        self.module, self.data, self.split, self.group = module, data, split, group
        self.specs, self.keeps_rows, self.kap = list(specs), keeps_rows, kap
        check_scoring_specs(self.specs, module.head)
        self.records: dict[str, PairRecord] = {pair.name: pair for pair in data.pairs(split)}
        self.foreign = not all(reading.protocol.exact for reading in self.specs)
        keypoints = len(data.pairs(split)[0].source.keypoints)
        self.pck = [
            PCK(data.categories(split), keypoints, strict=one.protocol.strict, pooling=one.protocol.pooling).to(
                group.device
            )
            for one in self.specs
        ]
        self.image_features = ImageFeatures(module, data, group, context)
        self.align = adaptive.PoseAligner(pose, data, split, group.device) if pose else None
        self.tables: list[pa.Table] = []
        self.detections: list[pa.Table] = []
        self.stride = 1.0  # pixels per cell of a similarity, whose grid the head decides
        self.grid: tuple[int, int] | None = None  # columns and rows of the similarities
        self.seconds = {"encode": 0.0, "match": 0.0}

    @torch.no_grad()
    def encode(self, batches: int, reuse: bool) -> None:
        """Every image that the pairs ahead look at, once; none where pairs must be seen whole.

        Args:
            batches: How many of the split's, on each process.
            reuse: Go on from what the frozen blocks made of them, and keep that for the next time.
        """
        start = time.perf_counter()
        if not self.module.backbone.pairwise:
            shown = self.data.images_to_evaluate(self.split, batches)
            self.image_features.encode(self.align.shown(shown) if self.align else shown, reuse)
        self.seconds["encode"] += time.perf_counter() - start

    def update(self, batch: PairBatch) -> list[BatchPredictions]:
        """Score a batch of pairs, and keep the rows of its keypoints.

        Returns:
            The predictions of every specification, in their order.
        """
        start = time.perf_counter()
        source, target = batch[:2]
        known = self._annotated(batch, [self.records[name] for name in batch.pair])
        truth = from_view(target.keypoints, target.scale, target.offset)
        queries = from_view(source.keypoints, source.scale, source.offset)
        names = self.pck[0].categories
        category = torch.tensor([names.index(name) for name in batch.category], device=truth.device)
        table = None
        predictions = self._predict(batch, known)
        for pck, reading, read in zip(self.pck, self.specs, predictions, strict=True):
            predicted, errors = self._scored(batch, known, reading.protocol, read.cells, truth)
            require_finite_predictions(batch, predicted, read.score, reading.localise)
            pck.update(predicted, truth, batch.extent, batch.shared, batch.ambiguous, category, errors)
            if not self.keeps_rows:
                continue
            said: dict[str, Any] = {"localise": reading.localise, "protocol": reading.protocol.name, "error": errors}
            said |= {"score": read.score, "shared": batch.shared}
            table = with_predictions(table, predicted=predicted, **said) if table is not None else build_rows(
                pair=batch.pair, source=source.name, target=target.name, category=batch.category,
                points=torch.cat((queries, truth, predicted), dim=-1), extent=batch.extent, ambiguous=batch.ambiguous,
                **said,
            )  # fmt: skip
            self.tables.append(table)
        if self.kap:
            for pairs, seen, sources in self._by_target(batch):
                self.detections.append(detection.detect_keypoints(self.module.head, seen, sources, batch, pairs))
        self.seconds["match"] += time.perf_counter() - start
        return predictions

    def compute(self, with_tables: bool = True) -> EvaluationResult:
        """Return the scores of all batches of all processes.

        Args:
            with_tables: Gather the rows as well.
        """
        each = [pck.compute() for pck in self.pck]
        tables = self.gather_tables() if with_tables else {}
        return EvaluationResult(self.specs, each, metrics_dict(self.specs, each), tables, self.grid, self.seconds)

    def gather_tables(self) -> dict[str, pa.Table]:
        """Return all processes' rows: of the keypoints, of the poses tried, of what was detected; those there are."""
        found = {"predictions": gather_tables(self.tables)}
        if self.align:
            found["poses"] = gather_tables(self.align.tables, adaptive.SCHEMA, adaptive.ORDER)
        if self.kap:
            found["detections"] = detection.gather_detections(self.detections)
        return found

    def _annotated(self, batch: PairBatch, records: Sequence[PairRecord]) -> GroundTruth | None:
        """For published protocols: ours needs no more than the batch."""
        side = batch.target.image.shape[-1]
        return ground_truth(records, side, self.data.resize, batch.extent.device) if self.foreign else None

    def _scored(
        self,
        batch: PairBatch,
        known: GroundTruth | None,
        protocol: Protocol,
        cells: Float[Tensor, "b n 2"],
        truth: Float[Tensor, "b n 2"],
    ) -> tuple[Float[Tensor, "b n 2"], Float[Tensor, "b n"]]:
        """Predictions in original target pixels, and their errors."""
        if known is None or protocol.exact:
            predicted = from_view(to_image(cells, self.stride), batch.target.scale, batch.target.offset)
            return predicted, normalised_error(predicted, truth, batch.extent)
        grid = round(known.target_at.side / self.stride)
        predicted, errors = score_predictions(known, protocol, cells, grid)
        return predicted.to(truth.dtype), errors

    def _predict(self, batch: PairBatch, known: GroundTruth | None) -> list[BatchPredictions]:
        """The answers of every reading, in their order; each pair's from its best pose, where poses are tried."""
        if self.align is None:
            return self._matched(batch, known)
        empty = torch.zeros_like(batch.source.keypoints)
        reads = [BatchPredictions(empty.clone(), empty[..., 0].clone()) for _ in self.specs]
        for pairs, part, records in self.align.parts(batch, self.image_features):
            for into, found in zip(reads, self._matched(part, self._annotated(part, records)), strict=True):
                into.cells[pairs] += found.cells  # parts do not overlap, and are zero where they say nothing
                into.score[pairs] += found.score
        return reads

    def _matched(self, batch: PairBatch, known: GroundTruth | None) -> list[BatchPredictions]:
        """As the batch is. One pass per place the source is read at."""
        shared = batch.shared
        counts = shared.sum(-1).tolist()
        empty = torch.zeros_like(batch.source.keypoints)
        reads = [BatchPredictions(empty.clone(), empty[..., 0].clone()) for _ in self.specs]
        passes: dict[tuple[Any, ...], list[int]] = {}
        for i, reading in enumerate(self.specs):
            passes.setdefault(reading.source, []).append(i)
        looked: dict[tuple[Any, ...], Sequence[Tensor]] = {}
        for pairs, target, sources in self._by_target(batch):
            for members in passes.values():
                protocol = self.specs[members[0]].protocol
                if protocol.query not in looked:
                    where = self._asked(batch, known, protocol, sources[0].values.shape[-1])
                    looked[protocol.query] = where[shared].split(counts)
                points = [looked[protocol.query][i] for i in pairs]
                found = self._found(batch, protocol, target, sources, points, pairs, members)
                self._place(reads, members, found, shared, pairs)
        return reads

    def _place(
        self,
        reads: list[BatchPredictions],
        members: list[int],
        found: TargetMatches,
        shared: Bool[Tensor, "b n"],
        pairs: list[int],
    ) -> None:
        """Answers, in the order of the pairs' shared keypoints, to their rows."""
        mask = torch.zeros_like(shared)
        mask[pairs] = shared[pairs]
        cells = dict(zip(self._rules(members), found.cells, strict=True))
        for i in members:
            reads[i].cells[mask], reads[i].score[mask] = cells[self.specs[i].localise], found.score

    def _rules(self, members: Sequence[int]) -> dict[str, Any]:
        return {self.specs[i].localise: self.specs[i].rule for i in members}

    def _asked(
        self, batch: PairBatch, known: GroundTruth | None, protocol: Protocol, grid: int
    ) -> Float[Tensor, "b n 2"]:
        """Where the source's features are read, in pixels."""
        if known is None or protocol.query == Protocol().query:
            return batch.source.keypoints
        return query_points(known, protocol, grid)

    def _found(
        self, batch: PairBatch, protocol: Protocol, target: FeatureMap, sources: list[FeatureMap],
        points: list[Tensor], pairs: list[int], members: list[int],
    ) -> TargetMatches:  # fmt: skip
        """Queries of some pairs into their one target."""
        rules = list(self._rules(members).values())
        if protocol.decode == "native":
            size = self.records[batch.pair[pairs[0]]].target.size
            return match_at_full_resolution(self.module.head, target, sources, points, rules, size)
        found = match_to_target(self.module.head, target, sources, points, rules)
        h, w = (round(cells * target.stride / found.stride) for cells in target.values.shape[-2:])
        self.stride, self.grid = found.stride, (w, h)
        return found

    def _by_target(self, batch: PairBatch) -> Iterator[tuple[list[int], FeatureMap, list[FeatureMap]]]:
        """Pairs that look into the same features, those, and the features of their sources."""
        if self.module.backbone.pairwise:
            sources, targets = map(self.image_features.adapted, self.module.pair_features(batch.source, batch.target))
            for view, maps in ((batch.source, sources), (batch.target, targets)):
                require_finite(adapted_feature_origin(self.module), view.name, {"maps": maps.values})
            for i in range(len(batch.pair)):
                yield [i], _one(targets, i), [_one(sources, i)]
            return
        groups: dict[str, list[int]] = {}
        for i, name in enumerate(batch.target.name):
            groups.setdefault(name, []).append(i)
        for name, pairs in groups.items():
            yield pairs, self.image_features(name), [self.image_features(batch.source.name[i]) for i in pairs]


def require_finite_predictions(
    batch: PairBatch, predicted: Float[Tensor, "b n 2"], score: Float[Tensor, "b n"], localise: str
) -> None:
    """Refuse predictions and similarities that are not finite: compared with a threshold, NaN would only be wrong.

    Args:
        batch: Of pairs; only keypoints that both images show are looked at.
        predicted: In pixels.
        score: Similarity of the best cell.
        localise: The read-out's name.

    Raises:
        UserError: It names the first pair and keypoint.
    """
    wrong = batch.shared & ~(predicted.isfinite().all(-1) & score.isfinite())
    if bool(wrong.any()):
        pair, keypoint = wrong.nonzero()[0].tolist()
        raise UserError(
            f"`localise`: {localise} finds no finite place for keypoint {keypoint} of pair {batch.pair[pair]} (its "
            f"similarity is {score[pair, keypoint]:g}). Check the weights of the head, and `localise`'s options"
        )


def _one(maps: FeatureMap, i: int) -> FeatureMap:
    return FeatureMap(maps.values[i : i + 1], maps.stride)
