"""From a command line to a configuration: Hydra, our error messages, and runs that bring their own.

The only module that knows Hydra's command line. A user's mistake ends in one sentence and exit code 2.
"""

import difflib
import importlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from semcorr import sweep
from semcorr.errors import UserError
from semcorr.run_lock import lock_folder, lock_new_folder

VERBS = (
    "train", "evaluate", "prepare", "export", "store", "benchmark", "audit", "compare", "report", "match", "transfer",
    "app",
)  # fmt: skip
BROUGHT = (
    "seed", "backbone", "finetune", "head", "localise", "loss", "optimizer", "scheduler", "data", "augment", "pairs",
    "feature_dropout", "test", "trainer", "protocol",
)  # fmt: skip

LISTS = {"localise": "rules", "protocol": "names"}  # groups that take a list, and where the list goes


SHORT = r"window_\d\w*|kernel_\d[\w.]*|soft"  # read-outs that have no file of their own


def conf_dir() -> Path:
    """The configuration tree: package data in a wheel, `conf/` in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def hydra_main(task: Callable[[DictConfig], Any], name: str) -> None:
    """Run `task` on the configuration `conf/<name>.yaml` with the overrides of the command line."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, so that the message is ours
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")

    def job(cfg: DictConfig) -> Any:
        context = HydraConfig.get()
        own_dir = Path(context.runtime.output_dir)
        cfg.run_dir = str(own_dir)
        try:
            with explaining(name):
                cfg = with_checkpoint(cfg, list(context.overrides.task))
                with locked_run(cfg, context, name):
                    return task(cfg)
        finally:
            with suppress(OSError):  # Hydra makes the folder first; leave none behind that stayed empty
                own_dir.rmdir()

    name_read_outs(sys.argv[1:])
    sys.argv[1:] = spelled(sys.argv[1:])
    sweep.OUTCOMES.clear()
    with explaining(name):
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(job)()
    if sweep.OUTCOMES:
        from semcorr.sweep_table import conclude

        sys.exit(conclude(sweep.OUTCOMES) or None)


@contextmanager
def locked_run(cfg: DictConfig, context: Any, name: str) -> Iterator[None]:
    """Have the run directory for this command alone; one that nobody has named is new.

    Args:
        cfg: Its `run_dir` is replaced by the directory that it got.
        context: Hydra's own configuration, by which Lightning starts the other processes of the run.
        name: Of the command.
    """
    typed = [override.lstrip("+").partition("=")[0] for override in (*context.overrides.task, *context.overrides.hydra)]
    is_default = cfg.run_dir == context.runtime.output_dir and not {"run_dir", "hydra.run.dir"} & {*typed}
    with (lock_new_folder if is_default else lock_folder)(Path(cfg.run_dir), name) as folder:
        if is_default:
            cfg.run_dir = str(folder)
            with read_write(context), open_dict(context):
                context.run.dir = context.runtime.output_dir = str(folder)
        yield


def composed_job(cfg: DictConfig, verb: str) -> tuple[list[str], DictConfig]:
    """What was typed for a job of a sweep, and its configuration without Hydra's own part."""
    overrides = list(cfg.hydra.overrides.task)
    with open_dict(cfg):
        del cfg["hydra"]
    if verb == "train" and cfg.checkpoint is not None:
        raise UserError(
            "`checkpoint` goes on with one training run, and a sweep has many. Leave it out: the same line with the "
            "same run_dir goes on with all that are half done."
        )
    return overrides, with_checkpoint(cfg, overrides)


def composed(name: str, line: Sequence[str]) -> DictConfig:
    """The configuration of a command line that was typed elsewhere, as in Python."""
    name_read_outs(line)
    overrides = spelled(line)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose(name, [*overrides, "run_dir=runs"])  # nothing is written, and Hydra's clock is not at hand
    return with_checkpoint(cfg, overrides)


def name_read_outs(overrides: Sequence[str]) -> None:
    """Let Hydra choose read-outs by their short names, as in a sweep over localise=window_5,window_9."""
    for override in overrides:
        key, _, value = override.partition("=")
        for one in value.split(",") if key == "localise" and "[" not in value else ():
            if re.fullmatch(SHORT, one):
                node = {"_target_": "semcorr.read_outs.named", "name": one}
                ConfigStore.instance().store(group="localise", name=one, node=node, provider="semcorr")


