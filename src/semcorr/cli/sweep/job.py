"""One job of a sweep, here or in a worker: what a run by itself would do, and nothing of it left for the next one."""

import gc
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from omegaconf import DictConfig

from semcorr.cli.sweep.plan import JobOutcome, SweepJob
from semcorr.core import interrupt
from semcorr.core.errors import UserError
from semcorr.core.files import write_text
from semcorr.core.ranks import is_first_process
from semcorr.engine.run_lock import lock_folder
from semcorr.store.sweep_cache import SweepFeatureCache

ERROR = "error.txt"


def run_job(job: SweepJob, cache: SweepFeatureCache | None = None) -> JobOutcome:
    """Run a job; an error becomes part of the outcome, and `error.txt` of the job's directory.

    Args:
        job: The job.
        cache: Features of the last job that this process has run.
    """
    from semcorr.cli.errors import user_message

    task = getattr(importlib.import_module(f"semcorr.{job.verb}"), job.verb)
    _print(f"Job {job.folder.name}: {' '.join(job.overrides)} -> {job.folder}")
    cfg = job.cfg.copy()
    cfg.run_dir = str(job.folder)
    for logger in (cfg.logger, *(each for each in cfg.logger.values() if isinstance(each, DictConfig))):
        if "group" in logger and logger.group is None:  # W&B's
            logger.group, logger.name = job.folder.parent.name, f"{cfg.name} {job.folder.name}"
    half = (job.folder / "checkpoints").is_dir()
    if half:
        cfg.checkpoint = cfg.run_dir
    error = job.folder / ERROR
    try:
        with lock_folder(job.folder, "the job"), _by_itself(job, half):  # a lost worker may not be as lost as it seemed
            if is_first_process():
                error.unlink(missing_ok=True)
            task(cfg, cache)
    except Exception as cause:
        guard = interrupt.current_guard()
        if guard is not None and guard.number is not None:  # a library has made another error of the signal
            raise interrupt.Interrupted(guard.number) from cause
        told = user_message(cause, job.verb)
        _print(f"Job {job.folder.name} failed: {told or repr(cause)}")
        if is_first_process():
            with suppress(UserError):  # the disk is full: the outcome says it as well
                write_text(error, told or "".join(traceback.format_exception(cause)))
        return JobOutcome(job, getattr(cause, "code", 2) if told else 1, told or f"{type(cause).__name__}: {cause}")
    return JobOutcome(job)


@contextmanager
def _by_itself(job: SweepJob, half: bool) -> Iterator[None]:
    """The command line of this one job, which Lightning repeats for the other processes of its machine."""
    argv, environment, guard = sys.argv, dict(os.environ), interrupt.current_guard()
    same = [each for each in job.overrides if not each.startswith(("run_dir=", "checkpoint=" if half else "run_dir="))]
    sys.argv = [argv[0], *same, f"run_dir={job.folder}", *([f"checkpoint={job.folder}"] if half else [])]
    try:
        yield
    except BaseException:
        if guard is None or guard.number is None:  # after a signal they end as this process does
            _stop_others(job)
        raise
    finally:
        if guard is not None and guard.ranks is not None and guard.ranks.children:
            guard.ranks.close()
        sys.argv = argv
        if "LOCAL_RANK" not in environment:  # Lightning started the others, for this job alone
            _leave_group()
        os.environ.clear()
        os.environ.update(environment)
        _finish_wandb()
        gc.collect()  # modules and trainers know each other: what is left of them holds a GPU's memory


def _stop_others(job: SweepJob) -> None:
    """Processes that Lightning started for a job that failed here wait for this one, and would do so forever."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if f"run_dir={job.folder}" in process.cmdline():
                process.kill()


def _leave_group() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _finish_wandb() -> None:
    client: object = sys.modules.get("wandb")
    if client is not None and client.run is not None:  # the job failed; one that did not has finished it
        client.finish(exit_code=1)


def _print(text: str) -> None:
    if is_first_process():
        print(text, flush=True)
