"""Every numeric option of every file in conf: a sentence that names it, or something that works with finite numbers."""

import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from augmented_pairs import pair_of, record, seen
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from PIL import Image
from random_pairs import made_pairs, made_sources
from torch import nn

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, Positive, Temperature, require
from semcorr.core.types import FeatureMap
from semcorr.data.corruptions.corruption import Uncorrupted
from semcorr.data.spair import SPair
from semcorr.engine.known_targets import conf_dir
from semcorr.engine.options import accepted_options, check_options
from semcorr.engine.run_config import check_config
from semcorr.engine.trainer_options import check_numbers
from semcorr.evaluate import evaluate
from semcorr.inference import Matcher
from semcorr.matching.readouts import kernel_soft_argmax, soft_argmax, window_soft_argmax
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.finetune.peft_tuners import lora
from semcorr.models.losses import (
    GaussianCrossEntropy,
    LossInputs,
    SoftArgmaxDistance,
    evaluate_loss,
    gaussian_cross_entropy,
)
from semcorr.models.losses.inputs import Descriptors
from semcorr.train import train

BAD = {"zero": 0, "minus": -1, "nan": math.nan, "inf": math.inf, "huge": 1e30, "text": "x", "null": None, "list": [],
       "half": 1.5, "whole": 10**30}  # fmt: skip
GROUPS = ("augment", "backbone", "data", "finetune", "head", "hydra/launcher", "hydra/sweeper", "localise", "loss",
          "optimizer", "pairs", "pose", "scheduler", "store", "trainer", "corrupt", "upsample")  # fmt: skip
TINY = {"name": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, "size": 64}
CHANNELS, GRID = 48, 8


def backbone() -> TimmModel:
    return TimmModel(pretrained=False, **TINY)


def features() -> FeatureMap:
    return FeatureMap(torch.randn(1, CHANNELS, GRID, GRID), 8.0)


def works_backbone(node: dict[str, Any]) -> list[torch.Tensor]:
    made = instantiate(node | {"pretrained": False} if "pretrained" in node else node)
    return [made(torch.rand(1, 3, made.size, made.size)).values] if made.size <= 320 else []


def works_head(node: dict[str, Any]) -> list[torch.Tensor]:
    fitted = {"channels": CHANNELS, "maps": [CHANNELS], "grid": GRID}
    made = instantiate(node | {key: fitted[key] for key in fitted.keys() & node.keys() if node[key] is None})
    return [made(features(), features(), torch.tensor([[[9.0, 20.0]]]))]


def works_upsample(node: dict[str, Any]) -> list[torch.Tensor]:
    made = instantiate(node)
    values, image = torch.randn(1, 4, 3, 3), torch.rand(1, 3, 24, 24)
    return [made(values, made.make_guide(image, (3, 3)))]


def works_finetune(node: dict[str, Any]) -> list[torch.Tensor]:
    made = backbone()
    instantiate(node)(made)
    return [made(torch.rand(1, 3, 64, 64)).values]


def works_localise(node: dict[str, Any]) -> list[torch.Tensor]:
    return [instantiate(node)(torch.rand(1, 2, GRID, GRID) * 2 - 1)]


def works_loss(node: dict[str, Any]) -> list[torch.Tensor]:
    similarity = (torch.rand(2, 3, GRID, GRID) * 2 - 1).requires_grad_()
    cells, mask = torch.rand(2, 3, 2) * (GRID - 1), torch.ones(2, 3, dtype=torch.bool)
    described = Descriptors(torch.randn(2, 3, 8), torch.randn(2, 3, 8), mask, torch.ones(2, dtype=torch.bool))
    step = LossInputs(similarity, cells, mask, cells, torch.full((2, 3, 2), 4.0), 3, described)
    (pairs, leaves), (teacher, _) = made_pairs(2), made_pairs(2)
    whole = torch.ones(2, teacher.side, teacher.side, dtype=torch.bool)
    step = step._replace(pairs=pairs, teacher=teacher._replace(masks=(whole, whole)), sources=made_sources(2))
    made = instantiate(node | ({"trained_grid": GRID} if node.get("trained_grid") == 60 else {}))
    loss = evaluate_loss(made, step)
    loss.backward() if loss.requires_grad else None
    return [loss.detach(), *(leaf.grad for leaf in (similarity, *leaves) if leaf.grad is not None)]


