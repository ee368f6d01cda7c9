"""Loading a model for matching by a backbone's name, a run's directory or a config line."""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig

from semcorr.cli.compose import compose_config, read_search_path
from semcorr.cli.errors import user_message
from semcorr.cli.verb_line import suggest_near
from semcorr.core.errors import UserError
from semcorr.engine.build import build_module
from semcorr.engine.checkpoints import load_trained
from semcorr.engine.hub import SCHEME, download_run, parse_address
from semcorr.engine.known_targets import conf_dir, config_search_path
from semcorr.engine.module import CorrespondenceModule
from semcorr.engine.packages import list_choices
from semcorr.engine.run_config import check_config
from semcorr.engine.saved_config import is_run, read_run_config
from semcorr.inference.unused_options import (
    refuse_unused_options,
    warn_of_duplicates,
    warn_of_unused_sections,
    warn_untrained_tuning,
)

DEFAULT = "efficientnet_lite0"  # its weights are installed with semcorr
SEEDING = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")  # variables that Lightning sets and its loaders read


class RestoredModel(NamedTuple):
    """A model, and the way its images are resized into its square."""

    module: CorrespondenceModule
    resize: str
    config_line: str  # the overrides that it was loaded from; a hub's address stays one


def restore_model(model: str | Path | None = None, overrides: Sequence[str] = ()) -> RestoredModel:
    """Build the model of a config line, with its trained weights, in eval mode.

    Args:
        model: `dinov2`, `runs/my_run`, `hf://user/name`, or what follows `python -m semcorr.evaluate`, as
            `backbone=dinov2 localise.window=9`; None is the default backbone, which needs no download.
        overrides: Further overrides of the config line.

    Raises:
        UserError: The model, the run or a key does not exist, or what was typed has no effect on matches.
    """
    line = format_overrides(model, overrides)
    warn_of_duplicates(line)
    try:
        with _preserve_random_state(), _default_float32():
            return RestoredModel(*_build_model([_fetch_checkpoint(word) for word in line]), " ".join(line))
    except UserError:
        raise
    except Exception as error:  # Hydra's errors; a user's mistake becomes a sentence
        if (message := user_message(error, "evaluate", line)) is None:
            raise
        raise UserError(message) from error


