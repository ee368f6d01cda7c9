"""Builders of the parts of a run from its configuration, and writers of the files in its directory."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from hydra._internal.utils import _locate
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from semcorr.core.errors import UserError
from semcorr.core.files import list_outputs, write_text
from semcorr.core.interfaces import Backbone
from semcorr.core.terminal import Terminal, print_line
from semcorr.core.text_files import JsonObject
from semcorr.data.datamodule import BATCH_SIZE, PairDataModule
from semcorr.data.evaluation_only import EvaluationBenchmark
from semcorr.data.pose_variants import PoseVariant
from semcorr.engine.callbacks import StageLines, ThroughputMonitor, TrainingProgressBar
from semcorr.engine.checkpoints import CheckpointFiles, weight_settings
from semcorr.engine.evaluation_only import EvaluationModule
from semcorr.engine.launcher import KeepSignals, watch_processes
from semcorr.engine.loggers import CSVScalarLogger, finish_loggers, logger_nodes, require_logger_packages
from semcorr.engine.module import CorrespondenceModule
from semcorr.engine.optim import check_rates
from semcorr.engine.options import STEPS, accepted_options, check_options
from semcorr.engine.pages import PagesCallback, log_summary
from semcorr.engine.run_dir import (
    POST_FEATURE_KEYS,
    code_versions,
    config_hash,
    remove_logs,
    remove_results,
    replace_results,
)
from semcorr.engine.run_name import label_run
from semcorr.engine.saved_config import CONFIG, escape_interpolations
from semcorr.engine.trainer_options import (
    LIGHTNING_ERRORS,
    check_numbers,
    check_precision,
    check_training,
    device_precision,
    refuse_options,
    run_products,
)
from semcorr.evaluation.protocols import SEMCORR, Protocol, shared_resize
from semcorr.evaluation.results import print_scores, write_results
from semcorr.models.backbones.steps import add_steps
from semcorr.models.losses import Loss, list_reads, point_lookup
from semcorr.models.weights.checkpoints import require_weights_file
from semcorr.models.weights.loading import require_finite_weights, weights_sha256
from semcorr.store.cache import SweepFeatureCache

PROFILERS: dict[str, Callable[..., object]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}


Benchmark = PairDataModule | EvaluationBenchmark


class TrainingParts(NamedTuple):
    """Parts of a module that only training needs."""

    loss: Loss
    optimizer: Callable[..., Optimizer]
    scheduler: Callable[..., LRScheduler]


def build_training_parts(cfg: DictConfig) -> TrainingParts:
    """Build the loss, and the constructors of the optimiser and its schedule."""
    return TrainingParts(*(instantiate(cfg[key]) for key in TrainingParts._fields))


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
    """
    check_config(cfg)
    data = build_datamodule(cfg, "data", stages)
    module = build_module(cfg, training)
    if cfg.compile is not None:
        compile_blocks(module.backbone, cfg.compile)
    data.size = module.backbone.size
    if isinstance(data, PairDataModule):
        data.pixels = module.backbone.needs_pixels
    cfg.backbone.size = module.backbone.size  # from `grid`, where that was given; written to config.yaml
    if "grid" in cfg.backbone:
        cfg.backbone.grid = None
    return module, data


def check_config(cfg: DictConfig) -> None:
    """Refuse what is missing, of another type or out of range, before anything is read or built; resolve the rest.

    What a run fills in, the image geometry of its protocols, the pairs of a step and the precision of its device, is
    written to config.yaml.

    Raises:
        UserError: The message names the first such key.
    """
    try:
        resolve_protocol_resize(cfg)
        resolve_batch_size(cfg)
        content = to_plain_types(cfg)
    except (MissingMandatoryValue, InterpolationToMissingValueError):
        if not (missing := sorted(OmegaConf.missing_keys(cfg))):
            raise
        raise UserError(f"no value for {', '.join(f'`{key}`' for key in missing)}. Give {missing[0]}=...") from None
    if "trainer" in content:
        check_numbers(content["trainer"])
        check_precision(content["trainer"]["precision"])
        content["trainer"]["precision"] = cfg.trainer.precision = device_precision(content["trainer"])
    require_logger_packages(content.get("logger") or {})
    check_options(content)
    check_rates(content)
    if content.get("compile") is not None:
        require_compile_backend(content["compile"])
    for part in ("backbone", "head", "finetune"):
        _check_weights_files(part, content.get(part))


