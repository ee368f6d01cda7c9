"""Presets against what their authors' own code predicted on the same feature maps of real cat pairs.

The predictions, and the commits of the code, are in ../shared/facts/rivals, beside this repository; nothing else needs
them.
"""

import csv
import gzip
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from projected_squeezenet import ProjectedSqueezeNet
from repository import ROOT

from semcorr.data.spair import SPair
from semcorr.engine.module import CorrespondenceModule
from semcorr.evaluation.conventions import original_to_view, view_geometry
from semcorr.evaluation.protocols import protocol_preset
from semcorr.matching.readouts import ProtocolReadout, ReadoutList, argmax, bilinear_nn, soft_argmax
from semcorr.models.heads.cosine import Cosine

SHARED = ROOT.parent / "shared"
RIVALS = SHARED / "facts" / "rivals"
ALPHAS = (0.01, 0.05, 0.1)
# For keypoint 5 of pair 005287-2009_004382-2007_005460:cat the two best cells of one of its four source cells differ in
# cosine by 1.3e-7: single precision cannot tell them apart.
TIES = {"visual_ai_bilinear_nn": 1}
OWN = "own"  # the readout of the preset
# (view, cells, inner side, layernorm), and of each file the protocol and its readout.
VIEWS = {
    "letterbox_840": (840, 60, 480, False, {"geoaware_window_15": ("geoaware", OWN), "sd_dino": ("sd_dino", OWN)}),
    "squash_840": (
        840, 60, 480, False,
        {
            "visual_ai_kernel_7": ("visual_ai", OWN),
            "visual_ai_argmax": ("visual_ai", argmax),
            "visual_ai_bilinear_nn": ("visual_ai", bilinear_nn),
            "visual_ai_soft": ("visual_ai", partial(soft_argmax, temperature=0.03)),
        },
    ),
    "squash_768": (
        768, 48, 768, False,
        {
            "sd4match_kernel_7": ("sd4match", OWN),
            "sd4match_argmax": ("sd4match", argmax),
            "sd4match_bilinear_nn": ("sd4match", bilinear_nn),
        },
    ),
    "dift": (768, 48, 768, False, {"dift": ("dift", OWN)}),
    "probe3d": (800, 50, 800, False, {"probe3d": ("probe3d", OWN)}),
    "marco": (770, 220, 480, True, {"marco": ("marco", OWN)}),
}  # fmt: skip

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not RIVALS.is_dir(), reason="../shared/facts/rivals is not here"),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("view", VIEWS)
def test_a_preset_predicts_and_decides_as_its_authors_code(view):
    """Within 0.02 pixels of that code's own frame at every point, and the same decision at every alpha."""
    side, cells, inner, layernorm, expected = VIEWS[view]
    weights = str(SHARED / "weights" / "squeezenet1_1_imagenet_features.pth")
    backbone = ProjectedSqueezeNet(side, cells, inner, weights, layernorm)
    for name, (preset, readout) in expected.items():
        protocol = protocol_preset(preset)
        data = SPair(root=str(SHARED / "data" / "SPair-71k"), size=side, resize=protocol.resize, workers=0)
        module = CorrespondenceModule(
            backbone,
            Cosine(),
            localise=ProtocolReadout() if readout == OWN else ReadoutList([readout]),
            finetune=lambda backbone: None,
            protocols=[protocol],
        )
        trainer = Trainer(
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            accelerator="cpu",
        )  # fmt: skip
        trainer.test(module, datamodule=data, verbose=False)

        with gzip.open(RIVALS / f"{name}.csv.gz", "rt") as file:
            reference = list(csv.DictReader(file))
        assert len(reference) > 400
        rows = {(r["pair"], r["keypoint"]): r for r in module.result.tables["predictions"].to_pylist()}
        pairs = {pair.name: pair for pair in data.pairs("test")}
        compare = np.less if protocol.strict else np.less_equal
        away, differing = [], []
        for row in reference:
            ours = rows[row["pair"], int(row["keypoint"])]
            geometry = view_geometry([pairs[row["pair"]].target], side, protocol.resize, torch.device("cpu"))
            point = torch.tensor([[[ours["predicted_x"], ours["predicted_y"]]]], dtype=torch.double)
            if protocol.frame != "original":
                point = original_to_view(point, geometry, protocol.scaling)
            x, y, true_x, true_y, extent = (
                float(row[key]) for key in ("predicted_x", "predicted_y", "true_x", "true_y", "extent")
            )
            away.append(np.hypot(point[0, 0, 0].item() - x, point[0, 0, 1].item() - y))
            error = np.hypot(x - true_x, y - true_y) / extent
            for alpha, rounded in zip(ALPHAS, protocol.tolerance.round_alphas(ALPHAS), strict=True):
                if compare(error, rounded) != compare(ours["error"], rounded):
                    differing.append((row["pair"], row["keypoint"], alpha, error, ours["error"]))
        assert sum(distance >= 0.02 for distance in away) <= TIES.get(name, 0), (name, max(away))
        assert not differing, name


def test_every_file_is_compared():
    names = {name for *_, expected in VIEWS.values() for name in expected}
    assert names == {Path(path.stem).stem for path in RIVALS.glob("*.csv.gz")}