def works_optimizer(node: dict[str, Any], scheduler: dict[str, Any] | None = None) -> list[torch.Tensor]:
    layers = nn.Linear(3, 3), nn.Linear(3, 3)
    moved = instantiate(node)(*(list(layer.parameters()) for layer in layers))
    schedule = instantiate(scheduler)(moved, 4, 2) if scheduler else None
    for _ in range(4):
        nn.Sequential(*layers)(torch.ones(1, 3)).sum().backward()
        moved.step()
        schedule.step() if schedule else None
    return [parameter.detach() for layer in layers for parameter in layer.parameters()]


def works_scheduler(node: dict[str, Any]) -> list[torch.Tensor]:
    return works_optimizer({"_target_": "semcorr.engine.optim.adamw", "_partial_": True}, node)


def works_trainer(node: dict[str, Any]) -> list[torch.Tensor]:
    check_numbers(node | {"accelerator": "cpu"})
    instantiate(node, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    return []


def works_corrupt(node: dict[str, Any]) -> list[torch.Tensor]:
    made, picture = instantiate(node), np.random.default_rng(0).random((40, 48, 3))
    if isinstance(made, Uncorrupted):
        return []
    assert made(Image.fromarray((picture * 255).astype(np.uint8)), "one").size == (48, 40)
    return [torch.from_numpy(made.change(picture, np.random.default_rng(0)))]


def works_augment(node: dict[str, Any]) -> list[torch.Tensor]:
    made = instantiate(node)(pair_of(seen(), seen()), record(), np.random.default_rng(0))
    return [part for view in made[:2] for part in (view.image, view.keypoints, view.box)]


def works_data(node: dict[str, Any]) -> list[torch.Tensor]:
    instantiate(node, size=64)
    return []


def works_built(node: dict[str, Any]) -> list[torch.Tensor]:
    instantiate(node)
    return []


WORKS: dict[str, Callable[[dict[str, Any]], list[torch.Tensor]]] = {
    name.removeprefix("works_"): function for name, function in list(globals().items()) if name.startswith("works_")
}
UNBUILT = (
    "StableDiffusion",
    "sd_dinov2",
    "SegmentAnything",
    "TransformersModel",
    "IBOT",
    "AnyUp",
    "prompt",
)  # need more than conf


@cache
def read(path: Path) -> dict[str, Any]:
    """A file and those it builds on; without Hydra, which takes half a minute for all of them."""
    node = yaml.load(path.read_text(), Loader=get_yaml_loader()) or {}
    bases = [base for base in node.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
    return {key: value for base in bases for key, value in read(path.with_name(f"{base}.yaml")).items()} | node


def node_of(group: str, name: str) -> dict[str, Any]:
    node = read(conf_dir() / group / f"{name}.yaml")
    node = {key: "vit_tiny_patch16_224" if value == "???" else value for key, value in node.items()}
    around = {"seed": 1, "data_root": "nowhere", "name": "run", "protocol": {"resize": "squash"}}
    node = OmegaConf.to_container(OmegaConf.create(around | {"node": node}), resolve=True)["node"]
    if group == "finetune" and "blocks" in node and "last_blocks" not in node["_target_"]:
        node["blocks"] = None  # the tiny network has four
    return node


def is_numeric(hint: Any) -> bool:
    return any(word in str(hint) for word in ("int", "float")) and "Callable" not in str(hint)


def options() -> Iterator[Any]:
    """Each numeric option of each constructor once, by the first file that has it."""
    seen = set()
    for group in GROUPS:
        files = sorted((conf_dir() / group).glob("*.yaml"), key=lambda path: (path.stem != "tiny", path))
        for path in files:
            if path.stem in ("common", "several", "all", "published"):
                continue
            node = node_of(group, path.stem)
            accepted = accepted_options(node["_target_"], {})
            stated = accepted.annotations if accepted.is_semcorr else {}
            for key, value in node.items():
                numeric = isinstance(value, int | float) and not isinstance(value, bool)
                if (node["_target_"], key) not in seen and (numeric or is_numeric(stated.get(key))):
                    seen.add((node["_target_"], key))
                    yield pytest.param(group, path.stem, str(key), id=f"{group}={path.stem}-{key}")


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("group", "name", "key"), list(options()))
def test_an_option_is_refused_by_name_or_works_with_finite_numbers(group, name, key):
    good = node_of(group, name)
    place = group.replace("/", ".")
    for kind, value in BAD.items():
        node = good | {key: value}
        error, results = outcome(group, node)
        if error is not None:
            assert isinstance(error, UserError), f"{kind}: {error!r}"
            assert key in str(error) or f"`{place}" in str(error), (kind, str(error))
        for result in results:
            assert bool(torch.isfinite(result).all()), f"{kind}: {result}"


def outcome(group: str, node: dict[str, Any]) -> tuple[BaseException | None, list[torch.Tensor]]:
    """What becomes of a configuration: an error, or numbers."""
    try:
        if "/" not in group:
            check_options({group: node})
        unbuilt = any(word in node["_target_"].rpartition(".")[2] for word in UNBUILT)
        return None, [] if unbuilt else WORKS.get(group, works_built)(node)
    except UserError as error:
        return error, []
    except Exception as error:  # instantiate wraps
        return error.__cause__ or error, []


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("loss.temperature=0", "`loss.temperature` must be between 1e-06 and 1000000, got 0"),
        ("loss.temperature=nan", "`loss.temperature` must be between 1e-06 and 1000000, got nan"),
        ("loss.sigma=0", "`loss.sigma` must be between 0.001 and 1000000, got 0"),
        ("loss.kernel=4", "`loss.kernel` must be odd, between 1 and 255, got 4"),
        ("localise.temperature=-1", "`localise.temperature` must be between 1e-06 and 1000000, got -1"),
        ("localise.window=4", "`localise.window` must be odd and positive, got 4"),
        ("optimizer.lr=1e30", "`optimizer.lr` must be between 0 and 10, got 1e+30"),
        ("optimizer.lr=-1", "`optimizer.lr` must be between 0 and 10, got -1"),
        ("optimizer.backbone_lr=nan", "`optimizer.backbone_lr` must be between 0 and 10, got nan"),
        ("scheduler.warmup=1.5", "`scheduler.warmup` must be between 0 and 1, got 1.5"),
        ("trainer.gradient_clip_val=nan", "`trainer.gradient_clip_val` must be at least 0 or null, got nan"),
        ("trainer.log_every_n_steps=0", "`trainer.log_every_n_steps` must be at least 1 or null, got 0"),
        ("feature_dropout=nan", "`feature_dropout` must be at least 0, which is off, and less than 1, got nan"),
        ("seed=-1", "`seed` must be between 0 and 4294967295, got -1"),
        ("seed=18446744073709551616", "`seed` must be between 0 and 4294967295, got a number of 65 bits"),
        ("data.batch_size=1.5", "`data.batch_size` must be a whole number, at least 1, or null, got 1.5"),
        ("data.batch_size=x", "`data.batch_size` must be a whole number, at least 1, or null, got 'x'"),
        ("data.global_batch_size=0", "`data.global_batch_size` must be at least 1 or null, got 0"),
        ("data.train_per_category=0", "`data.train_per_category` must be at least 1 or null, got 0"),
        ("optimizer.lr_scaling=cubic", "`optimizer.lr_scaling` must be one of linear, sqrt, or null, got 'cubic'"),
        ("optimizer.lr_batch_size=0", "`optimizer.lr_batch_size` must be at least 1 or null, got 0"),
        ("data.cache_gb=nan", "`data.cache_gb` must be 0, which is off, or more, got nan"),
        ("data.encode_batch=0", "`data.encode_batch` must be at least 1 or null, got 0"),
        ("backbone.layers=3", "`backbone.layers` must be a list, got 3"),
        ("finetune.blocks=two", "`finetune.blocks` must be a whole number, got 'two'"),
        ("compile=3", "`compile` must be text or null, got 3"),
        ("backbone.size=-32", "`backbone.size` must be at least 1 or null, got -32"),
        ("backbone.grid=0", "`backbone.grid` must be at least 1 or null, got 0"),
    ],
)
def test_a_bad_option_is_refused_before_any_data_or_weights_are_read(config, line, message):
    others = ["protocol=semcorr", "scheduler=one_cycle"]  # with a readout and a schedule that have options
    with pytest.raises(UserError) as error:
        train(config("train", "data=spair", "data.root=nowhere", "backbone=tiny", "trainer=cpu", *others, line))

    assert str(error.value) == message