def _check_weights_files(key: str, value: object) -> None:
    """Check the files that are given as `weights` anywhere in a part: data may be rendered before they are read."""
    if key.endswith("weights") and isinstance(value, str):
        require_weights_file(value, key)
    children = value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    for name, child in children:
        _check_weights_files(f"{key}.{name}", child)


def to_plain_types(cfg: DictConfig) -> JsonObject:
    """Convert a section of a configuration to Python's own types."""
    content = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def build_module(cfg: DictConfig, training: TrainingParts | None = None) -> CorrespondenceModule:
    """Build the module of a configuration: backbone, head and read-outs, with the trainable weights chosen."""
    backbone = build_backbone(cfg)
    return CorrespondenceModule(
        backbone,
        head=build_head(cfg.head, backbone.widths, round(backbone.size / backbone.stride)),
        localise=instantiate(cfg.localise),
        finetune=instantiate(cfg.finetune),
        seed=cfg.seed,
        cache_config=instantiate(cfg.store),
        key=features_key(cfg),
        variants=build_pose_variant(cfg),
        dropout=cfg.get("feature_dropout", 0.0),
        protocols=build_protocols(cfg),
        pose=instantiate(cfg.pose) if "pose" in cfg else None,
        **(training._asdict() if training else {}),
    )


def resolve_protocol_resize(cfg: DictConfig) -> None:
    """Fill in the image geometry that the protocols share on a benchmark, if none is given, also for config.yaml."""
    if "protocol" not in cfg:
        return
    names = cfg.protocol.names if "names" in cfg.protocol else [cfg.protocol.name]
    if names is not None and cfg.protocol.resize is None:
        for key in ("test", "data"):  # training images are placed as those of their own benchmark
            if cfg.get(key) is not None and cfg[key].resize is None:
                cfg[key].resize = shared_resize(names, benchmark_name(cfg[key]))
    if "names" in cfg.protocol or cfg.protocol.resize is None:
        cfg.protocol.resize = cfg.data.resize


def resolve_batch_size(cfg: DictConfig) -> None:
    """Fill in the pairs of a step on each process, unless they are given in all, also for config.yaml.

    Beside `all_pairs`, which does without it, it is filled in as well: it was before there was `global_batch_size`, and
    a run with another configuration is another run.
    """
    for section in (cfg.get("data"), cfg.get("test")):
        if section is None or "batch_size" not in section:
            continue
        if section.batch_size is None and section.get("global_batch_size") is None:
            section.batch_size = BATCH_SIZE


def benchmark_name(section: DictConfig) -> str | None:
    """Return the name of the benchmark that a section of the configuration builds; None if it cannot be imported."""
    return getattr(find_benchmark(section), "name", None)


def find_benchmark(section: DictConfig) -> object:
    """Return the class of the benchmark that a section of the configuration builds; None if it cannot be imported."""
    try:
        return _locate(section._target_)
    except ImportError:
        return None  # an error when it is built


def build_protocols(cfg: DictConfig) -> list[Protocol]:
    """Build the protocols that a run is scored by; for a configuration without any, as in old runs, our own."""
    if "protocol" not in cfg:
        return [SEMCORR]
    protocols = instantiate(cfg.protocol)
    return protocols if isinstance(protocols, list) else [protocols.with_resize(cfg.data.resize)]


def build_pose_variant(cfg: DictConfig) -> PoseVariant:
    """Build the weights of training pairs' variants; evaluation and old runs have no variants."""
    variant: PoseVariant = instantiate(cfg.pairs) if "pairs" in cfg else PoseVariant()
    return variant


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
    head: nn.Module = instantiate(cfg)
    return head


