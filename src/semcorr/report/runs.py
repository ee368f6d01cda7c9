"""Finished runs as a report needs them, and the check that they are comparable."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from semcorr.core.errors import UserError
from semcorr.core.tables import read_table
from semcorr.core.text_files import JsonMapping
from semcorr.engine.finished_run import EvaluatedRun as Evaluated
from semcorr.engine.finished_run import read_evaluated_run, require_same_pairs
from semcorr.engine.rebuild import read_scored_config
from semcorr.engine.saved_config import CONFIG
from semcorr.metrics.pck import SUBSETS

KEYS = (
    "pck",
    "category",
    "headline",
    "pooling",
    "protocol",
    "localise",
    "split",
    "pairs",
    "images",
    "trained_parameters",
    "seconds",
    "intervals",
    "classes",
)
MUST_AGREE = {"benchmark": "split", "protocol": "protocol", "pooling": "pooling", "comparison (`strict`)": "strict"}


class FinishedRun(NamedTuple):
    """The results, the configuration and the training history of a finished run."""

    folder: Path
    cfg: DictConfig
    evaluated: Evaluated
    history: Sequence[Mapping[str, float]]  # rows of metrics.csv

    @property
    def metrics(self) -> JsonMapping:
        """The content of metrics.json."""
        return self.evaluated.metrics


def find_runs(given: Sequence[Path]) -> list[Path]:
    """Find the run folders: each given path itself, or all runs below it if it is a folder of runs, as a sweep's."""
    folders: list[Path] = []
    for path in given:
        has_runs_below = path.is_dir() and not any((path / name).exists() for name in (CONFIG, "metrics.json"))
        below = sorted({file.parent for file in path.rglob(CONFIG)}) if has_runs_below else []
        if has_runs_below and not below:
            raise UserError(f"{path} holds no run: no config.yaml in it or below. Give run_dirs of finished runs")
        folders += below or [path]
    duplicates = sorted(
        {str(folder) for folder in folders if [other.resolve() for other in folders].count(folder.resolve()) > 1}
    )
    if duplicates:
        raise UserError(f"{duplicates[0]} is given twice. Give every run once")
    return folders


def read_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Read all runs; the error names every one that cannot be read."""
    runs, problems = [], []
    for folder in folders:
        try:
            runs.append(_read_run(folder))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return runs


def require_comparable(runs: Sequence[FinishedRun]) -> None:
    """Raise `UserError` unless the runs share benchmark, protocol and pairs, without which no table may join them."""
    for name, key in MUST_AGREE.items():
        groups: dict[str, list[str]] = {}
        for run in runs:
            groups.setdefault(str(run.metrics.get(key, False)), []).append(str(run.folder))
        if len(groups) > 1:
            differences = "; ".join(f"{value}: {', '.join(folders)}" for value, folders in groups.items())
            raise UserError(
                f"these runs differ in their {name} and are not comparable: {differences}. Report each by itself"
            )
    for run in runs[1:]:
        require_same_pairs(runs[0].evaluated, run.evaluated)


def _read_run(folder: Path) -> FinishedRun:
    cfg = read_scored_config(folder)
    evaluated = read_evaluated_run(folder)
    missing = [key for key in KEYS if key not in evaluated.metrics]
    missing += [f"pck.{subset}" for subset in SUBSETS if subset not in evaluated.metrics.get("pck", {})]
    if missing:
        raise UserError(f"{folder}: metrics.json has no `{'`, `'.join(missing)}`. Evaluate again")
    return FinishedRun(folder, cfg, evaluated, _history(folder / "metrics.csv"))


def _history(path: Path) -> list[dict[str, float]]:
    """Read the rows of metrics.csv without their empty cells; no rows where a run logged nothing."""
    if not path.is_file():
        return []
    try:
        return [
            {key: float(value) for key, value in row.items() if value}
            for _, row in read_table(path, (), "Evaluate again, or remove it")
        ]
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is no table of numbers ({error}). Evaluate again, or remove it") from None
