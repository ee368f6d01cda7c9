"""From overrides to a configuration, also of runs that bring their own."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from semcorr.core.errors import UserError
from semcorr.core.ranges import NotEmpty, require
from semcorr.engine.known_targets import conf_dir
from semcorr.engine.saved_config import escape_interpolations, read_run_config

BROUGHT = (
    "seed", "backbone", "finetune", "head", "localise", "loss", "optimizer", "scheduler", "data", "augment", "pairs",
    "feature_dropout", "test", "trainer", "protocol", "callbacks",
)  # fmt: skip


LISTS = {"localise": "rules", "protocol": "names"}  # groups that take a list, and where the list goes


SHORT = r"window_\d\w*|kernel_\d[\w.]*|soft"  # read-outs that have no file of their own


def compose_config(name: str, line: Sequence[str]) -> DictConfig:
    """The configuration of a command line that was typed elsewhere, as in Python."""
    register_readouts(line)
    overrides = expand_list_overrides(line)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose(name, [*overrides, "run_dir=runs"])  # nothing is written, and Hydra's clock is not at hand
    return merge_checkpoint_config(cfg, overrides)


def register_readouts(overrides: Sequence[str]) -> None:
    """Let Hydra choose read-outs by their short names, as in a sweep over localise=window_5,window_9."""
    for override in overrides:
        key, _, value = override.partition("=")
        for one in value.split(",") if key == "localise" and "[" not in value else ():
            if re.fullmatch(SHORT, one):
                node = {"_target_": "semcorr.matching.readout_names.parse_readout", "name": one}
                ConfigStore.instance().store(group="localise", name=one, node=node, provider="semcorr")


def expand_list_overrides(overrides: Sequence[str]) -> list[str]:
    """Lists of read-outs, protocols and loggers, short names of read-outs, options of the Trainer, as Hydra knows them.

    >>> expand_list_overrides(["localise=[argmax,window_5]", "protocol=[semcorr,geoaware]"])
    ['localise=several', 'localise.rules=[argmax,window_5]', 'protocol=several', 'protocol.names=[semcorr,geoaware]']
    >>> expand_list_overrides(["logger=[csv,wandb]"])
    ['logger=several', '+logger@logger.csv=csv', '+logger@logger.wandb=wandb']
    >>> expand_list_overrides(["localise=window_5", "localise=argmax"])
    ['localise=several', 'localise.rules=[window_5]', 'localise=argmax']
    >>> expand_list_overrides(["trainer.enable_progress_bar=false", "trainer.max_epochs=3"])
    ['++trainer.enable_progress_bar=false', 'trainer.max_epochs=3']
    """
    found = []
    for override in overrides:
        key, _, value = override.partition("=")
        short = key == "localise" and re.fullmatch(SHORT, value)
        if key in LISTS and (short or re.fullmatch(r"\[[^\[\]]*\]", value)):
            found += [f"{key}=several", f"{key}.{LISTS[key]}={value if value.startswith('[') else f'[{value}]'}"]
        elif key == "logger" and (names := re.fullmatch(r"\[\s*([\w/]+(?:\s*,\s*[\w/]+)*)\s*\]", value)):
            each = dict.fromkeys(re.split(r"\s*,\s*", names[1]))
            found += ["logger=several", *(f"+logger@logger.{name}={name}" for name in each)]
        elif key.startswith("trainer.") and _is_left_out(key.split(".")[1]):
            found.append(f"++{override}")
        else:
            found.append(override)
    return found


def _is_left_out(option: str) -> bool:
    """Tell whether Lightning's Trainer has an option that our files do not list."""
    if option in OmegaConf.load(conf_dir() / "trainer" / "auto.yaml"):
        return False
    from semcorr.engine.trainer_options import OPTIONS, REFUSED  # Lightning takes seconds to import

    return option in {*OPTIONS, *REFUSED, "plugins"}


def merge_checkpoint_config(
    cfg: DictConfig, overrides: Sequence[str], search: tuple[str, ...] | None = None
) -> DictConfig:
    """`checkpoint=RUN_DIR` brings that run's configuration; what was typed on the line still wins.

    Training goes on in RUN_DIR itself; evaluation writes to its own run directory. Where either writes, and which
    logger and store it has, is never the run's to say. `search` is that of `saved_config.read_run_config`.
    """
    if cfg.checkpoint is None:
        return cfg
    require("checkpoint", cfg.checkpoint, NotEmpty)
    saved = read_run_config(Path(cfg.checkpoint), overrides, search, option="checkpoint", goes_on="loss" in cfg)
    if "loss" in cfg and "loss" not in saved:
        raise UserError(f"`checkpoint`: {cfg.checkpoint} is no training run. Give the run_dir of one.")
    typed = _typed(overrides)
    added = [override.lstrip("+").partition("=")[0] for override in overrides if override.startswith("+")]
    known = {*cfg, "test"} if "loss" in cfg else {*cfg}  # a training run may have been scored on another benchmark
    known -= set() if "loss" in cfg else {"callbacks"}  # of a training
    ours = [key for key in BROUGHT if key in known and key in saved]  # a run of before has no `augment`
    brought = [key for key in ours if key not in typed and "experiment" not in typed]
    if "protocol" in typed:  # it brings its own read-out, and the pixels it is defined on
        brought = [key for key in brought if key != "localise"]
        saved.data.resize = cfg.data.resize
    elif "data" in typed and not {"data.resize", "experiment"} & {*typed}:
        cfg.data.resize = saved.data.resize  # another benchmark, as the weights saw theirs
    with open_dict(cfg):
        for key in brought:
            chosen = {k: OmegaConf.select(cfg, k) for k in typed if k.startswith(f"{key}.")}
            cfg[key] = saved[key]
            OmegaConf.set_struct(cfg[key], True) if isinstance(cfg[key], DictConfig) else None
            for override, value in chosen.items():
                OmegaConf.update(cfg, override, value, force_add=override in added)
        if "loss" in cfg:
            cfg.run_dir = escape_interpolations(os.path.abspath(cfg.checkpoint))
    return cfg


def _typed(overrides: Sequence[str]) -> list[str]:
    return [override.lstrip("+").partition("=")[0] for override in overrides]


def compose_chosen_groups(name: str) -> DictConfig:
    """Compose the configuration of a verb with what the command line chose of each group, and nothing else of it."""
    typed = (override.partition(",")[0] for override in sys.argv[1:])
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    chosen = [each for each in typed if each.partition("=")[0] in groups and not each.endswith("=")]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            return compose(name, chosen)
        except HydraException:  # a choice that there is not
            return compose(name)
