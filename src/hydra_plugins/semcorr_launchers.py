"""Launchers, which run the jobs of a sweep: `hydra/launcher=here`, `joblib`, `ray` or `submitit_slurm`.

Hydra looks for launchers in this package. Its published launchers run every job that they are given; these run only the
jobs that `semcorr.cli.sweep.plan` finds missing. The packages they need are imported when a launcher is used.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache, cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from semcorr.core.errors import UserError
from semcorr.core.ranges import Range, Whole, check_arguments, require

if TYPE_CHECKING:
    import submitit

    from semcorr.cli.sweep.plan import JobOutcome, SweepJob
    from semcorr.store.cache import SweepFeatureCache

    RunJob = Callable[[SweepJob, SweepFeatureCache], JobOutcome]

Number = Annotated[float, Range(least=0)]
SLURM = {
    "timeout_min",
    "nodes",
    "tasks_per_node",
    "cpus_per_task",
    "gpus_per_node",
    "mem_gb",
    "slurm_array_parallelism",
}


class Here(Launcher):
    """Launcher that runs the jobs one after another in this process."""

    config: DictConfig
    hydra_context: HydraContext
    remote_note = ""  # sentence about jobs that outlive an interrupted sweep

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Receive the context, the task and the configuration from Hydra.

        Raises:
            UserError: The task is of another program.
        """
        from semcorr.cli.hydra_app import HydraTask

        if not isinstance(task_function, HydraTask):
            raise UserError("`hydra/launcher`: semcorr's launchers run train and evaluate alone. Choose another.")
        self.hydra_context, self.task, self.config = hydra_context, task_function, config
        self.folder_of_jobs = Path(config.hydra.sweep.dir)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose every job, run the missing ones, and record their outcomes."""
        from semcorr.cli.sweep.run import run_jobs
        from semcorr.core.terminal import print_line

        print_line(f"Checking {len(job_overrides)} job{'s'[: len(job_overrides) != 1]}")
        configs = self.compose(job_overrides)
        jobs, config = self.plan(configs, initial_job_idx), OmegaConf.to_yaml(self.config)
        outcomes = run_jobs(distinct_jobs(jobs), self.folder_of_jobs, self.map_jobs, self.remote_note, config)
        return [_job_return(outcome) for outcome in self.record(jobs, outcomes)]

    def compose(self, job_overrides: Sequence[Sequence[str]]) -> "list[tuple[list[str], DictConfig]]":
        """Compose and check the configuration of every job, and return it with its overrides."""
        from semcorr.cli.hydra_app import compose_sweep_job

        setup_globals()
        load, verb = self.hydra_context.config_loader.load_sweep_config, self.config.hydra.job.config_name
        return [compose_sweep_job(load(self.config, [*overrides]), verb) for overrides in job_overrides]

    def plan(self, configs: "Sequence[tuple[list[str], DictConfig]]", first: int) -> "list[SweepJob]":
        """Plan the job of each configuration, the first of which has the number `first`; equal ones share a job."""
        from semcorr.cli.sweep.plan import plan_jobs

        return plan_jobs(self.config.hydra.job.config_name, configs, self.folder_of_jobs, first)

    def record(self, jobs: "Sequence[SweepJob]", outcomes: "Sequence[JobOutcome]") -> "list[JobOutcome]":
        """Record the outcomes for the end of the sweep, and return that of each job."""
        self.task.outcomes |= {outcome.job.identity: outcome for outcome in outcomes}
        return [self.task.outcomes[job.identity] for job in jobs]

    def map_jobs(self, function: "RunJob", jobs: "Sequence[SweepJob]") -> "Iterator[JobOutcome]":
        """Apply `function` to every job and the features of the one before, and yield the outcomes."""
        return (function(job, self.features) for job in jobs)

    @cached_property
    def features(self) -> "SweepFeatureCache":
        """Features of the last job of this process."""
        from semcorr.store.cache import SweepFeatureCache

        return SweepFeatureCache()


class Joblib(Here):
    """Launcher that runs the jobs in processes of this machine.

    Args:
        n_jobs: Jobs at a time; -1 for as many as there are cores.
    """

    @check_arguments("hydra.launcher")
    def __init__(self, n_jobs: Annotated[int, Range(least=-1)] = 2) -> None:
        if n_jobs == 0:
            raise UserError("`hydra.launcher.n_jobs` must be at least 1, or -1 for as many as there are cores, got 0")
        self.n_jobs = n_jobs

    def map_jobs(self, function: "RunJob", jobs: "Sequence[SweepJob]") -> "Iterator[JobOutcome]":
        """Yield outcomes as they come; workers use as many threads as this process would, for the same digits."""
        joblib = import_package("joblib", "launcher")
        _require_one_device(jobs)
        tasks = (joblib.delayed(run_in_worker)(function, job, os.getcwd(), _thread_count()) for job in jobs)
        with joblib.parallel_config("loky", n_jobs=self.n_jobs, inner_max_num_threads=_thread_count()):
            outcomes = joblib.Parallel(return_as="generator_unordered", batch_size=1)(tasks)
            with suppress(joblib.externals.loky.process_executor.BrokenProcessPool):  # a worker was killed:
                yield from outcomes  # jobs without an outcome count as failed


class Ray(Here):
    """Launcher that runs the jobs on a Ray cluster, either a running one or one that ends with the sweep.

    Args:
        num_cpus: Processors of a job.
        num_gpus: GPUs of a job; a fraction where several jobs share one. None: one, if this machine has any.
        address: Address of a running cluster; None starts one on this machine.
    """

    @check_arguments("hydra.launcher")
    def __init__(self, num_cpus: Number = 1, num_gpus: Number | None = None, address: str | None = None) -> None:
        import torch

        self.num_cpus, self.address = num_cpus, address
        self.num_gpus = float(torch.cuda.is_available()) if num_gpus is None else num_gpus

    def map_jobs(self, function: "RunJob", jobs: "Sequence[SweepJob]") -> "Iterator[JobOutcome]":
        """Yield outcomes as they come; a cluster on other machines must see the same files."""
        ray = import_package("ray", "launcher")
        _require_one_device(jobs)
        previous_handler = signal.getsignal(signal.SIGTERM)
        ray.init(address=self.address, include_dashboard=False, log_to_driver=True, configure_logging=False)
        try:
            signal.signal(signal.SIGTERM, previous_handler)  # Ray's handler would end the sweep with exit code 15
            remote = ray.remote(num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_retries=0)(run_in_worker)
            pending = {remote.remote(function, job, os.getcwd(), _thread_count()): job for job in jobs}
            while pending:
                (ready,), _ = ray.wait([*pending], num_returns=1)
                yield _get_outcome(partial(ray.get, ready), pending.pop(ready))
        finally:
            ray.shutdown()


class Slurm(Here):
    """Launcher that submits the jobs to SLURM by submitit, and waits for them; a killed sweep can be started again.

    Args:
        folder: Folder of submitit's scripts and logs; beside the jobs if None.
        cluster: `slurm`; or `local`, to try a sweep on this machine first.
        options: Options of `submitit.AutoExecutor.update_parameters`, such as `timeout_min` or `slurm_partition`.
    """

    @check_arguments("hydra.launcher")
    def __init__(self, folder: str | None = None, cluster: str = "slurm", **options: object) -> None:
        for key in SLURM & options.keys():
            require(f"hydra.launcher.{key}", options[key], Whole | None)
        self.folder, self.cluster, self.options = folder, cluster, options
        if cluster == "slurm":
            self.remote_note = "Those that SLURM has go on by themselves (scancel ends them). "

    def map_jobs(self, function: "RunJob", jobs: "Sequence[SweepJob]") -> "Iterator[JobOutcome]":
        """Yield outcomes in the order of the jobs."""
        submitit = import_package("submitit", "launcher")
        folder = Path(self.folder or self.config.hydra.sweep.dir) / ".submitit"
        executor = submitit.AutoExecutor(folder=folder, cluster=self.cluster)
        executor.update_parameters(**{key: value for key, value in self.options.items() if value is not None})
        with executor.batch():
            submissions = [(executor.submit(run_in_worker, function, job, os.getcwd(), None), job) for job in jobs]
        return (_get_outcome(partial(_worst_outcome, handle), job) for handle, job in submissions)


def distinct_jobs(jobs: "Sequence[SweepJob]") -> "list[SweepJob]":
    """Return every job once."""
    return list({job.identity: job for job in jobs}.values())


def run_in_worker(function: "RunJob", job: "SweepJob", folder: str, threads: int | None) -> "JobOutcome":
    """Run a job in a new process.

    Args:
        function: Function to apply to the job.
        job: Job to run.
        folder: Working directory of the sweep, which paths of the configuration may be relative to.
        threads: Threads of the process that started the sweep; None leaves the number to the machine.
    """
    import torch

    from semcorr.core import interrupt

    os.chdir(folder)
    setup_globals()  # resolvers of configuration values
    if interrupt.current_guard() is None and threading.current_thread() is threading.main_thread():
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # a terminal's Ctrl-C reaches every process; the sweep ends this one
    if threads is not None:
        torch.set_num_threads(threads)
    return function(job, worker_cache())


@cache
def worker_cache() -> "SweepFeatureCache":
    """Return the cache of this worker process, which serves one sweep: the features of the last job that it ran."""
    from semcorr.store.cache import SweepFeatureCache

    return SweepFeatureCache()


def _worst_outcome(handle: "submitit.Job[JobOutcome]") -> "JobOutcome":
    """Return the worst outcome of a job's processes, one per GPU; all are equal unless some process failed."""
    return max(handle.results(), key=lambda outcome: outcome.fault)