def test_a_readout_of_a_list_and_a_second_benchmark_are_named_by_their_whole_key(config):
    listed = config("evaluate", "localise=all", "backbone=tiny", "trainer=cpu")
    OmegaConf.update(listed, "localise.rules.2.temperature", 0, force_add=True)
    second = config("train", "data@test=spair", "test.batch_size=0", "backbone=tiny", "trainer=cpu")

    with pytest.raises(UserError, match=r"^`localise\.rules\.2\.temperature` must be between"):
        evaluate(listed)
    with pytest.raises(UserError, match=r"^`test\.batch_size` must be at least 1 or null, got 0$"):
        train(second)


def test_kap_must_be_true_or_false(config):
    with pytest.raises(UserError, match=r"^`kap` must be true or false, got 3$"):
        check_config(config("evaluate", "backbone=tiny", "kap=3"))


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: soft_argmax(torch.rand(1, 1, 2, 2), 0.0), "`localise.temperature` must be between 1e-06 and"),
        (lambda: window_soft_argmax(torch.rand(1, 1, 2, 2), temperature=math.nan), "`localise.temperature` must be"),
        (lambda: kernel_soft_argmax(torch.rand(1, 1, 2, 2), sigma=0.0), "`localise.sigma` must be between 0.001 and"),
        (lambda: SoftArgmaxDistance(temperature=0.0), "`loss.temperature` must be between"),
        (
            lambda: GaussianCrossEntropy(sigma_end=math.nan),
            "`loss.sigma_end` must be between 0.001 and 1000000 or null",
        ),
        (lambda: lora(backbone(), alpha=math.inf), "`finetune.alpha` must be positive or null, got inf"),
        (lambda: SPair(root=".", size=32, seed=-1), "`data.seed` must be between 0 and 4294967295, got -1"),
        (lambda: Matcher.load("backbone=tiny localise.temperature=0"), "`localise.temperature` must be between"),
        (lambda: Matcher.load("backbone=tiny", cycle=math.nan), "`cycle` must be positive, got nan"),
        (lambda: Matcher.load("backbone=tiny", batch=0), "`batch` must be at least 1 or null, got 0"),
        (lambda: TimmModel(pretrained=False, **TINY | {"size": 80_000}), "`backbone.size` must be at most 16384 for"),
    ],
)
def test_a_call_in_python_gives_the_same_message(attempt, message):
    with pytest.raises(UserError) as error:
        attempt()

    assert message in str(error.value)


