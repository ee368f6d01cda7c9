"""What is said of a search: at its start, after each job, when it is interrupted, and of its best job."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig

from semcorr.cli.sweep.plan import JobOutcome
from semcorr.core.terminal import print_line

log = logging.getLogger(__name__)


@dataclass
class Search:
    """A search for the job with the largest or smallest number.

    Attributes:
        objective: Name of the number in metrics.json.
        direction: `maximize` or `minimize`.
        n_trials: Number of jobs.
        folder: Directory of the sweep.
        trials: The number of each job so far, None where it has none, with the job and the values it was given.
    """

    objective: str
    direction: str
    n_trials: int
    folder: Path
    trials: list[tuple[float | None, JobOutcome, Mapping[str, object]]] = field(default_factory=list)

    def announce(self, sampler: str, keys: Mapping[str, object]) -> None:
        """Print what is searched for, and how to go on with it."""
        print_line(
            f"Search for the {'largest' if self.direction == 'maximize' else 'smallest'} {self.objective} in "
            f"{self.n_trials} jobs in {self.folder}, by {sampler} over {', '.join(keys)}. Once interrupted, the same "
            f"line with run_dir={self.folder} goes on."
        )

    def add(self, value: float | None, outcome: JobOutcome, values: Mapping[str, object]) -> None:
        """Add the number of a job, and print it."""
        self.trials.append((value, outcome, values))
        number, name = f"Trial {len(self.trials)} of {self.n_trials}", outcome.job.folder.name
        if value is not None:
            print_line(f"{number}, job {name}: {self.objective} = {value:.6g}")
        elif outcome.fault:
            print_line(f"{number}, job {name}: failed; the search goes on without it")
        else:
            print_line(f"{number}, job {name}: {self.objective} is null; the search goes on without it")

    def advise(self, remote_note: str = "") -> str:
        """Say how far an interrupted search is, and how to continue."""
        return (
            f"{len(self.trials)} of {self.n_trials} trials are done. {remote_note}"
            f"The same line with run_dir={self.folder} goes on"
        )

    def print_best(self) -> None:
        """Print the best job with its values, and how many have no number."""
        trials = [(value, outcome, values) for value, outcome, values in self.trials if value is not None]
        without = len(self.trials) - len(trials)
        note = f", {without} of them without a number" if without else ""
        if not trials:
            print_line(f"None of {len(self.trials)} trials has reached {self.objective}.")
            return
        choose = max if self.direction == "maximize" else min
        value, outcome, values = choose(trials, key=lambda entry: entry[0])
        overrides = " ".join(f"{key}={text}" for key, text in values.items())
        print_line(
            f"Best of {len(self.trials)} trials{note}: job {outcome.job.folder.name} with {self.objective} = "
            f"{value:.6g}, by {overrides}"
        )
        if len(trials) > 1 and len({value for value, _, _ in trials}) == 1:
            print_line("All have reached the same: what was searched has no effect on it.")


def warn_of_test_split(cfg: DictConfig) -> None:
    """Warn of a search by the pairs that the result is to be reported on."""
    key = "test" if cfg.get("test") is not None else "data"
    split = str(cfg[key].get("split", ""))
    if split.startswith("test"):
        log.warning(
            "The search is by the %s split of `%s`: its best number is not an estimate for new images. %s.split=val "
            "searches by the validation pairs; semcorr.evaluate checkpoint=JOB data.split=%s then scores the best job",
            split,
            key,
            key,
            split,
        )
