"""Dynamic hyperpixels: against plain loops, gates that are set by hand, draws and their gradients, the rate's term."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softmax
from torch.testing import assert_close

from semcorr.core.coords import to_image
from semcorr.core.errors import UserError
from semcorr.core.interfaces import PenalisedHead, SiameseHead
from semcorr.core.types import FeatureMap
from semcorr.engine.build import build_datamodule_and_module
from semcorr.evaluate import evaluate
from semcorr.models.heads.gated_layers import GatedLayers
from semcorr.train import train

MAPS, STRIDE = [6, 4, 5], 8.0


def built(seed: int = 0, **options: object) -> GatedLayers:
    torch.manual_seed(seed)
    head = GatedLayers(**({"maps": MAPS, "reduction": 2, "hidden": 7} | options)).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return head


def maps(batch: int = 3, h: int = 4, w: int = 5, precision: torch.dtype = torch.float32) -> FeatureMap:
    return FeatureMap(torch.randn(batch, sum(MAPS), h, w).to(precision), STRIDE)


def centres(h: int, w: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return to_image(torch.stack((x, y), -1).flatten(0, 1).float(), STRIDE)[None]


def set_gates(head: GatedLayers, chosen: list[bool]) -> None:
    """Whatever a gate sees: its last layer is fed by a norm of ones."""
    for gate, is_chosen in zip(head.gates, chosen, strict=True):
        _, norm, _, last = gate.evidence
        nn.init.zeros_(norm.weight)
        nn.init.ones_(norm.bias)
        with torch.no_grad():
            last.weight.copy_(torch.tensor([[0.0], [9.0 if is_chosen else -9.0]]).expand_as(last.weight))


def slow_gate(gate: nn.Module, a: Tensor, b: Tensor) -> list[float]:
    """The evidence of one layer of one pair, number by number."""
    first, norm, _, last = gate.evidence
    means = [float(x.mean() + y.mean()) for x, y in zip(a, b, strict=True)]
    hidden = [sum(w * m for w, m in zip(row, means, strict=True)) for row in first.weight.tolist()]
    mean = sum(hidden) / len(hidden)
    spread = math.sqrt(sum((one - mean) ** 2 for one in hidden) / len(hidden) + norm.eps)
    scaled = [
        max(0.0, (one - mean) / spread * weight + bias)
        for one, weight, bias in zip(hidden, norm.weight.tolist(), norm.bias.tolist(), strict=True)
    ]
    return [sum(w * one for w, one in zip(row, scaled, strict=True)) for row in last.weight.tolist()]


def slow_reduction(reduction: nn.Module, layer: Tensor) -> Tensor:
    """Channel by channel: a matrix, the mean and spread of the whole map, a ReLU."""
    convolution, norm, _ = reduction
    rows = [sum(w * channel for w, channel in zip(row, layer, strict=True)) for row in convolution.weight.flatten(1)]
    values = torch.stack(rows)
    values = (values - values.mean()) / (values.var(unbiased=False) + norm.eps).sqrt()
    return (values * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)


def slow_similarity(head: GatedLayers, source: Tensor, target: Tensor) -> tuple[Tensor, list[bool]]:
    """Cosines of every cell of one image with every cell of another."""
    pieces = [layer.split(MAPS) for layer in (source, target)]
    chosen = [left < right for left, right in (slow_gate(g, a, b) for g, a, b in zip(head.gates, *pieces, strict=True))]
    used = [i for i, one in enumerate(chosen) if one] or [0]
    a, b = (torch.cat([slow_reduction(head.reductions[i], layers[i]) for i in used]).flatten(1) for layers in pieces)
    cosines = [[torch.dot(x, y) / (x.norm() * y.norm()).clamp(min=1e-12) for y in b.T] for x in a.T]
    return torch.tensor(cosines).unflatten(1, target.shape[1:]), chosen


def test_the_similarity_is_what_plain_loops_compute_pair_by_pair():
    """Of enough pairs that gates differ among them."""
    head, source, target = built(), maps(8), maps(8, 3, 4)

    with torch.no_grad():
        found = head(source, target, centres(4, 5).expand(8, -1, -1))
        slow = [slow_similarity(head, a, b) for a, b in zip(source.values, target.values, strict=True)]

    assert_close(found, torch.stack([similarity for similarity, _ in slow]), atol=1e-5, rtol=1e-4)
    assert len({tuple(chosen) for _, chosen in slow}) > 1


@pytest.mark.parametrize(("chosen", "read"), [
    ([True, False, True], [0, 2]), ([False, True, False], [1]), ([False, False, False], [0]),
])  # fmt: skip
def test_layers_that_are_left_out_change_nothing_and_where_all_are_the_first_is_read(chosen, read):
    head, source, target = built(), maps(), maps()
    set_gates(head, chosen)
    before = head(source, target, centres(4, 5).expand(3, -1, -1))

    for i, width in enumerate(MAPS):
        changed = source.values.clone()
        changed[:, sum(MAPS[:i]) : sum(MAPS[:i]) + width] = torch.randn(3, width, 4, 5)
        after = head(FeatureMap(changed, STRIDE), target, centres(4, 5).expand(3, -1, -1))
        assert torch.equal(before, after) == (i not in read)


def test_the_same_image_finds_itself():
    head, scene = built(), maps(1)

    found = head(scene, scene, centres(4, 5))

    assert_close(found[0].flatten(1).diagonal(), torch.ones(20), atol=1e-5, rtol=0)


def test_a_draw_is_as_likely_as_the_evidence_says():
    head, (source, target) = built().train(), (maps(1), maps(1))
    parts = [one.values.split(MAPS, dim=1) for one in (source, target)]
    evidence = [gate(a, b)[0] for gate, a, b in zip(head.gates, *parts, strict=True)]

    with torch.no_grad():
        draws = torch.cat([head.select(*parts) for _ in range(4000)])

    assert set(draws.round().unique().tolist()) == {0.0, 1.0}
    assert_close(draws.mean(0), torch.stack([softmax(one, -1)[1] for one in evidence]).detach(), atol=0.035, rtol=0)


def test_gradients_are_those_of_the_soft_choice():
    """Hard forward, soft backward: the gradient of a softmax of the evidence with the same noise."""
    head = built().train()
    parts = [one.values.split(MAPS, dim=1) for one in (maps(2), maps(2))]
    weights = torch.randn(2, 3)

    torch.manual_seed(5)
    (head.select(*parts) * weights).sum().backward()
    found = [parameter.grad.clone() for parameter in head.gates.parameters()]

    head.zero_grad()
    evidence = torch.stack([gate(a, b) for gate, a, b in zip(head.gates, *parts, strict=True)], dim=1)
    torch.manual_seed(5)
    noise = -torch.empty_like(evidence).exponential_().log()
    (softmax(evidence + noise, -1)[..., 1] * weights).sum().backward()
    for one, other in zip(found, [parameter.grad for parameter in head.gates.parameters()], strict=True):
        assert_close(one, other)
        assert one.any()


def test_the_reduction_has_the_gradients_of_its_finite_differences():
    head = built().double()
    layers = [torch.randn(2, width, 2, 3, dtype=torch.float64, requires_grad=True) for width in MAPS]
    selected = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)

    assert torch.autograd.gradcheck(lambda *some: head._compose(some, selected), layers)


def test_the_term_of_the_rate_is_that_of_all_calls_of_a_step():
    """Shares of 1, 1/2 and 0 at a rate of 1/4: 9/16 + 1/16 + 1/16, twice."""
    head = built(rate=0.25, selection=2.0).train()
    one, other = maps(1), maps(1)
    set_gates(head, [True, True, False])
    head(one, other, centres(4, 5))
    set_gates(head, [True, False, False])
    head(one, other, centres(4, 5))

    assert head.take_penalty().item() == pytest.approx(2 * (9 + 1 + 1) / 16, abs=1e-5)
    head(one, other, centres(4, 5))
    assert head.take_penalty().item() == pytest.approx(2 * (9 + 1 + 1) / 16, abs=1e-5)  # 1, 0 and 0


def test_evaluation_keeps_nothing_for_the_loss():
    head = built()
    head(maps(), maps(), centres(4, 5).expand(3, -1, -1))
    with torch.no_grad():
        head.train()(maps(), maps(), centres(4, 5).expand(3, -1, -1))

    assert head._selected == []


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_in_half_precision_it_chooses_the_same_layers_and_all_is_finite(precision):
    head, source, target = built(), maps(), maps()
    exact = head(source, target, centres(4, 5).expand(3, -1, -1))
    rough = [one._replace(values=one.values.to(precision)) for one in (source, target)]

    with torch.autocast("cpu", torch.bfloat16):
        found = head(*rough, centres(4, 5).expand(3, -1, -1))
        head.train()(*rough, centres(4, 5).expand(3, -1, -1)).square().sum().backward()

    assert found.dtype == torch.float32
    assert_close(found, exact, atol=0.05, rtol=0.05)
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in head.parameters())


def test_the_head_has_as_many_weights_as_the_page_says():
    assert sum(parameter.numel() for parameter in GatedLayers([768] * 4).parameters()) == 394_496


def test_the_head_sees_both_images_and_adds_to_the_loss():
    assert not isinstance(built(), SiameseHead)
    assert isinstance(built(), PenalisedHead)


@pytest.mark.parametrize(("options", "message"), [
    ({"maps": []}, "at least one map"), ({"reduction": 5}, "at most 4"), ({"rate": 1.5}, "`head.rate` must be"),
    ({"hidden": 0}, "`head.hidden` must be"), ({"selection": -1.0}, "`head.selection` must be"),
])  # fmt: skip
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        built(**options)


@pytest.mark.integration
def test_the_head_trains_and_is_evaluated_through_its_configuration(config, tiny, tmp_path):
    overrides = [*tiny, "head=gated_layers", "backbone.layers=[1,3]", "backbone.size=32", "protocol=semcorr"]
    quick = ["finetune.blocks=0", "data.steps=3", "data.batch_size=2", "trainer.max_epochs=1", "optimizer.lr=1e-2"]
    cfg = config("train", *overrides, *quick)
    before = {name: value.clone() for name, value in build_datamodule_and_module(cfg)[0].head.state_dict().items()}
    trained = train(cfg)

    weights = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert {f"head.{key}" for key in before} == set(weights)
    assert all(value.isfinite().all() for value in weights.values())
    assert any(not weights[f"head.{key}"].equal(value) for key, value in before.items() if key.startswith("gates"))
    again = config("evaluate", *overrides, f"checkpoint={tmp_path / 'run'}", f"run_dir={tmp_path / 'again'}")
    assert evaluate(again)["pck"] == trained["pck"]
