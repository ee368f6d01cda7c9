"""The runs of a benchmark: a dataset's tree, a backbone, and the configuration that a command line composes."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from semcorr.benchmark.synthetic_spair import default_folder, write_spair_scale
from semcorr.core.errors import UserError
from semcorr.engine.known_targets import conf_dir
from semcorr.engine.packages import list_choices

SCALES = ("demo", "spair")


GPU = ("trainer=auto", "trainer.accelerator=gpu")


class RunSpec(NamedTuple):
    """The specification of a run, which a fresh process can receive."""

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
    """Choose tree and backbone. A synthetic tree is written now, so that no measurement waits for it."""
    if scale not in SCALES:
        raise UserError(f"--scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if part != 1 and scale != "spair":
        raise UserError(f"--part has no effect with --scale {scale}. Give --scale spair, or leave it out.")
    if root is not None and not root.is_dir():
        raise UserError(f"--root: {root} is no folder. Give a tree in SPair-71k's layout, or --scale")
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
    """Compose the configuration of `python -m semcorr.VERB`, with a run directory that is deleted in the end."""
    GlobalHydra.instance().clear()
    trainer = GPU if run.device == "cuda" else ("trainer=cpu",)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"), tempfile.TemporaryDirectory() as run_dir:
        cfg = compose(verb, [f"data={run.data}", *trainer, *run.overrides])
        cfg.data.root, cfg.run_dir = run.root, run_dir
        yield cfg
