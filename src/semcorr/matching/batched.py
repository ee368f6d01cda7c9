"""Matching of many pairs at once: all queries into one target in one product, all ordered pairs of a few images.

Both give what the head gives when it is called pair by pair.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from semcorr.core.bilinear import bilinear_neighbours
from semcorr.core.coords import to_grid, to_image
from semcorr.core.interfaces import BatchedHead, FineHead, SiameseHead
from semcorr.core.types import FeatureMap
from semcorr.matching.readouts import Readout, apply_readouts, argmax, needs_four_queries
from semcorr.matching.similarity import (
    neighbouring_cells,
    product_similarity,
    upsampled_argmax,
    upsampled_cosine,
)

VALUES = 2**25  # similarities in memory at once: 128 MiB
DESCRIPTOR_VALUES = 2**20  # numbers of the descriptors that are read at once
JOINED_VALUES = 2**20  # similarities of several targets that are read out together: 4 MiB, which a cache holds


class QueryOptions(NamedTuple):
    """Options of published protocols; both need a `SiameseHead`.

    Attributes:
        unit_cells: Make the cells of source maps unit vectors before they are interpolated.
        products: Compare by the product of the transformed features, not by the head.
    """

    unit_cells: bool = False
    products: bool = False


DEFAULT_QUERY = QueryOptions()


class TargetQueries(NamedTuple):
    """Query points of several sources, which are matched to one target."""

    target: FeatureMap  # of one image; transformed, if the head is a `SiameseHead`
    sources: Sequence[FeatureMap]  # of one image each; transformed as the target
    points: Sequence[Float[Tensor, "_ 2"]]  # of each source, in its pixels

    @property
    def query_count(self) -> int:
        """Number of query points."""
        return sum(map(len, self.points))


class TargetMatches(NamedTuple):
    """Positions of the queries in one target."""

    cells: list[Float[Tensor, "q 2"]]  # of the target, by each readout
    score: Float[Tensor, " q"]  # similarity of the best cell
    stride: float  # image pixels per cell

    @property
    def points(self) -> list[Float[Tensor, "q 2"]]:
        """Positions in pixels of the target."""
        return list(to_image(torch.stack(self.cells), self.stride)) if self.cells else []


def match_to_target(
    head: nn.Module,
    target: FeatureMap,
    sources: Sequence[FeatureMap],
    points: Sequence[Float[Tensor, "_ 2"]],
    readouts: Sequence[Readout],
    values: int = VALUES,
    options: QueryOptions = DEFAULT_QUERY,
) -> TargetMatches:
    """Match the query points of several sources to one target image, as `match_to_targets` does.

    Args:
        head: The head, which turns features and points into similarities.
        target: Features of the target image; transformed, if the head is a `SiameseHead`.
        sources: Features of the source images, one image each; transformed as the target.
        points: Query points of each source, in its pixels.
        readouts: Readouts; all of them are applied to the same similarity.
        values: Largest number of similarities in memory at once.
        options: Reading of the sources and comparison.

    Returns:
        The matches of all points, source by source.
    """
    return match_to_targets(head, [TargetQueries(target, sources, points)], readouts, values, options)[0]


def match_to_targets(
    head: nn.Module,
    queries: Sequence[TargetQueries],
    readouts: Sequence[Readout],
    values: int = VALUES,
    options: QueryOptions = DEFAULT_QUERY,
) -> list[TargetMatches]:
    """Match the query points of several sources to each of several target images.

    A Siamese head compares the queries of all sources of a target in one product, without padding; any other head is
    called source by source. Small similarities of several targets are read out together: each operation costs some
    microseconds, as much as it takes for thousands of values.

    Args:
        head: The head, which turns features and points into similarities.
        queries: Targets with their sources and points; transformed, if the head is a `SiameseHead`.
        readouts: Readouts; all of them are applied to the same similarity.
        values: Largest number of similarities in memory at once.
        options: Reading of the sources and comparison.

    Returns:
        The matches in each target, in the order of its sources and their points.
    """
    blocks: list[list[TargetQueries]] = []
    size = 0
    for target_queries in queries:
        shape = target_queries.target.values.shape
        added_size = target_queries.query_count * shape[1]
        if blocks and size + added_size <= DESCRIPTOR_VALUES and blocks[-1][0].target.values.shape == shape:
            blocks[-1].append(target_queries)
            size += added_size
        else:
            blocks.append([target_queries])
            size = added_size
    return [matches for block in blocks for matches in _match_block(head, block, readouts, values, options)]


def _match_block(
    head: nn.Module, block: Sequence[TargetQueries], readouts: Sequence[Readout], values: int, options: QueryOptions
) -> list[TargetMatches]:
    """Match to targets with features of one size, whose queries are described together."""
    h, w = block[0].target.values.shape[-2:]
    chunk_size = max(1, values // (h * w))
    similarities = _block_similarities(head, block, chunk_size, options)
    bilinear_readouts = [readout for readout in readouts if needs_four_queries(readout)]
    direct_readouts = [readout for readout in readouts if not needs_four_queries(readout)]
    chunks, stride = [], block[0].target.stride
    for similarity in _join_small(similarities, min(values, JOINED_VALUES)):
        stride = cell_stride(block[0].target, similarity)
        chunks.append(apply_readouts(similarity.float(), direct_readouts))
    counts = [target_queries.query_count for target_queries in block]
    cells = [_join(parts)[0].split(counts) for parts in zip(*(c for c, _ in chunks), strict=True)]
    matches = []
    for i, score in enumerate(_join([score for _, score in chunks])[0].split(counts)):
        direct = iter([readout_cells[i] for readout_cells in cells])
        bilinear = iter(
            match_bilinear(head, *block[i], bilinear_readouts, max(4, chunk_size // 4 * 4), options)
            if bilinear_readouts
            else []
        )
        cells_by_readout = [next(bilinear if needs_four_queries(readout) else direct) for readout in readouts]
        matches.append(TargetMatches(cells_by_readout, score, stride))
    return matches


def _join_small(similarities: Iterable[Float[Tensor, "1 _ h w"]], values: int) -> Iterator[Float[Tensor, "1 _ h w"]]:
    """Yield similarities, those that follow each other joined to at most `values`."""
    joined: list[Tensor] = []
    for similarity in similarities:
        if joined and sum(part.numel() for part in joined) + similarity.numel() > values:
            yield _join(joined)
            joined = []
        joined.append(similarity)
    yield _join(joined)


def _join(chunks: Sequence[Tensor]) -> Tensor:
    """Concatenate chunks of queries; a single one is not copied."""
    return chunks[0] if len(chunks) == 1 else torch.cat(list(chunks), dim=1)


def match_bilinear(
    head: nn.Module,
    target: FeatureMap,
    sources: Sequence[FeatureMap],
    points: Sequence[Float[Tensor, "_ 2"]],
    readouts: Sequence[Readout],
    chunk_size: int,
    options: QueryOptions = DEFAULT_QUERY,
) -> list[Float[Tensor, "q 2"]]:
    """Match the four source cells around each point, and blend the four matches by bilinear weights.

    Args:
        head: The head, which turns features and points into similarities.
        target: Features of the target image; transformed, if the head is a `SiameseHead`.
        sources: Features of the source images, one image each and all of one size; transformed as the target.
        points: Query points of each source, in its pixels.
        readouts: Readouts that take the similarities of four cells and their weights, as `bilinear_nn`.
        chunk_size: Largest number of cells that are matched at once, a multiple of four.
        options: Reading of the sources and comparison.

    Returns:
        Cells of the target by each readout, source by source.
    """
    (h, w), stride = sources[0].values.shape[-2:], sources[0].stride
    cells = (to_grid(image_points, stride).unbind(-1) for image_points in points)
    neighbours = [
        bilinear_neighbours(torch.stack((x.clamp(0, w - 1), y.clamp(0, h - 1)), dim=-1)[None], (w, h)) for x, y in cells
    ]
    query_points = [to_image(corners[0].flatten(0, 1), stride) for corners, _ in neighbours]
    matches: list[list[Tensor]] = [[] for _ in readouts]
    start, weights = 0, torch.cat([image_weights[0] for _, image_weights in neighbours])
    for similarity in query_similarities(head, target, sources, query_points, chunk_size, options):
        corners = similarity.float().unflatten(1, (-1, 4))
        chunk_weights = weights[start : start + corners.shape[1]][None]
        start += corners.shape[1]
        for readout_cells, readout in zip(matches, readouts, strict=True):
            readout_cells.append(readout(corners, chunk_weights)[0])
    return [torch.cat(cells) for cells in matches]


def match_at_full_resolution(
    head: SiameseHead,
    target: FeatureMap,
    sources: Sequence[FeatureMap],
    points: Sequence[Float[Tensor, "_ 2"]],
    readouts: Sequence[Readout],
    size: tuple[int, int],
    values: int = VALUES,
) -> TargetMatches:
    """Match query points to one target whose features are upsampled to its original `size`; cells are then its pixels.

    For heads that compare by cosine, and images that fill the view.

    Args:
        head: Head that describes the points; the cosines are computed here.
        target: Transformed features of the target image.
        sources: Transformed features of the source images, one image each.
        points: Query points of each source, in its pixels.
        readouts: Readouts, `bilinear_nn` excepted.
        size: Width and height of the target's original, in pixels.
        values: Largest number of cosines in memory at once.

    Returns:
        The matches of all points, source by source, in original pixels of the target.
    """
    descriptors = _describe_queries(head, sources, points, unit_cells=False)
    others = [readout for readout in readouts if readout is not argmax]
    with torch.autocast(descriptors.device.type, enabled=False):
        pixel, score = upsampled_argmax(descriptors, target.values, size, values)
        chunk_size = max(1, values // (2 * size[0] * size[1])) if others else max(1, len(descriptors))
        chunks = [
            apply_readouts(upsampled_cosine(chunk, target.values, size), others)[0] if others else []
            for chunk in descriptors.split(chunk_size)
        ]
    matches = iter([torch.cat([cells[i][0] for cells in chunks]) for i in range(len(others))])
    return TargetMatches([pixel if readout is argmax else next(matches) for readout in readouts], score, 1.0)


def query_similarities(
    head: nn.Module,
    target: FeatureMap,
    sources: Sequence[FeatureMap],
    points: Sequence[Float[Tensor, "_ 2"]],
    chunk_size: int,
    options: QueryOptions = DEFAULT_QUERY,
) -> Iterator[Float[Tensor, "1 q h w"]]:
    """Yield the similarities of all queries, source by source.

    Args:
        head: The head, which turns features and points into similarities.
        target: Features of the target image; transformed, if the head is a `SiameseHead`.
        sources: Features of the source images, one image each; transformed as the target.
        points: Query points of each source, in its pixels.
        chunk_size: Largest number of queries whose similarities are computed at once.
        options: Reading of the sources and comparison.
    """
    yield from _block_similarities(head, [TargetQueries(target, sources, points)], chunk_size, options)


def _block_similarities(
    head: nn.Module, block: Sequence[TargetQueries], chunk_size: int, options: QueryOptions
) -> Iterator[Float[Tensor, "1 q h w"]]:
    """Yield the similarities of the queries of several targets, one target after the other."""
    if not isinstance(head, SiameseHead):
        for target, sources, points in block:
            for source, source_points in zip(sources, points, strict=True):
                for chunk in source_points.split(chunk_size):
                    yield head(source, target, chunk[None])
        return
    all_sources = [source for target_queries in block for source in target_queries.sources]
    all_points = [points for target_queries in block for points in target_queries.points]
    descriptors = _describe_queries(head, all_sources, all_points, options.unit_cells)
    h, w = block[0].target.values.shape[-2:]
    groups = _group_small([each.query_count for each in block], min(chunk_size, JOINED_VALUES // (h * w)))
    group_rows = descriptors.split([sum(counts) for counts in groups])
    targets = iter([each.target for each in block])
    for counts, rows in zip(groups, group_rows, strict=True):
        group_targets = list(islice(targets, len(counts)))
        if len(counts) > 1 and isinstance(head, BatchedHead) and not options.products:
            yield head.compare_targets(rows, counts, group_targets)
            continue
        for target, target_rows in zip(group_targets, rows.split(counts), strict=True):
            for chunk in target_rows.split(chunk_size):
                yield (
                    product_similarity(chunk[None], target.values)
                    if options.products
                    else head.compare(chunk[None], target)
                )


def _group_small(counts: Sequence[int], most: int) -> list[list[int]]:
    """Divide counts into groups of neighbours whose sum is at most `most`; a larger one is a group by itself.

    >>> _group_small([3, 4, 9, 1, 1], 7)
    [[3, 4], [9], [1, 1]]
    """
    groups: list[list[int]] = []
    for count in counts:
        if groups and sum(groups[-1]) + count <= most:
            groups[-1].append(count)
        else:
            groups.append([count])
    return groups


def _describe_queries(
    head: SiameseHead, sources: Sequence[FeatureMap], points: Sequence[Float[Tensor, "_ 2"]], unit_cells: bool
) -> Float[Tensor, "q c"]:
    """Compute the descriptors of the points of all sources."""
    if isinstance(head, BatchedHead) and not unit_cells:
        return head.describe_sources(sources, points)
    describe = partial(describe_unit_cells, head) if unit_cells else head.describe
    return torch.cat([describe(source, chunk[None])[0] for source, chunk in zip(sources, points, strict=True)])


def describe_unit_cells(
    head: SiameseHead, source: FeatureMap, points: Float[Tensor, "b n 2"]
) -> Float[Tensor, "b n c"]:
    """Interpolate the descriptors of the four cells around each point after making them unit vectors.

    Points are in pixels of the source, which is transformed. Only these cells are read and normalised, not the map.
    """
    h, w = source.values.shape[-2:]
    index, weights = neighbouring_cells(points, source.stride, h, w)
    corners = torch.stack((index % w, index // w), dim=-1).flatten(1, 2).float()
    cells = head.describe(source, to_image(corners, source.stride)).float()
    return (normalize(cells, dim=-1).unflatten(1, (-1, 4)) * weights[..., None]).sum(2)


def cell_stride(maps: FeatureMap, similarity: Float[Tensor, "*q h w"]) -> float:
    """Return the image pixels per cell of a similarity with a map, whose grid the head may have made finer."""
    return maps.stride * maps.values.shape[-1] / similarity.shape[-1]


def query_grid(head: nn.Module, source: FeatureMap) -> int:
    """Return the cells along a side in which conventions other than ours say where a source is read.

    They are those of the similarity, where a head makes its grid finer. By corner cells on corner pixels, a cell of the
    features is elsewhere than the fine cells in its middle: an image would not match itself.

    Args:
        head: The head.
        source: Features of the source; transformed, if the head is a `SiameseHead`.
    """
    return source.values.shape[-1] * (head.fineness if isinstance(head, FineHead) else 1)


def transform_features(head: nn.Module, maps: FeatureMap) -> FeatureMap:
    """Transform the features of images as a head that takes one image at a time does; others leave them as they are.

    Args:
        head: The head.
        maps: Features of any number of images.
    """
    return head.transform(maps) if isinstance(head, SiameseHead) else maps


def all_pairs_similarity(
    head: nn.Module, maps: FeatureMap, points: Float[Tensor, "m n 2"], queries: Int[Tensor, "r 3"]
) -> Float[Tensor, "r h w"]:
    """Compute the similarity of the queries (source image, keypoint, target image) among the images of one batch.

    A `SiameseHead` transforms and describes each image once, and compares it with the points of all images at once; any
    other head is called with all ordered pairs at once.

    Args:
        head: The head, which turns features and points into similarities.
        maps: Features of the m images as the backbone computes them, not transformed yet.
        points: Keypoints of every image, in pixels.
        queries: Indices of a source image, of one of its keypoints, and of another image, the target.
    """
    if isinstance(head, SiameseHead):
        maps = head.transform(maps)
        return all_pairs_similarity_from_descriptors(head, head.describe(maps, points), maps, queries)
    m = len(points)
    source, keypoint, target = queries.unbind(-1)
    first, second = (index.flatten() for index in _ordered_pairs(m, points.device))
    source_maps, target_maps = (FeatureMap(maps.values[index], maps.stride) for index in (first, second))
    similarity = head(source_maps, target_maps, points[first])
    pair = source * (m - 1) + target - (target > source).long()  # its index among the ordered pairs
    return similarity[pair, keypoint]


def all_pairs_similarity_from_descriptors(
    head: SiameseHead, descriptors: Float[Tensor, "m n c"], maps: FeatureMap, queries: Int[Tensor, "r 3"]
) -> Float[Tensor, "r h w"]:
    """Compute the similarity of the queries from descriptors of all keypoints.

    Args:
        head: Head that compares descriptors with maps.
        descriptors: Descriptors of the keypoints of every image.
        maps: Transformed features of the m images.
        queries: Indices of a source image, of one of its keypoints, and of the target image.
    """
    source, keypoint, target = queries.unbind(-1)
    m, n, _ = descriptors.shape
    return head.compare(descriptors.flatten(0, 1).expand(m, -1, -1), maps)[target, source * n + keypoint]


def _ordered_pairs(m: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return sources and targets (m, m - 1) of all ordered pairs of m images, source by source."""
    images = torch.arange(m, device=device)
    others = torch.arange(m - 1, device=device).expand(m, -1)
    return images[:, None].expand(-1, m - 1), others + (others >= images[:, None]).long()
