"""Training that goes on: a run from its last checkpoint, which must be its own, or a new one from another's weights."""

import math
from importlib.metadata import version
from pathlib import Path

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Timer
from omegaconf import DictConfig
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.core.ranks import is_first_process
from semcorr.core.tables import read_table
from semcorr.core.terminal import print_line
from semcorr.core.text_files import JsonMapping
from semcorr.core.typed_settings import find_setting, format_setting, list_settings, read_key
from semcorr.data.datamodule import PairDataModule
from semcorr.engine.callbacks import IMAGE_RATE
from semcorr.engine.checkpoints import (
    RESUME_STATE,
    TRAINED_AS,
    checkpoint_error,
    find_changed_setting,
    load_trained,
    read_checkpoint,
    require_fit,
    weight_settings,
)
from semcorr.engine.loggers import CSVScalarLogger
from semcorr.engine.module import CorrespondenceModule
from semcorr.engine.optim import count_epoch_steps, count_step_pairs, count_steps, refuse_longer
from semcorr.engine.run_dir import METRICS, checkpoint_path
from semcorr.engine.run_name import name_choice
from semcorr.engine.saved_config import to_plain_types

# Sections that are chosen by name.
NAMED_GROUPS = ("data", "augment", "backbone", "finetune", "head", "pairs", "loss", "optimizer", "scheduler")


def resume_training(
    cfg: DictConfig, module: CorrespondenceModule, trainer: Trainer, data: PairDataModule
) -> str | None:
    """Return the path of a run directory's last checkpoint, if it has one, and continue its scalars.

    Args:
        cfg: Configuration of the run, whose `run_dir` may have the checkpoint.
        module: Module that will be trained further.
        trainer: Lightning's Trainer, whose CSV logger takes over the rows up to the checkpoint.
        data: Benchmark that is trained on; it gets the trainer.

    Returns:
        The path; None for a run that begins, and for a `fast_dev_run`.

    Raises:
        UserError: The checkpoint is damaged, or it was trained by other settings, or for more or fewer steps.
    """
    run_dir = Path(cfg.run_dir)
    path = checkpoint_path(run_dir, "last")
    if not path.is_file() or getattr(trainer, "fast_dev_run", False):
        return None
    content = read_checkpoint(run_dir, "last")
    require_same_settings(content, cfg, path)
    require_fit(module, content, path)
    require_kept_best(content, module, run_dir)
    data.trainer = trainer  # whose processes share the steps of an epoch
    steps = count_steps(trainer, data)
    require_state(content, trainer, path)
    refuse_shorter(content, trainer, path)
    refuse_longer(content, steps)
    made_for = (steps, count_epoch_steps(trainer, data), count_step_pairs(trainer, data))
    require_optimizer(content, module, made_for, path)
    for logger in trainer.loggers:
        if isinstance(logger, CSVScalarLogger):
            logger.resume(content["global_step"])
    return str(path)


def start_from_run(cfg: DictConfig, module: CorrespondenceModule) -> None:
    """Load the weights that another run trained, if the configuration names one as `start_from`.

    The state of its optimiser and schedule is not loaded, nor are the weights of its loss, where that is another one:
    they serve training alone.

    Raises:
        UserError: There is no such run, or its weights are of another backbone, head or way of tuning.
    """
    run = cfg.get("start_from")
    if run is None:
        return
    try:
        load_trained(module, Path(run), may_differ_in_loss=True)
    except UserError as error:
        raise UserError(f"`start_from`: {str(error).removeprefix('`checkpoint`: ')}") from error
    print_line(f"Training starts from the weights of {run}.")


def require_same_settings(content: JsonMapping, cfg: DictConfig, path: Path) -> None:
    """Refuse to resume by other settings: each part of the run would be trained by different ones."""
    values = to_plain_types(cfg)
    settings = weight_settings(values)
    key = find_changed_setting(content, settings)
    if key is None:
        return
    trained = content[TRAINED_AS]
    name, before, now = key, format_setting(trained[key]), format_setting(settings[key])
    section = key.removesuffix("._target_")
    if section in NAMED_GROUPS and section != key:  # a choice, by the name that it is typed by
        options = {
            other.removeprefix(f"{section}."): trained[other] for other in trained if other.startswith(f"{section}.")
        }
        name, before, now = section, name_choice(section, options), name_choice(section, values[section])
    typed = find_setting(key)
    if typed is None and list_settings() is not None:  # set by another option
        cause, remedy = name, f"Give {name}={before}"
    else:
        cause = name if typed is None or read_key(typed) == key else typed.lstrip("+")
        remedy = f"Leave {cause} out"
    raise UserError(
        f"`{cause}`: {path} was trained with {name}={before}, and cannot be resumed with {now}. {remedy}, or train "
        "again in another run_dir."
    )


