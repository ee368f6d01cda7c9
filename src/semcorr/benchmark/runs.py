"""The runs of a benchmark: a dataset's tree, a backbone, and the configuration that a command line composes."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from hydra import compose
from omegaconf import DictConfig

from semcorr.benchmark.synthetic_spair import default_folder, write_spair_scale
from semcorr.cli.compose import initialize_hydra
from semcorr.core.errors import UserError
from semcorr.engine.packages import list_choices

SCALES = ("demo", "spair")


GPU = ("trainer=auto", "trainer.accelerator=gpu")


class RunSpec(NamedTuple):
    """The specification of a run, which a fresh process can receive.

    Attributes:
        data: Name of the benchmark's configuration: `spair` or `synthetic`.
        root: Folder of the benchmark.
        device: `cpu` or `cuda`.
        overrides: Further overrides of the configuration.
    """

    data: str
    root: str
    device: str
    overrides: tuple[str, ...] = ()

    def with_overrides(self, *overrides: str) -> "RunSpec":
        """Return the same run with more overrides."""
        return self._replace(overrides=(*self.overrides, *overrides))


def build_run_spec(
    root: Path | None,
    scale: str,
    folder: Path | None,
    device: str,
    backbone: str,
    size: int | None,
    random: bool,
    part: float = 1.0,
) -> RunSpec:
    """Choose tree and backbone; write a tree of SPair-71k's shape now, so that no measurement waits for it.

    Args:
        root: A tree in SPair-71k's layout; None for one that is generated.
        scale: Generated tree: `demo`, drawn creatures; `spair`, SPair-71k's shape. Without effect beside `root`.
        folder: Folder of the generated tree; None, one for temporary files.
        device: `cpu` or `cuda`.
        backbone: Name of a backbone.
        size: Side of the square that images are resized to, in pixels; None, the backbone's own.
        random: Whether its weights are random.
        part: Share of the images of SPair-71k's shape that are written, more than 0 and at most 1.

    Raises:
        UserError: An option is out of range, or a folder or backbone does not exist.
    """
    if scale not in SCALES:
        raise UserError(f"--scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if part != 1 and scale != "spair":
        raise UserError(f"--part has no effect with --scale {scale}. Give --scale spair, or leave it out.")
    if root is not None and not root.is_dir():
        raise UserError(f"--root: {root} is not a folder. Give a tree in SPair-71k's layout, or --scale")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UserError(f"--folder: {folder} is a file. Give a folder")
    choices = list_choices("backbone")
    if backbone not in choices:
        raise UserError(f"--backbone: no backbone is called {backbone!r}. There are {', '.join(choices)}")
    overrides = [f"backbone={backbone}"]
    overrides += [f"backbone.size={size}"] if size is not None else []
    overrides += ["backbone.pretrained=false"] if random else []
    if root is not None:
        return RunSpec("spair", str(root.resolve()), device, tuple(overrides))
    if scale == "spair":
        tree = write_spair_scale((folder or default_folder()).resolve(), part)
        return RunSpec("spair", str(tree), device, tuple(overrides))
    tree = (folder or Path(tempfile.gettempdir()) / "semcorr-synthetic").resolve()
    return RunSpec("synthetic", str(tree), device, tuple(overrides))


@contextmanager
def compose_run(verb: str, run: RunSpec) -> Iterator[DictConfig]:
    """Compose the configuration of a command, with a run directory that is deleted in the end.

    Args:
        verb: `train` or `evaluate`.
        run: The run.
    """
    trainer = GPU if run.device == "cuda" else ("trainer=cpu",)
    with initialize_hydra():
        cfg = compose(verb, [f"data={run.data}", *trainer, *run.overrides])
    with tempfile.TemporaryDirectory() as run_dir:
        cfg.data.root, cfg.run_dir = run.root, run_dir
        yield cfg
