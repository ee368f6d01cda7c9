"""Builders of the parts of a run from its configuration."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from lightning import seed_everything
from omegaconf import DictConfig, open_dict
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.terminal import print_line
from semcorr.core.text_files import JsonObject
from semcorr.data.corruptions.corruption import Corruption, Uncorrupted
from semcorr.data.datamodule import PairDataModule
from semcorr.data.evaluation_only import EvaluationBenchmark
from semcorr.data.pose_variants import PoseVariant
from semcorr.engine.contracts import (
    ARGUMENTS,
    explain_failure,
    require_backbone,
    require_call,
    require_head,
    require_loss,
    require_readout,
)
from semcorr.engine.module import CorrespondenceModule
from semcorr.engine.options import STEPS
from semcorr.engine.run_config import check_config, require_compile_backend
from semcorr.engine.saved_config import to_plain_types
from semcorr.evaluation.pose.alignment import AdaptivePose
from semcorr.evaluation.protocols import SEMCORR, Protocol
from semcorr.matching.readouts import ProtocolReadout, Readout, ReadoutList, list_readouts
from semcorr.models.backbones.steps import add_steps
from semcorr.models.losses import ExtraInput, Loss, list_reads, point_lookup
from semcorr.models.weights.loading import require_finite_weights
from semcorr.store.frozen import FeatureCacheConfig

Benchmark = PairDataModule | EvaluationBenchmark


class TrainingParts(NamedTuple):
    """Parts of a module that only training needs.

    Attributes:
        loss: The loss.
        optimizer: Function from the trainable parameters of the head and loss, and of the backbone, to the optimiser.
        scheduler: Function from the optimiser and the numbers of steps, of the run and of an epoch, to the schedule.
    """

    loss: Loss
    optimizer: Callable[..., Optimizer]
    scheduler: Callable[..., LRScheduler]


def build_training_parts(cfg: DictConfig) -> TrainingParts:
    """Build the loss, and the constructors of the optimiser and its schedule."""
    parts = TrainingParts(*(build_part(key, cfg[key]) for key in TrainingParts._fields))
    require_loss(parts.loss)
    require_call("optimizer", parts.optimizer)
    require_call("scheduler", parts.scheduler)
    return parts


def build_part(key: str, section: DictConfig, *kinds: type, **overrides: object) -> Any:
    """Build what a section of the configuration describes.

    Args:
        key: Name of the section.
        section: The section.
        kinds: Classes of which the part must be one; none, where its own check follows.
        overrides: Arguments that replace those of the section.

    Raises:
        UserError: It is of another class, or a class or function of another package has failed.
    """
    target = section.get("_target_", "semcorr") if isinstance(section, DictConfig) else "semcorr"
    hint = f"A function needs {key}._partial_=true." if key in ARGUMENTS and not section.get("_partial_") else ""
    with explain_failure(key, target, hint):
        part = instantiate(section, **overrides)
    if kinds and not isinstance(part, kinds):
        names = " or ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
        raise UserError(f"`{key}._target_`: {target} must be a {names}, got a {type(part).__name__}.")
    return part


def require_filled_square(loss: Loss, resize: str) -> None:
    """Refuse to train by a loss that is not defined on the pixels of a run."""
    if point_lookup(loss) == "aligned" and resize != "squash":
        raise UserError(
            "`loss.convention`: aligned has the corner cells on the corners of the image, so the image must fill its "
            f"square, and data.resize={resize} does not. Give data.resize=squash or loss.convention=centres."
        )


def require_pairs(loss: Loss, all_pairs: int | None) -> None:
    """Refuse to train by a loss that compares the images of pairs where steps consist of images."""
    if list_reads(loss) and all_pairs is not None:
        raise UserError(
            f"`loss` compares both images of each pair, and with data.all_pairs={all_pairs} a step has images. Give "
            "data.all_pairs=null, or a loss of keypoints, as loss=gaussian_cross_entropy."
        )


def build_datamodule_and_module(
    cfg: DictConfig, stages: Sequence[str] = ("test",), training: TrainingParts | None = None
) -> tuple[CorrespondenceModule, Benchmark]:
    """Build the benchmark, read for `stages`, and the module.

    The benchmark comes first: what is wrong with it is reported before any weights are downloaded.

    Args:
        cfg: Configuration of the run. What a run fills in, such as `backbone.size`, is written to it.
        stages: Lightning's names of the stages that the benchmark is read for: `fit`, `test`.
        training: Parts that only training needs; None for a module that is scored.

    Raises:
        UserError: An option is refused, or the benchmark or the weights cannot be read.
    """
    check_config(cfg)
    data = build_datamodule(cfg, "data", stages)
    module = build_module(cfg, training)
    if cfg.compile is not None:
        compile_blocks(module.backbone, cfg.compile)
    data.fit_backbone(module.backbone)
    cfg.backbone.size = module.backbone.size  # from `grid`, where that was given; written to config.yaml
    if "grid" in cfg.backbone:
        cfg.backbone.grid = None
    return module, data


def build_training(cfg: DictConfig) -> tuple[CorrespondenceModule, PairDataModule, PairDataModule]:
    """Build the module, the benchmark that it is trained on and the one that it is scored on.

    Args:
        cfg: Configuration of the training. What a run fills in, such as `backbone.size`, is written to it.

    Raises:
        UserError: The configuration is invalid, or a benchmark cannot be trained or scored on.
    """
    check_config(cfg)
    parts = build_training_parts(cfg)
    other = build_datamodule(cfg, "test", ("test",)) if "test" in cfg else None
    if other is not None and not isinstance(other, PairDataModule):
        raise UserError(f"`data@test`: {other.name} has no pairs. Score it with semcorr.evaluate checkpoint=RUN_DIR")
    module, data = build_datamodule_and_module(cfg, ("fit",) if other else ("fit", "test"), parts)
    if not isinstance(data, PairDataModule):
        raise UserError(f"`data`: {data.name} has no pairs to train on. Score it with semcorr.evaluate")
    if any(module.trainable_parameters()):
        require_filled_square(parts.loss, data.resize)
        require_pairs(parts.loss, data.all_pairs)
        module.make_optimizer(steps=1000, epoch_steps=100, step_pairs=8)  # refused here, before anything is written
        data.train_masks = ExtraInput.MASKS in list_reads(parts.loss)
    use_cached_features(module, data)
    scored = other or data
    module.pose.check(module.backbone, scored)
    scored.fit_backbone(module.backbone)
    return module, data, scored


def build_module(cfg: DictConfig, training: TrainingParts | None = None) -> CorrespondenceModule:
    """Build the module of a configuration: backbone, head and readouts, with the trainable weights chosen.

    Args:
        cfg: Configuration of the run. Null options of the head that follow from the backbone are filled in.
        training: Parts that only training needs; None for a module that is scored.
    """
    backbone = build_backbone(cfg)
    head = build_head(cfg.head, backbone.widths, round(backbone.size / backbone.stride))
    require_head(head, backbone)
    name = f"{type(head).__module__}.{type(head).__qualname__}"
    require_finite_weights(head.state_dict(), f"`head._target_`: {name}", "Correct how it sets its weights.")
    localise, finetune = build_part("localise", cfg.localise), build_part("finetune", cfg.finetune)
    require_readout(localise)
    require_call("finetune", finetune)
    return CorrespondenceModule(
        backbone,
        head=head,
        localise=localise,
        finetune=finetune,
        seed=cfg.seed,
        cache_config=build_part("store", cfg.store, FeatureCacheConfig),
        key=features_key(cfg),
        variants=build_pose_variant(cfg),
        dropout=cfg.get("feature_dropout", 0.0),
        protocols=build_protocols(cfg),
        pose=build_part("pose", cfg.pose, AdaptivePose) if "pose" in cfg else None,
        kap=cfg.get("kap", False),
        **(training._asdict() if training else {}),
    )


def build_protocols(cfg: DictConfig) -> list[Protocol]:
    """Build the protocols that a run is scored by; for a configuration without any, as in old runs, our own."""
    if "protocol" not in cfg:
        return [SEMCORR]
    protocols = build_part("protocol", cfg.protocol, Protocol, list)
    return protocols if isinstance(protocols, list) else [protocols.with_resize(cfg.data.resize)]


def build_readouts(cfg: DictConfig) -> list[Readout]:
    """Build the readouts that a configuration names; none where each protocol has its own."""
    localise: Readout | ReadoutList | ProtocolReadout = build_part("localise", cfg.localise)
    return [] if isinstance(localise, ProtocolReadout) else list_readouts(localise)


def build_pose_variant(cfg: DictConfig) -> PoseVariant:
    """Build the weights of training pairs' variants; evaluation and old runs have no variants."""
    variant: PoseVariant = build_part("pairs", cfg.pairs, PoseVariant) if "pairs" in cfg else PoseVariant()
    return variant


