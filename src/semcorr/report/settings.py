"""What a run's numbers depend on: of its configuration, and of the one its checkpoint was trained with."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from semcorr.engine.saved_config import is_run, read_run_config

Setting = Any  # a leaf of a configuration
# What cannot move a number, or is told apart otherwise (weights by their checksum, the protocol by its name).
APART = (
    "run_dir", "name", "seed", "data_root", "data", "test", "trained_on", "logger", "provenance", "store", "kap",
    "compile", "protocol", "checkpoint", "backbone.weights", "backbone.pretrained", "sweep", "launcher",
    "trainer.accelerator", "trainer.enable_model_summary", "trainer.log_every_n_steps", "trainer.precision",
)  # fmt: skip
OF_DATA = ("seed", "root", "workers", "encode_batch", "cache_gb", "resize")  # the same, of a benchmark; resize apart
OF_STEPS = ("batch_size", "all_pairs", "steps")  # move nothing where nothing is trained


def run_settings(cfg: DictConfig) -> dict[str, Setting]:
    """All that a run's numbers depend on but the seed.

    Args:
        cfg: As `semcorr.engine.rebuild.read_scored_config` reads it: `data` is what was scored, and
            `trained_on`, where that is another benchmark, what the run was trained on.

    Returns:
        Leaves by their dotted keys. `data.*` is of the benchmark trained on, `test.*` of the one scored, as far as it
        is not the same; `resize` is of the scored images, and `data.resize` of those trained on, if they had another.
    """
    flat = _flat(OmegaConf.to_container(cfg, resolve=True))
    own, scored, resize = _moving(flat), _benchmark(flat, "data"), flat.get("data.resize")
    if "loss" in cfg:
        trained = training_settings(cfg)
    else:
        own = {key: value for key, value in own.items() if not key.startswith("trainer.")}
        trained = _checkpoint(Path(cfg.checkpoint)) if cfg.get("checkpoint") else {}
    if trained.get("data.resize") == resize:
        trained.pop("data.resize", None)
    other = {f"test.{key}": value for key, value in scored.items() if trained.get(f"data.{key}", ...) != value}
    known = cfg.provenance
    drawn = cfg.backbone.get("pretrained") is False and not cfg.backbone.get("weights")  # anew for every seed
    sha = known.get("weights_sha256")
    return {
        **trained,
        **own,
        **{key: value for key, value in other.items() if key.removeprefix("test.") not in OF_STEPS},
        "resize": resize,
        "precision": flat.get("trainer.precision"),
        "weights": "random" if drawn else sha and sha[:8],
        "backbone": known.get("backbone") or str(cfg.backbone._target_).rsplit(".", 1)[-1],
    }


def training_settings(cfg: DictConfig) -> dict[str, Setting]:
    """The settings of a training run, before anything was scored."""
    flat = _flat(OmegaConf.to_container(cfg, resolve=True))
    of = "trained_on" if "trained_on" in cfg else "data"
    data = {f"data.{key}": value for key, value in _benchmark(flat, of).items()}
    return {**_moving(flat), **data, "data.resize": flat.get(f"{of}.resize")}


def _checkpoint(run: Path) -> dict[str, Setting]:
    """How an evaluated checkpoint was trained; its name, where it is not there to be asked."""
    if not is_run(run):
        return {"checkpoint": run.name}
    cfg = read_run_config(run)
    return training_settings(cfg) if "loss" in cfg else {"checkpoint": run.name}


def _moving(flat: dict[str, Setting]) -> dict[str, Setting]:
    return {key: value for key, value in flat.items() if not any(key == a or key.startswith(f"{a}.") for a in APART)}


def _benchmark(flat: dict[str, Setting], key: str) -> dict[str, Setting]:
    inside = {name.removeprefix(f"{key}."): value for name, value in flat.items() if name.startswith(f"{key}.")}
    return {name: value for name, value in inside.items() if name not in OF_DATA}


def _flat(node: Any, prefix: str = "") -> dict[str, Setting]:
    """Lists stay whole: their places have no names."""
    if not isinstance(node, dict):
        return {prefix.removesuffix("."): node}
    found: dict[str, Setting] = {}
    for key, value in node.items():
        found |= _flat(value, f"{prefix}{key}.")
    return found
