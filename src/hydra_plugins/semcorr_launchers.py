"""Where the jobs of a sweep run: `hydra/launcher=here`, `joblib`, `ray` or `submitit_slurm`.

Hydra looks for launchers in this package. Those published for it run whatever they are given; these run what
`semcorr.cli.sweep.plan` says is missing. What they need besides is imported when one of them is asked for.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from semcorr.core.errors import UserError
from semcorr.core.ranges import Range, Whole, check_arguments, require

if TYPE_CHECKING:
    from semcorr.cli.sweep.plan import JobOutcome, SweepJob
    from semcorr.store.sweep_cache import SweepFeatureCache

    RunJob = Callable[[SweepJob, SweepFeatureCache], JobOutcome]

Number = Annotated[float, Range(least=0)]
SLURM = {
    "timeout_min", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "mem_gb", "slurm_array_parallelism",
}  # fmt: skip


class Here(Launcher):
    """One after another, in this process."""

    config: DictConfig
    hydra_context: HydraContext
    elsewhere = ""  # what becomes, if the sweep is interrupted, of jobs that do not end with it

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's part of the constructor."""
        self.hydra_context, self.config = hydra_context, config
        self.outcomes: list[JobOutcome] = vars(task_function).get("outcomes", [])

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose every job, run what is missing, and remember what became of them."""
        from semcorr.cli.hydra_app import compose_sweep_job
        from semcorr.cli.sweep.plan import plan_jobs
        from semcorr.cli.sweep.run import run_jobs

        setup_globals()
        load, verb = self.hydra_context.config_loader.load_sweep_config, self.config.hydra.job.config_name
        composed = [compose_sweep_job(load(self.config, [*overrides]), verb) for overrides in job_overrides]
        folder = Path(self.config.hydra.sweep.dir)
        outcomes = run_jobs(plan_jobs(verb, composed, folder), folder, self.over, self.elsewhere)
        self.outcomes.extend(outcomes)
        return [_job_return(outcome) for outcome in outcomes]

    def over(self, function: "RunJob", jobs: "Sequence[SweepJob]") -> "Iterator[JobOutcome]":
        """Call `function` on every job; each is handed the features of the one before."""
        from semcorr.store.sweep_cache import SweepFeatureCache

        features = SweepFeatureCache()
        return (function(job, features) for job in jobs)


class Joblib(Here):
    """In processes of this machine.

    Args:
        n_jobs: How many at a time.
    """

    @check_arguments("hydra.launcher")
    def __init__(self, n_jobs: Annotated[int, Range(least=-1)] = 2) -> None:
        if n_jobs == 0:
            raise UserError("`hydra.launcher.n_jobs` must be at least 1, or -1 for as many as there are cores, got 0")
        self.n_jobs = n_jobs

    def over(self, function: "RunJob", jobs: "Sequence[SweepJob]") -> "Iterator[JobOutcome]":
        """Each worker computes with as many threads as this process would, for the same digits."""
        joblib = _needed("joblib")
        _one_process_each(jobs)
        work = (joblib.delayed(in_worker)(function, job, os.getcwd(), _threads()) for job in jobs)
        with joblib.parallel_config("loky", n_jobs=self.n_jobs, inner_max_num_threads=_threads()):
            outcomes = joblib.Parallel(return_as="generator_unordered", batch_size=1)(work)
            with suppress(joblib.externals.loky.process_executor.BrokenProcessPool):  # a worker was killed: what is
                yield from outcomes  # missing then counts as failed


class Ray(Here):
    """On a Ray cluster, or on one that is started here and ends with the sweep.

    Args:
        num_cpus: Of a job.
        num_gpus: Of a job; a share, where several fit on one. None: one, if this machine has any.
        address: Of a cluster that runs; None starts one here.
    """

    @check_arguments("hydra.launcher")
    def __init__(self, num_cpus: Number = 1, num_gpus: Number | None = None, address: str | None = None) -> None:
        import torch

        self.num_cpus, self.address = num_cpus, address
        self.num_gpus = float(torch.cuda.is_available()) if num_gpus is None else num_gpus

    def over(self, function: "RunJob", jobs: "Sequence[SweepJob]") -> "Iterator[JobOutcome]":
        """Outcomes as they come. A cluster on another machine must see the same files."""
        ray = _needed("ray")
        _one_process_each(jobs)
        ended_by = signal.getsignal(signal.SIGTERM)
        ray.init(address=self.address, include_dashboard=False, log_to_driver=True, configure_logging=False)
        try:
            signal.signal(signal.SIGTERM, ended_by)  # Ray's own would end the sweep with exit code 15
            remote = ray.remote(num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_retries=0)(in_worker)
            left = {remote.remote(function, job, os.getcwd(), _threads()): job for job in jobs}
            while left:
                (ready,), _ = ray.wait([*left], num_returns=1)
                yield _result(lambda of=ready: ray.get(of), left.pop(ready))
        finally:
            ray.shutdown()


class Slurm(Here):
    """As jobs of SLURM, by submitit. This process waits for them, and may be started again if it is killed.

    Args:
        folder: Where submitit keeps its scripts and logs; beside the jobs if None.
        cluster: `slurm`; `local` tries a sweep on this machine first.
        options: Of `submitit.AutoExecutor.update_parameters`, as `timeout_min`, `slurm_partition`.
    """

    @check_arguments("hydra.launcher")
    def __init__(self, folder: str | None = None, cluster: str = "slurm", **options: Any) -> None:
        for key in SLURM & options.keys():
            require(f"hydra.launcher.{key}", options[key], Whole | None)
        self.folder, self.cluster, self.options = folder, cluster, options
        if cluster == "slurm":
            self.elsewhere = "Those that SLURM has go on by themselves (scancel ends them). "

    def over(self, function: "RunJob", jobs: "Sequence[SweepJob]") -> "Iterator[JobOutcome]":
        """Outcomes as they come."""
        submitit = _needed("submitit")
        folder = Path(self.folder or self.config.hydra.sweep.dir) / ".submitit"
        executor = submitit.AutoExecutor(folder=folder, cluster=self.cluster)
        executor.update_parameters(**{key: value for key, value in self.options.items() if value is not None})
        with executor.batch():
            left = [(executor.submit(in_worker, function, job, os.getcwd(), None), job) for job in jobs]
        return (_result(partial(_worst, sent), job) for sent, job in left)


def in_worker(function: "RunJob", job: "SweepJob", folder: str, threads: int | None) -> "JobOutcome":
    """A job in a process that knows nothing yet.

    Args:
        function: Of the job.
        job: The job.
        folder: Where the sweep was started: what was typed may be relative to it.
        threads: As many as the process that started it; None leaves it to the machine.
    """
    import torch

    from semcorr.core import interrupt

    os.chdir(folder)
    setup_globals()  # resolvers of configurations
    if interrupt.current_guard() is None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; who started this one ends it
    if threads is not None:
        torch.set_num_threads(threads)
    return function(job, worker_cache())


@cache
def worker_cache() -> "SweepFeatureCache":
    """Return the cache of this worker process, which serves one sweep: the features of the last job that it ran."""
    from semcorr.store.sweep_cache import SweepFeatureCache

    return SweepFeatureCache()


def _worst(sent: Any) -> "JobOutcome":
    """Of a job's processes, one per GPU, the one to be told of: they have one outcome, or some failed."""
    return max(sent.results(), key=lambda outcome: outcome.fault)


