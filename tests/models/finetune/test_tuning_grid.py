"""Every backbone under every way of tuning: what moves, what is saved, where it can be cut, what folds back."""

import io
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from typing import NamedTuple

import pytest
import torch
from backbone_cases import IMAGE, PROMISES
from hydra.utils import instantiate
from tiny_diffusion import tiny_sd
from torch import Tensor, nn
from torch.testing import assert_close

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.models.backbones.diffusion import StableDiffusion
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.finetune.adapters import adaptformer, houlsby
from semcorr.models.finetune.last_blocks import last_blocks
from semcorr.models.finetune.merge import merge_adapters
from semcorr.models.finetune.peft_tuners import lora, peft_tuner
from semcorr.models.finetune.state import checkpoint_keys, keep_frozen_in_eval

pytestmark = pytest.mark.integration


class Way(NamedTuple):
    """A way of tuning, and what the names of all that it lets move contain."""

    tune: Callable[[Backbone], None]
    added: str = ""  # nothing: weights of the last block and the norm
    blocks: int | None = None  # all
    folds: bool = True


WAYS = {
    "blocks_1": Way(partial(last_blocks, blocks=1), blocks=1),
    "lora": Way(partial(lora, rank=4), ".lora_"),
    "lora of one block": Way(partial(lora, rank=2, alpha=8, dropout=0.3, blocks=1), ".lora_", blocks=1),
    "dora": Way(partial(lora, rank=2, dora=True), ".lora_"),
    "loha": Way(partial(peft_tuner, tuner="loha", r=2, alpha=2), ".hada_"),
    "houlsby": Way(partial(houlsby, width=4), ".adapter.", folds=False),
    "adaptformer": Way(partial(adaptformer, width=4, blocks=1), ".adapter.", blocks=1, folds=False),
}
BUILDS: dict[str, Callable[[], Backbone]] = {name: promise.build for name, promise in PROMISES.items()}
BUILDS["stable_diffusion"] = partial(tiny_sd, layers=[4])
WIDE = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(0))  # Stable Diffusion's sides are of 64s
CONVOLUTIONAL = ("squeezenet", "efficientnet_lite0", "resnet18", "convnext", "hf_convnext")
NO_FEED_FORWARD = [name for name in CONVOLUTIONAL if name in BUILDS]
CASES = [(a, b) for a in BUILDS for b in WAYS if not (b == "adaptformer" and a in NO_FEED_FORWARD)]
GRID = pytest.mark.parametrize(("name", "way"), CASES)


@cache
def original(name: str) -> Backbone:
    """Frozen, by which PyTorch may choose other kernels; and with no branch shut off.

    Untrained residual networks scale theirs by zero, which lets no gradient in.
    """
    torch.manual_seed(0)
    backbone = BUILDS[name]().eval().requires_grad_(False)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.ones_(module.weight)
    return backbone


def base(name: str) -> Backbone:
    """One to change."""
    return deepcopy(original(name))


def built(name: str, way: str, seed: int = 0) -> Backbone:
    """Tuned but not trained; `seed` changes what tuning draws, not the base."""
    backbone = base(name)
    torch.manual_seed(seed)
    WAYS[way].tune(backbone)
    return backbone


class Run(NamedTuple):
    """A backbone after two real steps, and how it was before them."""

    backbone: Backbone
    before: dict[str, Tensor]
    promised: set[str]


@cache
def trained(name: str, way: str) -> Run:
    """In training mode as the Lightning module has it. Not to be changed by a test."""
    backbone = built(name, way)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.train()
    keep_frozen_in_eval(backbone)
    optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=1e-2)
    for seed in range(2):  # after the first, what starts at zero lets a gradient through
        torch.manual_seed(seed)
        optimizer.zero_grad()
        values = backbone(image(backbone)).values
        (values * torch.randn_like(values)).sum().backward()
        optimizer.step()
    return Run(backbone.eval(), before, promised(backbone, WAYS[way]))


def promised(backbone: Backbone, way: Way) -> set[str]:
    """By name, not by what asks for gradients."""
    full = {module: name for name, module in backbone.named_modules()}
    places = [f"{full[block]}." for block in backbone.blocks[-(way.blocks or len(backbone.blocks)) :]]
    if not way.added:
        places += [f"{full[module]}." for module in [backbone.norm] if module is not None]
    return {n for n, _ in backbone.named_parameters() if n.startswith(tuple(places)) and way.added in n}


def image(backbone: Backbone) -> Tensor:
    return WIDE if isinstance(backbone, StableDiffusion) else IMAGE


def features(backbone: Backbone) -> Tensor:
    with torch.no_grad():
        return backbone(image(backbone)).values


@pytest.mark.sampled(8)
@GRID
def test_tuning_starts_from_the_features_of_the_base_to_the_bit_in_either_mode(name, way):
    before, backbone = features(original(name)), built(name, way)

    assert torch.equal(features(backbone), before)
    backbone.train()
    keep_frozen_in_eval(backbone)
    assert torch.equal(features(backbone), before)


