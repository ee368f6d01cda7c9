"""Configurations from overrides, and from runs whose configuration is inherited."""

import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from semcorr.cli.section_shapes import check_sections
from semcorr.core.errors import UserError
from semcorr.core.ranges import NotEmpty, require
from semcorr.engine.known_targets import conf_dir, config_search_path
from semcorr.engine.packages import check_line_trees
from semcorr.engine.run_dir import is_shared
from semcorr.engine.saved_config import escape_interpolations, read_run_config

if TYPE_CHECKING:
    from semcorr.data.evaluation_only import EvaluationBenchmark

# Sections of a run that another run inherits, unless they are typed.
INHERITED_KEYS = (
    "seed", "backbone", "finetune", "head", "localise", "loss", "optimizer", "scheduler", "data", "augment", "pairs",
    "feature_dropout", "test", "trainer", "protocol", "callbacks",
)  # fmt: skip
# Those of a training that is resumed: with them its config.yaml is that of an uninterrupted one.
RESUMED_KEYS = ("start_from", "monitor", "keep_from", "corrupt", "pose", "compile", "name")


LISTS = {"localise": "rules", "protocol": "names"}  # groups that take a list, and where the list goes


PROTOCOL_READOUT = "semcorr.matching.readouts.ProtocolReadout"


STEPS = ("backbone.debias", "backbone.upsample")  # options that any backbone has, and no file of one lists


SHORT = r"window_\d\w*|kernel_\d[\w.]*|soft"  # readouts that have no file of their own
UPSAMPLERS = r"(?!(?:null|true|false)$)[A-Za-z_][\w,]*"  # names of files
COMPOSING = threading.RLock()  # Hydra has one state in a process
SEVERE = r"(?!none_)([a-z_]+)_([1-9]\d*)"  # a corruption and its severity


@contextmanager
def initialize_hydra() -> Iterator[None]:
    """Initialise Hydra on the configurations of this package, and leave the state of a caller's Hydra as it was.

    Configurations are composed in a Hydra application of a user's own, too, and in several threads.
    """
    with COMPOSING:
        caller = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(conf_dir()), version_base="1.3"):
                yield
        finally:
            GlobalHydra.instance().hydra = caller


def compose_config(name: str, line: Sequence[str]) -> DictConfig:
    """Compose the configuration of a command line that is given as a list, as in Python.

    Args:
        name: Name of the configuration, such as `evaluate`.
        line: Words of the line, as `backbone=dinov2`.

    Raises:
        UserError: An override cannot be expanded, or the run of `checkpoint` cannot be used.
        HydraException: The line cannot be composed.
    """
    check_line_trees(read_search_path(line), "hydra.searchpath")
    register_readouts(line)
    overrides = expand_list_overrides(line)
    with initialize_hydra():
        cfg = compose(name, [*overrides, "run_dir=runs"])  # nothing is written, and Hydra's clock is not at hand
    return merge_checkpoint_config(cfg, overrides, config_search_path(str(conf_dir())) + read_search_path(line))


def read_search_path(line: Sequence[str]) -> tuple[str, ...]:
    """Return the trees that a line adds by `hydra.searchpath=[pkg://my_package.conf, file:///my/conf]`."""
    texts = [override for override in line if override.lstrip("+").startswith("hydra.searchpath=")]
    value = OverridesParser.create().parse_override(texts[-1]).value() if texts else None
    if not isinstance(value, list):
        return ()
    addresses = OmegaConf.create(value)
    with suppress(OmegaConfBaseException):  # Hydra reports it
        OmegaConf.resolve(addresses)
    return tuple(str(address) for address in addresses._iter_ex(resolve=False))


def read_line_trees(words: Sequence[str]) -> tuple[str, ...]:
    """Return the trees that a line adds by `--config-dir` and `hydra.searchpath`.

    >>> read_line_trees(["--config-dir", "my/conf", "hydra.searchpath=[pkg://my_package.conf]"])
    ('my/conf', 'pkg://my_package.conf')
    """
    folders = list[str]()
    for word, after in zip(words, (*words[1:], ""), strict=False):
        flag, _, folder = word.partition("=")
        folders += [folder or after] if flag in ("--config-dir", "-cd") else []
    return (*folders, *read_search_path(words))


def register_readouts(overrides: Sequence[str]) -> None:
    """Register short names of readouts and corruptions with Hydra, as in a sweep over localise=window_5,window_9."""
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "corrupt" and "," in value:
            register_severities(value.split(","))
        elif key == "experiment":  # its sweep may have them
            names = [path.stem for path in sorted((conf_dir() / "corrupt").glob("*.yaml"))]
            register_severities(f"{name}_{severity}" for name in names for severity in range(1, 6))
        for name in value.split(",") if key == "localise" and "[" not in value else ():
            if re.fullmatch(SHORT, name):
                node = {"_target_": "semcorr.matching.readouts.parse_readout", "name": name}
                ConfigStore.instance().store(group="localise", name=name, node=node, provider="semcorr")


