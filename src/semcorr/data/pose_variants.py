"""Pose-variant pairs: a pair, and its variants with one or both images mirrored, from one more map per image.

"Telling Left from Right", 4.3. A mirrored image's keypoints are mirrored and exchange places, left for right: the left
paw of the mirrored cat is what was the right one. See `semcorr.data.augment.mirror_view`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semcorr.core.ranges import Weight, require_fields

SOURCE, TARGET, MIRRORED_SOURCE, MIRRORED_TARGET = range(4)


class LossTerm(NamedTuple):
    """A term of the loss: which image is matched with which, and its weight."""

    source: int  # SOURCE or MIRRORED_SOURCE
    target: int  # TARGET, MIRRORED_TARGET or SOURCE
    weight: float


@dataclass(frozen=True)
class PoseVariant:
    """The weights of a pair's variants; the pair itself weighs 1. A variant of weight 0 is left out.

    Of a pair the loss is the weighted mean over those variants in which any keypoint is visible in both images;
    of a batch the mean over its pairs.

    Args:
        double_flip: Weight of the variant in which both images are mirrored.
        single_flip: Weight of the mirrored source with the target as it is.
        self_flip: Weight of the mirrored source with the source as it is.
    """

    double_flip: Weight = 0.0
    single_flip: Weight = 0.0
    self_flip: Weight = 0.0

    def __post_init__(self) -> None:
        require_fields(self, "pairs")

    def __bool__(self) -> bool:
        """Return whether there is any variant."""
        return len(self.terms) > 1

    @property
    def terms(self) -> list[LossTerm]:
        """The terms of the loss, the pair itself first."""
        terms = (
            LossTerm(SOURCE, TARGET, 1.0),
            LossTerm(MIRRORED_SOURCE, MIRRORED_TARGET, self.double_flip),
            LossTerm(MIRRORED_SOURCE, TARGET, self.single_flip),
            LossTerm(MIRRORED_SOURCE, SOURCE, self.self_flip),
        )
        return [term for term in terms if term.weight]

    @property
    def mirrored(self) -> int:
        """The number of a pair's images that are needed mirrored: none, the source, or both."""
        return 0 if not self else 2 if self.double_flip else 1


def point_weights(masks: Bool[Tensor, "t b n"], weights: Sequence[float]) -> Float[Tensor, "t b n"]:
    """Return the weight of each point, so that their weighted mean is the mean over pairs of that over terms.

    Args:
        masks: Keypoints that both images show, by term and pair.
        weights: Weights of the terms. A term without points takes no part in its pair's mean, and a pair without such
            terms takes part in none.

    >>> masks = torch.tensor([[[True, True]], [[True, False]], [[False, False]]])  # three terms of one pair
    >>> point_weights(masks, [1.0, 0.25, 1.0]).squeeze(1)  # 1 and 0.25 of 1.25, the 1 shared by two points
    tensor([[0.4000, 0.4000],
            [0.2000, 0.0000],
            [0.0000, 0.0000]])
    """
    counts = masks.sum(-1)  # (t b)
    present = torch.stack([weight * (count > 0) for weight, count in zip(weights, counts, strict=True)])
    shares = present / present.sum(0).clamp(min=1e-12) / counts.clamp(min=1)
    return masks * shares[..., None]


def image_weights(
    visible: Bool[Tensor, "m n"], mirrored: Bool[Tensor, "m n"] | None, variants: PoseVariant
) -> Float[Tensor, "k n k"]:
    """Return the weight of each query (source, keypoint, target) among m images and then, if any, their mirror images.

    Every ordered pair of two of the m images is a pair, unless none of its variants shows a keypoint in both images;
    an image and its own mirror image do not make it one. The weights of a pair's queries add up to 1.

    Args:
        visible: Visible keypoints of the images.
        mirrored: Visible keypoints of their mirror images; None: there are none, and k is m, else 2 m.
        variants: Weights of the variants.

    >>> seen = torch.tensor([[True, True], [True, True], [False, True]])
    >>> image_weights(seen, None, PoseVariant())[:, :, 2]  # by keypoints 0 and 1 of images 0, 1 and 2 in image 2
    tensor([[0., 1.],
            [0., 1.],
            [0., 0.]])
    """
    m, n = visible.shape
    off_diagonal = ~torch.eye(m, dtype=torch.bool, device=visible.device)[..., None]
    views = [visible] if mirrored is None else [visible, mirrored]
    masks = []
    for source, target, _ in variants.terms:
        if target != SOURCE:  # any two of them
            a, b = views[source >= MIRRORED_SOURCE], views[target >= MIRRORED_SOURCE]
            masks.append(a[:, None] & b & off_diagonal)
        else:
            self_masks = (visible & views[1])[:, None] & off_diagonal  # (m m n): once for every target
            masks.append(self_masks & torch.stack(masks).any(0).any(-1, keepdim=True))
    weights = point_weights(torch.stack(masks).flatten(1, 2), [term.weight for term in variants.terms])
    query_weights = visible.new_zeros((len(views) * m, n, len(views) * m), dtype=weights.dtype)
    for (source, target, _), part in zip(variants.terms, weights.unflatten(1, (m, m)), strict=True):
        first, second = (m * (view >= MIRRORED_SOURCE) for view in (source, target))
        block = query_weights[first : first + m, :, second : second + m]
        if target != SOURCE:
            block += part.transpose(1, 2)
        else:
            block.diagonal(dim1=0, dim2=2).add_(part.sum(1).T)  # the same for all targets
    return query_weights