def require_last(run_dir: Path, trains: bool) -> None:
    """Refuse to begin a run again that has lost its last.ckpt; tell where one begins again that never had it.

    Args:
        run_dir: Directory that `checkpoint` names.
        trains: Whether anything is trained; a frozen run has no checkpoint.

    Raises:
        UserError: The run has trained an epoch, or is finished, and last.ckpt is not there.
    """
    path, best = checkpoint_path(run_dir, "last"), checkpoint_path(run_dir)
    if path.is_file() or not is_first_process():  # which may have begun to write
        return
    if not trains and not best.is_file():
        return
    if not (run_dir / METRICS).is_file() and not _has_ended_epoch(run_dir):
        print_line(f"{run_dir} has no last.ckpt, as no epoch of it has ended: the training begins again.")
        return
    remedy = (
        f"best.ckpt is there: start_from={run_dir} run_dir=NEW trains its weights further"
        if best.is_file()
        else "Put it back, or train again in another run_dir"
    )
    raise UserError(f"`checkpoint`: {path} does not exist, and training cannot be resumed without it. {remedy}.")


def _has_ended_epoch(run_dir: Path) -> bool:
    """Tell whether a training had ended an epoch, and so had a last.ckpt, by what else it has left.

    A training that is interrupted in its first epoch may have best.ckpt, of a validation before the epoch's end, and it
    has metrics.csv with that validation's row.
    """
    scalars = run_dir / "metrics.csv"
    if checkpoint_path(run_dir).is_file() and (
        not scalars.is_file() or read_checkpoint(run_dir).get("epoch") not in (0, None)
    ):
        return True
    if not scalars.is_file():
        return False
    try:
        return any(row.get(IMAGE_RATE) for _, row in read_table(scalars, ("step",), ""))
    except UserError:  # damaged
        return True


def require_kept_best(content: JsonMapping, module: CorrespondenceModule, run_dir: Path) -> None:
    """Require the best weights so far of a resumed run, which are scored where no later ones are better.

    Args:
        content: Content of last.ckpt, which says whether a validation has kept weights.
        module: Module that will be trained further.
        run_dir: Directory of the run.
    """
    states = [state for state in content.get("callbacks", {}).values() if isinstance(state, dict)]
    if not any(state.get("monitor") and state.get("best_model_score") is not None for state in states):
        return
    best = checkpoint_path(run_dir)
    if not best.is_file():
        raise UserError(
            f"`checkpoint`: {best} does not exist. It holds the best weights so far, and a resumed run may score them. "
            "Put it back, or train again in another run_dir."
        )
    require_fit(module, read_checkpoint(run_dir), best)


def refuse_shorter(content: JsonMapping, trainer: Trainer, path: Path) -> None:
    """Refuse fewer epochs or steps than a checkpoint has trained: config.yaml would say less than what was done.

    Args:
        content: Content of the checkpoint, whose counts `require_state` has checked.
        trainer: Lightning's Trainer, with the limits of the whole run.
        path: File of the checkpoint, for errors.
    """
    for noun, limit, trained in (
        ("epoch", trainer.max_epochs, content["epoch"] + 1),
        ("step", trainer.max_steps, content["global_step"]),
    ):
        if limit is not None and 0 <= limit < trained:
            raise UserError(
                f"`trainer.max_{noun}s`: {path} has trained {trained} {noun}{'s'[: trained != 1]}, got {limit}. "
                f"Leave it out, or give {trained} or more."
            )


def refuse_trial(cfg: DictConfig) -> None:
    """Refuse a trial of a few steps in the directory of a run: its configuration and its scores would be replaced.

    Args:
        cfg: Configuration of the run that `checkpoint` names.
    """
    if cfg.trainer.get("fast_dev_run"):
        raise UserError(
            f"`trainer.fast_dev_run` tries a line by a few steps that are not saved, and the run {cfg.run_dir} cannot "
            "be resumed by it. Give trainer.fast_dev_run=false, or another run_dir without `checkpoint`."
        )


