"""What to match with, by a word: a backbone's name, a run's directory or a config line; to the module that does it."""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from semcorr.cli.compose import compose_config
from semcorr.cli.errors import user_message
from semcorr.cli.verb_line import suggest_near
from semcorr.core.errors import UserError
from semcorr.engine.build import build_module, check_config
from semcorr.engine.checkpoints import load_trained
from semcorr.engine.known_targets import conf_dir
from semcorr.engine.module import CorrespondenceModule
from semcorr.engine.saved_config import is_run, read_run_config

DEFAULT = "efficientnet_lite0"  # its weights come with a package
SEEDING = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")  # variables that Lightning sets, and its loaders obey


class RestoredModel(NamedTuple):
    """A model, and how its images are resized into its square."""

    module: CorrespondenceModule
    resize: str
    said: str  # the line that it was loaded by


def restore_model(model: str | Path | None = None, overrides: Sequence[str] = ()) -> RestoredModel:
    """The model of a line, with the weights it was trained to, in eval mode.

    Args:
        model: `dinov2`, `runs/my_run`, or what follows `python -m semcorr.evaluate`, as
            `backbone=dinov2 localise.window=9`; None is the one that needs no download.
        overrides: More of that line.

    Raises:
        UserError: There is no such model, run or key.
    """
    line = format_overrides(model, overrides)
    try:
        with _undisturbed():
            return RestoredModel(*_built(line), " ".join(line))
    except UserError:
        raise
    except Exception as error:  # Hydra's, of which a user's mistakes become a sentence
        if (message := user_message(error, "evaluate")) is None:
            raise
        raise UserError(message) from error


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Random weights follow from `seed` alone, and the caller's numbers, of this and other processes, from theirs."""
    before = {name: os.environ.get(name) for name in SEEDING}
    try:
        with isolate_rng():
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def format_overrides(model: str | Path | None, overrides: Sequence[str] = ()) -> list[str]:
    """A line of overrides.

    >>> format_overrides("dinov2", ["localise=argmax"])
    ['backbone=dinov2', 'localise=argmax']
    >>> format_overrides("backbone=dinov2 localise.window=9")
    ['backbone=dinov2', 'localise.window=9']
    """
    words = [str(model)] if model and Path(model).is_dir() else _words(model or "")  # a directory, spaces and all
    line = [_named(word) if "=" not in word or Path(word).is_dir() else word for word in words]
    line += overrides
    chosen = any(word.partition("=")[0] in ("backbone", "checkpoint", "experiment") for word in line)
    return line if chosen else [f"backbone={DEFAULT}", *line]


def _words(model: str | Path) -> list[str]:
    if isinstance(model, Path):
        return [str(model)]
    try:
        return shlex.split(model)
    except ValueError as error:
        raise UserError(
            f"`model`: {model} is no directory, and no line of words ({error}). Give a backbone, a run's directory or "
            "a line as 'backbone=dinov2 localise=argmax'"
        ) from None


def _named(word: str) -> str:
    """A word alone is a backbone or a directory."""
    names = sorted(path.stem for path in (conf_dir() / "backbone").glob("*.yaml"))
    if word in names:
        return f"backbone={word}"
    if is_run(Path(word)):
        return f"checkpoint={_quoted(word)}"
    if Path(word).is_file():
        owner = Path(word).absolute().parent.parent
        remedy = (
            f"Give the run: {owner}" if is_run(owner) else
            f"Weights are given with what they are of, as 'backbone=dinov2 backbone.weights={word}'"
        )  # fmt: skip
        raise UserError(f"`model`: {word} is a file, not a backbone's name or a run's directory. {remedy}")
    is_place = os.sep in word or Path(word).exists()
    hint = "Give the run_dir of a run, or a backbone." if is_place else suggest_near(word, names)
    raise UserError(f"`model`: {word} is no backbone, and no run's directory (with a config.yaml). {hint}")


def _quoted(word: str) -> str:
    r"""As Hydra reads it back, whatever characters it has.

    >>> print(_quoted("runs/one"), _quoted("lr=1,x=2"), _quoted("it's"))
    runs/one 'lr=1,x=2' 'it\'s'
    """
    if re.fullmatch(r"[\w./-]+", word, flags=re.ASCII):
        return word
    kept = re.sub(r"\\+(?='|$)", lambda at: 2 * at[0], word)  # before a quotation mark, a backslash escapes
    return "'" + kept.replace("'", r"\'").replace("${", r"\${") + "'"


def _built(line: Sequence[str]) -> tuple[CorrespondenceModule, str]:
    cfg = compose_config("evaluate", line)
    check_config(cfg)
    origin = _trained(Path(cfg.checkpoint), line) if cfg.checkpoint else None
    module = build_module(cfg)
    if origin is not None and module.trainable_state_dict():
        load_trained(module, origin)
    resize: Any = cfg.data.resize
    return module.eval().requires_grad_(False), resize


def _trained(run: Path, line: Sequence[str]) -> Path | None:
    """Where a run's weights are: in itself, or, of an evaluation, in the run it scored; None if it scored none."""
    saved = read_run_config(run, line)
    if "loss" in saved:
        return run
    return Path(saved.checkpoint) if saved.get("checkpoint") else None


def resolve_device(asked_for: str | torch.device | None) -> torch.device:
    """The device that was asked for, or the best there is."""
    if asked_for is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked_for)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"`device`: {asked_for} is not to be had ({str(error).splitlines()[0]}). Give cpu") from None
    return device
