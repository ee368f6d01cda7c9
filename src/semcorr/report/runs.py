"""Finished runs as a report needs them, and whether they can stand in one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from semcorr.core.errors import UserError
from semcorr.core.tables import read_table
from semcorr.engine.finished_run import EvaluatedRun as Evaluated
from semcorr.engine.finished_run import read_evaluated_run, require_same_pairs
from semcorr.engine.rebuild import read_scored_config
from semcorr.engine.saved_config import CONFIG
from semcorr.metrics.pck import SUBSETS

KEYS = (
    "pck", "category", "headline", "pooling", "protocol", "localise", "split", "pairs", "images", "trained_parameters",
    "seconds", "intervals", "classes",
)  # fmt: skip
MUST_AGREE = {"benchmark": "split", "protocol": "protocol", "pooling": "pooling", "comparison (`strict`)": "strict"}


class FinishedRun(NamedTuple):
    """What a run left behind."""

    folder: Path
    cfg: DictConfig
    evaluated: Evaluated
    history: Sequence[Mapping[str, float]]  # metrics.csv

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Of metrics.json."""
        return self.evaluated.metrics


def find_runs(given: Sequence[Path]) -> list[Path]:
    """The run folders among what was given: each itself, or all below a folder that is none, as a sweep's."""
    folders: list[Path] = []
    for path in given:
        own = path.is_dir() and not any((path / name).exists() for name in (CONFIG, "metrics.json"))
        below = sorted({file.parent for file in path.rglob(CONFIG)}) if own else []
        if own and not below:
            raise UserError(f"{path} holds no run: no config.yaml in it or below. Give run_dirs of finished runs")
        folders += below or [path]
    twice = sorted({str(one) for one in folders if [two.resolve() for two in folders].count(one.resolve()) > 1})
    if twice:
        raise UserError(f"{twice[0]} is given twice. Give every run once")
    return folders


def read_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """All of them, or a sentence on every one that cannot be read."""
    runs, wrong = [], []
    for folder in folders:
        try:
            runs.append(_read(folder))
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError("\n".join(wrong))
    return runs


def require_comparable(runs: Sequence[FinishedRun]) -> None:
    """One benchmark, one protocol, the same pairs: nothing else may stand in one table, or be averaged."""
    for what, key in MUST_AGREE.items():
        groups: dict[str, list[str]] = {}
        for run in runs:
            groups.setdefault(str(run.metrics.get(key, False)), []).append(str(run.folder))
        if len(groups) > 1:
            told = "; ".join(f"{value}: {', '.join(folders)}" for value, folders in groups.items())
            raise UserError(f"these runs differ in their {what} and are not comparable: {told}. Report each by itself")
    for run in runs[1:]:
        require_same_pairs(runs[0].evaluated, run.evaluated)


def _read(folder: Path) -> FinishedRun:
    cfg = read_scored_config(folder)
    evaluated = read_evaluated_run(folder)
    missing = [key for key in KEYS if key not in evaluated.metrics]
    missing += [f"pck.{subset}" for subset in SUBSETS if subset not in evaluated.metrics.get("pck", {})]
    if missing:
        raise UserError(f"{folder}: metrics.json has no `{'`, `'.join(missing)}`. Evaluate again")
    return FinishedRun(folder, cfg, evaluated, _history(folder / "metrics.csv"))


def _history(path: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv with what each holds; none where a run logged nothing."""
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