def build_corruption(cfg: DictConfig) -> Corruption | None:
    """Build what is done to the images that are scored; None: nothing, as in old runs."""
    corruption = build_part("corrupt", cfg.corrupt, Corruption, Uncorrupted) if cfg.get("corrupt") else None
    return None if isinstance(corruption, Uncorrupted) else corruption


def build_head(cfg: DictConfig, widths: Sequence[int], grid: int) -> nn.Module:
    """Build the head, with the backbone's `channels`, `maps` and `grid` where these are null.

    Args:
        cfg: Section of the head. Null values are filled in, and written to config.yaml: the weights depend on them.
        widths: Channels of the maps that the backbone concatenates. The head must be made for them.
        grid: Cells along a side of the backbone's map.

    Raises:
        UserError: The section gives other channels than the backbone has.
    """
    expected = {"channels": sum(widths), "maps": list(widths), "grid": grid}
    for key in expected.keys() & cfg.keys():
        cfg[key] = expected[key] if cfg[key] is None else cfg[key]
        if key != "grid" and cfg[key] != expected[key]:
            raise UserError(
                f"`head.{key}` must be {expected[key]} for this backbone, or null for the same; got {cfg[key]}"
            )
    head: nn.Module = build_part("head", cfg)
    return head


def compile_blocks(backbone: Backbone, backend: str) -> None:
    """Compile each block by itself, so that the compiled code is the same wherever the backbone is split.

    The blocks of a network share their code, and dynamo counts compilations by code: beyond its limit of 8 it would
    leave the rest uncompiled. A block is compiled again with and without gradients, and for each size of a batch.
    """
    require_compile_backend(backend)
    limit = "cache_size_limit"  # called recompile_limit from PyTorch 2.7 on, and still available by this name
    setattr(torch._dynamo.config, limit, max(getattr(torch._dynamo.config, limit), 8 * len(backbone.blocks)))
    for block in backbone.blocks:
        block.forward = torch.compile(block.forward, backend=backend)