def _result(get: "Callable[[], JobOutcome]", job: "SweepJob") -> "JobOutcome":
    """What became of a job whose worker may have gone: killed for memory, out of time, cancelled."""
    from semcorr.cli.sweep.plan import JobOutcome

    try:
        return get()
    except Exception as error:
        return JobOutcome(job, 1, f"its worker was lost: {type(error).__name__}: {error}")


def _one_process_each(jobs: "Sequence[SweepJob]") -> None:
    from semcorr.core.errors import UserError

    if any(str(job.cfg.trainer.devices) != "1" for job in jobs):
        raise UserError(
            "`trainer.devices`: a worker of joblib or Ray is one process with one device. Set trainer.devices=1, or "
            "leave hydra/launcher out and use scripts/torchrun.sh, which gives every job all devices in turn."
        )


def _needed(package: str) -> Any:
    import importlib

    from semcorr.core.errors import UserError

    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(
            f"`hydra/launcher`: {package} is not installed. pip install {package}, or semcorr[sweep] for all launchers"
        ) from None


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _job_return(outcome: "JobOutcome") -> JobReturn:
    from semcorr.cli.sweep.plan import is_done, read_job_metrics

    done = not outcome.fault and is_done(outcome.job)
    result = JobReturn(overrides=outcome.job.overrides, cfg=outcome.job.cfg, working_dir=str(outcome.job.folder))
    result.status, result.return_value = JobStatus.COMPLETED, read_job_metrics(outcome.job) if done else None
    return result
