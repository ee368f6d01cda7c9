"""Parts of a fused backbone tuned together, each in a way of its own."""

from functools import partial

import pytest
import torch
from backbone_cases import tiny
from hydra.utils import instantiate
from repository import SMALL
from tiny_diffusion import parts, tiny_sd, write_parts

from semcorr.cli.compose import merge_checkpoint_config
from semcorr.core.errors import UserError
from semcorr.engine.optim import adamw
from semcorr.evaluate import evaluate
from semcorr.models.backbones.fuse import FusedBackbone
from semcorr.models.finetune.combined import combine
from semcorr.models.finetune.last_blocks import last_blocks
from semcorr.models.finetune.peft_tuners import lora
from semcorr.models.finetune.prompts import conditional_prompt, prompt
from semcorr.train import train

pytestmark = pytest.mark.integration

DINO = {"dino": "vit_tiny_patch16_224", "dino_size": 32, "pretrained": False, "patch_size": 8}
DINO |= {"embed_dim": 24, "depth": 1, "num_heads": 2}
CPM = {"words", "position", "gate", "project.weight", "project.bias", "mix.weight", "mix.bias"}
IMAGES = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def fused() -> FusedBackbone:
    return FusedBackbone([tiny_sd(size=64), tiny(size=32)])


def trainable(backbone: torch.nn.Module) -> set[str]:
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def test_both_parts_move_in_one_step_and_nothing_else():
    backbone = fused()
    way = partial(conditional_prompt, tokens=2, conditional=3, scale=0.5, **DINO)
    combine(backbone, {"diffusion": way, "vision": partial(last_blocks, blocks=1, norm=False)})
    last = {f"parts.1.{name}" for name, _ in tiny(size=32).named_parameters() if ".blocks.3." in f".{name}"}
    wanted = {f"parts.0.prompt.{name}" for name in CPM} | last
    before = {name: value.clone() for name, value in backbone.named_parameters()}

    maps = torch.cat([maps.values for maps in backbone.pair(*IMAGES)])
    (maps * torch.randn_like(maps)).sum().backward()
    torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=1e-2).step()

    assert last
    assert trainable(backbone) == wanted
    moved = {name for name, value in backbone.named_parameters() if not torch.equal(value, before[name])}
    assert moved == wanted


@pytest.mark.parametrize("part", [0, 1])
def test_a_part_without_a_way_is_frozen_and_the_other_as_if_it_were_alone(part):
    """The ways of the survey's baselines: one block of a transformer, one prompt; the other part is as it was."""
    ways = [partial(prompt, tokens=4), partial(lora, rank=2)]
    both, alone = fused(), fused().parts[part]
    combine(both, {name: way if i == part else None for i, (name, way) in enumerate(zip("ab", ways, strict=True))})
    ways[part](alone)

    assert trainable(both) == {f"parts.{part}.{name}" for name in trainable(alone)}


def test_a_rate_is_the_backbones_times_a_factor():
    backbone = fused()
    ways = {"diffusion": partial(prompt, tokens=4), "vision": partial(last_blocks, blocks=1)}
    combine(backbone, ways, {"diffusion": 100})

    optimizer = adamw([], [p for p in backbone.parameters() if p.requires_grad], backbone_lr=1e-4)

    rates = {group["name"]: (group["lr"], len(group["params"])) for group in optimizer.param_groups}
    assert rates["backbone x 100"] == (pytest.approx(1e-2), 1)
    assert rates["backbone"] == (1e-4, len(trainable(backbone)) - 1)


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        (tiny, {"ways": {"a": None}}, "`finetune.ways` tunes the parts of a fused backbone, and vit_tiny_patch16_224"),
        (
            fused,
            {"ways": {"a": None}},
            "a way, or null, for each part of this backbone: tiny, vit_tiny_patch16_224",
        ),
        (
            fused,
            {"ways": {"a": None, "b": None}, "rates": {"c": 2}},
            "`finetune.rates.c` is of no part. There are",
        ),
        (fused, {"ways": {"a": None, "b": None}, "rates": {"b": -2}}, "`finetune.rates.b` must be positive, got -2"),
    ],
)
def test_what_cannot_be_combined_is_refused_with_the_reason(backbone, options, message):
    with pytest.raises(UserError) as error:
        combine(backbone(), **options)

    assert message in str(error.value)


def test_the_yaml_is_the_prompt_and_one_block(config):
    backbone = fused()
    small = [
        f"{'' if key in ('dino', 'pretrained') else '+'}finetune.ways.diffusion.{key}={value}"
        for key, value in DINO.items()
    ]
    chosen = config("train", "backbone=sd21_dinov2", "finetune=combined", *small).finetune

    instantiate(chosen)(backbone)

    assert backbone.parts[0].prompt.words.shape == (1, 25, 12)
    assert backbone.pairwise
    assert any(name.startswith("parts.1.") for name in trainable(backbone))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
def test_a_run_saves_both_and_scores_with_them(config, creatures, tmp_path):
    given = ["data=synthetic", f"data.root={creatures}", *SMALL, "data.workers=0", "trainer=cpu", "finetune=combined"]
    given += ["backbone=sd_dinov2", f"backbone.weights={write_parts(tmp_path, parts())}", "backbone.grid=4"]
    given += ["backbone.dino=vit_tiny_patch16_224", "backbone.pretrained=false", "backbone.layers=[5]"]
    given += ["finetune.ways.diffusion.dino=vit_tiny_patch16_224", "finetune.ways.diffusion.pretrained=false"]
    quick = ["data.steps=2", "data.batch_size=2", "trainer.max_epochs=1"]
    run = tmp_path / "run"

    trained = train(config("train", *given, *quick, f"run_dir={run}"))
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    again = [f"checkpoint={run}", f"run_dir={tmp_path / 'again'}"]
    scored = evaluate(merge_checkpoint_config(config("evaluate", *again), again))

    assert {name.split(".")[2] for name in saved} == {"0", "1"}
    assert scored["pck"] == trained["pck"]
