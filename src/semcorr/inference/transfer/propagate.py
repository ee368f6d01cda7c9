"""Transfer of keypoints from annotated sources to a target: their similarities are summed and localised."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.core.coords import to_grid, to_image
from semcorr.core.errors import UserError
from semcorr.inference import Matcher
from semcorr.inference.encoded import EncodedPicture
from semcorr.inference.transfer.crop import Crop, mirror_crop
from semcorr.inference.transfer.vote import (
    agreement,
    best_source_weights,
    location_prior,
    source_fitness,
    source_weights,
    vote_similarity,
)
from semcorr.matching.batched import cell_stride, match_to_target, query_similarities
from semcorr.matching.readout_names import needs_four_queries

USES: dict[str, Callable[..., Tensor]] = {"vote": source_weights, "best": best_source_weights}


class LabelledSource(NamedTuple):
    """An encoded source with its keypoints in the network's pixels."""

    encoded: EncodedPicture
    points: Float[Tensor, "k 2"]  # on the features' device
    shown: Bool[Tensor, " k"]  # keypoints that are annotated
    name: object  # id of its annotation
    mirrored: bool = False
    boxed: bool = False  # whether it was cropped to its box


def encode_source(
    matcher: Matcher,
    one: Crop,
    points: Float[Tensor, "k 2"],
    shown: Bool[Tensor, " k"],
    name: object,
    flip: Sequence[int] | None = None,
    boxed: bool = False,
) -> list[LabelledSource]:
    """Encode a source; with `flip` also its mirror image, whose keypoint i is keypoint `flip[i]` of the source.

    Args:
        matcher: Matcher that encodes the crops.
        one: Crop around the object.
        points: Keypoints in original pixels.
        shown: Keypoints that are annotated.
        name: Id of the source in the results.
        flip: Order of keypoints in the mirror image, see `semcorr.data.keypoints.flip_from_names`.
        boxed: Whether the crop was made by the object's box.
    """
    orders = [list(range(len(shown))), *([list(flip)] if flip is not None else [])]
    crops = [one, mirror_crop(one)][: len(orders)]
    sources = []
    for crop, order, encoded in zip(crops, orders, matcher.encoded([crop.picture for crop in crops]), strict=True):
        view_points = encoded.placed.to_view(crop.into(points[order])).to(matcher.device)
        sources.append(
            LabelledSource(encoded, view_points, shown[order].to(matcher.device), name, crop.mirrored, boxed)
        )
    return sources


class PropagatedKeypoints(NamedTuple):
    """The keypoints transferred to a target; on the CPU."""

    points: Float[Tensor, "k 2"]  # (x, y) in pixels of the crop that was encoded
    scores: Float[Tensor, " k"]  # in [0, 1]; 0 where no source shows the keypoint, or none agrees with the point
    weights: Float[Tensor, "s k"]  # weights of the sources
    fit: Float[Tensor, " s"]  # fit of the sources, see `semcorr.inference.transfer.vote.source_fitness`


class SourceSimilarities(NamedTuple):
    """The similarities of all sources with a target."""

    similarity: Float[Tensor, "s k h w"]
    shown: Bool[Tensor, "s k"]  # keypoints that are annotated
    stride: float  # pixels per cell


@torch.no_grad()
def compute_source_similarities(
    matcher: Matcher, sources: Sequence[LabelledSource], target: EncodedPicture
) -> SourceSimilarities:
    """Compute the similarity of every keypoint of every source with the target."""
    maps, stride = [], 1.0
    for source in sources:
        source_map, target_map = matcher.features(source.encoded, target)
        with matcher.computing():
            (similarity,) = query_similarities(
                matcher.module.head, target_map, [source_map], [source.points], len(source.points)
            )
        maps.append(similarity[0].float())
        stride = cell_stride(target_map, similarity)
    return SourceSimilarities(torch.stack(maps), torch.stack([source.shown for source in sources]), stride)


def propagate(
    matcher: Matcher, sources: Sequence[LabelledSource], target: EncodedPicture, use: str = "vote", place: float = 0.0
) -> PropagatedKeypoints:
    """Transfer keypoints to a target from sources of its category.

    Args:
        matcher: Matcher, whose read-out localises the sum of the sources' similarities; it must need one map only.
        sources: At least one source; all have the same keypoints.
        target: The target, encoded by the same matcher.
        use: `vote` for a weighted sum of sources, or `best` for each keypoint's best-fitting source.
        place: Weight of the location prior of boxed sources; 0 for a target that was not cropped to a box.
    """
    return propagate_from_similarities(
        matcher, sources, target, compute_source_similarities(matcher, sources, target), use, place
    )


@torch.no_grad()
def propagate_from_similarities(
    matcher: Matcher,
    sources: Sequence[LabelledSource],
    target: EncodedPicture,
    asked: SourceSimilarities,
    use: str,
    place: float,
) -> PropagatedKeypoints:
    """Transfer keypoints to a target by similarities that were computed before, see `propagate`."""
    fit = source_fitness(asked.similarity, asked.shown)
    weights = USES[use](fit, asked.shown)
    summed = vote_similarity(asked.similarity, weights)
    guided = summed + place * boxed_locations(sources, weights, asked)
    predicted, *by_source = (read_out_points(matcher, x, asked.stride) for x in (guided, *asked.similarity))
    on_picture = target.placed.from_view(predicted)
    predicted = target.placed.to_view(on_picture)
    returned = torch.stack([match_back(matcher, source, target, predicted) for source in sources])
    points = torch.stack([source.points for source in sources])
    support = agreement(torch.stack(by_source), predicted, returned, points, weights, matcher.cycle * asked.stride)
    best = summed.flatten(1).gather(1, guided.flatten(1).argmax(1, keepdim=True))[:, 0]
    return PropagatedKeypoints(on_picture.cpu(), (best.clamp(0, 1) * support).cpu(), weights.cpu(), fit.cpu())


def boxed_locations(
    sources: Sequence[LabelledSource], weights: Float[Tensor, "s k"], asked: SourceSimilarities
) -> Float[Tensor, "k h w"]:
    """Compute the location prior of the boxed sources."""
    boxed = torch.tensor([source.boxed for source in sources], device=weights.device)
    cells = to_grid(torch.stack([source.points for source in sources]), asked.stride)
    h, w = asked.similarity.shape[-2:]
    return location_prior(cells, weights * boxed[:, None], (w, h))


def read_out_points(matcher: Matcher, similarity: Float[Tensor, "k h w"], stride: float) -> Float[Tensor, "k 2"]:
    """Localise points by the matcher's read-out, in the network's pixels."""
    return to_image(matcher.rule(similarity[None])[0], stride)


@torch.no_grad()
def match_back(
    matcher: Matcher, source: LabelledSource, target: EncodedPicture, points: Float[Tensor, "k 2"]
) -> Float[Tensor, "k 2"]:
    """Match points of the target back to a source, in the network's pixels."""
    source_map, target_map = matcher.features(source.encoded, target)
    with matcher.computing():
        return match_to_target(matcher.module.head, source_map, [target_map], [points], [matcher.rule]).points[0]


def check_rule(matcher: Matcher) -> None:
    """Refuse a read-out that needs four queries per point."""
    if needs_four_queries(matcher.rule):
        raise UserError(
            "`localise`: bilinear_nn asks each source around a point, and there is none for a vote of several. "
            "Choose another, as localise=window_15"
        )
