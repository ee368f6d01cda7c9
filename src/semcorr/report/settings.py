"""Settings that a run's numbers depend on: its own, and those that its checkpoint was trained with."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from semcorr.engine.saved_config import is_run, read_run_config

Setting = object  # a leaf of a configuration
# Keys that cannot change a number, or that are compared otherwise (weights by their checksum, the protocol by name).
APART = (
    "run_dir",
    "name",
    "seed",
    "data_root",
    "data",
    "test",
    "trained_on",
    "logger",
    "provenance",
    "store",
    "kap",
    "compile",
    "protocol",
    "checkpoint",
    "backbone.weights",
    "backbone.pretrained",
    "sweep",
    "launcher",
    "trainer.accelerator",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "trainer.precision",
)
# The same for the keys of a benchmark; its resize is compared separately.
OF_DATA = ("seed", "root", "workers", "encode_batch", "cache_gb", "resize")
OF_STEPS = ("batch_size", "all_pairs", "steps")  # change no number where nothing is trained


def run_settings(cfg: DictConfig) -> dict[str, Setting]:
    """Collect the settings that a run's numbers depend on, except the seed.

    Args:
        cfg: The configuration that `semcorr.engine.rebuild.read_scored_config` returns. Its `data` is the benchmark
            that was scored; its `trained_on`, if present, is another benchmark, on which the run was trained.

    Returns:
        Leaves by their dotted keys. `data.*` describes the benchmark trained on, `test.*` what differs from it in the
        benchmark scored; `resize` is that of the scored images, `data.resize` that of the training images where they
        differ.
    """
    flat = _flatten(OmegaConf.to_container(cfg, resolve=True))
    run_values, scored, resize = _relevant_settings(flat), _benchmark_settings(flat, "data"), flat.get("data.resize")
    if "loss" in cfg:
        trained = training_settings(cfg)
    else:
        run_values = {key: value for key, value in run_values.items() if not key.startswith("trainer.")}
        trained = _checkpoint_settings(Path(cfg.checkpoint)) if cfg.get("checkpoint") else {}
    if trained.get("data.resize") == resize:
        trained.pop("data.resize", None)
    differing = {f"test.{key}": value for key, value in scored.items() if trained.get(f"data.{key}", ...) != value}
    provenance = cfg.provenance
    is_random = cfg.backbone.get("pretrained") is False and not cfg.backbone.get("weights")  # drawn for every seed
    checksum = provenance.get("weights_sha256")
    return {
        **trained,
        **run_values,
        **{key: value for key, value in differing.items() if key.removeprefix("test.") not in OF_STEPS},
        "resize": resize,
        "precision": flat.get("trainer.precision"),
        "weights": "random" if is_random else checksum and checksum[:8],
        "backbone": provenance.get("backbone") or str(cfg.backbone._target_).rsplit(".", 1)[-1],
    }


def training_settings(cfg: DictConfig) -> dict[str, Setting]:
    """Collect the settings of a training run before anything was scored."""
    flat = _flatten(OmegaConf.to_container(cfg, resolve=True))
    source = "trained_on" if "trained_on" in cfg else "data"
    data = {f"data.{key}": value for key, value in _benchmark_settings(flat, source).items()}
    return {**_relevant_settings(flat), **data, "data.resize": flat.get(f"{source}.resize")}


def _checkpoint_settings(run: Path) -> dict[str, Setting]:
    """Collect the settings that an evaluated checkpoint was trained with; only its name, where its run is gone."""
    if not is_run(run):
        return {"checkpoint": run.name}
    cfg = read_run_config(run)
    return training_settings(cfg) if "loss" in cfg else {"checkpoint": run.name}


def _relevant_settings(flat: dict[str, Setting]) -> dict[str, Setting]:
    return {
        key: value
        for key, value in flat.items()
        if not any(key == excluded or key.startswith(f"{excluded}.") for excluded in APART)
    }


def _benchmark_settings(flat: dict[str, Setting], key: str) -> dict[str, Setting]:
    inside = {name.removeprefix(f"{key}."): value for name, value in flat.items() if name.startswith(f"{key}.")}
    return {name: value for name, value in inside.items() if name not in OF_DATA}


def _flatten(node: object, prefix: str = "") -> dict[str, Setting]:
    """Flatten a configuration to its leaves by dotted keys; lists stay whole, for their items have no names."""
    if not isinstance(node, dict):
        return {prefix.removesuffix("."): node}
    leaves: dict[str, Setting] = {}
    for key, value in node.items():
        leaves |= _flatten(value, f"{prefix}{key}.")
    return leaves
