"""What a run directory holds: the results of one run or none, and what is read of them."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from semcorr.core.errors import UserError
from semcorr.core.files import REASONS, part_path, write_error
from semcorr.core.plain_yaml import read_plain_mapping
from semcorr.core.ranks import is_first_process
from semcorr.core.text_files import JsonMapping, JsonObject, read_mapping

METRICS = "metrics.json"  # is written last: a run is finished when it is there
RESULTS = (
    METRICS, "predictions.parquet", "matches.png", "tracks.png", "poses.parquet", "detections.parquet", "audit.json",
    "metrics.csv",
)  # fmt: skip
BEFORE = ".before"  # beside new results, those that they take the place of
FILLED = ("backbone.size", "backbone.grid", "data.resize", "protocol.resize")  # by a run, from what was given
BESIDE = ("run_dir", "name", "data_root", "logger", "callbacks", "store", "trainer", "compile", "provenance")
LOADING = ("workers", "cache_gb", "encode_batch")  # of a benchmark: no number depends on it
LOGS = ("wandb/id.txt", "tensorboard/events.*", "*-profile*.txt")  # what loggers would go on with


@contextmanager
def replace_results(run_dir: Path) -> Iterator[Path]:
    """Yield a folder for the results of a run; in the end they take the place of those that the directory had.

    After an error the directory holds what it held. While files are exchanged there is no metrics.json, without which
    a run counts as unfinished; who is killed then leaves the earlier ones to be put back, see `restore_results`.

    Raises:
        UserError: The disk is full, ...
    """
    folder = part_path(run_dir / "results")
    try:
        folder.mkdir(parents=True)
        try:
            yield folder
        except UserError as error:  # of a file in it, which the user knows by its own name
            raise UserError(str(error).replace(str(folder), str(run_dir))) from error
        written = sorted(path.name for path in folder.iterdir() if path.name != METRICS)
        before = folder / BEFORE
        before.mkdir()
        try:
            for name in dict.fromkeys((*RESULTS, *written)):
                if (run_dir / name).exists():
                    os.rename(run_dir / name, before / name)
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
    """Put earlier results back that `replace_results` had not finished to replace."""
    before = folder / BEFORE
    if (run_dir / METRICS).exists() or not (before / METRICS).is_file():
        return
    remove_results(run_dir)
    for path in sorted(before.iterdir(), key=lambda path: path.name == METRICS):
        path.replace(run_dir / path.name)


def refuse_other_run(run_dir: Path, cfg: DictConfig, filled: bool = False) -> None:
    """Refuse to put the scores of a run in the place of another's.

    Args:
        run_dir: Where they would go.
        cfg: Of the run.
        filled: It is as config.yaml will hold it. Before, what a run fills in is not compared.

    Raises:
        UserError: The directory holds another run, or scores that nobody knows the run of.
    """
    config, is_training = run_dir / "config.yaml", "loss" in cfg
    if not config.is_file():
        if (run_dir / METRICS).is_file():
            raise UserError(f"`run_dir`: {run_dir} holds scores without a config.yaml. Choose another run_dir.")
        return
    saved = read_plain_mapping(config)
    if ("loss" in saved) != is_training:
        kind = "a training run" if "loss" in saved else "an evaluation"
        raise UserError(
            f"`run_dir`: {run_dir} holds {kind}, whose config.yaml and scores would be replaced. "
            "Choose another run_dir."
        )
    if not (run_dir / METRICS).is_file():
        return
    resolved: object = OmegaConf.to_container(cfg, resolve=True)
    own, other = _scored_by(resolved), _scored_by(saved)
    for key in sorted(own.keys() | other.keys()):
        if (key in FILLED and not filled) or key.partition(".")[0] not in saved.keys() & resolved.keys():
            continue
        if own.get(key) != other.get(key):
            raise UserError(
                f"`run_dir`: {run_dir} holds another run, with {key}={other.get(key)} and not {own.get(key)}. "
                "Choose another run_dir."
            )


def _scored_by(cfg: JsonMapping) -> JsonObject:
    """What scores depend on in a configuration, by its keys; paths as they are from anywhere."""
    flat = flatten_config({key: value for key, value in cfg.items() if key not in BESIDE})
    kept = {key: value for key, value in flat.items() if key.rpartition(".")[2] not in LOADING}
    for key, value in kept.items():
        if key == "checkpoint" or key.endswith((".root", ".weights")):
            kept[key] = os.path.abspath(value) if isinstance(value, str) else value
    trainer = cfg.get("trainer") or {}
    precision = str(trainer.get("precision") or "32-true")
    return kept | {"trainer.precision": precision, "trainer.limit_test_batches": trainer.get("limit_test_batches")}


def remove_results(run_dir: Path, keep: list[str] | None = None) -> None:
    """Remove the results of a run, metrics.json first: without it no other file counts."""
    for name in RESULTS:
        if name not in (keep or []):
            (run_dir / name).unlink(missing_ok=True)


def remove_logs(run_dir: Path) -> None:
    """Remove what W&B and TensorBoard would add to the logs of an earlier run in the same directory."""
    if is_first_process():
        for path in (path for pattern in LOGS for path in run_dir.glob(pattern)):
            path.unlink(missing_ok=True)


def read_scores(path: Path, remedy: str = "Evaluate again") -> JsonObject:
    """Read a metrics.json; `remedy` ends the message of one that is damaged.

    Raises:
        UserError: It cannot be read, is no JSON, or holds no scores of pairs or tracks.
    """
    content = read_mapping(path, remedy)
    scores = [content.get(key) for key in ("pck", "tracking") if key in content]
    if (
        len(scores) != 1
        or not isinstance(scores[0], dict)
        or not all(map(_is_score, flatten_config(scores[0]).values()))
    ):
        raise UserError(f"{path} is damaged (it holds no scores). {remedy}")
    return content


def flatten_config(tree: Mapping[object, object], prefix: str = "") -> JsonObject:
    """Return the leaves of a configuration by their keys.

    >>> flatten_config({"backbone": {"size": 64, "layers": [-1]}})
    {'backbone.size': 64, 'backbone.layers': [-1]}
    """
    leaves: JsonObject = {}
    for key, value in tree.items():
        leaves |= flatten_config(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def _is_score(value: object) -> bool:
    """Tell a share of keypoints from a number that is none; null: there were no keypoints."""
    return value is None or (isinstance(value, int | float) and 0 <= value <= 1)


APART = ("run_dir", "name", "logger")  # what no number depends on


LATE = ("localise", "protocol", "loss", "optimizer", "scheduler", "pairs", "feature_dropout", "kap")


def config_hash(cfg: DictConfig, *without: str) -> str:
    """Of the resolved configuration, less what no number depends on, and of the trained weights it scores.

    >>> a, b = (OmegaConf.create({"seed": 1, "run_dir": folder}) for folder in ("here", "there"))
    >>> config_hash(a) == config_hash(b), config_hash(a) == config_hash(OmegaConf.create({"seed": 2}))
    (True, False)
    """
    resolved: object = OmegaConf.to_container(cfg, resolve=True)
    content = {key: value for key, value in resolved.items() if key not in (*APART, *without)}
    if not content.get("callbacks"):  # as in sweeps of before
        content.pop("callbacks", None)
    if content.get("checkpoint"):  # the same path may hold other weights by now
        weights = Path(content["checkpoint"]) / "checkpoints" / "best.ckpt"
        content["trained"] = [weights.stat().st_size, weights.stat().st_mtime_ns] if weights.is_file() else None
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
