"""Evaluation of a split: encode every image once, match every target once, score every pair by every specification."""

import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from semcorr.core.coords import from_view, to_image
from semcorr.core.device import read_clock
from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonObject
from semcorr.core.types import PairBatch, View
from semcorr.data.image_variants import uncorrupted_name
from semcorr.data.record import PairRecord
from semcorr.evaluation import detection
from semcorr.evaluation.batch_matching import BatchMatcher, BatchPredictions
from semcorr.evaluation.conventions import GroundTruth, ground_truth, score_predictions
from semcorr.evaluation.image_features import EvaluationSetup, ImageFeatures
from semcorr.evaluation.pose import alignment as adaptive
from semcorr.evaluation.protocols import Protocol, ScoringSpec, fit_scoring_specs, metrics_dict
from semcorr.evaluation.target_groups import TargetGroup, group_by_target
from semcorr.metrics.pck import PCK, normalised_error
from semcorr.metrics.predictions import build_rows, gather_tables, with_predictions


class EvaluationResult(NamedTuple):
    """Scores of a split, the same on every process, and the rows that they are computed from.

    Attributes:
        specs: Protocols and readouts; the first is the one reported.
        spec_scores: Scores of each specification, as `PCK.compute` returns them.
        scores: Scores as metrics.json has them, see `metrics_dict`.
        tables: Rows by name: `predictions`, and `poses` and `detections` where they are computed; none for a
            validation.
        grid: Columns and rows of the similarities; None where features were matched at the image's own resolution.
        seconds: Seconds of the stages `encode` and `match`, on this process.
    """

    specs: Sequence[ScoringSpec]
    spec_scores: list[JsonObject]
    scores: JsonObject
    tables: dict[str, pa.Table]
    grid: tuple[int, int] | None
    seconds: dict[str, float]


