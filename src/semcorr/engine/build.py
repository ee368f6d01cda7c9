"""What train and evaluate share: building from a configuration, and what a run leaves behind."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from omegaconf import DictConfig, OmegaConf
from torch import nn

from semcorr.core.errors import UserError
from semcorr.core.files import write_text
from semcorr.core.text_files import JsonObject
from semcorr.data.datamodule import PairDataModule
from semcorr.data.pose_variants import PoseVariant
from semcorr.engine import wandb_pages as dashboard
from semcorr.engine.callbacks import ThroughputMonitor, TrainingProgressBar
from semcorr.engine.checkpoints import CheckpointFiles, weight_settings
from semcorr.engine.launcher import KeepSignals, watch_processes
from semcorr.engine.loggers import CSVScalarLogger, finish_loggers, logger_nodes
from semcorr.engine.module import CorrespondenceModule
from semcorr.engine.options import accepted_options, check_options
from semcorr.engine.provenance import code_versions
from semcorr.engine.run_dir import LATE, config_hash, remove_logs, remove_results, replace_results
from semcorr.engine.saved_config import CONFIG, escape_interpolations
from semcorr.engine.track_results import print_tracks, write_tracks
from semcorr.engine.tracking import TrackingModule
from semcorr.engine.trainer_options import MISTAKES, check_numbers, check_precision, check_training, refuse_options
from semcorr.engine.wandb_pages import WandbPagesCallback
from semcorr.evaluation.protocols import SEMCORR, Protocol, shared_resize
from semcorr.evaluation.results import print_scores, write_results
from semcorr.models.backbones.checkpoints import require_weights_file
from semcorr.models.backbones.weights import require_finite_weights, weights_sha256
from semcorr.store.sweep_cache import SHELF

PROFILERS: dict[str, Callable[..., object]] = {
    "simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler
}  # fmt: skip


def build_datamodule_and_module(
    cfg: DictConfig, stages: Sequence[str] = ("test",), **training: Any
) -> tuple[CorrespondenceModule, LightningDataModule]:
    """The data, read for `stages`, and the module.

    Data first: what is wrong with it is known before any weights are downloaded.
    """
    check_config(cfg)
    data = build_datamodule(cfg, "data", stages)
    module = build_module(cfg, **training)
    if cfg.compile is not None:
        compile_blocks(module.backbone, cfg.compile)
    data.size, data.pixels = module.backbone.size, module.backbone.pairwise
    cfg.backbone.size = module.backbone.size  # from `grid`, where that was given: what config.yaml then holds
    if "grid" in cfg.backbone:
        cfg.backbone.grid = None
    return module, data


def check_config(cfg: DictConfig) -> None:
    """Refuse, before anything is read or built, what is missing, of another type or out of range; settle the rest."""
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise UserError(f"no value for {', '.join(f'`{key}`' for key in missing)}. Give {missing[0]}=...")
    resolve_protocol_resize(cfg)
    if "trainer" in cfg:
        check_numbers(to_plain_types(cfg.trainer))
        check_precision(cfg.trainer.precision)
    check_options(cfg)
    if cfg.get("compile") is not None:
        require_compile_backend(cfg.compile)
    for part in ("backbone", "head", "finetune"):
        if isinstance(cfg.get(part), DictConfig):
            _check_weights(part, to_plain_types(cfg[part]))


def _check_weights(key: str, value: object) -> None:
    """Look at the files that are given as `weights` anywhere in a part: data may be drawn before they are read."""
    if key.endswith("weights") and isinstance(value, str):
        require_weights_file(value, key)
    for name, each in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        _check_weights(f"{key}.{name}", each)


def to_plain_types(cfg: DictConfig) -> JsonObject:
    """A node of a configuration, in Python's own types."""
    content = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def build_module(cfg: DictConfig, **training: object) -> CorrespondenceModule:
    """Backbone, head and localiser of a configuration, tuned as it says."""
    backbone = build_backbone(cfg)
    return CorrespondenceModule(
        backbone,
        head=build_head(cfg.head, backbone.widths, backbone.size // backbone.stride),
        localise=instantiate(cfg.localise),
        finetune=instantiate(cfg.finetune),
        seed=cfg.seed,
        cache_config=instantiate(cfg.store),
        key=features_key(cfg),
        variants=build_pose_variant(cfg),
        dropout=cfg.get("feature_dropout", 0.0),
        protocols=build_protocols(cfg),
        pose=instantiate(cfg.pose) if "pose" in cfg else None,
        **training,
    )


def resolve_protocol_resize(cfg: DictConfig) -> None:
    """The image geometry that the protocols of a list share, where none was typed; config.yaml then holds it."""
    if "protocol" not in cfg or "names" not in cfg.protocol:
        return
    if cfg.protocol.names is not None and cfg.protocol.resize is None:
        cfg.protocol.resize = shared_resize(cfg.protocol.names)
    cfg.protocol.resize = cfg.data.resize


def build_protocols(cfg: DictConfig) -> list[Protocol]:
    """What a run is scored by; one of before, by our own."""
    if "protocol" not in cfg:
        return [SEMCORR]
    made = instantiate(cfg.protocol)
    return made if isinstance(made, list) else [made.shown(cfg.data.resize)]


def build_pose_variant(cfg: DictConfig) -> PoseVariant:
    """In what variants training meets its pairs; evaluation, and a run of before, in none."""
    return instantiate(cfg.pairs) if "pairs" in cfg else PoseVariant()  # type: ignore[no-any-return]


def build_head(cfg: DictConfig, widths: Sequence[int], grid: int) -> nn.Module:
    """The head, with `channels`, `maps` and `grid` those of the backbone where they are null.

    Args:
        cfg: Of the head. What was null is filled in, and config.yaml then holds it: the weights belong to it.
        widths: Channels of the maps that the backbone lays side by side. The head must be made for them.
        grid: Cells along the side of its map.
    """
    own = {"channels": sum(widths), "maps": list(widths), "grid": grid}
    for key in own.keys() & cfg.keys():
        cfg[key] = own[key] if cfg[key] is None else cfg[key]
        if key != "grid" and cfg[key] != own[key]:
            raise UserError(f"`head.{key}` must be {own[key]} for this backbone, or null for the same; got {cfg[key]}")
    return instantiate(cfg)  # type: ignore[no-any-return]


def require_compile_backend(backend: str) -> None:
    """Refuse what torch.compile has no backend for."""
    if backend not in (known := [*torch.compiler.list_backends(), "eager"]):
        raise UserError(f"`compile` must be a backend of torch.compile ({', '.join(known)}) or null, got {backend!r}")


def compile_blocks(backbone: object, backend: str) -> None:
    """Each block by itself: wherever the chain is cut, what is compiled is the same.

    The blocks of a network share their code, and dynamo counts by code: beyond its limit of 8 it would leave the rest
    uncompiled. A block is compiled anew for what moves of it, with gradients and without, and for sizes of batches.
    """
    require_compile_backend(backend)
    limits: object = torch._dynamo.config  # from 2.7 on called recompile_limit, and still by this name
    limits.cache_size_limit = max(limits.cache_size_limit, 8 * len(backbone.blocks))
    for block in backbone.blocks:
        block.forward = torch.compile(block.forward, backend=backend)


def features_key(cfg: DictConfig) -> JsonObject:
    """What features depend on besides the weights, whose hash is known, and the size, which the backbone knows."""
    backbone = OmegaConf.to_container(cfg.backbone, resolve=True)
    assert isinstance(backbone, dict)
    apart = ("pretrained", "weights", "size", "grid")
    options = {key: value for key, value in backbone.items() if key not in apart}
    return {"options": options, "precision": str(cfg.trainer.precision) if "trainer" in cfg else None}


def use_cached_features(module: CorrespondenceModule, data: PairDataModule) -> None:
    """Let training take frozen blocks from where they are kept, unless every step sees other pixels."""
    frozen = module.frozen
    if not frozen.is_cacheable or frozen.cache_config.place == "off":
        return
    if data.augment is not None and not data.augment.only_flips:
        print("Frozen blocks are computed at every step: `augment` changes pixels. After flips alone they are kept.")
        return
    module.uses_cached_features, data.train_pixels = True, False


def build_backbone(cfg: DictConfig, **changed: object) -> object:
    """The backbone before any tuning. The seed comes right before: random weights depend on nothing else."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    backbone = instantiate(cfg.backbone, **changed)
    weights = cfg.backbone.get("weights")
    origin = f"`backbone.weights`: {weights}" if weights else f"`backbone`: the weights of {backbone.name}"
    require_finite_weights(backbone.state_dict(), origin)
    return backbone


def build_datamodule(cfg: DictConfig, key: str, stages: Sequence[str]) -> object:
    """The benchmark of `cfg[key]`, read for `stages`. Its loaders come later, with the size of the backbone built."""
    data: object = instantiate(cfg[key], size=cfg.backbone.size or 0)
    data.augment = (instantiate(cfg.augment) or None) if "augment" in cfg else None
    data.pose_variant = build_pose_variant(cfg) or None
    for stage in stages:
        data.setup(stage)
    return data


def build_trainer(cfg: DictConfig, run_dir: Path, goes_on: bool = False, **options: object) -> Trainer:
    """Lightning's Trainer with our loggers, progress bars and checkpoints; logs of an earlier run go."""
    check_precision(cfg.trainer.precision)
    if "loss" in cfg:
        check_training(cfg.trainer, any(isinstance(each, ModelCheckpoint) for each in options.get("callbacks", ())))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no tips, no device lists
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # metrics are summed over processes already
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # what is frozen
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # Lightning on a newer PyTorch
    warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging interval.*")
    if not goes_on:
        remove_logs(run_dir)
    given = build_user_callbacks(cfg)
    callbacks = [WandbPagesCallback(), ThroughputMonitor(), KeepSignals(), *options.pop("callbacks", []), *given]
    if cfg.trainer.get("enable_progress_bar") is not False and not any(isinstance(each, ProgressBar) for each in given):
        callbacks.insert(0, TrainingProgressBar())
    if isinstance(cfg.trainer.get("profiler"), str):
        options["profiler"] = PROFILERS[cfg.trainer.profiler](dirpath=str(run_dir), filename="profile")
    try:
        trainer: Trainer = instantiate(
            cfg.trainer,
            callbacks=callbacks,
            logger=build_loggers(cfg, run_dir),
            default_root_dir=str(run_dir),
            **options,
        )
    except InstantiationException as error:
        if isinstance(error.__cause__, MISTAKES):
            raise refuse_options(error) from error
        raise
    watch_processes(trainer)
    settings = weight_settings(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    trainer.strategy.checkpoint_io = CheckpointFiles(settings)
    return trainer


def build_user_callbacks(cfg: DictConfig) -> list[Callback]:
    """Those of the group `callbacks`, beside our own."""
    made = {name: instantiate(node) for name, node in (cfg.get("callbacks") or {}).items()}
    for name, callback in made.items():
        if not isinstance(callback, Callback):
            raise UserError(f"`callbacks.{name}` must be a callback of Lightning, got a {type(callback).__name__}")
    return [*made.values()]


def build_loggers(cfg: DictConfig, run_dir: Path) -> list[Logger]:
    """CSV always, first; and those of the group `logger`. They are told the configuration."""
    resolved: object = OmegaConf.to_container(cfg, resolve=True)
    made: list[Logger] = [CSVScalarLogger(run_dir)]
    for key, node in logger_nodes(resolved["logger"]).items():
        taken = accepted_options(node["_target_"], node)
        place = {"save_dir": str(run_dir)} if taken is None or taken.is_open or "save_dir" in taken.stated else {}
        logger = instantiate(node, **place)
        if not isinstance(logger, Logger):
            raise UserError(f"`{key}` must be a logger of Lightning, got a {type(logger).__name__}")
        if not isinstance(logger, CSVScalarLogger):
            logger.log_hyperparams({**resolved, "provenance": code_versions()})
            made.append(logger)
    return made


def score_and_save(
    cfg: DictConfig,
    trainer: Trainer,
    module: object,
    data: object,
) -> JsonObject:
    """Test, then leave the results in `cfg.run_dir` and print them; on the first process only.

    Returns:
        What metrics.json holds; nothing on the other processes.
    """
    if SHELF.open:
        module.sweep_cache = partial(SHELF, config_hash(cfg, *LATE) + weights_sha256(module))
    if not trainer.is_global_zero:
        trainer.test(module, datamodule=data, verbose=False)
        return {}
    run_dir = Path(cfg.run_dir)
    with replace_results(run_dir) as folder:
        with _scalars_in(folder, trainer):
            trainer.test(module, datamodule=data, verbose=False)
        save_config(cfg, module, folder)
        if isinstance(module, TrackingModule):
            metrics = write_tracks(module.result, data, folder)
        else:
            metrics = write_results(module.result, data, folder, count_trained(module))
    dashboard.log_summary(trainer.loggers, metrics, run_dir, trainer.global_step)
    finish_loggers(trainer.loggers)
    print_table = print_tracks if isinstance(module, TrackingModule) else print_scores
    print_table(metrics, f"{metrics['split']}, {module.backbone.name}")
    return metrics


def count_trained(module: nn.Module) -> int:
    """Count the numbers that training moves."""
    return sum(each.numel() for each in module.parameters() if each.requires_grad)


@contextmanager
def _scalars_in(folder: Path, trainer: Trainer) -> Iterator[None]:
    """Let metrics.csv, which scoring adds to, be exchanged with the other results."""
    logs = [logger for logger in trainer.loggers if isinstance(logger, CSVScalarLogger)]
    before = [logger.path for logger in logs]
    for logger in logs:
        logger.path = folder / logger.path.name
    try:
        yield
    finally:
        for logger, path in zip(logs, before, strict=True):
            logger.path = path


def begin_run(cfg: DictConfig, module: object, run_dir: Path, goes_on: bool) -> None:
    """Save the configuration of a run that begins or goes on; results of another configuration go first.

    Scalars of a run that goes on stay: they are carried on.
    """
    path, text = run_dir / CONFIG, config_text(cfg, module)
    run_dir.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_bytes() != text.encode():
        remove_results(run_dir, keep=["metrics.csv"] if goes_on else [])
    write_text(path, text, "run_dir")


def save_config(cfg: DictConfig, module: object, run_dir: Path) -> None:
    """config.yaml."""
    write_text(run_dir / CONFIG, config_text(cfg, module), "run_dir")


def config_text(cfg: DictConfig, module: object) -> str:
    """The resolved configuration, and what else a number depends on."""
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    resolved["provenance"] = {
        **code_versions(),
        "backbone": module.backbone.name,
        "weights_sha256": module.backbone.sha256,
    }
    return OmegaConf.to_yaml(OmegaConf.create(escape_interpolations(resolved)))