def features_key(cfg: DictConfig) -> JsonObject:
    """Return what cached features depend on besides the backbone's weights and size, which the store knows."""
    excluded = ("pretrained", "weights", "size", "grid")
    options = {key: value for key, value in to_plain_types(cfg.backbone).items() if key not in excluded}
    return {"options": options, "precision": str(cfg.trainer.precision) if "trainer" in cfg else None}


def use_cached_features(module: CorrespondenceModule, data: PairDataModule) -> None:
    """Let training read the features of frozen blocks from the cache, unless pixels change at every step."""
    frozen = module.frozen
    if not frozen.is_cacheable or frozen.cache_config.place == "off":
        return
    if ExtraInput.PIXELS in list_reads(module.loss):
        print_line("Frozen blocks are computed at every step: `loss` changes pixels.")
        return
    if data.augment is not None and not data.augment.only_flips:
        print_line(
            "Frozen blocks are computed at every step: `augment` changes pixels. After flips alone they are kept."
        )
        return
    module.uses_cached_features, data.train_pixels = True, False


def build_backbone(cfg: DictConfig, **overrides: object) -> Backbone:
    """Build the backbone before any tuning, right after seeding: random weights depend on nothing else.

    Args:
        cfg: Configuration of the run.
        overrides: Arguments of the backbone that replace those of the configuration.

    Raises:
        UserError: The weights are not finite, or a backbone of another package gives another map than it says.
    """
    seed_everything(cfg.seed, workers=True, verbose=False)
    own_options = cfg.backbone.copy()  # which still finds what its interpolations name
    with open_dict(own_options):
        steps = {key: own_options.pop(key) for key in STEPS if key in own_options}
    backbone = build_part("backbone", own_options, **overrides)
    require_backbone(backbone)
    backbone = add_steps(
        backbone, **{key: instantiate(x) if isinstance(x, DictConfig) else x for key, x in steps.items()}
    )
    weights = cfg.backbone.get("weights")
    origin = f"`backbone.weights`: {weights}" if weights else f"`backbone`: the weights of {backbone.name}"
    require_finite_weights(backbone.state_dict(), origin)
    return backbone


def build_datamodule(cfg: DictConfig, key: str, stages: Sequence[str]) -> Benchmark:
    """Build the benchmark of `cfg[key]`, read for `stages`; its loaders are built when the backbone's size is known.

    Args:
        cfg: Configuration of the run.
        key: Section of the benchmark: `data`, or `test` for one that is only scored.
        stages: Lightning's names of the stages: `fit`, `test`; none reads nothing yet.

    Raises:
        UserError: The benchmark cannot be read, or its images are to be corrupted and it has no pairs of keypoints.
    """
    data: Benchmark = build_part(key, cfg[key], PairDataModule, EvaluationBenchmark, size=cfg.backbone.size or 0)
    corruption = build_corruption(cfg)
    if isinstance(data, PairDataModule):
        data.corruption = corruption if key == "test" or cfg.get("test") is None else None
        data.augment = (instantiate(cfg.augment) or None) if "augment" in cfg else None
        data.pose_variant = build_pose_variant(cfg) or None
    elif corruption:
        raise UserError(
            f"`corrupt` changes the images of pairs of keypoints, and data={data.name} has none. Give corrupt=none."
        )
    for stage in stages:
        data.setup(stage)
    return data
