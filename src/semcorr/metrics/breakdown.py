"""PCK of a table, pooled in every published way; proportions of the geometry-aware subset.

All of it follows from which keypoints are correct (`predictions.is_correct`, or another rule).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.core.coords import from_view, to_grid, to_image, to_view
from semcorr.core.errors import UserError
from semcorr.core.shapes import check_shapes
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.metrics.pck import ALPHAS, SUBSETS, Scores, pck_from_counts
from semcorr.metrics.predictions import Predictions, correct_per_pair, is_correct, require_row_per_alpha, subset_masks


@check_shapes
def pck_from_predictions(
    rows: Predictions, alphas: Sequence[float] = ALPHAS, correct: Bool[np.ndarray, "a m"] | None = None
) -> JsonObject:
    """Compute what `metrics.pck.PCK.compute` gives for the same predictions, digit by digit, but for its headline.

    Args:
        rows: Predictions of one readout and protocol.
        alphas: Tolerances, fractions of the extent.
        correct: Which keypoints are correct at each alpha; those whose error is at most alpha, if left out.
    """
    correct = is_correct(rows, alphas) if correct is None else correct
    require_row_per_alpha(correct, alphas)
    max_keypoints = int(np.bincount(rows.pair).max(initial=0))
    shape = (len(SUBSETS), len(rows.categories), len(alphas), max_keypoints + 1)
    correct_counts, pairs = np.zeros(shape, int), np.zeros((shape[0], shape[1], shape[3]), int)
    for s, mask in enumerate(subset_masks(rows).values()):
        pair_correct, n = correct_per_pair(rows, correct, mask)
        np.add.at(pairs[s], (rows.category, n), 1)
        np.add.at(correct_counts[s].transpose(0, 2, 1), (rows.category, n), pair_correct.T)
    counts = torch.from_numpy(correct_counts), torch.from_numpy(pairs)
    by_category = {
        name: pck_from_counts(counts[0][:, i], counts[1][:, i], alphas) for i, name in enumerate(rows.categories)
    }
    return {"pck": pck_from_counts(counts[0].sum(1), counts[1].sum(1), alphas), "category": by_category}


def category_mean(category: dict[str, Scores]) -> JsonObject:
    """Average over categories, with equal weight, and count those with a value.

    The mean of `point` is the macro recall that probe3d reports.

    >>> cat = {"all": {"image": {"0.1": 0.5}}}
    >>> category_mean({"cat": cat, "dog": {"all": {"image": {"0.1": 1.0}}}, "bus": {"all": {"image": {"0.1": None}}}})
    {'all': {'image': {'0.1': 0.75}, 'categories': 2}}
    """
    mean: JsonObject = {}
    for subset, poolings in next(iter(category.values()), {}).items():
        mean[subset] = {by: {} for by in poolings}
        for by, values in poolings.items():
            for alpha in values:
                defined = [v for scores in category.values() if (v := scores[subset][by][alpha]) is not None]
                mean[subset][by][alpha] = math.fsum(defined) / len(defined) if defined else None
                mean[subset]["categories"] = len(defined)
    return mean


def subset_proportions(rows: Predictions) -> dict[str, float]:
    """Compute the proportions of the benchmark that are geometry-aware.

    `pairs` is the share of pairs with at least one such keypoint, and `keypoints` that of all keypoints.
    `category_pairs` is the plain mean over categories of the share of pairs, which is what GeoAware-SC prints (82.4 %
    of SPair-71k, with 59.6 % of its keypoints).
    """
    has_ambiguous = np.bincount(rows.pair[rows.ambiguous], minlength=len(rows.pairs)) > 0
    shares = [has_ambiguous[rows.category == c].mean() for c in range(len(rows.categories))]
    return {
        "pairs": float(has_ambiguous.mean()),
        "keypoints": float(rows.ambiguous.mean()),
        "category_pairs": float(np.mean(shares)),
    }


LABELS: Mapping[str, Sequence[str]] = {
    "azimuth_difference": ("0", "1", "2", "3", "4"),  # in steps of 45 degrees ("Telling Left from Right", section 3.3)
    "viewpoint_variation": ("easy", "medium", "hard"),
    "scale_variation": ("easy", "medium", "hard"),
    "truncation": ("none", "source", "target", "both"),
    "occlusion": ("none", "source", "target", "both"),
}


@check_shapes
def pck_by_class(
    rows: Predictions,
    labels: Mapping[str, int | None],
    names: Sequence[str],
    alphas: Sequence[float],
    correct: Bool[np.ndarray, "a m"] | None = None,
) -> JsonObject:
    """Compute PCK of each class of pairs with its number of pairs, and count the pairs without a class.

    Args:
        rows: Predictions of one readout and protocol.
        labels: Class of each pair by the pair's name; None or absent where it is unknown.
        names: Names of the classes 0, 1, 2 ...
        alphas: Tolerances, fractions of the extent.
        correct: Which keypoints are correct at each alpha; those whose error is at most alpha, if left out.
    """
    values = [labels.get(name) for name in rows.pairs]
    label = np.array([-1 if value is None else value for value in values])
    if beyond := [value for value in label.tolist() if value >= len(names)]:
        raise UserError(f"`labels` names class {beyond[0]}, and there are {len(names)}. Name every class in `names`")
    classes: JsonObject = {"unknown": int((label < 0).sum())}
    for i, name in enumerate(names):
        in_class = (label == i)[rows.pair]
        scores: Scores = pck_from_predictions(
            _select_rows(rows, in_class), alphas, None if correct is None else correct[:, in_class]
        )["pck"]
        classes[name] = {"pairs": int((label == i).sum()), **scores["all"]}
    return classes


@check_shapes
def pck_by_domains(
    rows: Predictions,
    domains: Mapping[str, tuple[str | None, str | None]],
    alphas: Sequence[float],
    correct: Bool[np.ndarray, "a m"] | None = None,
) -> JsonObject:
    """Compute PCK of each two domains (photo to painting ...), as `pck_by_class` does of each class.

    A class is called "photo to painting" and repeats the two names as `source` and `target`. Pairs with an image of no
    known domain are the unknown ones.

    Args:
        rows: Predictions of one readout and protocol.
        domains: Domains of the source and of the target image, by the pair's name; None where one is unknown.
        alphas: Tolerances, fractions of the extent.
        correct: Which keypoints are correct at each alpha; those whose error is at most alpha, if left out.
    """
    known = {pair: (source, target) for pair, (source, target) in domains.items() if source and target}
    domain_pairs = sorted({known[pair] for pair in rows.pairs if pair in known})
    labels = {pair: domain_pairs.index(known[pair]) for pair in rows.pairs if pair in known}
    names = [f"{source} to {target}" for source, target in domain_pairs]
    classes = pck_by_class(rows, labels, names, alphas, correct)
    for name, (source, target) in zip(names, domain_pairs, strict=True):
        classes[name] |= {"source": source, "target": target}
    return classes


def pck_by_category_and_class(
    rows: Predictions,
    labels: Mapping[str, int | None],
    names: Sequence[str],
    alphas: Sequence[float],
    correct: Bool[np.ndarray, "a m"] | None = None,
    subset: str = "all",
) -> dict[str, JsonObject]:
    """Compute PCK of each class of pairs within each category, as `pck_by_class` does over all categories.

    Args:
        rows: Predictions of one readout and protocol.
        labels: Class of each pair by the pair's name; None or absent where it is unknown.
        names: Names of the classes 0, 1, 2 ...
        alphas: Tolerances, fractions of the extent.
        correct: Which keypoints are correct at each alpha; those whose error is at most alpha, if left out.
        subset: Keypoints that are counted: `all`, `geo` or `std`.
    """
    values = [labels.get(name) for name in rows.pairs]
    label = np.array([len(names) if value is None else value for value in values])  # the last class is dropped
    step = len(names) + 1
    cells = rows._replace(
        category=rows.category * step + label, categories=[str(i) for i in range(len(rows.categories) * step)]
    )
    scores, pairs = pck_from_predictions(cells, alphas, correct)["category"], np.bincount(cells.category)
    return {
        category: {
            name: {"pairs": int(pairs[i]) if (i := k * step + j) < len(pairs) else 0, **scores[str(i)][subset]}
            for j, name in enumerate(names)
        }
        for k, category in enumerate(rows.categories)
    }


def pck_by_keypoint(
    rows: Predictions, correct: Bool[np.ndarray, "a m"]
) -> dict[str, dict[int, tuple[int, Float[np.ndarray, " a"]]]]:
    """Compute the share of correct keypoints by category and original id, with how many there are.

    Args:
        rows: Predictions of one readout and protocol.
        correct: Which keypoints are correct at each alpha.

    Returns:
        For each category, the number of keypoints of each id, and the share that is correct at each alpha.
    """
    category = rows.category[rows.pair]
    scores: dict[str, dict[int, tuple[int, Float[np.ndarray, " a"]]]] = {}
    for k, name in enumerate(rows.categories):
        in_category = category == k
        ids = rows.keypoint[in_category]
        counts = np.bincount(ids)
        hits = np.stack([np.bincount(ids[is_hit], minlength=len(counts)) for is_hit in correct[:, in_category]])
        scores[name] = {int(i): (int(counts[i]), hits[:, i] / counts[i]) for i in np.flatnonzero(counts)}
    return scores


def pck_of_heldout(
    rows: Predictions,
    heldout: Mapping[str, Sequence[int]],
    alphas: Sequence[float],
    correct: Bool[np.ndarray, "a m"] | None = None,
) -> JsonObject:
    """Compute PCK of the keypoints that were held out of a training, and of the others, each with their number.

    Args:
        rows: Predictions of one readout and protocol.
        heldout: Original ids that were held out, by category.
        alphas: Tolerances, fractions of the extent.
        correct: Which keypoints are correct at each alpha; those whose error is at most alpha, if left out.
    """
    correct = is_correct(rows, alphas) if correct is None else correct
    category, is_heldout = rows.category[rows.pair], np.zeros(len(rows.pair), dtype=bool)
    for k, name in enumerate(rows.categories):
        is_heldout |= (category == k) & np.isin(rows.keypoint, np.asarray(heldout.get(name, ()), dtype=int))
    return {
        name: {
            "keypoints": int(chosen.sum()),
            **pck_from_predictions(_select_rows(rows, chosen), alphas, correct[:, chosen])["pck"],
        }
        for name, chosen in (("trained", ~is_heldout), ("held_out", is_heldout))
    }


def sensitivity(
    classes: JsonMapping, names: Sequence[str], by: str = "image", least: int | None = None
) -> dict[str, float | None]:
    """Compute (best - worst) / best over the classes, for every alpha ("Telling Left from Right", section 3.3).

    It is None where a class has no pairs, or no class has a correct keypoint: it would be another quantity.

    Args:
        classes: Scores of the classes by name, as `pck_by_class` returns them.
        names: Names of the classes.
        by: Pooling of the scores, `image` or `point`.
        least: Least number of classes that must have pairs, where some may have none, as in a single category (Fig. 17
            leaves out those with one class); None, all of them.

    >>> five = {str(i): {"image": {"0.1": value}} for i, value in enumerate((0.8, 0.7, 0.5, 0.4, 0.6))}
    >>> sensitivity(five, "01234")
    {'0.1': 0.5}
    """
    result: dict[str, float | None] = {}
    for alpha in classes[names[0]][by]:
        values = [value for name in names if (value := classes[name][by][alpha]) is not None]
        is_defined = len(values) >= (len(names) if least is None else least)
        result[alpha] = (max(values) - min(values)) / max(values) if is_defined and max(values) else None
    return result


def _select_rows(rows: Predictions, keep: Bool[np.ndarray, " m"]) -> Predictions:
    """Select some rows of the predictions."""
    return rows._replace(
        pair=rows.pair[keep],
        keypoint=rows.keypoint[keep],
        predicted=rows.predicted[keep],
        target=rows.target[keep],
        extent=rows.extent[keep],
        ambiguous=rows.ambiguous[keep],
        error=rows.error[keep],
    )


def nearest_centres(
    points: Float[Tensor, "b n 2"],
    scale: Float[Tensor, "b 2"],
    offset: Float[Tensor, "b 2"],
    cells: tuple[int, int],
    stride: float,
) -> Float[Tensor, "b n 2"]:
    """Return the cell centre nearest to each point, in original pixels.

    `from_view(to_image(clamp(round(to_grid(to_view(p))), 0, cells - 1)))`: a resize is a scale per axis, and a distance
    in original pixels is least where both axes are. Readouts that end between centres (soft-argmax and its windows) can
    be better than this.

    Args:
        points: Points in original pixels.
        scale: View pixels per original pixel.
        offset: Padding of the view to the left and above, in view pixels.
        cells: Columns and rows of the grid.
        stride: View pixels per cell.

    Example:
        >>> ones, none = torch.ones(1, 2), torch.zeros(1, 2)  # 4 x 4 cells of 8 pixels, centres at 3.5, 11.5 ... 27.5
        >>> nearest_centres(torch.tensor([[[9.0, 30.0], [-4.0, 7.0]]]), ones, none, (4, 4), 8)
        tensor([[[11.5000, 27.5000],
                 [ 3.5000,  3.5000]]])
    """
    grid = to_grid(to_view(points, scale, offset), stride)
    last = torch.tensor(cells, dtype=grid.dtype, device=grid.device) - 1
    return from_view(to_image(torch.minimum(grid.round().clamp(min=0), last), stride), scale, offset)
