"""One job of a sweep, here or in a worker: it does what a run by itself does, and leaves nothing to the next job."""

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
from semcorr.core.terminal import print_line
from semcorr.core.typed_settings import record_settings
from semcorr.engine.run_lock import lock_folder
from semcorr.store.cache import SweepFeatureCache

ERROR = "error.txt"


def run_job(job: SweepJob, cache: SweepFeatureCache | None = None) -> JobOutcome:
    """Run a job; an error becomes part of the outcome, and `error.txt` of the job's directory.

    Args:
        job: The job.
        cache: Cache of the features of the last job that this process has run; None: features are not kept.
    """
    from semcorr.cli.errors import user_message
    from semcorr.engine.run_name import WANDB, name_run

    task = getattr(importlib.import_module(f"semcorr.{job.verb}"), job.verb)
    print_line(f"Job {job.folder.name}: {' '.join(job.overrides)} -> {job.folder}")
    cfg = job.cfg.copy()
    cfg.run_dir = str(job.folder)
    for logger in (cfg.logger, *(node for node in cfg.logger.values() if isinstance(node, DictConfig))):
        if logger.get("_target_") == WANDB:
            logger.group = logger.group or job.folder.parent.name
            logger.name = f"{logger.name or name_run(cfg)} {job.folder.name}"
    is_half_done = (job.folder / "checkpoints").is_dir()
    if is_half_done:
        cfg.checkpoint = cfg.run_dir
    error_file = job.folder / ERROR
    try:
        # Locked, as a lost worker may still run the job.
        with lock_folder(job.folder, "the job"), _isolate(job), _type_line(job, is_half_done):
            if is_first_process():
                error_file.unlink(missing_ok=True)
            task(cfg, cache)
    except Exception as cause:
        guard = interrupt.current_guard()
        if guard is not None and guard.number is not None:  # a library has made another error of the signal
            raise interrupt.Interrupted(guard.number) from cause
        message = user_message(cause, job.verb, job.overrides)
        print_line(f"Job {job.folder.name} failed: {message or repr(cause)}")
        if is_first_process():
            with suppress(UserError):  # the disk is full: the outcome says it as well
                write_text(error_file, message or "".join(traceback.format_exception(cause)))
        fault = getattr(cause, "code", 2) if message else 1
        return JobOutcome(job, fault, message or f"{type(cause).__name__}: {cause}")
    return JobOutcome(job)


@contextmanager
def _type_line(job: SweepJob, is_half_done: bool) -> Iterator[None]:
    """Make the line of this process that of a job: Lightning repeats `sys.argv` for the other processes of a run."""
    replaced = ("run_dir=", "checkpoint=") if is_half_done else ("run_dir=",)
    overrides = [override for override in job.overrides if not override.startswith(replaced)]
    checkpoint = [f"checkpoint={job.folder}"] if is_half_done else []
    argv = sys.argv
    program = argv[:2] if argv[1:2] == [job.verb] else argv[:1]  # `semcorr train`, or `semcorr/train.py`
    sys.argv = [*program, *overrides, f"run_dir={job.folder}", *checkpoint]
    try:
        with record_settings(job.overrides):
            yield
    finally:
        sys.argv = argv


@contextmanager
def _isolate(job: SweepJob) -> Iterator[None]:
    """Clean up after a job: end its processes, restore the environment, free memory."""
    environment, guard = dict(os.environ), interrupt.current_guard()
    try:
        yield
    except BaseException:
        if guard is None or guard.number is None:  # after a signal they end as this process does
            _kill_other_processes(job)
        raise
    finally:
        if guard is not None and guard.ranks is not None and guard.ranks.children:
            guard.ranks.close()
        if "LOCAL_RANK" not in environment:  # Lightning started the others, for this job alone
            _leave_process_group()
        os.environ.clear()
        os.environ.update(environment)
        _finish_wandb()
        gc.collect()  # modules and trainers know each other: what is left of them holds a GPU's memory


def _kill_other_processes(job: SweepJob) -> None:
    """Kill the processes that Lightning started for a failed job: they would wait for this one forever."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if f"run_dir={job.folder}" in process.cmdline():
                process.kill()


def _leave_process_group() -> None:
    """Leave the group of processes that Lightning made for a job."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _finish_wandb() -> None:
    """Finish the W&B run that a failed job left open."""
    client = sys.modules.get("wandb")
    # A job that did not fail has finished it. A folder of that name where the command was typed has no `run`.
    if client is not None and getattr(client, "run", None) is not None:
        client.finish(exit_code=1)