def _get_outcome(get: "Callable[[], JobOutcome]", job: "SweepJob") -> "JobOutcome":
    """Return the outcome of a job whose worker may be lost: killed for memory, out of time, cancelled."""
    from semcorr.cli.sweep.plan import JobOutcome

    try:
        return get()
    except Exception as error:
        return JobOutcome(job, 1, f"its worker was lost: {type(error).__name__}: {error}")


def _require_one_device(jobs: "Sequence[SweepJob]") -> None:
    """Raise if a job needs more than the one device of its worker."""
    if any(str(job.cfg.trainer.devices) != "1" for job in jobs):
        raise UserError(
            "`trainer.devices`: a worker of joblib or Ray is one process with one device. Set trainer.devices=1, or "
            "leave hydra/launcher out and use scripts/torchrun.sh, which gives every job all devices in turn."
        )


def import_package(package: str, group: str) -> ModuleType:
    """Import a package that a choice of `hydra/launcher` or `hydra/sweeper` needs, or say how to install it."""
    import importlib

    from semcorr.core.extras import require_extra

    require_extra(f"`hydra/{group}`", "sweep", package)
    return importlib.import_module(package)


def _thread_count() -> int:
    """Return the number of PyTorch's threads in this process."""
    import torch

    return torch.get_num_threads()


def _job_return(outcome: "JobOutcome") -> JobReturn:
    """Convert an outcome to what Hydra's sweepers expect of a job: its `objective`; None of one that failed."""
    from semcorr.cli.sweep.objective import read_objective

    result = JobReturn(overrides=outcome.job.overrides, cfg=outcome.job.cfg, working_dir=str(outcome.job.folder))
    result.status, result.return_value = JobStatus.COMPLETED, None
    with suppress(UserError):  # a sweep without a search may well be of jobs that have no such number
        result.return_value = read_objective(outcome)
    return result