def require_compile_backend(backend: str) -> None:
    """Refuse a backend that torch.compile does not have."""
    if backend not in (known := [*torch.compiler.list_backends(), "eager"]):
        raise UserError(f"`compile` must be a backend of torch.compile ({', '.join(known)}) or null, got {backend!r}")


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
    if "pixels" in list_reads(module.loss):
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
        UserError: The weights are not finite.
    """
    seed_everything(cfg.seed, workers=True, verbose=False)
    own_options = cfg.backbone.copy()  # which still finds what its interpolations name
    with open_dict(own_options):
        steps = {key: own_options.pop(key) for key in STEPS if key in own_options}
    backbone = instantiate(own_options, **overrides)
    backbone = add_steps(
        backbone, **{key: instantiate(x) if isinstance(x, DictConfig) else x for key, x in steps.items()}
    )
    weights = cfg.backbone.get("weights")
    origin = f"`backbone.weights`: {weights}" if weights else f"`backbone`: the weights of {backbone.name}"
    require_finite_weights(backbone.state_dict(), origin)
    return backbone


def build_datamodule(cfg: DictConfig, key: str, stages: Sequence[str]) -> Benchmark:
    """Build the benchmark of `cfg[key]`, read for `stages`; its loaders are built when the backbone's size is known."""
    data: Benchmark = instantiate(cfg[key], size=cfg.backbone.size or 0)
    if isinstance(data, PairDataModule):
        data.augment = (instantiate(cfg.augment) or None) if "augment" in cfg else None
        data.pose_variant = build_pose_variant(cfg) or None
    for stage in stages:
        data.setup(stage)
    return data


def build_trainer(
    cfg: DictConfig, run_dir: Path, resumes: bool = False, callbacks: Sequence[Callback] = (), **options: object
) -> Trainer:
    """Build Lightning's Trainer with the loggers, progress bar and checkpoint files of semcorr.

    Args:
        cfg: Configuration of the run.
        run_dir: Directory of the run; logs of an earlier run there are removed, unless `resumes`.
        resumes: Whether an earlier run is resumed.
        callbacks: Callbacks besides the built-in ones and those of the group `callbacks`.
        options: Other arguments of the Trainer.
    """
    check_precision(cfg.trainer.precision)
    cfg.trainer.precision = device_precision(to_plain_types(cfg.trainer))
    if "loss" in cfg:
        check_training(cfg.trainer, any(isinstance(callback, ModelCheckpoint) for callback in callbacks))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no tips, no device lists
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # metrics are summed over processes already
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # frozen parts are
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # Lightning on a newer PyTorch
    warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging interval.*")
    if not resumes:
        remove_logs(run_dir)
    user_callbacks = build_user_callbacks(cfg)
    callbacks = [PagesCallback(), ThroughputMonitor(), KeepSignals(), *callbacks, *user_callbacks]
    has_user_bar = any(isinstance(callback, ProgressBar) for callback in user_callbacks)
    wants_bar = cfg.trainer.get("enable_progress_bar")
    if has_user_bar and wants_bar is False:
        raise UserError(
            "`trainer.enable_progress_bar` is false, and one of `callbacks` is a progress bar. Leave out either."
        )
    has_bar = has_user_bar or (Terminal().is_terminal if wants_bar is None else wants_bar)
    callbacks.insert(0, StageLines(has_bar))
    if has_bar and not has_user_bar:
        callbacks.insert(0, TrainingProgressBar())
    options.setdefault("enable_progress_bar", has_bar)
    if isinstance(cfg.trainer.get("profiler"), str):
        options["profiler"] = PROFILERS[cfg.trainer.profiler](dirpath=str(run_dir), filename="profile")
    loggers = build_loggers(cfg, run_dir)
    try:
        trainer: Trainer = instantiate(
            cfg.trainer,
            callbacks=callbacks,
            logger=loggers,
            default_root_dir=str(run_dir),
            **options,
        )
    except InstantiationException as error:
        if isinstance(error.__cause__, LIGHTNING_ERRORS):
            raise refuse_options(error) from error
        raise
    watch_processes(trainer)
    settings = weight_settings(to_plain_types(cfg))
    trainer.strategy.checkpoint_io = CheckpointFiles(settings)
    return trainer


def build_user_callbacks(cfg: DictConfig) -> list[Callback]:
    """Build the callbacks of the group `callbacks`, which run beside the built-in ones."""
    callbacks = {name: instantiate(node) for name, node in (cfg.get("callbacks") or {}).items()}
    for name, callback in callbacks.items():
        if not isinstance(callback, Callback):
            raise UserError(f"`callbacks.{name}` must be a callback of Lightning, got a {type(callback).__name__}")
    return [*callbacks.values()]


