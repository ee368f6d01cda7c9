"""Three optimiser steps by the published recipes equal those of a slow restatement: loss, gradient and weights."""

import copy
import math

import pytest
import torch
from posed_pairs import CELLS, PAPER, SIDE, SWAP, made_pair, made_view
from slow_recipes import geo_aware_loss, halved_rate, one_cycle_rate, train_slowly, unified_loss
from torch import nn
from torch.utils.data import default_collate

from semcorr.core.coords import from_view
from semcorr.core.types import FeatureMap
from semcorr.data.pose_variants import PoseVariant
from semcorr.engine.build import build_module, build_training_parts
from semcorr.engine.module import CorrespondenceModule
from semcorr.engine.run_config import check_config

pytestmark = pytest.mark.integration

SEEN = [
    ("11111", "11011"),
    ("10010", "10001"),
    ("01100", "01100"),
    ("00111", "00111"),
]  # five of a pair's points to one


@pytest.fixture(autouse=True)
def _in_double_precision(monkeypatch):
    """What a run computes in single precision: the steps of AdamW amplify the rounding of gradients that are zero."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def made_views():
    """The views of four pairs, in double precision."""

    def view(name: str, seen: str):
        made = made_view(name, seen)
        numbers = {key: getattr(made, key).double() for key in ("image", "keypoints", "scale", "offset", "box")}
        return made._replace(**numbers)

    return [[view(f"{i}{j}", seen) for j, seen in enumerate(pair)] for i, pair in enumerate(SEEN)]


def built(cfg) -> CorrespondenceModule:
    check_config(cfg)
    module = build_module(cfg, build_training_parts(cfg)).double()
    module.log = lambda *_, **__: None
    return module.train()


def trained(module: CorrespondenceModule, batch, steps: int, epoch_steps: int) -> list[tuple[float, float]]:
    """Loss and length of the gradient of three steps of the program."""
    optimizer, schedule = module.make_optimizer(steps, epoch_steps, step_pairs=8)
    found = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = module.training_step(batch)
        loss.backward()
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        found.append((loss.item(), math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))))
        optimizer.step()
        schedule.step()
    return found


def assert_same_training(found, expected, module: nn.Module, slow: nn.Module) -> None:
    for (loss, gradient), (slow_loss, slow_gradient) in zip(found, expected, strict=True):
        assert loss == pytest.approx(slow_loss, rel=1e-7)  # the Gaussian's weights are in single precision
        assert gradient == pytest.approx(slow_gradient, rel=1e-7)
    for (name, weight), other in zip(module.state_dict().items(), slow.state_dict().values(), strict=True):
        torch.testing.assert_close(weight, other, rtol=0, atol=1e-7, msg=name)


def test_three_steps_of_the_default_recipe_are_the_unified_benchmarks(config, tiny):
    """A step to an epoch: every one has its own rate."""
    module = built(config("train", *tiny))
    slow, before = copy.deepcopy(module), copy.deepcopy(module.state_dict())
    views = made_views()
    batch = default_collate([made_pair(*pair, PoseVariant()) for pair in views])

    found = trained(module, batch, steps=3, epoch_steps=1)

    size = SIDE / torch.tensor([0.5, 0.25]).double()
    shares = [[from_view(view.keypoints, view.scale, view.offset) / (size - 1) for view in pair] for pair in views]
    shared = [[i for i in range(5) if a.visible[i] and b.visible[i]] for a, b in views]
    points = [[(a[i], b[i]) for i in each] for (a, b), each in zip(shares, shared, strict=True)]
    assert [len(each) for each in points] == [4, 1, 2, 3]

    def loss() -> torch.Tensor:
        sources, targets = (slow.backbone(torch.stack([pair[j].image for pair in views])).values for j in range(2))
        return unified_loss(sources, targets, points)

    weights = [weight for block in list(slow.backbone.model.blocks)[-2:] for weight in block.parameters()]
    expected = train_slowly(weights, loss, lambda step: halved_rate(step, 1e-4, 1), decay=0.05)
    assert_same_training(found, expected, module, slow)
    moved = {name for name, weight in module.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == {
        name for name in before if name.startswith(("backbone.model.blocks.2.", "backbone.model.blocks.3."))
    }
    assert slow.backbone.norm is not None  # applied, and not among them


def test_three_steps_of_geo_awares_experiment_are_its_papers(config, tiny):
    """Dense and contrastive, on a pair and its three flips, by one-cycle's rates before the peak and after it."""
    line = ["experiment=geo_aware/pose_variant", "head.out=32", "head.width=8", "head.groups=4"]
    module = built(config("train", *line, *tiny))
    slow, before = copy.deepcopy(module), copy.deepcopy(module.state_dict())
    views = made_views()
    batch = default_collate([made_pair(*pair, PAPER) for pair in views])

    found = trained(module, batch, steps=5, epoch_steps=5)

    cells = {}  # by what an image is, of each pair: keypoints in cells, and which are seen
    for j, name in enumerate(("source", "target")):
        cells[name] = [((pair[j].keypoints + 0.5) * CELLS / SIDE - 0.5, pair[j].visible) for pair in views]
        mirror = torch.tensor([-1.0, 1.0]).double(), torch.tensor([CELLS - 1.0, 0.0]).double()
        swapped = list(SWAP)
        cells[f"mirrored {name}"] = [((xy * mirror[0] + mirror[1])[swapped], seen[swapped]) for xy, seen in cells[name]]
    weights = {
        ("source", "target"): 1.0,
        ("mirrored source", "mirrored target"): 1.0,
        ("mirrored source", "target"): 1.0,
        ("mirrored source", "source"): 0.25,
    }
    pairs = [
        {
            (a, b): [(p, q) for p, q, *seen in zip(cells[a][i][0], cells[b][i][0], cells[a][i][1], cells[b][i][1],
                                                   strict=True) if all(seen)]
            for a, b in weights
        }
        for i in range(4)
    ]  # fmt: skip
    assert any(not points for variants in pairs for points in variants.values())

    def loss() -> torch.Tensor:
        maps = {}
        for name in cells:
            images = torch.stack([pair[name.endswith("target")].image for pair in views])
            images = images.flip(-1) if name.startswith("mirrored") else images
            with torch.no_grad():
                features = slow.backbone(images)
            maps[name] = slow.head.transform(FeatureMap(features.values, features.stride)).values
        return geo_aware_loss(maps, pairs, weights, torch.exp(math.log(1 / 0.07) + slow.loss.terms["contrastive"].t))

    learned = [*slow.head.parameters(), slow.loss.terms["contrastive"].t]
    expected = train_slowly(learned, loss, lambda step: one_cycle_rate(step, 1.25e-3, 5), decay=1e-3)
    assert_same_training(found, expected, module, slow)
    assert {name.split(".")[0] for name in before if not torch.equal(module.state_dict()[name], before[name])} == {
        "head",
        "loss",
    }