def require_state(content: JsonMapping, trainer: Trainer, path: Path) -> None:
    """Refuse a checkpoint that lacks what Lightning resumes from.

    What a newer or older Lightning has written is migrated by Lightning itself.
    """
    for key, expected_type in RESUME_STATE.items():
        if not isinstance(content.get(key), expected_type):
            raise checkpoint_error(path, f"it has no `{key}`")
    if min(content["epoch"], content["global_step"]) < 0:
        raise checkpoint_error(path, "it counts epochs or steps below 0")
    if not all(isinstance(state, dict) for key in ("optimizer_states", "lr_schedulers") for state in content[key]):
        raise checkpoint_error(path, "its `optimizer_states` or `lr_schedulers` are not dictionaries")
    if content["pytorch-lightning_version"] != version("lightning"):
        return
    fit_loop = trainer.fit_loop.state_dict()
    if diff := find_state_difference(fit_loop, content["loops"].get("fit_loop"), "loops.fit_loop"):
        raise checkpoint_error(path, f"its {diff}")
    for callback in getattr(trainer, "callbacks", ()):
        expected, saved = callback.state_dict(), content["callbacks"].get(callback.state_key)
        if saved is None and not type(callback).__module__.startswith("semcorr"):  # added by the user since
            continue
        if isinstance(callback, Timer):  # its state before a start is 0, a whole number
            require_times(saved, path)
        elif expected and (diff := find_state_difference(expected, saved, f"callbacks.{type(callback).__name__}")):
            raise checkpoint_error(path, f"its {diff}")


def require_times(saved: object, path: Path) -> None:
    """Refuse a state of the timer of `trainer.max_time` that holds no times.

    Args:
        saved: State in the checkpoint.
        path: File of the checkpoint, for errors.
    """
    times = saved.get("time_elapsed") if isinstance(saved, dict) else None
    if not isinstance(times, dict) or not all(
        isinstance(seconds, int | float) and 0 <= seconds < math.inf for seconds in times.values()
    ):
        raise checkpoint_error(path, "its callbacks.Timer holds no times")


def find_state_difference(expected: object, actual: object, name: str) -> str | None:
    """Describe the first key that a state lacks, or the first count in it that is invalid; None if there is neither.

    >>> find_state_difference({"a": {"b": 1}}, {"a": {"b": "2"}}, "x")
    "x.a.b is '2'"
    >>> find_state_difference({"a": 1}, {"a": 7, "c": 1}, "x")
    """
    if isinstance(expected, dict):
        if not isinstance(actual, dict):
            return f"{name} is missing" if actual is None else f"{name} is {actual!r:.40}"
        if missing := expected.keys() - actual.keys():
            return f"{name}.{min(missing)} is missing"
        differences = (find_state_difference(value, actual[key], f"{name}.{key}") for key, value in expected.items())
        return next((diff for diff in differences if diff), None)
    if not isinstance(expected, int):  # a bool is one too
        return None
    if isinstance(actual, int) and type(actual) is type(expected) and actual >= 0:
        return None
    return f"{name} is {actual!r:.40}"


def require_optimizer(
    content: JsonMapping, module: CorrespondenceModule, steps: tuple[int, int, int], path: Path
) -> None:
    """Refuse a state of the optimiser or of its schedule that does not fit this run's weights.

    Args:
        content: Content of the checkpoint.
        module: Module that will be trained further.
        steps: Arguments of `module.make_optimizer`: steps of the run, steps of an epoch, pairs of a step.
        path: File of the checkpoint, for errors.
    """
    optimizer, schedule = module.make_optimizer(*steps)
    try:
        (optimizer_state,), (schedule_state,) = content["optimizer_states"], content["lr_schedulers"]
        optimizer.load_state_dict(optimizer_state)
        diff = find_state_difference(schedule.state_dict(), schedule_state, "lr_schedulers")
        schedule.load_state_dict(schedule_state)
        states = [(weights, value) for weights, state in optimizer.state.items() for value in state.values()]
        invalid = any(_is_invalid(value, weights) for weights, value in states)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise checkpoint_error(path, f"its optimizer's state is not of these weights: {error}") from error
    if diff or invalid:
        raise checkpoint_error(
            path, f"its {diff}" if diff else "its optimizer's state has other shapes than the weights, or is not finite"
        )


def _is_invalid(value: object, weights: Tensor) -> bool:
    if not isinstance(value, Tensor):
        return True
    return (value.ndim > 0 and value.shape != weights.shape) or not bool(torch.isfinite(value).all())
