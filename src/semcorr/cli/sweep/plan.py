"""A sweep: which of its jobs are done, half done or missing, and the rest of them run, whatever becomes of each.

A sweep directory has a directory per job. Its `job.json` says by a hash of the resolved configuration whose it is;
a job whose `metrics.json` is there is done. So the same line with the same `run_dir` does only what is missing.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from semcorr.core.errors import UserError
from semcorr.core.files import write_text
from semcorr.core.interrupt import advise_on_interrupt
from semcorr.core.plain_yaml import read_plain_mapping
from semcorr.core.ranks import is_first_process
from semcorr.core.text_files import read_mapping
from semcorr.engine.run_dir import APART, FILLED, LATE, METRICS, config_hash, flatten_config, read_scores
from semcorr.engine.run_lock import lock_folder

NOTE = "job.json"
MANY = 1000  # more than a sweep has jobs: numbers of those whose own is taken
log = logging.getLogger(__name__)


class SweepJob(NamedTuple):
    """One configuration of a sweep."""

    verb: str
    overrides: Sequence[str]
    cfg: DictConfig
    identity: str
    folder: Path
    problem: str = ""  # with what its folder holds, for which it is not run


class JobOutcome(NamedTuple):
    """What became of a job. `fault` is ours (1) or the user's (2), as in exit codes; 0: it is done."""

    job: SweepJob
    fault: int = 0
    error: str = ""


LOST = "its worker was lost: out of memory, out of time or cancelled"
Run = Callable[[SweepJob], JobOutcome]
OUTCOMES: list[JobOutcome] = []  # of this process's sweep: Hydra hands nothing back from a multirun


def plan_jobs(verb: str, composed: Sequence[tuple[Sequence[str], DictConfig]], folder: Path) -> list[SweepJob]:
    """Every configuration once, each with its directory: the one it had, else that of its own number, if free.

    Depends on nothing but what is there, so that all processes of a job plan alike.
    """
    claims, damaged = read_job_folders(folder)
    of = {identity: folders[0] for identity, folders in claims.items()}
    taken = {path.parent for path in folder.glob("*/*") if not path.name.startswith(".")}
    jobs: dict[str, SweepJob] = {}
    for number, (overrides, cfg) in enumerate(composed):
        identity = config_hash(cfg)
        if identity in jobs:
            continue
        if identity not in of and (wrong := damaged.pop(folder / str(number), None)):
            jobs[identity] = SweepJob(verb, list(overrides), cfg, identity, folder / str(number), wrong)
            continue
        own = [folder / str(number)] + [folder / str(other) for other in range(len(composed), MANY + len(taken))]
        of.setdefault(identity, next(path for path in own if path not in taken))
        taken.add(of[identity])
        wrong = find_mixed_folder(cfg, claims.get(identity, []))
        jobs[identity] = SweepJob(verb, list(overrides), cfg, identity, of[identity], wrong)
    if is_first_process():
        for wrong in damaged.values():
            log.warning("%s", wrong)
    return list(jobs.values())


