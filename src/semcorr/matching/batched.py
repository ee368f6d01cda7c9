"""Many pairs at once: every query into one target in one product, every ordered pair of a few images.

The slow twin of both is the head called pair by pair.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from semcorr.core.bilinear import bilinear_neighbours
from semcorr.core.coords import to_grid, to_image
from semcorr.core.interfaces import SiameseHead
from semcorr.core.types import FeatureMap
from semcorr.matching.readout_names import Rule, needs_four_queries
from semcorr.matching.readouts import apply_readouts, argmax
from semcorr.matching.upsampled import upsampled_argmax, upsampled_cosine

VALUES = 2**25  # similarities held at once: 128 MiB


class TargetMatches(NamedTuple):
    """Where the queries into one target lie."""

    cells: list[Float[Tensor, "q 2"]]  # one per rule, from the same similarity
    score: Float[Tensor, " q"]  # similarity of the best cell
    stride: float  # image pixels per cell

    @property
    def points(self) -> list[Float[Tensor, "q 2"]]:
        """In the target's pixels."""
        return [to_image(cells, self.stride) for cells in self.cells]


def match_to_target(
    head: Any,
    target: FeatureMap,
    sources: Sequence[FeatureMap],
    points: Sequence[Float[Tensor, "_ 2"]],
    rules: Sequence[Rule],
    values: int = VALUES,
) -> TargetMatches:
    """All queries into one target image.

    A separable head compares them in one product, queries of all sources together and nothing
    padded; any other is asked source by source.

    Args:
        head: Features and points to similarity.
        target: Of one image; adapted, if the head is separable, as
        sources: of one image each,
        points: and the points asked of it, in its pixels. The answers come in this order.
        rules: Read-outs; all of them read the same similarity.
        values: How many similarities are held at once.
    """
    h, w = target.values.shape[-2:]
    at_once = max(1, values // (h * w))
    parts, stride = [], target.stride
    for similarity in query_similarities(head, target, sources, points, at_once):
        stride = cell_stride(target, similarity)
        parts.append(apply_readouts(similarity.float(), [rule for rule in rules if not needs_four_queries(rule)]))
    plain = iter([torch.cat(cells) for cells in zip(*([cells[0] for cells in part[0]] for part in parts), strict=True)])
    mixed = [rule for rule in rules if needs_four_queries(rule)]
    blend = iter(match_bilinear(head, target, sources, points, mixed, max(4, at_once // 4 * 4)) if mixed else [])
    found = [next(blend if needs_four_queries(rule) else plain) for rule in rules]
    return TargetMatches(found, torch.cat([part[1][0] for part in parts]), stride)


def match_bilinear(
    head: Any,
    target: FeatureMap,
    sources: Sequence[FeatureMap],
    points: Sequence[Float[Tensor, "_ 2"]],
    rules: Sequence[Rule],
    at_once: int,
) -> list[Float[Tensor, "q 2"]]:
    """Rules that match the four source cells around each point, and blend the four answers."""
    grid, stride = sources[0].values.shape[-1], sources[0].stride
    places = [bilinear_neighbours(to_grid(some, stride).clamp(0, grid - 1)[None], grid) for some in points]
    asked = [to_image(four[0].flatten(0, 1), stride) for four, _ in places]
    read: list[list[Tensor]] = [[] for _ in rules]
    place, weights = 0, torch.cat([shares[0] for _, shares in places])
    for similarity in query_similarities(head, target, sources, asked, at_once):
        four = similarity.float().unflatten(1, (-1, 4))
        here = weights[place : place + four.shape[1]][None]
        place += four.shape[1]
        for into, rule in zip(read, rules, strict=True):
            into.append(rule(four, here)[0])
    return [torch.cat(cells) for cells in read]


def match_at_full_resolution(
    head: SiameseHead,
    target: FeatureMap,
    sources: Sequence[FeatureMap],
    points: Sequence[Float[Tensor, "_ 2"]],
    rules: Sequence[Rule],
    size: tuple[int, int],
    values: int = VALUES,
) -> TargetMatches:
    """All queries into one target, whose features are upsampled to its original `size`; cells are then its pixels.

    For heads that compare by cosine, and images that fill the view.
    """
    described = torch.cat([head.describe(one, some[None])[0] for one, some in zip(sources, points, strict=True)])
    others = [rule for rule in rules if rule is not argmax]
    with torch.autocast(described.device.type, enabled=False):
        pixel, score = upsampled_argmax(described, target.values, size, values)
        at_once = max(1, values // (size[0] * size[1])) if others else max(1, len(described))
        parts = [
            apply_readouts(upsampled_cosine(some, target.values, size), others)[0] if others else []
            for some in described.split(at_once)
        ]
    found = iter([torch.cat([part[i][0] for part in parts]) for i in range(len(others))])
    return TargetMatches([pixel if rule is argmax else next(found) for rule in rules], score, 1.0)


def query_similarities(
    head: Any, target: FeatureMap, sources: Sequence[FeatureMap], points: Sequence[Float[Tensor, "_ 2"]], at_once: int
) -> Iterator[Float[Tensor, "1 q h w"]]:
    """Of all queries, in their order, some at once."""
    if isinstance(head, SiameseHead):
        described = [head.describe(one, some[None])[0] for one, some in zip(sources, points, strict=True)]
        for queries in torch.cat(described).split(at_once):
            yield head.compare(queries[None], target)
        return
    for one, each in zip(sources, points, strict=True):
        for some in each.split(at_once):
            yield head(one, target, some[None])


def cell_stride(maps: FeatureMap, similarity: Float[Tensor, "*q h w"]) -> float:
    """Image pixels per cell of a similarity, whose grid a head may have made finer than its features'."""
    return maps.stride * maps.values.shape[-1] / similarity.shape[-1]


def all_pairs_similarity(
    head: Any, maps: FeatureMap, points: Float[Tensor, "m n 2"], queries: Int[Tensor, "r 3"]
) -> Float[Tensor, "r h w"]:
    """Similarity of the queries (source image, keypoint, target image) among the images of one batch.

    Each image is adapted and described once, and compared with all queries of all images at once.
    """
    if isinstance(head, SiameseHead):
        maps = head.adapt(maps)
        return all_pairs_similarity_from_descriptors(head, head.describe(maps, points), maps, queries)
    m = len(points)
    source, keypoint, target = queries.unbind(-1)
    first, second = (index.flatten() for index in _ordered_pairs(m, points.device))
    one, other = (FeatureMap(maps.values[index], maps.stride) for index in (first, second))
    similarity = head(one, other, points[first])
    pair = source * (m - 1) + target - (target > source).long()  # its place among the ordered pairs
    return similarity[pair, keypoint]


def all_pairs_similarity_from_descriptors(
    head: SiameseHead, described: Float[Tensor, "m n c"], maps: FeatureMap, queries: Int[Tensor, "r 3"]
) -> Float[Tensor, "r h w"]:
    """The same from descriptors of all keypoints and adapted maps."""
    source, keypoint, target = queries.unbind(-1)
    m, n, _ = described.shape
    return head.compare(described.flatten(0, 1).expand(m, -1, -1), maps)[target, source * n + keypoint]


def _ordered_pairs(m: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sources and targets (m, m - 1) of all ordered pairs of m images, source by source."""
    every = torch.arange(m, device=device)
    others = torch.arange(m - 1, device=device).expand(m, -1)
    return every[:, None].expand(-1, m - 1), others + (others >= every[:, None]).long()