@contextmanager
def _preserve_random_state() -> Iterator[None]:
    """Isolate random numbers: random weights depend on `seed` alone, and the caller's random state is restored."""
    variables = {name: os.environ.get(name) for name in SEEDING}
    try:
        with isolate_rng():
            yield
    finally:
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _default_float32() -> Iterator[None]:
    """Build in single precision whatever the caller's default is; pictures are in single precision, too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def format_overrides(model: str | Path | None, overrides: Sequence[str] = ()) -> list[str]:
    """Return the overrides of a config line as a list; nothing is downloaded yet.

    >>> format_overrides("dinov2", ["localise=argmax"])
    ['backbone=dinov2', 'localise=argmax']
    >>> format_overrides("backbone=dinov2 localise.window=9")
    ['backbone=dinov2', 'localise.window=9']
    >>> format_overrides("hf://user/cats@v1")
    ['checkpoint=hf://user/cats@v1']
    """
    if not (model is None or (isinstance(model, str | Path) and str(model).strip())):
        raise UserError(
            f"`model` must be text or a Path, got {model!r:.60}. Give a backbone, a run's directory or a line as "
            "'backbone=dinov2 localise=argmax'"
        )
    for override in overrides:
        if not (isinstance(override, str) and ("=" in override or override.startswith("~"))):
            raise UserError(f"an override must be text, got {override!r:.60}. Give each as 'backbone.size=32'")
    words = [str(model)] if model and Path(model).is_dir() else _split_words(model or "")  # directories may have spaces
    line = [_word_to_override(word) if "=" not in word or Path(word).is_dir() else word for word in words]
    line += overrides
    chosen = any(word.partition("=")[0] in ("backbone", "checkpoint", "experiment") for word in line)
    return line if chosen else [f"backbone={DEFAULT}", *line]


def _split_words(model: str | Path) -> list[str]:
    """Split a config line into words, as a shell does; a path is one word."""
    if isinstance(model, Path):
        return [str(model)]
    try:
        return shlex.split(model)
    except ValueError as error:
        raise UserError(
            f"`model`: {model} is neither a directory nor a line of words ({error}). Give a backbone, a run's "
            "directory or a line as 'backbone=dinov2 localise=argmax'"
        ) from None


def _word_to_override(word: str) -> str:
    """Return the override of a single word: a backbone, a directory, or an address on the Hugging Face Hub."""
    if word.startswith(SCHEME):
        parse_address(word)
        return f"checkpoint={word}"
    names = list_choices("backbone")
    if word in names:
        return f"backbone={word}"
    if is_run(Path(word)):
        return f"checkpoint={_quote_value(word)}"
    if Path(word).is_file():
        owner = Path(word).absolute().parent.parent
        remedy = f"Weights are given with what they are of, as 'backbone=dinov2 backbone.weights={word}'"
        if is_run(owner):
            remedy = f"Give the run: {owner}"
        raise UserError(f"`model`: {word} is a file, not a backbone's name or a run's directory. {remedy}")
    is_place = os.sep in word or Path(word).exists()
    hint = "Give the run_dir of a run, or a backbone." if is_place else suggest_near(word, names)
    raise UserError(f"`model`: {word} is neither a backbone nor a run directory (with a config.yaml). {hint}")


def _fetch_checkpoint(override: str) -> str:
    """Return an override with the folder of a downloaded run in place of its address on the Hugging Face Hub."""
    key, _, value = override.partition("=")
    is_address = key == "checkpoint" and value.startswith(SCHEME)
    return f"{key}={_quote_value(str(download_run(value)))}" if is_address else override


def _quote_value(word: str) -> str:
    r"""Quote a value so that Hydra parses it unchanged.

    >>> print(_quote_value("runs/one"), _quote_value("lr=1,x=2"), _quote_value("it's"))
    runs/one 'lr=1,x=2' 'it\'s'
    """
    if re.fullmatch(r"[\w./-]+", word, flags=re.ASCII):
        return word
    escaped = re.sub(r"\\+(?='|$)", lambda match: 2 * match[0], word)  # before a quotation mark, a backslash escapes
    return "'" + escaped.replace("'", r"\'").replace("${", r"\${") + "'"


def _build_model(line: Sequence[str]) -> tuple[CorrespondenceModule, str]:
    """Build the model of a config line with its trained weights, and return its way of resizing."""
    cfg = compose_config("evaluate", line)
    check_config(cfg)
    refuse_unused_options(cfg, line)
    search = config_search_path(str(conf_dir())) + read_search_path(line)
    saved = read_run_config(Path(cfg.checkpoint), line, search) if cfg.checkpoint else None
    warn_of_unused_sections(cfg, saved)
    origin = _find_weights_run(Path(cfg.checkpoint), saved) if saved is not None else None
    if origin is None:
        warn_untrained_tuning(cfg, line)
    module = build_module(cfg)
    if origin is not None and module.trainable_state_dict():
        load_trained(module, origin)
    return module.eval().requires_grad_(False), str(cfg.data.resize)


def _find_weights_run(run: Path, saved: DictConfig) -> Path | None:
    """Return the run with the weights: itself, or for an evaluation the run it scored; None if it scored none."""
    if "loss" in saved:
        return run
    return Path(saved.checkpoint) if saved.get("checkpoint") else None


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return the requested device, or by default the GPU if there is one.

    Raises:
        UserError: The requested device is not available.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved_device = torch.device(device)
        torch.empty(0, device=resolved_device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"`device`: {device} is not available ({str(error).splitlines()[0]}). Give cpu") from None
    if resolved_device.type == "meta":
        raise UserError(f"`device`: {device} holds no values, so nothing is computed on it. Give cpu")
    return resolved_device
