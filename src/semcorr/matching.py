"""Many pairs at once: every query into one target in one product, every ordered pair of a few images.

The slow twin of both is the head called pair by pair.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from semcorr.coords import to_image
from semcorr.heads import Separable
from semcorr.read_outs import Rule
from semcorr.types import FeatureMap

VALUES = 2**25  # similarities held at once: 128 MiB


class Matched(NamedTuple):
    """Where the queries into one target lie."""

    points: list[Float[Tensor, "q 2"]]  # in its pixels; one per rule, from the same similarity
    score: Float[Tensor, " q"]  # similarity of the best cell
    grid: tuple[int, int] = (0, 0)  # columns and rows of the similarity


def match_into(
    head: Any,
    target: FeatureMap,
    sources: Sequence[FeatureMap],
    points: Sequence[Float[Tensor, "_ 2"]],
    rules: Sequence[Rule],
    values: int = VALUES,
) -> Matched:
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
    if isinstance(head, Separable):
        described = [head.describe(one, some[None])[0] for one, some in zip(sources, points, strict=True)]
        maps = (head.compare(queries[None], target) for queries in torch.cat(described).split(at_once))
    else:
        asked = ((one, some) for one, each in zip(sources, points, strict=True) for some in each.split(at_once))
        maps = (head(one, target, some[None]) for one, some in asked)
    parts = [_read(similarity.float(), rules, cell_stride(target, similarity)) for similarity in maps]
    found = [torch.cat([part.points[i] for part in parts]) for i in range(len(rules))]
    return Matched(found, torch.cat([part.score for part in parts]), parts[0].grid)


def cell_stride(maps: FeatureMap, similarity: Float[Tensor, "*q h w"]) -> float:
    """Image pixels per cell of a similarity, whose grid a head may have made finer than its features'."""
    return maps.stride * maps.values.shape[-1] / similarity.shape[-1]


def among(
    head: Any, maps: FeatureMap, points: Float[Tensor, "m n 2"], queries: Int[Tensor, "r 3"]
) -> Float[Tensor, "r h w"]:
    """Similarity of the queries (source image, keypoint, target image) among the images of one batch.

    Each image is adapted and described once, and compared with all queries of all images at once.
    """
    if isinstance(head, Separable):
        maps = head.adapt(maps)
        return between(head, head.describe(maps, points), maps, queries)
    m = len(points)
    source, keypoint, target = queries.unbind(-1)
    first, second = (index.flatten() for index in _ordered_pairs(m, points.device))
    one, other = (FeatureMap(maps.values[index], maps.stride) for index in (first, second))
    similarity = head(one, other, points[first])
    pair = source * (m - 1) + target - (target > source).long()  # its place among the ordered pairs
    return similarity[pair, keypoint]


def between(
    head: Separable, described: Float[Tensor, "m n c"], maps: FeatureMap, queries: Int[Tensor, "r 3"]
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


def _read(similarity: Float[Tensor, "1 q h w"], rules: Sequence[Rule], stride: float) -> Matched:
    points = [to_image(rule(similarity)[0], stride) for rule in rules]
    return Matched(points, similarity[0].flatten(1).amax(-1), (similarity.shape[-1], similarity.shape[-2]))