@pytest.mark.sampled(16)
@GRID
def test_only_what_is_promised_asks_for_gradients_and_gets_one(name, way):
    run = trained(name, way)

    assert run.promised
    for key, parameter in run.backbone.named_parameters():
        assert parameter.requires_grad == (key in run.promised), key
        assert (parameter.grad is not None) == (key in run.promised), key


@pytest.mark.sampled(8)
@GRID
def test_steps_move_all_that_is_promised_and_not_a_bit_of_the_rest(name, way):
    run = trained(name, way)

    for key, value in run.backbone.state_dict().items():  # buffers too
        assert torch.equal(value, run.before[key]) != (key in run.promised), key
    assert not torch.equal(features(run.backbone), features(original(name)))


@pytest.mark.sampled(8)
@GRID
@pytest.mark.parametrize("after", [False, True], ids=["untrained", "trained"])
def test_a_tuned_backbone_is_cut_at_any_depth(name, way, after):
    backbone = trained(name, way).backbone if after else built(name, way)

    with torch.no_grad():
        x, whole = image(backbone), features(backbone)
        for depth in range(len(backbone.blocks) + 1):
            assert torch.equal(backbone.suffix(backbone.prefix(x, depth), depth).values, whole), depth


@pytest.mark.sampled(8)
@GRID
def test_what_is_saved_brings_a_new_backbone_to_the_same_features(name, way):
    run, file = trained(name, way), io.BytesIO()
    names = checkpoint_keys(run.backbone, buffers={key for key, _ in original(name).named_buffers()})
    torch.save({key: run.backbone.state_dict()[key] for key in names}, file)
    file.seek(0)

    new = built(name, way, seed=1)
    fit = new.load_state_dict(torch.load(file, weights_only=True), strict=False)

    assert not fit.unexpected_keys
    assert names == run.promised
    assert torch.equal(features(new), features(run.backbone))


@pytest.mark.sampled(8)
@GRID
def test_what_folds_back_keeps_its_features_under_the_keys_of_the_base_and_the_rest_says_so(name, way):
    run, plain = trained(name, way), base(name)
    backbone = deepcopy(run.backbone)

    if not WAYS[way].folds:
        with pytest.raises(UserError, match=r"cannot be merged .*--format onnx"):
            merge_adapters(backbone)
        assert torch.equal(features(backbone), features(run.backbone))
        return
    merge_adapters(backbone)

    assert backbone.state_dict().keys() == plain.state_dict().keys()
    assert [type(module) for module in backbone.modules()] == [type(module) for module in plain.modules()]
    plain.load_state_dict(backbone.state_dict())
    scale = features(run.backbone).abs().max()
    assert_close(features(plain) / scale, features(run.backbone) / scale, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", NO_FEED_FORWARD)
def test_adaptformer_names_what_works_where_there_is_no_feed_forward(name):
    with pytest.raises(UserError, match="Use finetune=houlsby or finetune=lora"):
        built(name, "adaptformer")


TYPED = {  # what is typed, and how many tensors it lets move in a random transformer of four blocks
    "frozen": (["finetune=frozen"], 0),
    "blocks_1": (["finetune=blocks_1"], 12),
    "blocks_2": (["finetune=blocks_2"], 24),
    "blocks_4": (["finetune=blocks_4"], 48),
    "lora": (["finetune=lora", "finetune.rank=16", "finetune.blocks=2"], 2 * 2),
    "targets": (["finetune=lora", "finetune.targets=[fc1,fc2]"], 4 * 2 * 2),
    "dora": (["finetune=dora"], 4 * 3),
    "peft": (["finetune=peft", "finetune.tuner=lokr", "+finetune.r=4"], 4 * 3),
    "houlsby": (["finetune=houlsby", "finetune.width=8"], 4 * 2 * 4),
    "adaptformer": (["finetune=adaptformer", "finetune.layernorm=in", "finetune.blocks=1"], 4 + 2),
}


@pytest.mark.parametrize("way", TYPED)
def test_a_way_is_chosen_on_the_command_line(config, way):
    typed, tensors = TYPED[way]
    backbone = base("tiny").requires_grad_(True)

    instantiate(config("train", *typed).finetune)(backbone)

    assert sum(parameter.requires_grad for parameter in backbone.parameters()) == tensors


def test_a_checkpoint_of_lora_on_a_base_transformer_is_below_five_megabytes_with_its_optimiser():
    backbone = TimmModel("vit_base_patch14_dinov2", size=518, pretrained=False)
    buffers = {name for name, _ in backbone.named_buffers()}
    lora(backbone, rank=8)
    moving = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    optimizer, file = torch.optim.AdamW(moving), io.BytesIO()
    for parameter in moving:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()

    state = backbone.state_dict()
    torch.save([{name: state[name] for name in checkpoint_keys(backbone, buffers)}, optimizer.state_dict()], file)

    assert sum(p.numel() for p in moving) == 12 * 8 * (768 + 3 * 768)  # A and B of twelve layers
    assert 3 * 4 * 12 * 8 * (768 + 3 * 768) < file.tell() < 5e6