def register_severities(names: Iterable[str]) -> None:
    """Register those names that are of a corruption and its severity, as fog_3."""
    for name in names:
        if match := re.fullmatch(SEVERE, name):
            node = {"defaults": [match[1], "_self_"], "severity": int(match[2])}
            ConfigStore.instance().store(group="corrupt", name=name, node=node, provider="semcorr")


def expand_list_overrides(overrides: Sequence[str]) -> list[str]:
    """Expand overrides that Hydra does not know to those that it knows; leave the others as they are.

    Expanded are lists of readouts, protocols and loggers, short names of readouts and of corruptions, steps after the
    features of a backbone, and options of the Trainer.

    Raises:
        UserError: An upsampler is swept over together with null.

    >>> expand_list_overrides(["localise=[argmax,window_5]", "protocol=[semcorr,geoaware]"])
    ['localise=several', 'localise.rules=[argmax,window_5]', 'protocol=several', 'protocol.names=[semcorr,geoaware]']
    >>> expand_list_overrides(["logger=[csv,wandb]"])
    ['logger=several', '+logger@logger.csv=csv', '+logger@logger.wandb=wandb']
    >>> expand_list_overrides(["localise=window_5", "localise=argmax"])
    ['localise=several', 'localise.rules=[window_5]', 'localise=argmax']
    >>> expand_list_overrides(["corrupt=fog_3"])
    ['corrupt=fog', 'corrupt.severity=3']
    >>> expand_list_overrides(["backbone.debias=20", "backbone.upsample=joint_bilateral"])
    ['++backbone.debias=20', '+upsample@backbone.upsample=joint_bilateral']
    >>> expand_list_overrides(["trainer.enable_progress_bar=false", "trainer.max_epochs=3"])
    ['++trainer.enable_progress_bar=false', 'trainer.max_epochs=3']
    """
    expanded = []
    for override in overrides:
        key, _, value = override.partition("=")
        short = key == "localise" and re.fullmatch(SHORT, value)
        if key in LISTS and (short or re.fullmatch(r"\[[^\[\]]*\]", value)):
            expanded += [f"{key}=several", f"{key}.{LISTS[key]}={value if value.startswith('[') else f'[{value}]'}"]
        elif key == "logger" and (match := re.fullmatch(r"\[\s*([\w/]+(?:\s*,\s*[\w/]+)*)\s*\]", value)):
            names = dict.fromkeys(re.split(r"\s*,\s*", match[1]))
            expanded += ["logger=several", *(f"+logger@logger.{name}={name}" for name in names)]
        elif key == "corrupt" and (match := re.fullmatch(SEVERE, value)):
            expanded += [f"corrupt={match[1]}", f"corrupt.severity={match[2]}"]
        elif key == "backbone.upsample" and "," in value and "null" in value.split(","):
            raise UserError(f"`{override}`: a sweep is over names. Give null a line of its own, or leave it out.")
        elif key == "backbone.upsample" and re.fullmatch(UPSAMPLERS, value):
            expanded.append(f"+upsample@{override}")
        elif key in STEPS or (key.startswith("trainer.") and _is_unlisted_option(key.split(".")[1])):
            expanded.append(f"++{override}")
        else:
            expanded.append(override)
    return expanded


def _is_unlisted_option(option: str) -> bool:
    """Tell whether Lightning's Trainer has an option that our files do not list."""
    if option in OmegaConf.load(conf_dir() / "trainer" / "auto.yaml"):
        return False
    from semcorr.engine.trainer_options import OPTIONS, REFUSED_OPTIONS  # Lightning takes seconds to import

    return option in {*OPTIONS, *REFUSED_OPTIONS, "plugins"}


