"""Similarity and true cells to a scalar.

A loss is a function `(similarity, cells, mask) -> scalar`: a mean over the points of `mask`. One that must know more
of a step takes all of it; see `semcorr.losses.step`.
"""

from semcorr.losses.contrastive import SymmetricContrastive, symmetric_contrastive
from semcorr.losses.dense import Dense, soft_argmax_distance
from semcorr.losses.gaussian import GaussianCrossEntropy, annealed, gaussian_cross_entropy
from semcorr.losses.step import Descriptors, Loss, OfStep, Step, loss_of, reads_descriptors, reads_whole_cells
from semcorr.losses.together import Together, added, terms_of, together

__all__ = [
    "Dense",
    "Descriptors",
    "GaussianCrossEntropy",
    "Loss",
    "OfStep",
    "Step",
    "SymmetricContrastive",
    "Together",
    "added",
    "annealed",
    "gaussian_cross_entropy",
    "loss_of",
    "reads_descriptors",
    "reads_whole_cells",
    "soft_argmax_distance",
    "symmetric_contrastive",
    "terms_of",
    "together",
]
