"""Finished runs as a report needs them: settings that numbers depend on, and whether they are comparable."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from semcorr.core.errors import UserError
from semcorr.core.tables import read_table
from semcorr.core.text_files import JsonMapping
from semcorr.engine.checkpoints import TEACHER, weight_settings
from semcorr.engine.finished_run import EvaluatedRun as Evaluated
from semcorr.engine.finished_run import read_evaluated_run, require_same_pairs
from semcorr.engine.plain_yaml import read_plain_config
from semcorr.engine.rebuild import read_scored_config
from semcorr.engine.run_dir import UNCORRUPTED
from semcorr.engine.saved_config import CONFIG, is_run, read_run_config
from semcorr.metrics.pck import SUBSETS

KEYS = (
    "pck",
    "category",
    "headline",
    "pooling",
    "protocol",
    "localise",
    "split",
    "pairs",
    "images",
    "trained_parameters",
    "seconds",
    "intervals",
    "classes",
)
MUST_AGREE = {"benchmark": "split", "protocol": "protocol", "pooling": "pooling", "comparison (`strict`)": "strict"}


class FinishedRun(NamedTuple):
    """The results, the configuration and the training history of a finished run."""

    folder: Path
    cfg: DictConfig
    evaluated: Evaluated
    history: Sequence[Mapping[str, float]]  # rows of metrics.csv

    @property
    def metrics(self) -> JsonMapping:
        """The content of metrics.json."""
        return self.evaluated.metrics


def find_runs(given: Sequence[Path]) -> list[Path]:
    """Find the run folders: each given path itself, or all runs below it if it is a folder of runs, as a sweep's.

    Raises:
        UserError: A folder holds no run, or a run is given twice.
    """
    folders: list[Path] = []
    for path in given:
        has_runs_below = path.is_dir() and not any((path / name).exists() for name in (CONFIG, "metrics.json"))
        configured = {file.parent for file in path.rglob(CONFIG)} if has_runs_below else set()
        below = sorted(folder for folder in configured if not configured.intersection(folder.parents))  # not its export
        if has_runs_below and not below:
            raise UserError(f"{path} holds no run: no config.yaml in it or below. Give run_dirs of finished runs")
        folders += below or [path]
    duplicates = sorted(
        {str(folder) for folder in folders if [other.resolve() for other in folders].count(folder.resolve()) > 1}
    )
    if duplicates:
        raise UserError(f"{duplicates[0]} is given twice. Give every run once")
    return folders


def read_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Read all runs.

    Raises:
        UserError: The message names every run that cannot be read, one a line.
    """
    runs, problems = [], []
    for folder in folders:
        try:
            runs.append(_read_run(folder))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return runs


def require_comparable(runs: Sequence[FinishedRun]) -> None:
    """Refuse runs that differ in benchmark, protocol or pairs: no table may join them."""
    for name, key in MUST_AGREE.items():
        groups: dict[str, list[str]] = {}
        for run in runs:
            groups.setdefault(str(run.metrics.get(key, False)), []).append(str(run.folder))
        if len(groups) > 1:
            differences = "; ".join(f"{value}: {', '.join(folders)}" for value, folders in groups.items())
            raise UserError(
                f"these runs differ in their {name} and are not comparable: {differences}. Report each by itself"
            )
    for run in runs[1:]:
        require_same_pairs(runs[0].evaluated, run.evaluated)
    domains = [(run.folder, {*run.metrics["classes"].get("domains", {})}) for run in runs]
    named = [(folder, names) for folder, names in domains if names]  # older runs have none
    for folder, names in named[1:]:
        if differing := sorted(names ^ named[0][1]):
            raise UserError(
                f"{named[0][0]} and {folder} name the domains of their images differently: only one has pairs of "
                f"{differing[0]}. Evaluate again with the same annotations"
            )


def _read_run(folder: Path) -> FinishedRun:
    cfg = _add_teacher(read_scored_config(folder), folder)
    evaluated = read_evaluated_run(folder)
    missing = [key for key in KEYS if key not in evaluated.metrics]
    missing += [f"pck.{subset}" for subset in SUBSETS if subset not in evaluated.metrics.get("pck", {})]
    if missing:
        raise UserError(f"{folder}: metrics.json has no `{'`, `'.join(missing)}`. Evaluate again")
    return FinishedRun(folder, cfg, evaluated, _history(folder / "metrics.csv"))


