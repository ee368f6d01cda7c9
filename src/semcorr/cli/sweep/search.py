"""What is said of a search: at its start, after each job, when it is interrupted, and of its best job."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig

from semcorr.cli.sweep.plan import JobOutcome

log = logging.getLogger(__name__)


@dataclass
class Search:
    """A search for the job with the largest or smallest number.

    Attributes:
        objective: Name of the number in metrics.json.
        direction: `maximize` or `minimize`.
        n_trials: Number of jobs.
        folder: Directory of the sweep.
        reached: The number of each job so far, None where it has none, with the job and what was chosen for it.
    """

    objective: str
    direction: str
    n_trials: int
    folder: Path
    reached: list[tuple[float | None, JobOutcome, Mapping[str, object]]] = field(default_factory=list)

    def announce(self, sampler: str, keys: Mapping[str, object]) -> None:
        """Print what is searched for, and how to go on with it."""
        print(
            f"Search for the {'largest' if self.direction == 'maximize' else 'smallest'} {self.objective} in "
            f"{self.n_trials} jobs in {self.folder}, by {sampler} over {', '.join(keys)}. Once interrupted, the same "
            f"line with run_dir={self.folder} goes on.",
            flush=True,
        )

    def add(self, value: float | None, outcome: JobOutcome, chosen: Mapping[str, object]) -> None:
        """Add what a job has reached, and print it."""
        self.reached.append((value, outcome, chosen))
        number, name = f"Trial {len(self.reached)} of {self.n_trials}", outcome.job.folder.name
        if value is not None:
            print(f"{number}, job {name}: {self.objective} = {value:.6g}", flush=True)
        elif outcome.fault:
            print(f"{number}, job {name}: failed; the search goes on without it", flush=True)
        else:
            print(f"{number}, job {name}: {self.objective} is null; the search goes on without it", flush=True)

    def advise(self, elsewhere: str = "") -> str:
        """Say how far an interrupted search is, and how to continue."""
        return (
            f"{len(self.reached)} of {self.n_trials} trials are done. {elsewhere}"
            f"The same line with run_dir={self.folder} goes on"
        )

    def print_best(self) -> None:
        """Print the best job with what was chosen for it, and how many have reached nothing."""
        known = [(value, outcome, chosen) for value, outcome, chosen in self.reached if value is not None]
        lost = f", {len(self.reached) - len(known)} of them without a number" if len(known) < len(self.reached) else ""
        if not known:
            print(f"None of {len(self.reached)} trials has reached {self.objective}.", flush=True)
            return
        choose = max if self.direction == "maximize" else min
        value, outcome, chosen = choose(known, key=lambda entry: entry[0])
        overrides = " ".join(f"{key}={text}" for key, text in chosen.items())
        print(
            f"Best of {len(self.reached)} trials{lost}: job {outcome.job.folder.name} with {self.objective} = "
            f"{value:.6g}, by {overrides}",
            flush=True,
        )
        if len(known) > 1 and len({value for value, _, _ in known}) == 1:
            print("All have reached the same: what was searched has no effect on it.", flush=True)


def warn_of_test_split(cfg: DictConfig) -> None:
    """Warn of a search by the pairs that the result is to be reported on."""
    key = "test" if cfg.get("test") is not None else "data"
    split = str(cfg[key].get("split", ""))
    if split.startswith("test"):
        log.warning(
            "The search is by the %s split of `%s`: its best number is no estimate for new images. %s.split=val "
            "searches by the validation pairs; semcorr.evaluate checkpoint=JOB data.split=%s then scores the best job",
            split,
            key,
            key,
            split,
        )
