"""The models that a visitor may choose: names that lead to a model, found by the page itself.

What a visitor sends is looked up here, and never becomes a part of a configuration line.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from semcorr.core.errors import UserError
from semcorr.engine.known_targets import conf_dir

NO_NAMES = ("tiny", "timm", "transformers")  # random; and two that take more than a name
RUN = "run: "
DEPTH = 4  # folders below the one with the runs: a sweep of sweeps
MOST = 500  # runs that are listed


class ModelChoices:
    """What can be chosen.

    Args:
        model: The command line's own model: a backbone, a run's folder or a configuration line.
        runs: A folder of run directories; there may be none.
    """

    def __init__(self, model: str, runs: Path) -> None:
        self.model, self.runs = model, runs

    def names(self) -> list[str]:
        """List them: the command line's own first, backbones, runs that there are by now."""
        known = list_backbones()
        own = [] if self.model in known else [self.model]
        return [*own, *known, *(f"{RUN}{name}" for name in find_runs(self.runs))]

    def line(self, name: Any) -> str:
        """Return what `Matcher.load` takes for a name.

        Raises:
            UserError: It is none of `names`.
        """
        if isinstance(name, str):
            if name == self.model or name in list_backbones():
                return name
            run = name.removeprefix(RUN)
            if name.startswith(RUN) and run in find_runs(self.runs):
                return str(self.runs / run)
        raise UserError("There is no such model in the list, or no longer. Choose one; the list is read anew when the "
                        "page is loaded.")  # fmt: skip

    def name(self, line: str) -> str:
        """Return the name of a line that `line` gave."""
        if line == self.model or line in list_backbones():
            return line
        return f"{RUN}{Path(line).relative_to(self.runs)}"


def list_backbones() -> list[str]:
    """Names to choose from."""
    return sorted(path.stem for path in (conf_dir() / "backbone").glob("*.yaml") if path.stem not in NO_NAMES)


def find_runs(folder: Path) -> list[str]:
    """List run directories in a folder and below it, by their path from there.

    A run directory holds a config.yaml. Folders that are links are passed over, and a config.yaml that is a link out.
    """
    root = folder.resolve()
    found = []
    for run in _walk(root):
        config = run / "config.yaml"
        if config.is_file() and config.resolve().is_relative_to(root):
            found.append(str(run.relative_to(root)))
            if len(found) == MOST:
                break
    return sorted(name for name in found if name != "." and name.isprintable())


def _walk(root: Path) -> Iterator[Path]:
    for at, names, _ in os.walk(root, followlinks=False):
        place = Path(at)
        deep = len(place.relative_to(root).parts) >= DEPTH
        names[:] = [] if deep else sorted(name for name in names if not name.startswith("."))
        yield place