def _history(path: Path) -> list[dict[str, float]]:
    """Read the rows of metrics.csv without their empty cells; no rows where a run logged nothing."""
    if not path.is_file():
        return []
    try:
        return [
            {key: float(value) for key, value in row.items() if value}
            for _, row in read_table(path, (), "Evaluate again, or remove it")
        ]
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a table of numbers ({error}). Evaluate again, or remove it") from None


Setting = object  # a leaf of a configuration
# Keys that cannot change a number, or that are compared otherwise (weights by their checksum, the protocol by name).
EXCLUDED_KEYS = (
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
    "objective",
    "protocol",
    "checkpoint",
    "start_from",  # see `_start_settings`
    "corrupt",  # of the scored images alone, see `_corruption_settings`
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
OF_STEPS = (  # change no number where nothing is trained
    *("batch_size", "global_batch_size", "all_pairs", "steps", "train_per_category", "val_per_category"),
    "heldout_keypoints",
)


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
        **_corruption_settings(flat),
        **{key: value for key, value in differing.items() if key.removeprefix("test.") not in OF_STEPS},
        "resize": resize,
        "precision": flat.get("trainer.precision"),
        "weights": "random" if is_random else checksum and checksum[:8],
        "backbone": provenance.get("backbone") or str(cfg.backbone._target_).rsplit(".", 1)[-1],
    }


def training_settings(cfg: DictConfig) -> dict[str, Setting]:
    """Collect the settings of a training run before anything was scored."""
    settings = _own_settings(cfg)
    return {**settings, **_start_settings(cfg.get("start_from"), settings)}


def _own_settings(cfg: DictConfig) -> dict[str, Setting]:
    """Collect the settings of a training run, without those of the run that its weights began with."""
    flat = _flatten(OmegaConf.to_container(cfg, resolve=True))
    source = "trained_on" if "trained_on" in cfg else "data"
    data = {f"data.{key}": value for key, value in _benchmark_settings(flat, source).items()}
    return {**_relevant_settings(flat), **data, "data.resize": flat.get(f"{source}.resize")}


def _start_settings(run: str | None, settings: dict[str, Setting]) -> dict[str, Setting]:
    """Collect what differs in the training that the weights began with; only its name, where its run is gone.

    Args:
        run: The run that `start_from` names; None for a training from the backbone's own weights, as older runs are.
        settings: The settings of the training that began with its weights.
    """
    if run is None:
        return {}
    if not is_run(Path(run)):
        return {"start_from": Path(run).name}
    cfg = _add_teacher(read_run_config(Path(run)), Path(run))
    first = {f"start_from.{key}": value for key, value in _own_settings(cfg).items() if settings.get(key, ...) != value}
    earlier = {"start_from.start_from": Path(cfg.start_from).name} if cfg.get("start_from") else {}
    return {"start_from": "a run", **first, **earlier}


def _checkpoint_settings(run: Path) -> dict[str, Setting]:
    """Collect the settings that an evaluated checkpoint was trained with; only its name, where its run is gone."""
    if not is_run(run):
        return {"checkpoint": run.name}
    cfg = _add_teacher(read_run_config(run), run)
    return training_settings(cfg) if "loss" in cfg else {"checkpoint": run.name}


def _add_teacher(cfg: DictConfig, run: Path) -> DictConfig:
    """Return the configuration of a run with the options of its teacher, which its weights depend on, as saved.

    A configuration that is read to build from has no callbacks.
    """
    if "loss" in cfg:
        saved = weight_settings(read_plain_config(run / CONFIG))
        for key, value in saved.items():
            if key.startswith(TEACHER):
                OmegaConf.update(cfg, key, value, force_add=True)
    return cfg


def _relevant_settings(flat: dict[str, Setting]) -> dict[str, Setting]:
    return {
        key: value
        for key, value in flat.items()
        if not any(key == excluded or key.startswith(f"{excluded}.") for excluded in EXCLUDED_KEYS)
    }


def _corruption_settings(flat: dict[str, Setting]) -> dict[str, Setting]:
    """Collect how scored images were corrupted; nothing for images as they are, of which older runs say nothing."""
    if flat.get("corrupt._target_") == UNCORRUPTED["_target_"]:
        return {}
    return {key: value for key, value in flat.items() if key.startswith("corrupt.")}


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
