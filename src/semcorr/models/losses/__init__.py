"""Losses: from similarity and true cells to a scalar.

A loss is a function `(similarity, cells, mask) -> scalar`: a mean over the points of each pair, then over pairs, as
`weighted_mean` takes it from `mask`. A loss that needs more of a training step takes all of its `LossInputs`; see
`semcorr.models.losses.inputs`. A loss without keypoints compares both images of each pair itself, by `PairMaps`.
"""

from semcorr.models.losses.consistency import CycleConsistency, WarpConsistency
from semcorr.models.losses.contrastive import SymmetricContrastive, symmetric_contrastive
from semcorr.models.losses.gaussian_cross_entropy import GaussianCrossEntropy, annealed_value, gaussian_cross_entropy
from semcorr.models.losses.guided_matches import GuidedMatches
from semcorr.models.losses.image_level import ImageLevel, matching_score
from semcorr.models.losses.inputs import (
    Descriptors,
    ExtraInput,
    Loss,
    LossInputs,
    StructuredLoss,
    evaluate_loss,
    list_reads,
    point_lookup,
    reads_descriptors,
)
from semcorr.models.losses.mask_consistency import MaskConsistency
from semcorr.models.losses.mined_matches import MinedMatches
from semcorr.models.losses.pair_maps import PairMaps, SourceImages
from semcorr.models.losses.pseudo_labels import PseudoLabels
from semcorr.models.losses.soft_argmax_distance import SoftArgmaxDistance, soft_argmax_distance
from semcorr.models.losses.weighted_sum import WeightedSum, add_terms, loss_terms, weighted_sum

__all__ = [
    "CycleConsistency",
    "Descriptors",
    "ExtraInput",
    "GaussianCrossEntropy",
    "GuidedMatches",
    "ImageLevel",
    "Loss",
    "LossInputs",
    "MaskConsistency",
    "MinedMatches",
    "PairMaps",
    "PseudoLabels",
    "SoftArgmaxDistance",
    "SourceImages",
    "StructuredLoss",
    "SymmetricContrastive",
    "WarpConsistency",
    "WeightedSum",
    "add_terms",
    "annealed_value",
    "evaluate_loss",
    "gaussian_cross_entropy",
    "list_reads",
    "loss_terms",
    "matching_score",
    "point_lookup",
    "reads_descriptors",
    "soft_argmax_distance",
    "symmetric_contrastive",
    "weighted_sum",
]