@pytest.mark.parametrize(
    "line", ["backbone=vjepa2", "backbone=transformers backbone.name=x +backbone.model_type=dinov2"]
)
def test_options_of_a_librarys_config_are_the_librarys_to_refuse(config, line):
    check_config(config("evaluate", *line.split(), "+backbone.hidden_size=48", "data=spair", "data.root=nowhere"))


def test_options_of_a_head_that_a_function_builds_are_refused_with_their_range_and_kind(config):
    for line, message in (
        ("head=decoder head.fineness=x", "`head.fineness` must be a whole number, between 2 and 16, got 'x'"),
        ("head=decoder head.window=4", "`head.window` must be odd and positive or null, got 4"),
        ("head=decoder head.dropout=nan", "`head.dropout` must be at least 0 and below 1, got nan"),
        ("head=upsample head.stages=40", "`head.stages` must be between 1 and 4, got 40"),
    ):
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            check_config(config("evaluate", *line.split(), "backbone=tiny"))


def test_a_learned_temperature_is_a_tensor_and_is_let_through():
    cells, mask = torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.bool)

    assert gaussian_cross_entropy(torch.zeros(1, 1, 3, 3), cells, mask, torch.tensor(0.03)) > 0


def test_options_that_are_handed_on_are_known():
    fused, diffusion, drawn, warped = (
        accepted_options(f"semcorr.{target}", {}).annotations
        for target in (
            "models.backbones.fuse.sd_dinov2",
            "models.backbones.diffusion.StableDiffusion",
            "data.synthetic.Synthetic",
            "models.losses.WarpConsistency",
        )
    )

    assert fused["timestep"] is diffusion["timestep"]
    assert drawn["cache_gb"]  # of the class above
    assert drawn["workers"]  # of the class above that
    assert warped["temperature"] is Temperature


@pytest.mark.parametrize("warmup", [0, 0.25, 0.5, 1])
def test_a_warm_up_of_any_share_of_a_few_steps_has_finite_rates(warmup):
    assert all(map(math.isfinite, torch.cat([one.flatten() for one in works_scheduler(
        {"_target_": "semcorr.engine.optim.one_cycle", "_partial_": True, "warmup": warmup})]).tolist()))  # fmt: skip


@pytest.mark.parametrize(("value", "hint"), [(3, Count), (3, Count | None), (None, Count | None), (1, Positive),
                                             (0.03, Temperature), (2.5, Positive)])  # fmt: skip
def test_what_is_in_range_is_let_through(value, hint):
    require("option", value, hint)


def test_every_group_with_numbers_is_gone_over():
    with_targets = {path.parent.relative_to(conf_dir()).as_posix() for path in Path(conf_dir()).rglob("*.yaml")
                    if "_target_:" in path.read_text() and "experiment" not in path.parts}  # fmt: skip

    assert with_targets - set(GROUPS) == {"logger", "protocol", "callbacks"}  # texts, or other people's
