"""Check of a run's configuration before anything is read or built, and the options that a run fills in itself."""

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue

from semcorr.core.errors import UserError
from semcorr.data.benchmark import BenchmarkModule
from semcorr.data.datamodule import BATCH_SIZE
from semcorr.engine.loggers import require_logger_packages
from semcorr.engine.missing_targets import locate_target
from semcorr.engine.optim import check_rates
from semcorr.engine.options import check_options
from semcorr.engine.saved_config import to_plain_types
from semcorr.engine.trainer_options import check_numbers, check_precision, device_precision
from semcorr.evaluation.protocols import shared_resize
from semcorr.models.weights.checkpoints import require_weights_file


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


def require_compile_backend(backend: str) -> None:
    """Refuse a backend that torch.compile does not have."""
    if backend not in (known := [*torch.compiler.list_backends(), "eager"]):
        raise UserError(f"`compile` must be a backend of torch.compile ({', '.join(known)}) or null, got {backend!r}")


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
    """Fill in `batch_size`, unless it or `global_batch_size` is given, also for config.yaml.

    Beside `all_pairs`, which does not use it, it is filled in as well, as before there was `global_batch_size`: a run
    with another configuration is another run.
    """
    for section in (cfg.get("data"), cfg.get("test")):
        if section is None or "batch_size" not in section:
            continue
        if section.batch_size is None and section.get("global_batch_size") is None:
            section.batch_size = BATCH_SIZE


def benchmark_name(section: DictConfig) -> str | None:
    """Return the name of the benchmark that a section of the configuration builds; None if it cannot be imported."""
    benchmark = find_benchmark(section)
    return None if benchmark is None else benchmark.name


def find_benchmark(section: DictConfig) -> type[BenchmarkModule] | None:
    """Return the class of the benchmark that a section of the configuration builds; None if it cannot be imported."""
    benchmark = locate_target(section._target_)  # None is an error when it is built
    return benchmark if isinstance(benchmark, type) and issubclass(benchmark, BenchmarkModule) else None
