"""Pairs of noise, a backbone that reads nothing but their colours, and its evaluation under any protocols."""

from pathlib import Path

import numpy as np
import slow_protocols
import torch
from lightning import Trainer
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate

from semcorr.core.interfaces import Backbone
from semcorr.core.types import BackboneState, FeatureMap
from semcorr.data.datamodule import PairDataModule
from semcorr.data.record import PairRecord, build_image_record, longer_side
from semcorr.engine.module import CorrespondenceModule
from semcorr.matching.readouts import ProtocolReadout
from semcorr.models.heads.cosine import Cosine

SIDE, GRID = slow_protocols.SIDE, 20
SIZES = [(64, 50), (40, 61), (57, 57)]


class Painted(Backbone):
    """Features that an image's noise decides: a fixed random projection of each cell's mean colours.

    Every cell has a little of its own, so that cells of black padding are not all alike.
    """

    name, size, stride, channels, widths = "painted", SIDE, SIDE / GRID, 6, (6,)
    blocks, norm, sha256, lora_targets, pairwise = (), None, "", (), False

    def __init__(self, grid=GRID):
        super().__init__()
        self.grid, self.stride = grid, SIDE / grid
        chance = torch.Generator().manual_seed(1)
        self.register_buffer("mix", torch.randn(6, 12, generator=chance))
        self.register_buffer("own", 0.2 * torch.randn(6, grid, grid, generator=chance))

    def forward(self, image):
        return self.suffix(self.prefix(image, 0), 0)

    def prefix(self, image, depth):
        fine = interpolate(image - 0.4, (2 * self.grid, 2 * self.grid), mode="area")
        cells = nn.functional.pixel_unshuffle(fine, 2)
        return BackboneState({"0": torch.einsum("ck,bkhw->bchw", self.mix, cells).tanh() + self.own}, image.shape[-2:])

    def suffix(self, state, depth):
        return FeatureMap(state.values["0"], self.stride)


class Blots(PairDataModule):
    """Noise of three shapes, all ordered pairs; points on the border, too; by the box or by the image."""

    extent = "box"
    fraction = 0.0  # of a pixel that is added to points and boxes
    with_itself = False  # each image, and with no other

    def records(self, split):
        chance = np.random.default_rng(0)
        images = []
        for i, (width, height) in enumerate(SIZES):
            path = Path(self.root) / f"{i}.png"
            Image.fromarray(chance.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
            points = chance.integers(0, [width, height], (7, 2)).tolist()
            points[0], points[1] = [0, 0], [width, height]  # counted from 1, a point may be beyond the last pixel
            points = [(x + self.fraction, y + self.fraction) for x, y in points]
            points[2 + i] = None
            box = tuple(side + self.fraction for side in (3, 5, width - 4 - i, height - 7))
            images.append(build_image_record(str(i), path, (width, height), points, box, path))
        pairs = [(a, b) for a in images for b in images if (a is b) == self.with_itself]
        return [
            PairRecord(
                f"{a.name}-{b.name}", "even" if int(b.name) % 2 == 0 else "odd", a, b,
                longer_side(b.box) if self.extent == "box" else float(max(b.size)),
            )
            for a, b in pairs
        ]  # fmt: skip


def run(root, protocols, localise=None, extent="box", tabled=True, head=None, grid=GRID, fraction=0.0,
        with_itself=False):  # fmt: skip
    module = CorrespondenceModule(
        Painted(grid),
        head or Cosine(),
        localise or ProtocolReadout(),
        finetune=lambda backbone: None,
        protocols=protocols,
    )
    module.set_specs(module.specs, keeps_rows=tabled)
    data = Blots(root=str(root), size=SIDE, resize=protocols[0].resize, workers=0)
    data.extent, data.fraction, data.with_itself = extent, fraction, with_itself
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
                      enable_model_summary=False)  # fmt: skip
    trainer.test(module, datamodule=data, verbose=False)
    return module, data
