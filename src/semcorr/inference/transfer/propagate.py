"""Transfer of keypoints from annotated sources to a target: similarities are weighted, summed and localised."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.core.coords import to_grid, to_image
from semcorr.core.errors import UserError
from semcorr.data.coco_fields import Id
from semcorr.inference import Matcher
from semcorr.inference.encoded import EncodedPicture
from semcorr.inference.transfer.crop import Crop, mirror_crop
from semcorr.matching.batched import cell_stride, match_to_target, query_similarities
from semcorr.matching.readouts import needs_four_queries

PRIOR_WEIGHT = 0.2  # weight of the location prior, in units of similarity
SPREAD = 0.15  # standard deviation of the location prior, as a share of the view's side
TEMPERATURE = 0.1  # in units of cosine: a source that fits worse by this much has 1/e of the weight


def source_fitness(similarity: Float[Tensor, "s k h w"], keypoint_mask: Bool[Tensor, "s k"]) -> Float[Tensor, " s"]:
    """Compute how well each source fits a target: the mean best similarity over the keypoints it shows.

    It is -inf for a source that shows none.

    >>> source_fitness(torch.tensor([[[[0.25, 0.5]], [[1.0, 0.0]]]]), torch.tensor([[True, True]]))
    tensor([0.7500])
    """
    best = similarity.flatten(2).amax(-1)
    mean = (best * keypoint_mask).sum(-1) / keypoint_mask.sum(-1)
    return mean.masked_fill(~keypoint_mask.any(-1), -torch.inf)


def source_weights(
    fit: Float[Tensor, " s"], keypoint_mask: Bool[Tensor, "s k"], temperature: float = TEMPERATURE
) -> Float[Tensor, "s k"]:
    """Compute the sources' weights: a softmax of their fit over those that show a keypoint; 0 if none does.

    >>> source_weights(torch.tensor([0.5, 0.5]), torch.tensor([[True, True, False], [True, False, False]]))
    tensor([[0.5000, 1.0000, 0.0000],
            [0.5000, 0.0000, 0.0000]])
    """
    logits = (fit / temperature)[:, None].masked_fill(~keypoint_mask, -torch.inf)
    return logits.softmax(0).nan_to_num(0.0)


def best_source_weights(fit: Float[Tensor, " s"], keypoint_mask: Bool[Tensor, "s k"]) -> Float[Tensor, "s k"]:
    """Give all the weight to the best-fitting source of those that show a keypoint; the first of equals.

    >>> best_source_weights(torch.tensor([0.5, 0.7]), torch.tensor([[True, True, False], [True, False, False]]))
    tensor([[0., 1., 0.],
            [1., 0., 0.]])
    """
    best = fit[:, None].masked_fill(~keypoint_mask, -torch.inf).argmax(0)
    weights = torch.zeros(keypoint_mask.shape, dtype=fit.dtype, device=fit.device)
    return weights.scatter_(0, best[None], 1.0) * keypoint_mask


def vote_similarity(similarity: Float[Tensor, "s k h w"], weights: Float[Tensor, "s k"]) -> Float[Tensor, "k h w"]:
    """Return the weighted sum of the sources' similarities: maps can be summed before localisation, points cannot."""
    return torch.einsum("skhw,sk->khw", similarity, weights)


def location_prior(
    cells: Float[Tensor, "s k 2"], weights: Float[Tensor, "s k"], size: tuple[int, int], spread: float = SPREAD
) -> Float[Tensor, "k h w"]:
    """Compute a prior of the location of keypoints, in [0, 1]: weighted Gaussians around those of the sources.

    Objects in boxes are framed alike: a keypoint's position in one predicts its position in another.

    Args:
        cells: Positions of the sources' keypoints, in cells of the sources.
        weights: Weights of the sources, per keypoint.
        size: Width and height of the map, in cells.
        spread: Standard deviation of a Gaussian, as a share of width and height.
    """
    x, y = (torch.arange(side, device=cells.device) for side in size)
    across, down = (
        (-(((along - cells[..., i, None]) / (spread * side)) ** 2) / 2).exp()
        for i, (along, side) in enumerate(zip((x, y), size, strict=True))
    )
    return torch.einsum("sk,skh,skw->khw", weights, down, across)


def returned_share(
    cycle_points: Float[Tensor, "s k 2"],
    keypoints: Float[Tensor, "s k 2"],
    weights: Float[Tensor, "s k"],
    max_distance: float,
) -> Float[Tensor, " k"]:
    """Compute the share of the sources' weight to whose keypoint the vote's point matches back, in [0, 1].

    Args:
        cycle_points: Points of the vote matched back to each source.
        keypoints: Keypoints of each source.
        weights: Weights of the sources; for each keypoint they sum to 1, or are all 0.
        max_distance: Distance up to which two points agree, in the same pixels.
    """
    return (((cycle_points - keypoints).norm(dim=-1) <= max_distance) * weights).sum(0)


