"""Pairs of made-up views with their mirror images, and a head that sees both maps."""

import torch
from torch import nn

from semcorr.core.types import PairBatch, View
from semcorr.data.augment import mirror_annotations
from semcorr.data.pose_variants import PoseVariant
from semcorr.models.heads.cosine import Cosine

PAPER = PoseVariant(double_flip=1.0, single_flip=1.0, self_flip=0.25)
SIDE, CELLS = 48, 6  # pixels, cells of 8 pixels
SWAP = (1, 0, 2, 4, 3)  # left and right ear, nose, left and right foot


def made_view(name: str, visible: str = "11111", pixels: bool = True) -> View:
    return View(
        image=torch.rand(3, SIDE, SIDE) if pixels else torch.empty(3, 0, SIDE),
        keypoints=torch.rand(len(visible), 2) * (SIDE - 1),
        visible=torch.tensor([digit == "1" for digit in visible]),
        box=torch.tensor([4.0, 6.0, 34.0, 26.0]),
        scale=torch.tensor([0.5, 0.25]),
        offset=torch.zeros(2),
        name=name,
    )


def made_pair(source: View, target: View, variants: PoseVariant) -> PairBatch:
    mirrored = [mirror_annotations(view, SWAP) for view in (source, target)[: variants.mirrored]]
    twins = torch.zeros_like(source.visible)
    return PairBatch(source, target, twins, torch.tensor(30.0), "cat", f"{source.name}-{target.name}", mirrored)


class Whole(nn.Module):
    """Cosines, by a head that must be shown both maps."""

    def forward(self, source, target, points):
        return Cosine()(source, target, points)