def build_loggers(cfg: DictConfig, run_dir: Path) -> list[Logger]:
    """Build the CSV logger, always and first, and those of the group `logger`, which log the configuration too."""
    resolved = to_plain_types(cfg)
    loggers: list[Logger] = [CSVScalarLogger(run_dir)]
    for key, node in logger_nodes(resolved["logger"]).items():
        options = accepted_options(node["_target_"], node)
        takes_folder = options is None or options.is_open or "save_dir" in options.annotations
        labels = label_run(cfg, node)
        logger = instantiate({**node, **labels}, **({"save_dir": str(run_dir)} if takes_folder else {}))
        if not isinstance(logger, Logger):
            raise UserError(f"`{key}` must be a logger of Lightning, got a {type(logger).__name__}")
        if not isinstance(logger, CSVScalarLogger):
            logger.log_hyperparams({**resolved, "provenance": code_versions()})
            loggers.append(logger)
    return loggers


def score_and_save(
    cfg: DictConfig,
    trainer: Trainer,
    module: CorrespondenceModule | EvaluationModule,
    data: Benchmark,
    cache: SweepFeatureCache | None = None,
) -> JsonObject:
    """Test, then write the results to `cfg.run_dir` and print them, on the first process.

    Args:
        cfg: Configuration of the run.
        trainer: Lightning's Trainer.
        module: Module to test.
        data: The benchmark.
        cache: Cache of features that the jobs of a sweep share.

    Returns:
        The content of metrics.json; an empty dictionary on the other processes.
    """
    if cache is not None and isinstance(module, CorrespondenceModule):
        module.sweep_cache = partial(cache, config_hash(cfg, *POST_FEATURE_KEYS) + weights_sha256(module))
    if not trainer.is_global_zero:
        with run_products(trainer):
            trainer.test(module, datamodule=data, verbose=False)
        return {}
    run_dir = Path(cfg.run_dir)
    with replace_results(run_dir) as folder:
        with _redirect_scalars(folder, trainer), run_products(trainer):
            trainer.test(module, datamodule=data, verbose=False)
        save_config(cfg, module.backbone, folder)
        if isinstance(module, EvaluationModule):
            metrics = module.write_results(folder)
        else:
            assert isinstance(data, PairDataModule)
            metrics = write_results(module.result, data, folder, count_trained(module))
    log_summary(trainer.loggers, metrics, run_dir, trainer.global_step)
    finish_loggers(trainer.loggers)
    print_table = module.print_scores if isinstance(module, EvaluationModule) else print_scores
    print_table(metrics, f"{metrics['split']}, {module.backbone.name}")
    print_line(f"Wrote {run_dir}: {', '.join(list_outputs(run_dir))}")
    return metrics


def count_trained(module: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@contextmanager
def _redirect_scalars(folder: Path, trainer: Trainer) -> Iterator[None]:
    """Write metrics.csv, which scoring extends, into a folder, to be replaced together with the other results."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, CSVScalarLogger)]
    paths = [logger.path for logger in loggers]
    for logger in loggers:
        logger.path = folder / logger.path.name
    try:
        yield
    finally:
        for logger, path in zip(loggers, paths, strict=True):
            logger.path = path


def begin_run(cfg: DictConfig, backbone: Backbone, run_dir: Path, resumes: bool) -> None:
    """Save the configuration of a run that begins or is resumed, and remove results of another configuration.

    The scalars of a resumed run are not removed, but continued.
    """
    path, text = run_dir / CONFIG, config_text(cfg, backbone)
    run_dir.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_bytes() != text.encode():
        remove_results(run_dir, keep=["metrics.csv"] if resumes else [])
    write_text(path, text, "run_dir")


def save_config(cfg: DictConfig, backbone: Backbone, run_dir: Path) -> None:
    """Write config.yaml into a run's directory."""
    write_text(run_dir / CONFIG, config_text(cfg, backbone), "run_dir")


def config_text(cfg: DictConfig, backbone: Backbone) -> str:
    """Format the resolved configuration as YAML, with the versions and weights that scores depend on as well."""
    resolved = to_plain_types(cfg)
    resolved["provenance"] = {
        **code_versions(),
        "backbone": backbone.name,
        "weights_sha256": backbone.sha256,
    }
    escaped = escape_interpolations(resolved)
    assert isinstance(escaped, dict)
    return OmegaConf.to_yaml(OmegaConf.create(escaped))
