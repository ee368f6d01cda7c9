"""Run of a sweep: its missing jobs one after the other, here or on other machines; one that fails stops no other."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from semcorr.cli.sweep.plan import MULTIRUN, JobOutcome, SweepJob, is_done, read_job_metrics
from semcorr.core.errors import UserError
from semcorr.core.files import write_text
from semcorr.core.interrupt import advise_on_interrupt
from semcorr.core.ranks import is_first_process
from semcorr.core.terminal import print_line
from semcorr.engine.run_dir import JOB_FILE, METRICS, POST_FEATURE_KEYS, config_hash
from semcorr.engine.run_lock import lock_folder
from semcorr.store.cache import SweepFeatureCache

log = logging.getLogger(__name__)
LOST = "its worker was lost: out of memory, out of time or cancelled"

RunJob = Callable[[SweepJob, SweepFeatureCache], JobOutcome]
Launch = Callable[[RunJob, Sequence[SweepJob]], Iterator[JobOutcome]]


def run_jobs(
    jobs: Sequence[SweepJob],
    folder: Path,
    launch: Launch,
    remote_note: str = "",
    config: str = "",
) -> list[JobOutcome]:
    """Run the jobs that are not done, and return the outcomes of all; one that fails does not stop the others.

    Args:
        jobs: Jobs as planned.
        folder: Directory of the sweep.
        launch: Function that runs jobs, here or on other machines, and yields their outcomes in any order.
        remote_note: Sentence on jobs that go on elsewhere when this process is interrupted; empty: there are none.
        config: Text that multirun.yaml is to hold; empty leaves the file as it is.

    Returns:
        The outcome of each job, in the order of `jobs`.
    """
    with lock_folder(folder, "the sweep"):
        waiting = [job for job in jobs if not is_done(job) and not job.problem]
        half_done = sum((job.folder / "checkpoints").is_dir() for job in waiting)
        done = sum(is_done(job) and not job.problem for job in jobs)
        print_line(
            f"Sweep of {len(jobs)} jobs in {folder}: {done} done before, {half_done} half done, "
            f"{len(waiting) - half_done} to do. Once interrupted, the same line with run_dir={folder} goes on."
        )
        try:
            with advise_on_interrupt(lambda: _describe_progress(jobs, folder, remote_note)):
                return run_missing(jobs, launch)
        finally:
            _restore_file(folder / MULTIRUN, config)


def run_missing(jobs: Sequence[SweepJob], launch: Launch) -> list[JobOutcome]:
    """Run the jobs that are not done, in a directory that is locked, and return the outcomes of all.

    Args:
        jobs: Jobs as planned.
        launch: Function that runs jobs, here or on other machines, and yields their outcomes in any order.

    Returns:
        The outcome of each job, in the order of `jobs`.
    """
    from semcorr.cli.sweep.job import run_job

    for job in jobs:
        _claim_folder(job)
    waiting = [job for job in jobs if not is_done(job) and not job.problem]
    outcomes = {outcome.job.identity: outcome for outcome in launch(run_job, group_by_features(waiting))}
    return [outcomes.get(job.identity) or _missing_outcome(job) for job in jobs]


def _restore_file(path: Path, text: str) -> None:
    """Write a file of the sweep again if another sweep, which was refused, has replaced it: Hydra takes no lock."""
    if is_first_process() and text:
        with suppress(OSError, UserError):  # the disk is full: the outcomes are reported in any case
            if path.read_text() != text:
                write_text(path, text, "run_dir")


def _missing_outcome(job: SweepJob) -> JobOutcome:
    """Return the outcome of a job that was not run, or whose worker was lost."""
    if job.problem:
        return JobOutcome(job, 2, job.problem)
    return JobOutcome(job) if is_done(job) else JobOutcome(job, 1, LOST)


def _describe_progress(jobs: Sequence[SweepJob], folder: Path, remote_note: str) -> str:
    """Say how many jobs of an interrupted sweep are done, and how to continue."""
    done = sum(map(is_done, jobs))
    return f"{done} of {len(jobs)} jobs are done. {remote_note}The same line with run_dir={folder} goes on"


def group_by_features(jobs: Sequence[SweepJob]) -> list[SweepJob]:
    """Order jobs so that those with the same features follow each other: these are then computed once."""
    groups: dict[str, list[SweepJob]] = {}
    for job in jobs:
        groups.setdefault(config_hash(job.cfg, *POST_FEATURE_KEYS), []).append(job)
    return [job for group in groups.values() for job in group]


def _claim_folder(job: SweepJob) -> None:
    """Write the job.json of a job where it is missing, and warn of scores that cannot be read."""
    if not is_first_process() or job.problem:
        return
    if not (job.folder / JOB_FILE).is_file():
        job.folder.mkdir(parents=True, exist_ok=True)
        note = json.dumps({"hash": job.identity, "overrides": list(job.overrides)}, indent=1) + "\n"
        write_text(job.folder / JOB_FILE, note, "run_dir")
    if (job.folder / METRICS).is_file():
        try:
            read_job_metrics(job)
        except UserError as error:
            log.warning("%s", error)