class Evaluator:
    """An evaluator of a split, which encodes every image once, and scores every pair by every specification.

    Args:
        setup: The module, and the split that it is evaluated on.
        specs: Protocols and readouts; all of them see the same features.
        keeps_rows: Store a row per keypoint and specification, and not the scores alone.
        pose: Poses in which sources are tried; None leaves them as they are.
        kap: Detect every keypoint that a source shows, also where the target does not show it.

    Raises:
        UserError: The head does not support a specification.
    """

    def __init__(
        self,
        setup: EvaluationSetup,
        specs: Sequence[ScoringSpec],
        keeps_rows: bool = True,
        pose: adaptive.AdaptivePose | None = None,
        kap: bool = False,
    ) -> None:
        module, data, split, group = setup[:4]
        self.module, self.data, self.split, self.group = module, data, split, group
        self.specs, self.keeps_rows, self.kap = fit_scoring_specs(specs, module.head), keeps_rows, kap
        self.records: dict[str, PairRecord] = {pair.name: pair for pair in data.pairs(split)}
        self.needs_ground_truth = not all(spec.protocol.exact for spec in self.specs)
        keypoints = len(data.pairs(split)[0].source.keypoints)
        self.pck = [
            PCK(data.categories(split), keypoints, tolerance=spec.protocol.tolerance, pooling=spec.protocol.pooling)
            for spec in self.specs
        ]
        self.image_features = ImageFeatures(setup)
        self.matcher = BatchMatcher(self.image_features, self.specs, self.records)
        self.aligner = adaptive.PoseAligner(pose, data, split, group.device) if pose else None
        self.tables: list[pa.Table] = []
        self.detections: list[pa.Table] = []
        self.seconds = {"encode": 0.0, "match": 0.0}
        self.grid: tuple[int, int] | None = None  # of the similarities

    @torch.no_grad()
    def encode(self, batches: int, use_cached_features: bool) -> None:
        """Encode every image of the pairs once; do nothing where the backbone takes pairs of pixels.

        Args:
            batches: Number of the split's batches on each process.
            use_cached_features: Start from the cached features of the frozen blocks, and cache them for the next time.
        """
        start = read_clock(self.group.device)
        if not self.module.backbone.needs_pixels:
            images = self.data.images_to_evaluate(self.split, batches)
            self.image_features.encode(
                self.aligner.add_variants(images) if self.aligner else images, use_cached_features
            )
        self.seconds["encode"] += read_clock(self.group.device) - start

    def update(self, batch: PairBatch) -> list[BatchPredictions]:
        """Score a batch of pairs, and store the rows of its keypoints.

        Features are matched on the device; all else is computed on the CPU, which has the annotations: a batch costs
        a GPU one copy.

        Returns:
            The predictions of every specification, in their order, on the CPU.

        Raises:
            UserError: A feature, a similarity or a prediction is not finite.
        """
        start = time.perf_counter()
        batch = place_batch(batch, self.group.device)
        source, target = batch[:2]
        annotations = self._ground_truth(batch, [self.records[name] for name in batch.pair])
        truth = from_view(target.keypoints, target.scale, target.offset)
        queries = from_view(source.keypoints, source.scale, source.offset)
        names = self.pck[0].categories
        category = torch.tensor([names.index(name) for name in batch.category], device=truth.device)
        table = None
        predictions = self._predict(batch, annotations)
        for pck, spec, batch_predictions in zip(self.pck, self.specs, predictions, strict=True):
            predicted, errors = self._score(batch, annotations, spec.protocol, batch_predictions, truth)
            self.grid = batch_predictions.grid or self.grid
            require_finite_predictions(batch, predicted, batch_predictions.score, spec.localise)
            pck.update(predicted, truth, batch.extent, batch.shared, batch.ambiguous, category, errors)
            if not self.keeps_rows:
                continue
            columns: JsonObject = {"localise": spec.localise, "protocol": spec.protocol.name, "error": errors}
            columns |= {"score": batch_predictions.score, "shared": batch.shared}
            if table is None:
                table = build_rows(
                    pair=batch.pair,
                    source=[uncorrupted_name(name) for name in source.name],
                    target=[uncorrupted_name(name) for name in target.name],
                    category=batch.category,
                    points=torch.cat((queries, truth, predicted), dim=-1),
                    extent=batch.extent,
                    ambiguous=batch.ambiguous,
                    **columns,
                )
            else:
                table = with_predictions(table, predicted=predicted, **columns)
            self.tables.append(table)
        if self.kap and self.aligner:  # keypoints are detected in the batch as it is
            for groups in group_by_target(batch, self.image_features):
                self._detect_keypoints(batch, groups)
        self.seconds["match"] += time.perf_counter() - start  # the copy of the matches has waited for the device
        return predictions

    def compute(self, with_tables: bool = True) -> EvaluationResult:
        """Return the scores of all batches of all processes; every process must call it.

        Args:
            with_tables: Gather the rows as well; otherwise the result has no tables.
        """
        metrics = [pck.to(self.group.device).compute() for pck in self.pck]  # NCCL adds up what GPUs hold
        tables = self.gather_tables() if with_tables else {}
        scores = metrics_dict(self.specs, metrics)
        return EvaluationResult(self.specs, metrics, scores, tables, self.grid, self.seconds)

    def gather_tables(self) -> dict[str, pa.Table]:
        """Gather all processes' rows: keypoints, and poses and detections where they are computed."""
        tables = {"predictions": gather_tables(self.tables)}
        if self.aligner:
            tables["poses"] = gather_tables(self.aligner.tables, adaptive.SCHEMA, adaptive.ORDER)
        if self.kap:
            tables["detections"] = detection.gather_detections(self.detections)
        return tables

    def _ground_truth(self, batch: PairBatch, records: Sequence[PairRecord]) -> GroundTruth | None:
        """Return the ground truth of published protocols, or None where the batch itself is enough."""
        side = batch.target.image.shape[-1]
        return ground_truth(records, side, self.data.resize, torch.device("cpu")) if self.needs_ground_truth else None

    def _score(
        self,
        batch: PairBatch,
        annotations: GroundTruth | None,
        protocol: Protocol,
        predictions: BatchPredictions,
        truth: Float[Tensor, "b n 2"],
    ) -> tuple[Float[Tensor, "b n 2"], Float[Tensor, "b n"]]:
        """Compute predictions in original target pixels, and their errors."""
        if annotations is None or protocol.exact:
            places = to_image(predictions.cells, predictions.stride)
            predicted = from_view(places, batch.target.scale, batch.target.offset)
            return predicted, normalised_error(predicted, truth, batch.extent)
        grid = round(batch.target.image.shape[-1] / predictions.stride)
        predicted, errors = score_predictions(annotations, protocol, predictions.cells, grid)
        return predicted.to(truth.dtype), errors

    def _predict(self, batch: PairBatch, annotations: GroundTruth | None) -> list[BatchPredictions]:
        """Predict by every specification, in their order; each pair in its best pose, where poses are tried."""
        if self.aligner is None:
            return self.matcher.match(batch, annotations, partial(self._detect_keypoints, batch) if self.kap else None)
        empty = torch.zeros_like(batch.source.keypoints)
        predictions = [BatchPredictions(empty.clone(), empty[..., 0].clone()) for _ in self.specs]
        for pairs, part, records in self.aligner.split_batch(batch, self.image_features):
            for i, matched in enumerate(self.matcher.match(part, self._ground_truth(part, records))):
                predictions[i].cells[pairs] += matched.cells  # parts do not overlap, and are zero elsewhere
                predictions[i].score[pairs] += matched.score
                predictions[i] = predictions[i]._replace(stride=matched.stride, grid=matched.grid)
        return predictions

    def _detect_keypoints(self, batch: PairBatch, groups: Sequence[TargetGroup]) -> None:
        for pairs, target, sources in groups:
            self.detections.append(detection.detect_keypoints(self.module.head, target, sources, batch, pairs))


def place_batch(batch: PairBatch, device: torch.device) -> PairBatch:
    """Return a batch with its pixels, if it has any, on a device, and what is annotated on the CPU."""
    columns = [_place_view(column, device) if isinstance(column, View) else _to_cpu(column) for column in batch]
    return PairBatch._make(columns)


def _place_view(view: View, device: torch.device) -> View:
    """Return a view with its pixels, if it has any, on a device, and its annotations on the CPU."""
    image = view.image.to(device, non_blocking=True) if view.image.shape[-2] else view.image
    return View._make([image, *map(_to_cpu, view[1:])])


def _to_cpu(column: object) -> object:
    """Return a tensor on the CPU, anything else as it is."""
    return column.cpu() if isinstance(column, Tensor) else column


def require_finite_predictions(
    batch: PairBatch, predicted: Float[Tensor, "b n 2"], score: Float[Tensor, "b n"], localise: str
) -> None:
    """Refuse predictions and similarities that are not finite: compared with a threshold, NaN would only be wrong.

    Args:
        batch: Batch of pairs; only keypoints that both images show are checked.
        predicted: Predictions in original target pixels.
        score: Similarity of the best cell.
        localise: Name of the readout, for the message.

    Raises:
        UserError: A value is not finite; the message names the first pair and keypoint.
    """
    not_finite = batch.shared & ~(predicted.isfinite().all(-1) & score.isfinite())
    if bool(not_finite.any()):
        pair, keypoint = not_finite.nonzero()[0].tolist()
        raise UserError(
            f"`localise`: {localise} finds no finite place for keypoint {keypoint} of pair {batch.pair[pair]} (its "
            f"similarity is {score[pair, keypoint]:g}). Check the weights of the head, and `localise`'s options"
        )
