"""Plan of a sweep: its jobs with their directories, and which of them are done.

A sweep directory has a directory per job. Its `job.json` says by a hash of the resolved configuration which job that
is; a job whose `metrics.json` exists is done. So the same line with the same `run_dir` does only what is missing.
"""

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from semcorr.core.errors import UserError
from semcorr.core.ranks import is_first_process
from semcorr.core.text_files import JsonMapping, JsonObject, read_mapping
from semcorr.engine.plain_yaml import read_plain_config
from semcorr.engine.run_dir import (
    EXCLUDED_KEYS,
    FILLED_OPTIONS,
    JOB_FILE,
    METRICS,
    config_hash,
    flatten_config,
    read_scores,
)

MULTIRUN = "multirun.yaml"  # Hydra writes it before the first job is composed
SPARE_NUMBERS = 1000  # for jobs whose own number is taken; more than a sweep has jobs
log = logging.getLogger(__name__)


class SweepJob(NamedTuple):
    """One configuration of a sweep."""

    verb: str  # train or evaluate
    overrides: Sequence[str]
    cfg: DictConfig
    identity: str  # hash of the resolved configuration, by `config_hash`
    folder: Path
    problem: str = ""  # of what its folder holds, for which it is not run


class JobOutcome(NamedTuple):
    """Outcome of a job."""

    job: SweepJob
    fault: int = 0  # as an exit code: 0, it is done; 2, a user's mistake; any other, a defect or a lost process
    error: str = ""  # message; empty if it is done


def plan_jobs(
    verb: str, composed: Sequence[tuple[Sequence[str], DictConfig]], folder: Path, first: int = 0
) -> list[SweepJob]:
    """Plan every configuration once, with its directory: the one it had, else that of its own number, if free.

    The plan depends only on the configurations and on what is in the folder, so that all processes plan the same.

    Args:
        verb: Command of the jobs, `train` or `evaluate`.
        composed: Overrides and configuration of each job.
        folder: Directory of the sweep.
        first: Number of the first job; a search plans its jobs a few at a time.

    Returns:
        The job of each configuration; equal ones share one.
    """
    claims, damaged = read_job_folders(folder)
    folder_by_job = {identity: folders[0] for identity, folders in claims.items()}
    taken = {path.parent for path in folder.glob("*/*") if not path.name.startswith(".")}
    jobs: dict[str, SweepJob] = {}
    identities = [config_hash(cfg) for _, cfg in composed]
    for number, (identity, (overrides, cfg)) in enumerate(zip(identities, composed, strict=True), first):
        if identity in jobs:
            continue
        if identity not in folder_by_job and (problem := damaged.pop(folder / str(number), None)):
            jobs[identity] = SweepJob(verb, list(overrides), cfg, identity, folder / str(number), problem)
            continue
        numbers = (number, *range(first + len(composed), first + SPARE_NUMBERS + len(taken)))
        folder_by_job.setdefault(identity, next(path for n in numbers if (path := folder / str(n)) not in taken))
        taken.add(folder_by_job[identity])
        problem = find_mixed_folder(cfg, claims.get(identity, []))
        jobs[identity] = SweepJob(verb, list(overrides), cfg, identity, folder_by_job[identity], problem)
    if is_first_process():
        for problem in damaged.values():
            log.warning("%s", problem)
    return [jobs[identity] for identity in identities]


def read_job_folders(folder: Path) -> tuple[dict[str, list[Path]], dict[Path, str]]:
    """Read every job.json; return the folders of each hash, and a sentence for each folder whose file is damaged."""
    claims: dict[str, list[Path]] = {}
    damaged = {}
    for path in sorted(folder.glob(f"*/{JOB_FILE}")):
        remedy = f"Move {path.parent} away to have its job done again"
        try:
            identity = read_mapping(path, remedy).get("hash")
            if not isinstance(identity, str) or not re.fullmatch("[0-9a-f]{64}", identity):
                raise UserError(f"{path} is damaged (it holds no hash). {remedy}")
            claims.setdefault(identity, []).append(path.parent)
        except UserError as error:
            damaged[path.parent] = str(error)
    return claims, damaged


def find_mixed_folder(cfg: DictConfig, folders: Sequence[Path]) -> str:
    """Say that the folders of a job hold something else, if they do: scores are never taken for another job's.

    Args:
        cfg: Configuration of the job.
        folders: Folders whose job.json has the job's hash.
    """
    if len(folders) > 1:
        return (
            f"{' and '.join(map(str, folders))} claim the same job by their {JOB_FILE}. Move all but one of them away"
        )
    for path in (folder / "config.yaml" for folder in folders):
        if path.is_file():
            try:
                saved = flatten_config(read_plain_config(path))
            except UserError as error:
                return f"{error}. Move {path.parent} away to have its job done again"
            if key := _find_difference(cfg, saved):
                return (
                    f"{path} says {key}={saved[key]}, which is not of the job that {path.parent / JOB_FILE} names. "
                    f"Move {path.parent} away to have its job done again"
                )
    return ""


def _find_difference(cfg: DictConfig, saved: JsonMapping) -> str | None:
    """Find a key whose value differs in a saved configuration; what a run fills in is not compared."""
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    options = flatten_config(
        {key: value for key, value in resolved.items() if key not in (*EXCLUDED_KEYS, "checkpoint")}
    )
    filled_keys = {key for key, value in options.items() if value is None or key in FILLED_OPTIONS}
    if options.get("trainer.precision") == "auto":  # config.yaml has what it stands for on the device
        filled_keys.add("trainer.precision")
    comparable = (key for key in options if key not in filled_keys and key in saved)
    return next((key for key in comparable if options[key] != saved[key]), None)


def is_done(job: SweepJob) -> bool:
    """Tell whether the scores of a job exist and can be read; they are written last."""
    with suppress(UserError):
        return bool(read_job_metrics(job))
    return False


def read_job_metrics(job: SweepJob) -> JsonObject:
    """Read the scores of a job.

    Raises:
        UserError: There are none, or they cannot be read.
    """
    return read_scores(job.folder / METRICS, "Its job is done again")
