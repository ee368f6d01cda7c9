"""What is given to the public metrics: shapes and types that do not fit are refused, where NumPy would broadcast."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from semcorr.core.errors import UserError
from semcorr.metrics.breakdown import pck_by_class, pck_from_predictions
from semcorr.metrics.confidence import mcnemar, pck_differences, pck_intervals
from semcorr.metrics.confusion import keypoint_confusion, left_right_confusion, shared_landmarks
from semcorr.metrics.dense import flow_pck, label_iou, label_transfer_accuracy
from semcorr.metrics.kap import keypoint_average_precision
from semcorr.metrics.predictions import Predictions, is_correct, load_predictions, split_by_spec
from semcorr.metrics.segmentation import boundary_accuracy, region_similarity
from semcorr.metrics.tracking import tapvid_metrics

YES = torch.ones(2, 3, dtype=torch.bool)
LABELS = torch.ones(2, 3, dtype=torch.uint8)
POINTS = torch.zeros(2, 3, 2)


def entries() -> list[dict]:
    return [
        {"pair": pair, "source": "a", "target": "b", "category": "cat", "keypoint": k, "extent": 100.0}
        | {"target_x": 10.0 * k, "target_y": 0.0, "predicted_x": 4.0, "predicted_y": 0.0, "ambiguous": False}
        for pair in "pq"
        for k in (0, 1)
    ]


def rows() -> Predictions:
    return load_predictions(pa.Table.from_pylist(entries()))


def right(count: int = 1) -> np.ndarray:
    return is_correct(rows(), [0.05 * (k + 1) for k in range(count)])


REFUSED = {
    "region_similarity": (lambda: region_similarity(YES, YES[:1]), "`truth` must be of the shape (2, 3) to go with"),
    "region_similarity of labels": (lambda: region_similarity(YES, LABELS), "`truth` must hold booleans, got"),
    "region_similarity of frames": (lambda: region_similarity(YES.expand(4, 2, 3), YES), "of the shape (4, 2, 3)"),
    "region_similarity of a row": (lambda: region_similarity(YES[0], YES[0]), "the shape (*b, h, w), got (3,)"),
    "boundary_accuracy": (lambda: boundary_accuracy(YES, YES[:, :1]), "`truth` must be of the shape (2, 3)"),
    "flow_pck": (lambda: flow_pck(POINTS, POINTS[:1], YES, 5), "`truth` must be of the shape (2, 3, 2)"),
    "flow_pck of numbers": (lambda: flow_pck(POINTS, POINTS, YES.long(), 5), "`evaluated` must hold booleans"),
    "flow_pck of nothing": (lambda: flow_pck(POINTS, POINTS, YES, -1), "`threshold` must be positive, got -1"),
    "label_transfer_accuracy": (lambda: label_transfer_accuracy(LABELS[:1], LABELS), "`truth` must be of the shape"),
    "label_iou": (lambda: label_iou(LABELS[:, :1], LABELS), "`truth` must be of the shape (2, 1)"),
    "label_iou of scores": (lambda: label_iou(LABELS.float(), LABELS), "`predicted` must hold whole numbers"),
    "tapvid_metrics": (lambda: tapvid_metrics(POINTS, YES, POINTS[:1], YES, YES), "`truth` must be of the shape"),
    "tapvid_metrics of numbers": (lambda: tapvid_metrics(POINTS, YES, POINTS, YES.int(), YES), "`occluded` must hold"),
    "pck_from_predictions of numbers": (
        lambda: pck_from_predictions(rows(), [0.05], right().astype(int)),
        "`correct` must hold booleans, got int64",
    ),
    "pck_from_predictions": (
        lambda: pck_from_predictions(rows(), [0.05, 0.1], right()),
        "`correct` has 1 rows for 2 alphas",
    ),
    "pck_from_predictions of other rows": (
        lambda: pck_from_predictions(rows(), [0.05], right()[:, :2]),
        "`correct` must be of the shape (a, 4) to go with `rows.pair`, got (1, 2)",
    ),
    "rows": (
        lambda: is_correct(rows()._replace(extent=np.ones(1)), [0.05]),
        "`rows.extent` must be of the shape (4,) to go with `rows.pair`, got (1,)",
    ),
    "pck_by_class": (lambda: pck_by_class(rows(), {"p": 5}, ["x"], [0.1]), "`labels` names class 5, and there are 1"),
    "pck_intervals": (lambda: pck_intervals(rows(), right(2), [0.1]), "`correct` has 2 rows for 1 alphas"),
    "pck_differences": (lambda: pck_differences(rows(), right(), right(2), [0.1]), "`second` must be of the shape"),
    "mcnemar": (lambda: mcnemar(right()[0], right()[0][:1]), "`second` must be of the shape (4,)"),
    "mcnemar of lists": (lambda: mcnemar([True], [True]), "`first` must be an array, got list"),
    "keypoint_confusion": (
        lambda: keypoint_confusion(rows(), shared_landmarks(rows())[:1]),
        "`landmarks` must be of the shape (2, n, 2)",
    ),
    "left_right_confusion": (
        lambda: left_right_confusion(rows(), shared_landmarks(rows())[:1], {}),
        "`landmarks` must be of the shape (2, n, 2)",
    ),
    "keypoint_average_precision": (
        lambda: keypoint_average_precision(pa.table({"alpha": [0.1]}), 0.2),
        "`alpha` must be one of the table's, 0.1, got 0.2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_do_not_fit_are_refused(case):
    call, message = REFUSED[case]

    with pytest.raises(UserError) as error:
        call()
    assert message in str(error.value)


WRONG_TABLES = {
    "no column `extent`. Add it: pair, source": lambda table: [row.pop("extent") for row in table],
    "`predicted_x` has nan in row 3, counted from 1": lambda table: table[2].update(predicted_x=float("nan")),
    "`target_y` has inf in row 1": lambda table: table[0].update(target_y=float("inf")),
    "`category` has None in row 2": lambda table: table[1].update(category=None),
    "`keypoint` is double, and must be int32": lambda table: [
        row.update(keypoint=row["keypoint"] / 2) for row in table
    ],
    "`ambiguous` is string, and must be bool": lambda table: [row.update(ambiguous="no") for row in table],
    "pair 'p' name several: target 'b' and 'c'": lambda table: table[1].update(target="c"),
    "pair 'q' name several: category 'cat' and 'dog'": lambda table: table[3].update(category="dog"),
    "keypoint 1 of pair 'p' has the error nan": lambda table: [
        row.update(error=float("nan") if number == 1 else 0.1) for number, row in enumerate(table)
    ],
}


@pytest.mark.parametrize(("message", "spoil"), WRONG_TABLES.items(), ids=list(WRONG_TABLES))
def test_a_table_of_other_code_that_cannot_be_scored_is_refused(message, spoil):
    table = entries()
    spoil(table)

    with pytest.raises(UserError, match=message):
        load_predictions(pa.Table.from_pylist(table))


def test_a_table_without_readouts_is_not_split_by_them():
    with pytest.raises(UserError, match="no column `localise`"):
        split_by_spec(pa.Table.from_pylist(entries()))


def test_a_table_may_have_numbered_texts_and_whole_numbers():
    table = pa.Table.from_pylist([row | {"predicted_x": 4, "extent": 100} for row in entries()])
    numbered = table.set_column(0, "pair", table["pair"].dictionary_encode())

    assert load_predictions(numbered).pairs == rows().pairs
    np.testing.assert_array_equal(load_predictions(numbered).error, rows().error)
