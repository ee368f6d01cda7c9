"""Run directories: the results of one run or none, what is read of them, and the code that made them."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from semcorr.core.errors import UserError
from semcorr.core.files import REASONS, part_path, write_error
from semcorr.core.ranks import is_first_process
from semcorr.core.text_files import JsonObject, read_mapping
from semcorr.engine.plain_yaml import read_plain_config
from semcorr.metrics.sections import HEADLINES, PAIRS

WEIGHTS = "model.safetensors"  # of a run that was exported for sharing
METRICS = "metrics.json"  # written last: a run is finished when it exists
JOB_FILE = "job.json"  # claims a folder for a job of a sweep, before it runs
RESULTS = (
    METRICS,
    "predictions.parquet",
    "matches.png",
    "tracks.png",
    "masks.parquet",
    "masks.png",
    "pairs.parquet",
    "poses.parquet",
    "detections.parquet",
    "audit.json",
    "metrics.csv",
)
EARLIER_RESULTS = ".before"  # folder of the earlier results, inside that of the new ones
# Options that a run fills in from others.
FILLED_OPTIONS = (
    *("backbone.size", "backbone.grid", "data.resize", "test.resize", "protocol.resize"),
    *("data.batch_size", "test.batch_size"),
)
UNSCORED_SECTIONS = (
    *("run_dir", "name", "data_root", "objective", "logger", "callbacks", "store", "trainer", "compile", "provenance"),
)
LOADER_OPTIONS = ("workers", "cache_gb", "encode_batch")  # options of a benchmark that no number depends on
LOGS = ("wandb/id.txt", "tensorboard/events.*", "*-profile*.txt")  # files that loggers would continue


def is_shared(run: Path) -> bool:
    """Tell whether a folder was exported for sharing: it holds trained weights, and no checkpoints of a training."""
    return (run / WEIGHTS).is_file() and not (run / "checkpoints").is_dir()


def checkpoint_path(run: Path, which: str = "best") -> Path:
    """Return the path of a run's checkpoint, which need not exist.

    In a folder that was exported for sharing, the best one is the file of its weights.

    Args:
        run: Directory of the run.
        which: `best` or `last`.
    """
    return run / WEIGHTS if which == "best" and is_shared(run) else run / "checkpoints" / f"{which}.ckpt"


@contextmanager
def replace_results(run_dir: Path) -> Iterator[Path]:
    """Yield a folder for the results of a run; in the end they replace those of the directory.

    After an error the directory holds what it held before. While files are exchanged there is no metrics.json, without
    which a run counts as unfinished; a process that is killed then leaves the earlier results to `restore_results`.

    Raises:
        UserError: The results cannot be written, for example because the disk is full.
    """
    folder = part_path(run_dir / "results")
    try:
        folder.mkdir(parents=True)
        try:
            yield folder
        except UserError as error:  # of a file in the folder, which the user knows by its final path
            raise UserError(str(error).replace(str(folder), str(run_dir))) from error
        written = sorted(path.name for path in folder.iterdir() if path.name != METRICS)
        earlier = folder / EARLIER_RESULTS
        earlier.mkdir()
        try:
            for name in dict.fromkeys((*RESULTS, *written)):
                if (run_dir / name).exists():
                    os.rename(run_dir / name, earlier / name)
            for name in (*written, METRICS):
                (folder / name).replace(run_dir / name)
        except BaseException:
            for name in written:
                if not (folder / name).exists():
                    (run_dir / name).unlink(missing_ok=True)
            restore_results(run_dir, folder)
            raise
    except OSError as error:
        if error.errno not in REASONS:
            raise
        raise UserError(write_error(run_dir, error, "run_dir")) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def restore_results(run_dir: Path, folder: Path) -> None:
    """Put back earlier results that `replace_results` had not finished replacing.

    Args:
        run_dir: Directory of the run.
        folder: The folder that `replace_results` yielded.
    """
    earlier = folder / EARLIER_RESULTS
    if (run_dir / METRICS).exists() or not (earlier / METRICS).is_file():
        return
    remove_results(run_dir)
    for path in sorted(earlier.iterdir(), key=lambda path: path.name == METRICS):
        path.replace(run_dir / path.name)


def refuse_other_run(run_dir: Path, cfg: DictConfig, is_filled: bool = False) -> None:
    """Refuse to replace the scores of another run.

    Args:
        run_dir: Directory that the scores would be written to.
        cfg: Configuration of the run.
        is_filled: Whether the run has filled in its options, as in config.yaml; otherwise these are not compared.

    Raises:
        UserError: The directory holds another run, or scores without a configuration.
    """
    config, is_training = run_dir / "config.yaml", "loss" in cfg
    if not config.is_file():
        if (run_dir / METRICS).is_file():
            raise UserError(f"`run_dir`: {run_dir} holds scores without a config.yaml. Choose another run_dir.")
        return
    saved = read_plain_config(config)
    if ("loss" in saved) != is_training:
        kind = "a training run" if "loss" in saved else "an evaluation"
        raise UserError(
            f"`run_dir`: {run_dir} holds {kind}, whose config.yaml and scores would be replaced. "
            "Choose another run_dir."
        )
    if not (run_dir / METRICS).is_file():
        return
    resolved = _resolve(cfg)
    options, saved_options = _score_options(resolved), _score_options(saved)
    for key in sorted(options.keys() | saved_options.keys()):
        if (key in FILLED_OPTIONS and not is_filled) or key.partition(".")[0] not in saved.keys() & resolved.keys():
            continue
        if options.get(key) != saved_options.get(key):
            raise UserError(
                f"`run_dir`: {run_dir} holds another run, with {key}={saved_options.get(key)} and not "
                f"{options.get(key)}. Choose another run_dir."
            )


def _resolve(cfg: DictConfig) -> JsonObject:
    """Return a configuration as plain values, without interpolations."""
    content: object = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(content, dict)
    return content


def _score_options(cfg: JsonObject) -> JsonObject:
    """Return the options that scores depend on, by their keys, with absolute paths."""
    flat = flatten_config({key: value for key, value in cfg.items() if key not in UNSCORED_SECTIONS})
    options = {key: value for key, value in flat.items() if key.rpartition(".")[2] not in LOADER_OPTIONS}
    for key, value in options.items():
        if key in ("checkpoint", "start_from") or key.endswith((".root", ".weights", ".block_weights")):
            options[key] = os.path.abspath(value) if isinstance(value, str) else value
    trainer = cfg.get("trainer") or {}
    precision = str(trainer.get("precision") or "32-true")
    if precision == "auto":
        from semcorr.engine.trainer_options import device_precision  # imports Lightning

        precision = str(device_precision(trainer))
    return options | {"trainer.precision": precision, "trainer.limit_test_batches": trainer.get("limit_test_batches")}


def remove_results(run_dir: Path, keep: list[str] | None = None) -> None:
    """Remove the results of a run, metrics.json first: without it no other file counts.

    Args:
        run_dir: Directory of the run.
        keep: Names of results that stay; None removes all.
    """
    for name in RESULTS:
        if name not in (keep or []):
            (run_dir / name).unlink(missing_ok=True)


def remove_logs(run_dir: Path) -> None:
    """Remove the logs of an earlier run in the same directory that W&B and TensorBoard would continue."""
    if is_first_process():
        for path in list_logs(run_dir):
            path.unlink(missing_ok=True)


def list_logs(run_dir: Path) -> list[Path]:
    """List the logs of a run that W&B, TensorBoard and profilers have written, by their names."""
    return sorted(path for pattern in LOGS for path in run_dir.glob(pattern))


def read_scores(path: Path, remedy: str = "Evaluate again") -> JsonObject:
    """Read a metrics.json.

    Args:
        path: The file.
        remedy: Last sentence of the error for a damaged file.

    Raises:
        UserError: The file cannot be read, is not JSON, or holds no scores.
    """
    content = read_mapping(path, remedy)
    scores = [content.get(key) for key in (PAIRS, *HEADLINES) if key in content]
    if (
        len(scores) != 1
        or not isinstance(scores[0], dict)
        or not all(map(_is_score, flatten_config(scores[0]).values()))
    ):
        raise UserError(f"{path} is damaged (it holds no scores). {remedy}")
    return content


def flatten_config(tree: Mapping, prefix: str = "") -> JsonObject:
    """Return the leaves of a configuration by their keys.

    >>> flatten_config({"backbone": {"size": 64, "layers": [-1]}})
    {'backbone.size': 64, 'backbone.layers': [-1]}
    """
    leaves: JsonObject = {}
    for key, value in tree.items():
        leaves |= flatten_config(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def _is_score(value: object) -> bool:
    """Tell whether a value is a share of keypoints, or null, where there were no keypoints."""
    return value is None or (isinstance(value, int | float) and 0 <= value <= 1)


EXCLUDED_KEYS = ("run_dir", "name", "logger", "objective")  # sections that no number depends on
UNCORRUPTED = {"_target_": "semcorr.data.corruptions.corruption.Uncorrupted"}  # section of corrupt=none
POST_FEATURE_KEYS = (
    "localise",
    "protocol",
    "loss",
    "optimizer",
    "scheduler",
    "pairs",
    "feature_dropout",
    "keep_from",
    "monitor",
    "kap",
)


def config_hash(cfg: DictConfig, *excluded: str) -> str:
    """Return a hash of the resolved configuration, of the trained weights that it scores and of files that it names.

    Sections that no number depends on are left out. Of a file, size and time of writing are read.

    Args:
        cfg: The configuration.
        *excluded: Further sections that are left out.

    >>> a, b = (OmegaConf.create({"seed": 1, "run_dir": folder}) for folder in ("here", "there"))
    >>> config_hash(a) == config_hash(b), config_hash(a) == config_hash(OmegaConf.create({"seed": 2}))
    (True, False)
    """
    content = {key: value for key, value in _resolve(cfg).items() if key not in (*EXCLUDED_KEYS, *excluded)}
    if not content.get("callbacks"):  # older sweeps have none
        content.pop("callbacks", None)
    if (content.get("corrupt") or UNCORRUPTED) == UNCORRUPTED:  # the same
        content.pop("corrupt", None)
    if content.get("start_from", False) is None:  # older sweeps do not have it
        del content["start_from"]
    for key, name in (("checkpoint", "trained"), ("start_from", "started")):
        if content.get(key):  # the same path may hold other weights by now
            weights = checkpoint_path(Path(content[key]))
            content[name] = _describe_file(weights)
    leaves = {key: value for key, value in flatten_config(content).items() if isinstance(value, str)}
    files = {key: Path(value) for key, value in leaves.items() if os.sep in value or Path(value).suffix}
    if written := {key: _describe_file(path) for key, path in files.items() if path.is_file()}:
        content["files"] = written
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _describe_file(path: Path) -> list[int] | None:
    """Return size in bytes and time of writing in nanoseconds; None if there is no such file."""
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else None


PACKAGES = ("semcorr", "torch", "torchvision", "lightning", "timm", "hydra-core", "torchmetrics")


def code_versions() -> JsonObject:
    """Return the versions of the packages that numbers depend on, and of our own code."""
    return {"packages": {name: _version(name) for name in PACKAGES}, "git": _git_revision()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git_revision() -> str | None:
    """Return the revision of the checkout that semcorr is run from, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
