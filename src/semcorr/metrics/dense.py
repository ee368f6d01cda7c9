"""Scores of dense matches: flow PCK (TSS), label-transfer accuracy and intersection over union (Caltech-101, parts)."""

import math
from collections.abc import Sequence

import pyarrow as pa
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from semcorr.core.ranges import Positive, check_arguments
from semcorr.core.shapes import check_shapes
from semcorr.core.text_files import JsonObject
from semcorr.metrics.segmentation import region_similarity

ORDER = ("pair",)  # of the table's rows


@check_arguments()
@check_shapes
def flow_pck(
    predicted: Float[Tensor, "h w 2"],
    truth: Float[Tensor, "h w 2"],
    evaluated: Bool[Tensor, "h w"],
    threshold: Positive,
) -> float:
    """Return the share of evaluated pixels whose flow ends nearer than `threshold` to where it should.

    Taniai et al. 2016 evaluate the foreground, and call right an endpoint error below 5 pixels in images resized to a
    longer side of 100: that is `threshold` = 0.05 of the longer side, in any pixels.

    Args:
        predicted: Predicted flow of every pixel, (x, y) in pixels.
        truth: True flow; of no meaning at pixels that are not evaluated.
        evaluated: Which pixels count, at least one.
        threshold: Endpoint error in pixels below which a flow is right.

    >>> import torch
    >>> predicted, truth = torch.zeros(1, 3, 2), torch.zeros(1, 3, 2)
    >>> predicted[0, :, 0] = torch.tensor([4.9, 5.0, 0.0])
    >>> flow_pck(predicted, truth, torch.tensor([[True, True, False]]), threshold=5)  # 5 is not below 5
    0.5
    """
    error = (predicted.double() - truth.double()).square().sum(-1)
    return int((error[evaluated] < threshold**2).sum()) / int(evaluated.sum())


@check_shapes
def label_transfer_accuracy(predicted: UInt8[Tensor, "h w"], truth: UInt8[Tensor, "h w"]) -> float:
    """Return LT-ACC, the share of pixels with the right label, background included."""
    return int((predicted == truth).sum()) / truth.numel()


@check_shapes
def label_iou(predicted: UInt8[Tensor, "h w"], truth: UInt8[Tensor, "h w"]) -> float:
    """Return the intersection over union of the labels of the truth, 0 left out, weighted by their true areas.

    With one label it is the intersection over union of the foreground. Weights are those by which parts are scored on
    PASCAL-Parts. The truth must have a label other than 0, the background.

    >>> import torch
    >>> truth = torch.tensor([[1, 1, 2, 0]], dtype=torch.uint8)
    >>> label_iou(torch.tensor([[1, 0, 2, 2]], dtype=torch.uint8), truth)  # (2 * 1/2 + 1 * 1/2) / 3
    0.5
    """
    labels = [label for label in truth.unique().tolist() if label]
    areas = [int((truth == label).sum()) for label in labels]
    scores = [float(region_similarity(predicted == label, truth == label)) for label in labels]
    return math.fsum(area * score for area, score in zip(areas, scores, strict=True)) / sum(areas)


def dense_schema(scores: Sequence[str]) -> pa.Schema:
    """Return the schema of a table of pairs with a column for each of these scores."""
    return pa.schema([("pair", pa.string()), ("category", pa.string()), *((name, pa.float64()) for name in scores)])


def category_scores(table: pa.Table) -> dict[str, JsonObject]:
    """Compute the mean of each score over the pairs of each category, from the table's rows."""
    names = table.schema.names[2:]
    values: dict[str, list[list[float]]] = {}
    for row in table.to_pylist():
        values.setdefault(row["category"], []).append([row[name] for name in names])
    return {
        category: {
            name: math.fsum(column) / len(rows) for name, column in zip(names, zip(*rows, strict=True), strict=True)
        }
        for category, rows in sorted(values.items())
    }


def mean_over_pairs(table: pa.Table) -> JsonObject:
    """Compute the mean of each score over all pairs.

    >>> mean_over_pairs(pa.table({"pair": ["a", "b"], "category": ["x", "x"], "IoU": [0.5, 1.0]}))
    {'IoU': 0.75}
    """
    names = table.schema.names[2:]
    return {name: math.fsum(table[name].to_pylist()) / table.num_rows for name in names}