def read_job_folders(folder: Path) -> tuple[dict[str, list[Path]], dict[Path, str]]:
    """Read every job.json: the folders of each hash, and a sentence for each folder whose note cannot be read."""
    claims: dict[str, list[Path]] = {}
    damaged = {}
    for path in sorted(folder.glob(f"*/{NOTE}")):
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
        cfg: The job's configuration.
        folders: Those whose job.json has its hash.
    """
    if len(folders) > 1:
        return f"{' and '.join(map(str, folders))} claim the same job by their {NOTE}. Move all but one of them away"
    for path in (folder / "config.yaml" for folder in folders):
        if path.is_file():
            try:
                saved = flatten_config(read_plain_mapping(path))
            except UserError as error:
                return f"{error}. Move {path.parent} away to have its job done again"
            if key := _other(cfg, saved):
                return (
                    f"{path} says {key}={saved[key]}, which is not of the job that {path.parent / NOTE} names. Move "
                    f"{path.parent} away to have its job done again"
                )
    return ""


def _other(cfg: DictConfig, saved: Mapping[str, Any]) -> str | None:
    """Name a key that a saved configuration has otherwise than the job; what a run fills in is not compared."""
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    own = flatten_config({key: value for key, value in resolved.items() if key not in (*APART, "checkpoint")})
    compared = (key for key in own if key not in FILLED and own[key] is not None and key in saved)
    return next((key for key in compared if own[key] != saved[key]), None)


def run_jobs(
    jobs: Sequence[SweepJob],
    folder: Path,
    launch: Callable[[Run, Sequence[SweepJob]], Iterator[JobOutcome]],
    elsewhere: str = "",
) -> list[JobOutcome]:
    """Run what is missing. One that fails is told and does not stop the others.

    Args:
        jobs: As planned.
        folder: The sweep's.
        launch: A function over jobs, to outcomes in any order; here, or on other machines.
        elsewhere: What becomes of jobs that do not end with this process, should it be interrupted.
    """
    from semcorr.cli.sweep.job import run_job
    from semcorr.store.sweep_cache import SHELF

    with lock_folder(folder, "the sweep"):
        for job in jobs:
            _claim(job)
        waiting = [job for job in jobs if not is_done(job) and not job.problem]
        begun = sum((job.folder / "checkpoints").is_dir() for job in waiting)
        before = sum(is_done(job) and not job.problem for job in jobs)
        if is_first_process():
            print(
                f"Sweep of {len(jobs)} jobs in {folder}: {before} done before, {begun} half done, "
                f"{len(waiting) - begun} to do. Once interrupted, the same line with run_dir={folder} goes on.",
                flush=True,
            )
        try:
            with advise_on_interrupt(lambda: _advice(jobs, folder, elsewhere)):
                found = {outcome.job.identity: outcome for outcome in launch(run_job, group_by_features(waiting))}
        finally:
            SHELF.close()
    return [found.get(job.identity) or _outcome(job) for job in jobs]


def _outcome(job: SweepJob) -> JobOutcome:
    """Of a job that was not run."""
    if job.problem:
        return JobOutcome(job, 2, job.problem)
    return JobOutcome(job) if is_done(job) else JobOutcome(job, 1, LOST)


def _advice(jobs: Sequence[SweepJob], folder: Path, elsewhere: str) -> str:
    """Say what an interrupted sweep has, and how it goes on."""
    done = sum(map(is_done, jobs))
    return f"{done} of {len(jobs)} jobs are done. {elsewhere}The same line with run_dir={folder} goes on"


def is_done(job: SweepJob) -> bool:
    """Its scores are there; they are written last. What cannot be read is not there."""
    with suppress(UserError):
        return bool(read_job_metrics(job))
    return False


def read_job_metrics(job: SweepJob) -> Mapping[str, Any]:
    """Its scores."""
    return read_scores(job.folder / METRICS, "Its job is done again")


def group_by_features(jobs: Sequence[SweepJob]) -> list[SweepJob]:
    """Those that see the same features one after another, so that they are computed once."""
    groups: dict[str, list[SweepJob]] = {}
    for job in jobs:
        groups.setdefault(config_hash(job.cfg, *LATE), []).append(job)
    return [job for group in groups.values() for job in group]


def _claim(job: SweepJob) -> None:
    if not is_first_process() or job.problem:
        return
    if not (job.folder / NOTE).is_file():
        job.folder.mkdir(parents=True, exist_ok=True)
        note = json.dumps({"hash": job.identity, "overrides": list(job.overrides)}, indent=1) + "\n"
        write_text(job.folder / NOTE, note, "run_dir")
    if (job.folder / METRICS).is_file():
        try:
            read_job_metrics(job)
        except UserError as error:
            log.warning("%s", error)
