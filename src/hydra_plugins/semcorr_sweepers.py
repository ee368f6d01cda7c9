"""Sweepers, which choose the jobs of a sweep: `hydra/sweeper=optuna` searches, by what the jobs before have reached.

Hydra looks for sweepers in this package. Its published one of this name is for Optuna 2 and runs every job again; this
one goes on with a search that was interrupted. Optuna is imported when a search begins.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.semcorr_launchers import Here, distinct_jobs, import_package
from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, Seed, check_arguments

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from optuna import Study
    from optuna.distributions import BaseDistribution

    from semcorr.cli.sweep.search import Search


class Optuna(Sweeper):
    """Sweeper that asks Optuna for the values of the next jobs, and tells it the `objective` of those that are done.

    A search depends on its line and its seed alone. So the same line with the same `run_dir` asks for the same jobs:
    those that are done are read, and the search goes on from there.

    Args:
        n_trials: Jobs of the search, those done before included.
        direction: Whether the objective is to be large or small.
        sampler: Tree-structured Parzen estimator, whose first ten jobs are random; or random values alone.
        seed: Seed of the sampler.
        n_jobs: Jobs that are chosen at a time.
        params: Intervals, choices and fixed values by their keys, from a configuration file.
    """

    config: DictConfig

    @check_arguments("hydra.sweeper")
    def __init__(
        self,
        n_trials: Count = 20,
        direction: Literal["maximize", "minimize"] = "maximize",
        sampler: Literal["tpe", "random"] = "tpe",
        seed: Seed = 42,
        n_jobs: Count = 1,
        params: Mapping[str, object] | None = None,
    ) -> None:
        optuna = import_package("optuna", "sweeper")
        if int(optuna.__version__.partition(".")[0]) < 4:  # hydra-optuna-sweeper brings Optuna 2
            raise UserError(
                f"`hydra/sweeper`: Optuna {optuna.__version__} is too old, 4.0 is needed. pip install 'semcorr[sweep]'"
            )
        if "LOCAL_RANK" in os.environ:
            raise UserError(
                "`hydra/sweeper`: a search decides in one process what comes next. Start it without torchrun; "
                "trainer=ddp gives each of its jobs all devices."
            )
        self.n_trials, self.direction, self.n_jobs = n_trials, direction, n_jobs
        self.sampler, self.seed, self.params = sampler, seed, dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Receive the context and the configuration from Hydra, and build the launcher of the jobs."""
        launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)
        if not isinstance(launcher, Here):
            raise UserError("`hydra/launcher` of a search must be one of semcorr's: here, joblib, ray, submitit_slurm")
        self.hydra_context, self.config, self.launcher = hydra_context, config, launcher

    def sweep(self, arguments: list[str]) -> None:
        """Run the search, and print its best job."""
        from semcorr.cli.sweep.objective import require_objective
        from semcorr.cli.sweep.plan import MULTIRUN
        from semcorr.cli.sweep.search import Search, warn_of_test_split
        from semcorr.cli.sweep.space import build_space, fill_values, list_corners
        from semcorr.core.files import write_text
        from semcorr.core.interrupt import advise_on_interrupt
        from semcorr.engine.run_lock import lock_folder

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        settings = parser.parse_overrides([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        overrides = list({setting.get_key_element(): setting for setting in settings}.values())  # the last one counts
        space = build_space(overrides)
        configs = [cfg for _, cfg in self.launcher.compose([fill_values(overrides, c) for c in list_corners(space)])]
        for cfg in configs:
            require_objective(cfg)
        search = Search(configs[0].objective, self.direction, self.n_trials, Path(self.config.hydra.sweep.dir))
        with lock_folder(search.folder, "the sweep"):
            write_text(search.folder / MULTIRUN, OmegaConf.to_yaml(self.config), "run_dir")
            warn_of_test_split(configs[0])
            search.announce(self.sampler, space)
            with advise_on_interrupt(lambda: search.advise(self.launcher.remote_note)):
                self.run_trials(search, overrides, space)
        search.print_best()

    def run_trials(
        self, search: "Search", overrides: "Sequence[Override]", space: "dict[str, BaseDistribution]"
    ) -> None:
        """Run the jobs of a search, a few at a time."""
        from optuna.trial import TrialState

        from semcorr.cli.sweep.objective import read_objective
        from semcorr.cli.sweep.run import run_missing
        from semcorr.cli.sweep.space import fill_values

        study = self.make_study()
        for first in range(0, self.n_trials, self.n_jobs):
            trials = [study.ask(space) for _ in range(min(self.n_jobs, self.n_trials - first))]
            configs = self.launcher.compose([fill_values(overrides, trial.params) for trial in trials])
            jobs = self.launcher.plan(configs, first)
            outcomes = run_missing(distinct_jobs(jobs), self.launcher.map_jobs)
            for trial, outcome in zip(trials, self.launcher.record(jobs, outcomes), strict=True):
                value = read_objective(outcome)
                study.tell(trial, value, None if value is not None else TrialState.FAIL)
                search.add(value, outcome, trial.params)

    def make_study(self) -> "Study":
        """Make a study in memory: what it has to know of earlier jobs is in their directories."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        return optuna.create_study(direction=self.direction, sampler=samplers[self.sampler](seed=self.seed))
