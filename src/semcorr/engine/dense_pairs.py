"""Dense matches of pairs: the match of every pixel, scored as flow or by the labels it carries over."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from semcorr.core.coords import from_view
from semcorr.core.device import full_float32, read_clock
from semcorr.core.errors import UserError
from semcorr.core.files import write_json
from semcorr.core.terminal import Terminal
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.core.types import FeatureMap
from semcorr.data.dense_pairs import DenseBatch, DenseBenchmark, DensePair, LabelTransferBenchmark
from semcorr.data.flow_file import read_flow
from semcorr.data.tss import REMEDY, TSS, read_foreground
from semcorr.data.views import SquareFit
from semcorr.engine.evaluation_only import EvaluationModule
from semcorr.matching.batched import match_to_target
from semcorr.matching.dense import MAX_GAP, centres_of, interpolate_matches
from semcorr.matching.readouts import list_readouts, readout_label
from semcorr.metrics.dense import (
    ORDER,
    category_scores,
    dense_schema,
    flow_pck,
    label_iou,
    label_transfer_accuracy,
    mean_over_pairs,
)
from semcorr.metrics.predictions import gather_tables, write_predictions
from semcorr.metrics.segmentation import mean_scores


class DenseResult(NamedTuple):
    """Scores of dense pairs, the same on every process, and the rows that they are computed from."""

    scores: JsonObject
    categories: dict[str, JsonObject]
    table: pa.Table
    seconds: dict[str, float]


class DenseModule(EvaluationModule):
    """A score of the matches of all pixels of a pair's source in its target; a batch is one pair.

    Attributes:
        score_names: Scores of a pair, columns of its table.
        result: Result of the last test.
    """

    score_names: Sequence[str]
    result: DenseResult

    def on_test_start(self) -> None:
        """Clear the rows and the seconds of an earlier test."""
        self.rows: list[JsonObject] = []
        self.seconds = {"encode": 0.0, "match": 0.0, "score": 0.0}

    @property
    def data(self) -> DenseBenchmark:
        """The benchmark."""
        data = getattr(self.trainer, "datamodule", None)
        assert isinstance(data, DenseBenchmark)
        return data

    @abstractmethod
    def score_pair(self, pair: DensePair, matches: Float[Tensor, "h w 2"]) -> JsonObject:
        """Score the matches of the source's pixels.

        Args:
            pair: The pair, with its truth.
            matches: (x, y) of the match of each pixel of the source, in pixels of the target; on the CPU.

        Returns:
            A number for each of `score_names`.
        """

    @abstractmethod
    def mean_scores(self, table: pa.Table, categories: dict[str, JsonObject]) -> JsonObject:
        """Compute the scores of the benchmark, a number for each of `score_names`.

        Args:
            table: Rows of all pairs.
            categories: Scores of each category.
        """

    def test_step(self, batch: DenseBatch) -> None:
        """Encode both images of a pair, match all pixels of the source, and store the scores."""
        start = read_clock(self.device)
        names = [image.path.as_posix() for image in (batch.pair.source, batch.pair.target)]
        maps = self.encode_pair(batch.images, names)
        encoded = read_clock(self.device)
        with full_float32(self.device.type):
            matches = match_pixels(self, batch.pair, maps, self.data.fits(batch.pair))
        matched = read_clock(self.device)
        scores = self.score_pair(batch.pair, matches.cpu())
        self.rows.append({"pair": batch.pair.name, "category": batch.pair.category, **scores})
        self.seconds["encode"] += encoded - start
        self.seconds["match"] += matched - encoded
        self.seconds["score"] += read_clock(self.device) - matched

    def on_test_epoch_end(self) -> None:
        """Gather the rows, and log the scores."""
        schema = dense_schema(self.score_names)
        table = gather_tables([pa.Table.from_pylist(self.rows, schema)], schema, ORDER)
        categories = category_scores(table)
        self.result = DenseResult(self.mean_scores(table, categories), categories, table, self.seconds)
        for key in self.score_names:
            self.log(f"test/{key}", self.result.scores[key])

    def write_results(self, run_dir: Path) -> JsonObject:
        """Write metrics.json and pairs.parquet, and return the metrics."""
        result, data = self.result, self.data
        metrics = {
            data.section: result.scores,
            "category": result.categories,
            "pairs": result.table.num_rows,
            "localise": readout_label(self.matcher.localise),
            **self.options(),
            "protocol": data.name,
            "split": f"{data.name} {data.split}",
            "seconds": {key: round(value, 3) for key, value in result.seconds.items()},
        }
        write_predictions(result.table, run_dir / "pairs.parquet")
        write_json(run_dir / "metrics.json", metrics, "run_dir")
        return metrics

    def options(self) -> JsonObject:
        """Return the options of the score, for metrics.json."""
        return {}

    def print_scores(self, metrics: JsonMapping, title: str) -> None:
        """Print the scores by category and of all, in percent."""
        table = Table(title=title, caption=f"in percent; {metrics['pairs']} pairs, {metrics['localise']}")
        for header in ("", *self.score_names):
            table.add_column(header, justify="right" if header else "left")
        rows = {**metrics["category"], "mean": metrics[self.data.section]}
        for name, scores in rows.items():
            table.add_row(name, *(f"{100 * scores[key]:.1f}" for key in self.score_names))
        Terminal().print_table(table)


class FlowModule(DenseModule):
    """Flow PCK on TSS: the mean over pairs of each group, then the mean over groups, as published."""

    score_names = ("PCK",)

    def options(self) -> JsonObject:
        """Return the threshold."""
        assert isinstance(self.data, TSS)
        return {"alpha": self.data.alpha, "extent": self.data.extent}

    def score_pair(self, pair: DensePair, matches: Float[Tensor, "h w 2"]) -> JsonObject:
        """Score the flow of the foreground's pixels that have a true one."""
        data = self.data
        assert isinstance(data, TSS)
        truth, known = read_flow(pair.truth.flow, REMEDY)
        evaluated = known & read_foreground(pair.truth.mask, pair.source.size)
        if not bool(evaluated.any()):
            raise UserError(f"{pair.truth.flow} has no flow on the foreground of {pair.truth.mask.name}. {REMEDY}")
        extent = max((pair.source if data.extent == "source" else pair.target).size)
        return {"PCK": flow_pck(matches - pixel_positions(pair.source.size), truth, evaluated, data.alpha * extent)}

    def mean_scores(self, table: pa.Table, categories: dict[str, JsonObject]) -> JsonObject:
        """Compute the mean over groups."""
        return mean_scores(categories.values())