def merge_checkpoint_config(
    cfg: DictConfig, overrides: Sequence[str], search: tuple[str, ...] | None = None
) -> DictConfig:
    """Merge the configuration of the run that `checkpoint=RUN_DIR` names; what was typed on the line still wins.

    Training continues in RUN_DIR itself; evaluation writes to its own run directory. Neither inherits the run
    directory, the logger or the store.

    Args:
        cfg: Composed configuration of train or evaluate; it is changed.
        overrides: Overrides of the command line.
        search: Trees whose files say what the run may call, as in `saved_config.read_run_config`; None: semcorr's own
            and those of installed plug-ins.

    Raises:
        UserError: A section lacks something, the run cannot be read or continued, or a readout was typed for a
            benchmark without one.
    """
    check_sections(cfg, overrides, search or config_search_path(str(conf_dir())))
    refuse_unused_readout(cfg, overrides)
    if cfg.checkpoint is None:
        return cfg
    require("checkpoint", cfg.checkpoint, NotEmpty)
    saved_cfg = read_run_config(Path(cfg.checkpoint), overrides, search, option="checkpoint", resumes="loss" in cfg)
    if "loss" in cfg and "loss" not in saved_cfg:
        raise UserError(f"`checkpoint`: {cfg.checkpoint} is not a training run. Give the run_dir of one.")
    if "loss" in cfg and is_shared(Path(cfg.checkpoint)):
        raise UserError(
            f"`checkpoint`: {cfg.checkpoint} was exported for sharing, without the state of the optimiser, so its "
            "training cannot go on. Give the run_dir it was exported from, or train again without `checkpoint`."
        )
    line_keys = override_keys(overrides)
    added_keys = override_keys([override for override in overrides if override.startswith("+")])
    chosen_keys = override_keys([override for override in overrides if "@" in override.partition("=")[0]])
    allowed = {*cfg, "test"} if "loss" in cfg else {*cfg}  # a training run may have been scored on another benchmark
    allowed -= set() if "loss" in cfg else {"callbacks"}  # those of a training
    candidates = INHERITED_KEYS + (RESUMED_KEYS if "loss" in cfg else ())
    available = [key for key in candidates if key in allowed and key in saved_cfg]  # older runs have no `augment`
    inherited = [key for key in available if key not in line_keys and "experiment" not in line_keys]
    if "protocol" not in line_keys and find_own_protocol(cfg.data) is not None:
        own_readout = ["localise"] if saved_cfg.localise.get("_target_") == PROTOCOL_READOUT else []
        inherited = [key for key in inherited if key not in ("protocol", *own_readout)]
    if "protocol" in line_keys:  # it has its own readout, and the pixels it is defined on
        inherited = [key for key in inherited if key != "localise"]
        saved_cfg.data.resize = cfg.data.resize
    elif "data" in line_keys and not {"data.resize", "experiment"} & {*line_keys}:
        cfg.data.resize = saved_cfg.data.resize  # another benchmark, in the geometry that the weights were trained on
    with open_dict(cfg):
        for key in inherited:
            line_values = {k: OmegaConf.select(cfg, k) for k in line_keys if k.startswith(f"{key}.")}
            cfg[key] = saved_cfg[key]
            OmegaConf.set_struct(cfg[key], True) if isinstance(cfg[key], DictConfig) else None
            for option, value in line_values.items():
                is_chosen = option in chosen_keys  # a file's options replace those of the file before
                OmegaConf.update(cfg, option, value, merge=not is_chosen, force_add=option in added_keys)
        if "loss" in cfg:
            cfg.run_dir = escape_interpolations(os.path.abspath(cfg.checkpoint))
    return cfg


def find_own_protocol(section: DictConfig) -> "type[EvaluationBenchmark] | None":
    """Return the class of a section's benchmark if it has a protocol of its own, of which there is only one."""
    from semcorr.data.evaluation_only import EvaluationBenchmark  # Lightning takes seconds to import
    from semcorr.engine.run_config import find_benchmark

    benchmark = find_benchmark(section) if isinstance(section.get("_target_"), str) else None
    return benchmark if isinstance(benchmark, type) and issubclass(benchmark, EvaluationBenchmark) else None


def refuse_unused_readout(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse a readout that was typed for a benchmark that is scored without one.

    Args:
        cfg: Composed configuration of train or evaluate.
        overrides: Overrides of the command line.

    Raises:
        UserError: A readout was typed, and the benchmark has none.
    """
    typed = next((key for key in override_keys(overrides) if key.partition(".")[0] == "localise"), None)
    if typed is None or (benchmark := find_own_protocol(cfg.data)) is None or benchmark.has_readout:
        return
    raise UserError(f"`{typed}`: {benchmark.name} has no readout, so it would change nothing. Leave it out.")


def override_keys(overrides: Sequence[str]) -> list[str]:
    """Return the keys of overrides, without the sign and the name of a group before them.

    >>> override_keys(["+upsample@backbone.upsample=anyup", "data@test=spair", "seed=1"])
    ['backbone.upsample', 'test', 'seed']
    """
    keys = (override.lstrip("+").partition("=")[0] for override in overrides)
    return [key.rpartition("@")[2] for key in keys]


def compose_chosen_groups(name: str, words: Sequence[str]) -> DictConfig:
    """Compose a configuration with what a line chose of each group, and nothing else of the line.

    Args:
        name: Name of the configuration, such as `train`.
        words: Words of the line.
    """
    overrides = expand_list_overrides([override.partition(",")[0] for override in words])
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    choices = [text for text in overrides if text.partition("=")[0] in groups and not text.endswith("=")]
    if trees := read_line_trees(words):
        choices.append(f"hydra.searchpath={json.dumps(trees)}")
    with initialize_hydra():
        try:
            return compose(name, choices)
        except HydraException:  # an unknown choice
            return compose(name)
