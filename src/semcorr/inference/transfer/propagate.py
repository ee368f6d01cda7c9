"""Keypoints of annotated objects to a new one: every source is asked, and the sum of what they say is read."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
    """A source: features, and keypoints in the network's pixels."""

    encoded: EncodedPicture
    points: Float[Tensor, "k 2"]  # on the features' device
    shown: Bool[Tensor, " k"]
    name: Any  # of its annotation
    mirrored: bool = False
    boxed: bool = False  # cut out by its box


def encode_source(
    matcher: Matcher,
    one: Crop,
    points: Float[Tensor, "k 2"],
    shown: Bool[Tensor, " k"],
    name: Any,
    flip: Sequence[int] | None = None,
    boxed: bool = False,
) -> list[LabelledSource]:
    """A source; with `flip`, also mirrored: its row i is then row `flip[i]` of the source's own.

    Args:
        matcher: Encodes both.
        one: What is cut out around the object.
        points: In original pixels.
        shown: The keypoints that are annotated.
        name: What the answers say of it.
        flip: See `semcorr.data.keypoints.flip_from_names`.
        boxed: It was cut out by its box.
    """
    rows = [list(range(len(shown))), *([list(flip)] if flip is not None else [])]
    cuts = [one, mirror_crop(one)][: len(rows)]
    found = []
    for part, order, encoded in zip(cuts, rows, matcher.encoded([part.picture for part in cuts]), strict=True):
        inside = encoded.placed.to_view(part.into(points[order])).to(matcher.device)
        found.append(LabelledSource(encoded, inside, shown[order].to(matcher.device), name, part.mirrored, boxed))
    return found


class PropagatedKeypoints(NamedTuple):
    """Keypoints of a target; on the CPU."""

    points: Float[Tensor, "k 2"]  # (x, y) in pixels of the part that was encoded
    scores: Float[Tensor, " k"]  # in [0, 1]; 0 where no source shows the keypoint, or none stands behind the answer
    weights: Float[Tensor, "s k"]  # of the sources
    fit: Float[Tensor, " s"]  # of the sources, see `semcorr.inference.transfer.vote.source_fitness`


class SourceSimilarities(NamedTuple):
    """What all sources say of a target, before any is believed."""

    similarity: Float[Tensor, "s k h w"]
    shown: Bool[Tensor, "s k"]
    stride: float  # pixels per cell


@torch.no_grad()
def compute_source_similarities(
    matcher: Matcher, sources: Sequence[LabelledSource], target: EncodedPicture
) -> SourceSimilarities:
    """The similarity of every keypoint of every source."""
    maps, stride = [], 1.0
    for source in sources:
        here, there = matcher.features(source.encoded, target)
        with matcher.computing():
            (one,) = query_similarities(matcher.module.head, there, [here], [source.points], len(source.points))
        maps.append(one[0].float())
        stride = cell_stride(there, one)
    return SourceSimilarities(torch.stack(maps), torch.stack([source.shown for source in sources]), stride)


def propagate(
    matcher: Matcher, sources: Sequence[LabelledSource], target: EncodedPicture, use: str = "vote", place: float = 0.0
) -> PropagatedKeypoints:
    """Keypoints of a target, by sources of its category.

    Args:
        matcher: Its read-out localises the sum of the sources' similarities; one of a single map, therefore.
        sources: At least one, all with the same keypoints.
        target: Encoded by the same matcher.
        use: `vote`, or `best` for each keypoint's best-fitting source.
        place: What lying where the boxed sources have it is worth; 0 for a target that no box was cut out by.
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
    """The same, of what was asked before."""
    fit = source_fitness(asked.similarity, asked.shown)
    weights = USES[use](fit, asked.shown)
    summed = vote_similarity(asked.similarity, weights)
    guided = summed + place * boxed_locations(sources, weights, asked)
    found, *own = (read_out_points(matcher, some, asked.stride) for some in (guided, *asked.similarity))
    on_picture = target.placed.from_view(found)
    found = target.placed.to_view(on_picture)
    back = torch.stack([match_back(matcher, source, target, found) for source in sources])
    points = torch.stack([source.points for source in sources])
    behind = agreement(torch.stack(own), found, back, points, weights, matcher.cycle * asked.stride)
    similar = summed.flatten(1).gather(1, guided.flatten(1).argmax(1, keepdim=True))[:, 0]
    return PropagatedKeypoints(on_picture.cpu(), (similar.clamp(0, 1) * behind).cpu(), weights.cpu(), fit.cpu())


def boxed_locations(
    sources: Sequence[LabelledSource], weights: Float[Tensor, "s k"], asked: SourceSimilarities
) -> Float[Tensor, "k h w"]:
    """Where boxed sources have the keypoints."""
    boxed = torch.tensor([source.boxed for source in sources], device=weights.device)
    cells = to_grid(torch.stack([source.points for source in sources]), asked.stride)
    h, w = asked.similarity.shape[-2:]
    return location_prior(cells, weights * boxed[:, None], (w, h))


def read_out_points(matcher: Matcher, similarity: Float[Tensor, "k h w"], stride: float) -> Float[Tensor, "k 2"]:
    """Places in the network's pixels."""
    return to_image(matcher.rule(similarity[None])[0], stride)


@torch.no_grad()
def match_back(
    matcher: Matcher, source: LabelledSource, target: EncodedPicture, points: Float[Tensor, "k 2"]
) -> Float[Tensor, "k 2"]:
    """Where points of the target are found in a source, in the network's pixels."""
    here, there = matcher.features(source.encoded, target)
    with matcher.computing():
        return match_to_target(matcher.module.head, here, [there], [points], [matcher.rule]).points[0]


def check_rule(matcher: Matcher) -> None:
    """Refuse a read-out that must ask a source again."""
    if needs_four_queries(matcher.rule):
        raise UserError(
            "`localise`: bilinear_nn asks each source around a point, and there is none for a vote of several. "
            "Choose another, as localise=window_15"
        )