def agreement(
    source_predictions: Float[Tensor, "s k 2"],
    predictions: Float[Tensor, "k 2"],
    cycle_points: Float[Tensor, "s k 2"],
    keypoints: Float[Tensor, "s k 2"],
    weights: Float[Tensor, "s k"],
    max_distance: float,
) -> Float[Tensor, " k"]:
    """Compute the agreement of the sources with the points of the vote, in [0, 1].

    The mean of two shares of the sources' weight: of those whose own point lies near the vote's, and of those to whose
    keypoint the vote's point matches back.

    Args:
        source_predictions: Points of each source alone, in the target.
        predictions: Points of the vote, in the target.
        cycle_points: Points of the vote matched back to each source.
        keypoints: Keypoints of each source.
        weights: Weights of the sources; for each keypoint they sum to 1, or are all 0.
        max_distance: Distance up to which two points agree, in the same pixels.
    """
    agree = (source_predictions - predictions).norm(dim=-1) <= max_distance
    return ((agree * weights).sum(0) + returned_share(cycle_points, keypoints, weights, max_distance)) / 2


USES: dict[str, Callable[..., Tensor]] = {"vote": source_weights, "best": best_source_weights}


class LabelledSource(NamedTuple):
    """An encoded source with its keypoints in the network's pixels."""

    picture: EncodedPicture
    points: Float[Tensor, "k 2"]  # on the features' device
    keypoint_mask: Bool[Tensor, " k"]  # keypoints that are annotated
    name: Id | None  # id of its annotation
    mirrored: bool = False
    has_box: bool = False  # whether it was cropped to its box


def encode_source(
    matcher: Matcher,
    crop: Crop,
    points: Float[Tensor, "k 2"],
    keypoint_mask: Bool[Tensor, " k"],
    name: Id | None,
    flip: Sequence[int] | None = None,
    has_box: bool = False,
) -> list[LabelledSource]:
    """Encode a source; with `flip` also its mirror image, whose keypoint i is keypoint `flip[i]` of the source.

    Args:
        matcher: Matcher that encodes the crops.
        crop: Crop around the object.
        points: Keypoints in original pixels.
        keypoint_mask: Keypoints that are annotated.
        name: Id of the source in the results.
        flip: Order of keypoints in the mirror image, see `semcorr.data.keypoints.flip_from_names`.
        has_box: Whether the crop was made by the object's box.
    """
    orders = [list(range(len(keypoint_mask))), *([list(flip)] if flip is not None else [])]
    crops = [crop, mirror_crop(crop)][: len(orders)]
    sources = []
    for oriented_crop, order, picture in zip(
        crops, orders, matcher.encode_all([item.picture for item in crops]), strict=True
    ):
        view_points = picture.placement.to_view(oriented_crop.to_crop(points[order])).to(matcher.device)
        sources.append(
            LabelledSource(
                picture, view_points, keypoint_mask[order].to(matcher.device), name, oriented_crop.mirrored, has_box
            )
        )
    return sources


class PropagatedKeypoints(NamedTuple):
    """The keypoints transferred to a target; on the CPU."""

    points: Float[Tensor, "k 2"]  # (x, y) in pixels of the crop that was encoded
    scores: Float[Tensor, " k"]  # in [0, 1]; 0 where no source shows the keypoint, or none agrees with the point
    weights: Float[Tensor, "s k"]  # weights of the sources
    fit: Float[Tensor, " s"]  # fit of the sources, see `semcorr.inference.transfer.propagate.source_fitness`
    returned: Float[Tensor, " k"]  # share of the sources' weight to which the point matches back


class SourceSimilarities(NamedTuple):
    """The similarities of all sources with a target."""

    similarity: Float[Tensor, "s k h w"]
    keypoint_mask: Bool[Tensor, "s k"]  # keypoints that are annotated
    stride: float  # pixels per cell


@torch.no_grad()
def compute_source_similarities(
    matcher: Matcher, sources: Sequence[LabelledSource], target: EncodedPicture
) -> SourceSimilarities:
    """Compute the similarity of every keypoint of every source with the target."""
    maps, stride = [], 1.0
    for source in sources:
        source_map, target_map = matcher.features(source.picture, target)
        with matcher.autocast():
            (similarity,) = query_similarities(
                matcher.module.head, target_map, [source_map], [source.points], len(source.points)
            )
        maps.append(similarity[0].float())
        stride = cell_stride(target_map, similarity)
    return SourceSimilarities(torch.stack(maps), torch.stack([source.keypoint_mask for source in sources]), stride)


