"""Dense matches mined from similarities: mutual neighbours, an affine field, regions that keypoints confirm.

After MARCO (CVPR 2026; visinf/MARCO 1ec16b9, util/flow.py and engine.py). Unlike there, the field is evaluated at
the points themselves and not on cells that are then enlarged, and its displacements are clustered as vectors and not as
the colours that they are drawn in. Everything but the neighbours is computed on the CPU in double precision.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.random import Generator
from torch import Tensor

from semcorr.core.ranges import Count, Positive, Share

LENGTH_QUANTILE = 0.95  # quantile of the displacements' lengths: longer ones are clustered as if they were as long
ROUNDS = 100  # of k-means
MIN_VARIANCE = 1e-6  # variance of a cluster, of displacements of length 1 at most


@dataclass(frozen=True)
class MiningRules:
    """Rules by which matches are mined; the values are MARCO's, whose images have 630 pixels a side.

    Args:
        points: Largest number of matches of a pair, drawn from all that are kept.
        least: Least number of matches of a pair; one with fewer has none.
        ratio: Least similarity of a neighbour over that of the second best; up to 1 every one passes.
        clusters: Regions that the matches of a pair are divided into, by their displacement, before any are merged.
        least_clusters: Regions below which none are merged.
        agreement: Share of the keypoints that a region holds in the source which it must hold in the target, too.
        radius: Distance from the points of a region, along x and y, up to which a keypoint lies in it: a share of the
            image's side, MARCO's 10 pixels of 630.
    """

    points: Count = 300
    least: Count = 100
    ratio: Positive = 0.9
    clusters: Count = 7
    least_clusters: Count = 3
    agreement: Share = 0.5
    radius: Share = 0.016


class PointPairs(NamedTuple):
    """Points of the source, with the points of the target that they correspond to; both in pixels."""

    source: Float[np.ndarray, "n 2"]
    target: Float[np.ndarray, "n 2"]

    def select(self, keep: Bool[np.ndarray, " n"] | Int[np.ndarray, " m"]) -> "PointPairs":
        """Return some of the pairs, by a mask or by their indices."""
        return PointPairs(self.source[keep], self.target[keep])

    def join(self, other: "PointPairs") -> "PointPairs":
        """Return these pairs followed by others."""
        return PointPairs(np.concatenate((self.source, other.source)), np.concatenate((self.target, other.target)))


def mutual_neighbours(
    similarity: Iterable[Float[Tensor, "c m"]], ratio: float = 0.9
) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    """Find the cells of two images that are each other's most similar.

    With `ratio` 0.9, as MARCO has it, every best cell of positive similarity passes: only a number above 1 demands a
    margin over the second best. Fewer than three that pass are too few for a triangle: then the ratio is ignored.

    Args:
        similarity: Similarities of the source's cells to the target's, some rows at a time.
        ratio: Least similarity of the best over that of the second best.

    Returns:
        Indices of the source's cells, and of the target's cell for each.

    >>> mutual_neighbours([torch.tensor([[0.9, 0.1], [0.8, 0.2]])])  # both rows prefer the first cell, it the first row
    (tensor([0]), tensor([0]))
    """
    rows: list[Tensor] = []
    passes_ratio: list[Tensor] = []
    column_best, column_row = None, None
    start = 0
    for chunk in similarity:
        best = chunk.topk(min(2, chunk.shape[1]), dim=1)
        rows.append(best.indices[:, 0])
        passes_ratio.append(best.values[:, 0] >= ratio * best.values[:, -1])
        value, row = chunk.max(dim=0)
        row = row + start
        if column_best is None or column_row is None:
            column_best, column_row = value, row
        else:
            column_row = torch.where(value > column_best, row, column_row)
            column_best = torch.maximum(value, column_best)
        start += len(chunk)
    if column_row is None:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    forward = torch.cat(rows)
    mutual = column_row[forward] == torch.arange(len(forward), device=forward.device)
    is_match = mutual & torch.cat(passes_ratio)
    source = (is_match if int(is_match.sum()) >= 3 else mutual).nonzero()[:, 0]
    return source, forward[source]


def affine_field(
    anchors: PointPairs, points: Float[np.ndarray, "n 2"]
) -> tuple[Float[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]:
    """Map points by the triangles of the anchors' Delaunay triangulation, each affinely, as its corners are mapped.

    Args:
        anchors: Points whose places are known; fewer than three, or all of them on a line, make no triangle.
        points: Points to map, in the pixels of the anchors' sources.

    Returns:
        The mapped points, and which of them lie in a triangle; the others are NaN.

    >>> corners = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> affine_field(PointPairs(corners, 2 * corners), np.array([[1.0, 1.0], [9.0, 9.0]]))
    (array([[ 2.,  2.],
           [nan, nan]]), array([ True, False]))
    """
    from scipy.spatial import Delaunay, QhullError  # it takes half a second to import, and only mining needs it

    nowhere = np.full(points.shape, np.nan), np.zeros(len(points), dtype=bool)
    if len(anchors.source) < 3:
        return nowhere
    try:
        mesh = Delaunay(anchors.source)
    except QhullError:  # all on a line
        return nowhere
    triangle = mesh.find_simplex(points)
    transform = mesh.transform[triangle]  # to the weights of the first two corners, and the third corner
    first = np.einsum("nij,nj->ni", transform[:, :2], points - transform[:, 2])
    weights = np.concatenate((first, 1 - first.sum(-1, keepdims=True)), axis=-1)
    mapped = np.einsum("nk,nkd->nd", weights, anchors.target[mesh.simplices[triangle]])
    inside = (triangle >= 0) & np.isfinite(mapped).all(-1)
    return np.where(inside[:, None], mapped, np.nan), inside


def cluster_displacements(
    displacement: Float[np.ndarray, "n 2"], most: int, least: int, rng: Generator
) -> Int[np.ndarray, " n"]:
    """Divide points into regions of similar displacement, by k-means and merging (`merge_clusters`).

    Args:
        displacement: Displacement of each point; long ones are shortened to the 95th percentile of the lengths.
        most: Number of clusters of k-means, before any are merged.
        least: Number of clusters at which merging stops.
        rng: Random numbers for the first centres.

    Returns:
        The region of each point.
    """
    length = np.linalg.norm(displacement, axis=-1)
    values = displacement / np.maximum(length, max(np.quantile(length, LENGTH_QUANTILE), 1e-9))[:, None]
    labels = merge_clusters(values, k_means(values, choose_centres(values, most, rng)), least)
    return k_means(values, cluster_means(values, labels))


def choose_centres(values: Float[np.ndarray, "n d"], count: int, rng: Generator) -> Float[np.ndarray, "k d"]:
    """Draw first centres for k-means: each value with a chance by its squared distance to those drawn (k-means++).

    There are fewer than `count` centres if fewer values differ.
    """
    centres = values[rng.integers(len(values), size=1)]
    while len(centres) < count:
        distance = squared_distances(values, centres).min(axis=1)
        if not distance.sum() > 0:
            break
        drawn = rng.choice(len(values), p=distance / distance.sum())
        centres = np.concatenate((centres, values[drawn][None]))
    return centres


def k_means(values: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "k d"]) -> Int[np.ndarray, " n"]:
    """Assign values to clusters by Lloyd's algorithm; a cluster that loses all its values is dropped.

    >>> k_means(np.array([[0.0], [1.0], [9.0]]), np.array([[0.0], [1.0]]))
    array([0, 0, 1])
    """
    labels = squared_distances(values, centres).argmin(axis=1)
    for _ in range(ROUNDS):
        centres = cluster_means(values, labels)
        moved = squared_distances(values, centres).argmin(axis=1)
        if np.array_equal(moved, labels):
            break
        labels = moved
    return np.unique(labels, return_inverse=True)[1]


def merge_clusters(
    values: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], least: int
) -> Int[np.ndarray, " n"]:
    """Merge clusters two by two, as long as that lowers the Bayesian information criterion.

    A cluster of n values in d dimensions is a Gaussian of one variance v, with log-likelihood -n d / 2 (log 2 pi v + 1)
    and d + 2 parameters; of all two clusters those are merged whose union gains most. Values then go to the nearest
    mean. No fewer than `least` clusters are left, unless there were fewer. As released, it is not counted which cluster
    a value is of: clusters that divide one heap between them mostly stay.
    """
    labels = np.unique(labels, return_inverse=True)[1]
    while (count := int(labels.max()) + 1) > least:
        gains = {(i, j): merge_gain(values, labels, i, j) for j in range(count) for i in range(j)}
        (first, second), gain = max(gains.items(), key=lambda item: item[1])
        if gain <= 0:
            break
        merged = np.where(labels == second, first, labels)
        merged = np.unique(merged, return_inverse=True)[1]
        nearest = squared_distances(values, cluster_means(values, merged)).argmin(axis=1)
        labels = np.unique(nearest, return_inverse=True)[1]
    return labels


def merge_gain(values: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], first: int, second: int) -> float:
    """Compute how much half the Bayesian information criterion falls if two clusters are merged.

    Args:
        values: Values of all clusters.
        labels: Cluster of each value.
        first: Label of one of the two clusters.
        second: Label of the other.
    """
    in_first, in_second = labels == first, labels == second
    likelihood = (
        log_likelihood(values[in_first | in_second])
        - log_likelihood(values[in_first])
        - log_likelihood(values[in_second])
    )
    return likelihood + (values.shape[1] + 2) / 2 * float(np.log(len(values)))


def log_likelihood(values: Float[np.ndarray, "n d"]) -> float:
    """Compute the log-likelihood of values under the Gaussian of one variance that fits them best."""
    variance = max(float(values.var(axis=0).mean()), MIN_VARIANCE)
    return -values.size / 2 * (float(np.log(2 * np.pi * variance)) + 1)


def cluster_means(values: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, "k d"]:
    """Return the means of the clusters that have values, in the order of their labels."""
    return np.stack([values[labels == label].mean(axis=0) for label in np.unique(labels)])


def squared_distances(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "n k"]:
    """Compute the squared distance of every value to every centre."""
    return np.square(a[:, None] - b).sum(axis=-1)


def confirmed_matches(
    matches: PointPairs, labels: Int[np.ndarray, " n"], keypoints: PointPairs, radius: float, agreement: float
) -> Bool[np.ndarray, " n"]:
    """Tell which matches are in regions that the keypoints confirm.

    A keypoint is in a region if a point of it is within `radius` along x and along y. Of the keypoints that a region
    has in the source, at least the share `agreement` must be in the region in the target, too; a region that has none
    is not confirmed.

    Args:
        matches: Matches of all regions.
        labels: Region of each match.
        keypoints: True correspondences.
        radius: Largest distance along x and along y, in pixels, at which a keypoint is in a region.
        agreement: Least share of a region's source keypoints that must be in it in the target.
    """
    near = [
        np.abs(points[:, None] - true).max(axis=-1) <= radius for points, true in zip(matches, keypoints, strict=True)
    ]
    confirmed = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        inside = labels == label
        near_source, near_target = (side[inside].any(axis=0) for side in near)
        if near_source.any() and (near_source & near_target).sum() >= agreement * near_source.sum():
            confirmed |= inside
    return confirmed


def mine_matches(
    neighbours: PointPairs,
    keypoints: PointPairs,
    candidates: Float[np.ndarray, "n 2"],
    target_mask: Bool[np.ndarray, "s s"],
    rules: MiningRules,
    rng: Generator,
) -> PointPairs:
    """Mine dense matches of a pair: an affine field through neighbours and keypoints, without its doubtful regions.

    Args:
        neighbours: Matches by features, see `mutual_neighbours`; some are wrong.
        keypoints: True correspondences, on the objects.
        candidates: Points on the object of the source that are to be matched, in pixels.
        target_mask: Pixels of the object in the target; its side is that of the image.
        rules: How matches are mined.
        rng: Random numbers, for k-means and for the choice of `rules.points` matches.

    Returns:
        The matches in pixels; none, if there are fewer than `rules.least`.
    """
    mapped, inside = affine_field(neighbours.join(keypoints), candidates)
    matches = PointPairs(candidates, mapped).select(inside)
    if len(matches.source) >= max(rules.least, 1):
        labels = cluster_displacements(matches.target - matches.source, rules.clusters, rules.least_clusters, rng)
        side = len(target_mask)
        keep = confirmed_matches(matches, labels, keypoints, rules.radius * side, rules.agreement)
        column, row = np.rint(matches.target).clip(0, side - 1).astype(int).T
        matches = matches.select(keep & target_mask[row, column])
    if len(matches.source) < rules.least:
        return matches.select(np.zeros(0, dtype=int))
    chosen = rng.permutation(len(matches.source))[: rules.points]
    return matches.select(chosen)