def spelled(overrides: Sequence[str]) -> list[str]:
    """Lists of read-outs and protocols, and read-outs by their short names, as Hydra knows them.

    >>> spelled(["localise=[argmax,window_5]", "protocol=[semcorr,geoaware]"])
    ['localise=several', 'localise.rules=[argmax,window_5]', 'protocol=several', 'protocol.names=[semcorr,geoaware]']
    >>> spelled(["localise=window_5", "localise=argmax"])
    ['localise=several', 'localise.rules=[window_5]', 'localise=argmax']
    """
    found = []
    for override in overrides:
        key, _, value = override.partition("=")
        short = key == "localise" and re.fullmatch(SHORT, value)
        if key in LISTS and (short or re.fullmatch(r"\[[^\[\]]*\]", value)):
            found += [f"{key}=several", f"{key}.{LISTS[key]}={value if value.startswith('[') else f'[{value}]'}"]
        else:
            found.append(override)
    return found


@contextmanager
def explaining(name: str) -> Iterator[None]:
    """A user's mistake ends the program with a sentence; ours keeps its traceback."""
    try:
        yield
    except Exception as error:
        message = explained(error, name)
        if message is None:
            raise
        print(f"Error: {message}", file=sys.stderr)
        sys.exit(2)


def with_checkpoint(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """`checkpoint=RUN_DIR` brings that run's configuration; what was typed on the line still wins.

    Training goes on in RUN_DIR itself; evaluation writes to its own run directory.
    """
    if cfg.checkpoint is None:
        return cfg
    path = Path(cfg.checkpoint) / "config.yaml"
    if not path.is_file():
        raise UserError(f"`checkpoint`: {path} does not exist. Give the run_dir of a training run.")
    saved = OmegaConf.load(path)
    assert isinstance(saved, DictConfig)
    typed = [override.lstrip("+").partition("=")[0] for override in overrides]
    known = {*cfg, "test"} if "loss" in cfg else {*cfg}  # a training run may have been scored on another benchmark
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
                OmegaConf.update(cfg, override, value)
        if "loss" in cfg:
            cfg.run_dir = str(cfg.checkpoint)
    return cfg


def explained(error: BaseException, name: str) -> str | None:
    """What to tell the user, or None if the fault is ours."""
    for cause in _chain(error):
        if isinstance(cause, UserError):  # a loader's process prepends its traceback
            return str(cause).rsplit("UserError: ", 1)[-1].strip()
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    if type(error).__name__ == "InstantiationException":
        reason = error.__cause__
        return str(error).splitlines()[0] if isinstance(reason, TypeError | ValueError) else None
    text = str(error).strip()
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        key = unknown[1].partition("@")[0]
        near = difflib.get_close_matches(key, known_keys(name), n=2, cutoff=0.75)
        hint = f"Did you mean {' or '.join(near)}?" if near else "See the keys with --cfg job."
        return f"unknown config key `{key}`. {hint}"
    return re.sub(r"\s*\n\s*", " ", text.partition("Config search path")[0].strip())


def known_keys(name: str) -> list[str]:
    """Every key of the configuration, groups included, with what the command line chose of each group."""
    typed = (override.partition(",")[0] for override in sys.argv[1:])
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    chosen = [each for each in typed if each.partition("=")[0] in groups and not each.endswith("=")]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            cfg = compose(name, chosen)
        except HydraException:  # a choice that there is not
            cfg = compose(name)
    return sorted({*_flat(cfg), "experiment"})


def main() -> None:
    """Semcorr VERB ...: the same as python -m semcorr.VERB ..."""
    if len(sys.argv) < 2 or sys.argv[1] not in VERBS:
        print(f"Usage: semcorr VERB ...   with VERB one of {', '.join(VERBS)}", file=sys.stderr)
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    verb = sys.argv.pop(1)
    importlib.import_module(f"semcorr.{verb}").main()


def _flat(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items_ex(resolve=False):
        if str(key).startswith("_"):
            continue
        yield f"{prefix}{key!s}"
        if isinstance(value, DictConfig):
            yield from _flat(value, f"{prefix}{key!s}.")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
