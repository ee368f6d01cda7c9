"""A sweep: which of its jobs are done, half done or missing, and the rest of them run, whatever becomes of each.

A sweep directory has a directory per job. Its `job.json` says by a hash of the resolved configuration whose it is;
a job whose `metrics.json` is there is done. So the same line with the same `run_dir` does only what is missing.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from semcorr.core.interrupt import advising
from semcorr.errors import UserError

NOTE = "job.json"
APART = ("run_dir", "name", "logger")  # what no number depends on
LATE = ("localise", "protocol", "loss", "optimizer", "scheduler", "pairs", "feature_dropout", "kap")
MANY = 1000  # more than a sweep has jobs: numbers of those whose own is taken


class Job(NamedTuple):
    """One configuration of a sweep."""

    verb: str
    overrides: Sequence[str]
    cfg: DictConfig
    identity: str
    folder: Path


class Outcome(NamedTuple):
    """What became of a job. `fault` is ours (1) or the user's (2), as in exit codes; 0: it is done."""

    job: Job
    fault: int = 0
    error: str = ""


LOST = "its worker was lost: out of memory, out of time or cancelled"
Run = Callable[[Job], Outcome]
OUTCOMES: list[Outcome] = []  # of this process's sweep: Hydra hands nothing back from a multirun


def hashed(cfg: DictConfig, *without: str) -> str:
    """Of the resolved configuration, less what no number depends on, and of the trained weights it scores.

    >>> a, b = (OmegaConf.create({"seed": 1, "run_dir": folder}) for folder in ("here", "there"))
    >>> hashed(a) == hashed(b), hashed(a) == hashed(OmegaConf.create({"seed": 2}))
    (True, False)
    """
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    content = {key: value for key, value in resolved.items() if key not in (*APART, *without)}
    if content.get("checkpoint"):  # the same path may hold other weights by now
        weights = Path(content["checkpoint"]) / "checkpoints" / "best.ckpt"
        content["trained"] = [weights.stat().st_size, weights.stat().st_mtime_ns] if weights.is_file() else None
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def planned(verb: str, composed: Sequence[tuple[Sequence[str], DictConfig]], folder: Path) -> list[Job]:
    """Every configuration once, each with its directory: the one it had, else that of its own number, if free.

    Depends on nothing but what is there, so that all processes of a job plan alike.
    """
    of = {json.loads(path.read_text())["hash"]: path.parent for path in sorted(folder.glob(f"*/{NOTE}"))}
    taken = {path.parent for path in folder.glob("*/*") if not path.name.startswith(".")}
    jobs: dict[str, Job] = {}
    for number, (overrides, cfg) in enumerate(composed):
        identity = hashed(cfg)
        if identity in jobs:
            continue
        own = [folder / str(number)] + [folder / str(other) for other in range(len(composed), MANY + len(taken))]
        of.setdefault(identity, next(path for path in own if path not in taken))
        taken.add(of[identity])
        jobs[identity] = Job(verb, list(overrides), cfg, identity, of[identity])
    return list(jobs.values())


def run(
    jobs: Sequence[Job],
    folder: Path,
    launch: Callable[[Run, Sequence[Job]], Iterator[Outcome]],
    elsewhere: str = "",
) -> list[Outcome]:
    """Run what is missing. One that fails is told and does not stop the others.

    Args:
        jobs: As planned.
        folder: The sweep's.
        launch: A function over jobs, to outcomes in any order; here, or on other machines.
        elsewhere: What becomes of jobs that do not end with this process, should it be interrupted.
    """
    from semcorr.shelf import SHELF
    from semcorr.sweep_job import run_job

    with alone(folder, "the sweep"):
        for job in jobs:
            _claim(job)
        waiting = [job for job in jobs if not done(job)]
        begun = sum((job.folder / "checkpoints").is_dir() for job in waiting)
        if first_process():
            print(
                f"Sweep of {len(jobs)} jobs in {folder}: {len(jobs) - len(waiting)} done before, {begun} half done, "
                f"{len(waiting) - begun} to do. Once interrupted, the same line with run_dir={folder} goes on.",
                flush=True,
            )
        try:
            with advising(lambda: _advice(jobs, folder, elsewhere)):
                found = {outcome.job.identity: outcome for outcome in launch(run_job, by_features(waiting))}
        finally:
            SHELF.close()
    return [found.get(job.identity) or (Outcome(job) if done(job) else Outcome(job, 1, LOST)) for job in jobs]


def _advice(jobs: Sequence[Job], folder: Path, elsewhere: str) -> str:
    """Say what an interrupted sweep has, and how it goes on."""
    return (
        f"{sum(map(done, jobs))} of {len(jobs)} jobs are done. {elsewhere}The same line with run_dir={folder} goes on"
    )


def done(job: Job) -> bool:
    """Its scores are there; they are written last."""
    return (job.folder / "metrics.json").is_file()


def metrics_of(job: Job) -> Mapping[str, Any]:
    """Its scores."""
    scores: Mapping[str, Any] = json.loads((job.folder / "metrics.json").read_text())
    return scores


def by_features(jobs: Sequence[Job]) -> list[Job]:
    """Those that see the same features one after another, so that they are computed once."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(hashed(job.cfg, *LATE), []).append(job)
    return [job for group in groups.values() for job in group]


def first_process() -> bool:
    """Under torchrun or srun one process of a job speaks and writes for all."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0


def _claim(job: Job) -> None:
    if first_process() and not (job.folder / NOTE).is_file():
        job.folder.mkdir(parents=True, exist_ok=True)
        beside = job.folder / f".{NOTE}.{os.getpid()}"
        beside.write_text(json.dumps({"hash": job.identity, "overrides": list(job.overrides)}, indent=1) + "\n")
        beside.replace(job.folder / NOTE)


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Two processes in one directory would train the same twice, into the same files."""
    if not first_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"`run_dir`: another process runs {what} in {folder}. Wait for it, or stop it") from None
    try:
        yield
    finally:
        lock.release()
