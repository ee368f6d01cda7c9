"""What to match with, by a word: a backbone's name, a run's directory or a config line; to the module that does it."""

import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from semcorr.cli import composed, conf_dir, explained
from semcorr.errors import UserError
from semcorr.module import Correspondence
from semcorr.run import assembled, read_checkpoint, settle

DEFAULT = "efficientnet_lite0"  # its weights come with a package


class Restored(NamedTuple):
    """A model, and how its images are resized into its square."""

    module: Correspondence
    resize: str
    said: str  # the line that it was loaded by


def restore(model: str | Path | None = None, overrides: Sequence[str] = ()) -> Restored:
    """The model of a line, with the weights it was trained to, in eval mode.

    Args:
        model: `dinov2`, `runs/my_run`, or what follows `python -m semcorr.evaluate`, as
            `backbone=dinov2 localise.window=9`; None is the one that needs no download.
        overrides: More of that line.

    Raises:
        UserError: There is no such model, run or key.
    """
    line = arguments(model, overrides)
    try:
        with isolate_rng():  # random weights follow from `seed` alone, and the caller's numbers from theirs
            return Restored(*_built(line), " ".join(line))
    except UserError:
        raise
    except Exception as error:  # Hydra's, of which a user's mistakes become a sentence
        if (message := explained(error, "evaluate")) is None:
            raise
        raise UserError(message) from error


def arguments(model: str | Path | None, overrides: Sequence[str] = ()) -> list[str]:
    """A line of overrides.

    >>> arguments("dinov2", ["localise=argmax"])
    ['backbone=dinov2', 'localise=argmax']
    >>> arguments("backbone=dinov2 localise.window=9")
    ['backbone=dinov2', 'localise.window=9']
    """
    words = [str(model)] if isinstance(model, Path) else shlex.split(model or "")
    if isinstance(model, str) and Path(model).is_dir():
        words = [model]  # spaces and all
    line = [_named(word) if "=" not in word or Path(word).is_dir() else word for word in words]
    line += overrides
    chosen = any(word.partition("=")[0] in ("backbone", "checkpoint", "experiment") for word in line)
    return line if chosen else [f"backbone={DEFAULT}", *line]


def _named(word: str) -> str:
    """A word alone is a backbone or a directory."""
    names = sorted(path.stem for path in (conf_dir() / "backbone").glob("*.yaml"))
    if word in names:
        return f"backbone={word}"
    if (Path(word) / "config.yaml").is_file():
        return f"checkpoint={word}"
    near = difflib.get_close_matches(word, names, n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Backbones are {', '.join(names)}"
    raise UserError(f"`model`: {word} is no backbone, and no run's directory (with a config.yaml). {hint}")


def _built(line: Sequence[str]) -> tuple[Correspondence, str]:
    cfg = composed("evaluate", line)
    settle(cfg)
    origin = _trained(Path(cfg.checkpoint)) if cfg.checkpoint else None
    module = assembled(cfg)
    if origin is not None and module.moving():
        content = read_checkpoint(origin)
        module.on_load_checkpoint(content)
        module.load_state_dict(content["state_dict"], strict=False)
    resize: Any = cfg.data.resize
    return module.eval().requires_grad_(False), resize


def _trained(run: Path) -> Path | None:
    """Where a run's weights are: in itself, or, of an evaluation, in the run it scored; None if it scored none."""
    from omegaconf import OmegaConf

    saved: Any = OmegaConf.load(run / "config.yaml")
    if "loss" in saved:
        return run
    return Path(saved.checkpoint) if saved.get("checkpoint") else None


def on(asked_for: str | torch.device | None) -> torch.device:
    """The device that was asked for, or the best there is."""
    if asked_for is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked_for)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"`device`: {asked_for} is not to be had ({str(error).splitlines()[0]}). Give cpu") from None
    return device