def propagate(
    matcher: Matcher,
    sources: Sequence[LabelledSource],
    target: EncodedPicture,
    use: str = "vote",
    prior_weight: float = 0.0,
) -> PropagatedKeypoints:
    """Transfer keypoints to a target from sources of its category.

    Args:
        matcher: Matcher, whose readout localises the sum of the sources' similarities; it must need one map only.
        sources: At least one source; all have the same keypoints.
        target: The target, encoded by the same matcher.
        use: `vote` for a weighted sum of sources, or `best` for each keypoint's best-fitting source.
        prior_weight: Weight of the location prior of boxed sources; 0 for a target that was not cropped to a box.
    """
    return propagate_from_similarities(
        matcher, sources, target, compute_source_similarities(matcher, sources, target), use, prior_weight
    )


@torch.no_grad()
def propagate_from_similarities(
    matcher: Matcher,
    sources: Sequence[LabelledSource],
    target: EncodedPicture,
    similarities: SourceSimilarities,
    use: str,
    prior_weight: float,
) -> PropagatedKeypoints:
    """Transfer keypoints to a target by similarities that were computed before.

    Args:
        matcher: Matcher, as for `propagate`.
        sources: The sources.
        target: The target.
        similarities: Result of `compute_source_similarities` for the same sources and target.
        use: `vote` for a weighted sum of sources, or `best` for each keypoint's best-fitting source.
        prior_weight: Weight of the location prior of boxed sources; 0 for a target that was not cropped to a box.
    """
    fit = source_fitness(similarities.similarity, similarities.keypoint_mask)
    weights = USES[use](fit, similarities.keypoint_mask)
    similarity = vote_similarity(similarities.similarity, weights)
    prior_similarity = similarity + prior_weight * boxed_locations(sources, weights, similarities)
    predictions, *by_source = (
        read_out_points(matcher, x, similarities.stride) for x in (prior_similarity, *similarities.similarity)
    )
    on_picture = target.placement.from_view(predictions)
    predictions = target.placement.to_view(on_picture)
    cycle_points = torch.stack([match_back(matcher, source, target, predictions) for source in sources])
    points = torch.stack([source.points for source in sources])
    near = matcher.cycle * similarities.stride
    returned = returned_share(cycle_points, points, weights, near)
    support = agreement(torch.stack(by_source), predictions, cycle_points, points, weights, near)
    best = similarity.flatten(1).gather(1, prior_similarity.flatten(1).argmax(1, keepdim=True))[:, 0]
    scores = best.clamp(0, 1) * support
    return PropagatedKeypoints(on_picture.cpu(), scores.cpu(), weights.cpu(), fit.cpu(), returned.cpu())


def boxed_locations(
    sources: Sequence[LabelledSource], weights: Float[Tensor, "s k"], similarities: SourceSimilarities
) -> Float[Tensor, "k h w"]:
    """Compute the location prior of the boxed sources; 0 where there are none.

    Args:
        sources: All sources.
        weights: Weights of the sources, per keypoint.
        similarities: Similarities of the sources, for the grid and its stride.
    """
    box_mask = torch.tensor([source.has_box for source in sources], device=weights.device)
    cells = to_grid(torch.stack([source.points for source in sources]), similarities.stride)
    h, w = similarities.similarity.shape[-2:]
    return location_prior(cells, weights * box_mask[:, None], (w, h))


def read_out_points(matcher: Matcher, similarity: Float[Tensor, "k h w"], stride: float) -> Float[Tensor, "k 2"]:
    """Localise points by the matcher's readout, in the network's pixels."""
    return to_image(matcher.readout(similarity[None])[0], stride)


@torch.no_grad()
def match_back(
    matcher: Matcher, source: LabelledSource, target: EncodedPicture, points: Float[Tensor, "k 2"]
) -> Float[Tensor, "k 2"]:
    """Match points of the target back to a source.

    Args:
        matcher: Matcher, whose readout is used.
        source: The source.
        target: The target.
        points: (x, y) in pixels of the target's square, as the network sees it.

    Returns:
        (x, y) in pixels of the source's square.
    """
    source_map, target_map = matcher.features(source.picture, target)
    with matcher.autocast():
        return match_to_target(matcher.module.head, source_map, [target_map], [points], [matcher.readout]).points[0]


def check_readout(matcher: Matcher) -> None:
    """Refuse a readout that needs four queries per point."""
    if needs_four_queries(matcher.readout):
        raise UserError(
            "`localise`: bilinear_nn asks each source around a point, and there is none for a vote of several. "
            "Choose another, as localise=window_15"
        )
