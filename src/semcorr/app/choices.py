"""The models that a visitor may choose: backbones, and runs that the page itself found.

A name that a visitor sends is looked up in this list, and never becomes a part of a configuration line.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from semcorr.core.errors import UserError
from semcorr.engine.packages import list_choices

NO_NAMES = ("tiny", "timm", "transformers")  # a random network; and two that need more options than their name
RUN = "run: "
DEPTH = 4  # levels below the folder of runs, enough for a sweep of sweeps
MAX_RUNS = 500  # that are listed


class ModelChoices:
    """The models of the page's list.

    Args:
        model: Model of the command line: a backbone, a run directory or a configuration line.
        runs: Folder of run directories; it need not exist.
    """

    def __init__(self, model: str, runs: Path) -> None:
        self.model, self.runs = model, runs

    def names(self) -> list[str]:
        """List the models: the command line's first, then the backbones, then the runs that exist now."""
        backbones = list_backbone_names()
        command_line = [] if self.model in backbones else [self.model]
        return [*command_line, *backbones, *(f"{RUN}{name}" for name in list_run_names(self.runs))]

    def line(self, name: object) -> str:
        """Return the argument of `Matcher.load` for a name.

        Raises:
            UserError: The name is none of `names`.
        """
        if isinstance(name, str):
            if name == self.model or name in list_backbone_names():
                return name
            run = name.removeprefix(RUN)
            if name.startswith(RUN) and run in list_run_names(self.runs):
                return str(self.runs / run)
        raise UserError(
            "The model is not in the list (any more). Choose one; the list is read again when the page is loaded."
        )

    def name(self, line: str) -> str:
        """Return the name of a line that `line` returned."""
        if line == self.model or line in list_backbone_names():
            return line
        return f"{RUN}{Path(line).relative_to(self.runs)}"


def list_backbone_names() -> list[str]:
    """List the backbones that need no option but their name."""
    return [name for name in list_choices("backbone") if name not in NO_NAMES]


def list_run_names(folder: Path) -> list[str]:
    """List the run directories in a folder and below it, as paths relative to the folder.

    A run directory holds a config.yaml. Folders that are symbolic links are skipped, and so is a config.yaml that links
    out of the folder.
    """
    root = folder.resolve()
    names = []
    for run in _walk_folders(root):
        config = run / "config.yaml"
        if config.is_file() and config.resolve().is_relative_to(root):
            names.append(str(run.relative_to(root)))
            if len(names) == MAX_RUNS:
                break
    return sorted(name for name in names if name != "." and name.isprintable())


def _walk_folders(root: Path) -> Iterator[Path]:
    """Yield a folder and those below it, down to `DEPTH` levels, without hidden ones."""
    for path, subfolders, _ in os.walk(root, followlinks=False):
        folder = Path(path)
        is_deepest = len(folder.relative_to(root).parts) >= DEPTH
        subfolders[:] = [] if is_deepest else sorted(name for name in subfolders if not name.startswith("."))
        yield folder