class LabelTransferModule(DenseModule):
    """Label-transfer accuracy and intersection over union of labels, means over pairs."""

    score_names = ("LT_ACC", "IoU")

    def score_pair(self, pair: DensePair, matches: Float[Tensor, "h w 2"]) -> JsonObject:
        """Give each pixel of the source the label of the target's pixel that holds its match, and compare."""
        data = self.data
        assert isinstance(data, LabelTransferBenchmark)
        truth, labels = data.labels(pair)
        if not bool(truth.any()):
            raise UserError(
                f"{pair.source.path} has no label in pair {pair.name} of {data.name}, so there is no score."
            )
        width, height = pair.target.size
        x, y = ((matches[..., i] + 0.5).floor().long().clamp(0, n - 1) for i, n in enumerate((width, height)))
        carried = labels[y, x]
        return {"LT_ACC": label_transfer_accuracy(carried, truth), "IoU": label_iou(carried, truth)}

    def mean_scores(self, table: pa.Table, categories: dict[str, JsonObject]) -> JsonObject:
        """Compute the mean over all pairs."""
        return mean_over_pairs(table)


def match_pixels(
    module: EvaluationModule, pair: DensePair, maps: tuple[FeatureMap, FeatureMap], fits: tuple[SquareFit, SquareFit]
) -> Float[Tensor, "h w 2"]:
    """Match every pixel of a source: the matches of its cells, interpolated between those that agree.

    Args:
        module: Module with the head and the readout.
        pair: The pair.
        maps: Features of source and target, transformed by the head.
        fits: Geometry of both images in the backbone's square.

    Returns:
        Positions in pixels of the target, within its borders.
    """
    (source, target), (source_fit, target_fit) = maps, fits
    readout = list_readouts(module.matcher.localise)[0]
    matched = match_to_target(module.matcher.head, target, [source], [centres_of(source)], [readout]).points[0]
    if not bool(matched.isfinite().all()):
        raise UserError(f"`localise`: a cell of pair {pair.name} has no finite place. Check the weights of the head")
    shape, device = source.values.shape[-2:], source.values.device
    columns, rows = (
        ((torch.arange(n, device=device) + 0.5) * scale + offset) / source.stride - 0.5
        for n, scale, offset in zip(pair.source.size, source_fit.scale, source_fit.offset, strict=True)
    )
    view = interpolate_matches(matched.unflatten(0, shape), columns, rows, source.stride, MAX_GAP * target.stride)
    scale, offset = (torch.tensor(value, device=device).float() for value in (target_fit.scale, target_fit.offset))
    limit = torch.tensor(pair.target.size, device=device) - 0.5
    return from_view(view.flatten(0, 1), scale, offset).clamp(min=-0.5).minimum(limit).view_as(view)


def pixel_positions(size: tuple[int, int]) -> Float[Tensor, "h w 2"]:
    """Return (x, y) of every pixel of an image."""
    width, height = size
    return torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), dim=-1).float()
