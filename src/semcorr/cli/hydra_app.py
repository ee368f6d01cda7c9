"""From a command line to a configuration: Hydra, our error messages, and runs that bring their own.

The only module that knows Hydra's command line. A user's mistake ends in one sentence and exit code 2.
"""

import difflib
import errno
import importlib
import logging
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from semcorr.cli.sweep import plan as sweep
from semcorr.cli.typed_line import check_line, find_run_place, list_absent_folders
from semcorr.cli.verb_line import check_words, suggest_near
from semcorr.core import interrupt
from semcorr.core.errors import UserError
from semcorr.core.files import REASONS, write_error
from semcorr.core.interrupt import Guard, Interrupted, guard_signals
from semcorr.core.limits import explain_limit, raise_open_files
from semcorr.core.ranges import NotEmpty, require
from semcorr.core.ranks import LostProcessError, ProcessWatch, is_speaker
from semcorr.core.terminal import escape_controls
from semcorr.engine.known_targets import conf_dir, config_search_path
from semcorr.engine.run_lock import lock_folder, lock_new_folder
from semcorr.engine.saved_config import escape_interpolations, read_run_config, refuse_drawing

if TYPE_CHECKING:  # the commands that are Hydra's do without
    import typer

VERBS = (
    "train", "evaluate", "prepare", "export", "store", "benchmark", "audit", "compare", "report", "match", "transfer",
    "app",
)  # fmt: skip
BROUGHT = (
    "seed", "backbone", "finetune", "head", "localise", "loss", "optimizer", "scheduler", "data", "augment", "pairs",
    "feature_dropout", "test", "trainer", "protocol", "callbacks",
)  # fmt: skip

LISTS = {"localise": "rules", "protocol": "names"}  # groups that take a list, and where the list goes

CHEAP = ("localise", "protocol", "loss", "optimizer", "scheduler", "augment", "pairs")  # to build, to see that it works
SWEEP = "multirun.yaml"  # is written by Hydra before the first job is composed
PLACED = ("data@test",)  # groups that are chosen for another place

LINE_END = "\n"

CLOSED = 141  # exit code of who writes to a pipe that nobody reads any more
TURN = 2.0  # seconds the first process has to say an error that all processes of a run have

SHORT = r"window_\d\w*|kernel_\d[\w.]*|soft"  # read-outs that have no file of their own


def hydra_main(task: Callable[[DictConfig], Any], name: str) -> None:
    """Run `task` on the configuration `conf/<name>.yaml` with the overrides of the command line."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, so that the message is ours
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")

    has_dir = False

    def job(cfg: DictConfig) -> Any:
        nonlocal has_dir
        has_dir = True
        context = HydraConfig.get()
        own_dir = Path(context.runtime.output_dir)
        cfg.run_dir = str(own_dir)
        try:
            with report_user_errors(name):
                cfg = _resumed(cfg, list(context.overrides.task), _sources(context))
                check_run(cfg)
                with lock_run(cfg, context, name):
                    return task(cfg)
        finally:
            with suppress(OSError):  # Hydra makes the folder first; leave none behind that stayed empty
                own_dir.rmdir()

    sweep.OUTCOMES.clear()
    raise_open_files()
    with report_user_errors(name), _no_empty_folders(name):
        sys.argv[1:] = check_line(sys.argv[1:], name, conf_dir())
        register_readouts(sys.argv[1:])
        sys.argv[1:] = expand_list_overrides(sys.argv[1:])
        if "LOCAL_RANK" in os.environ and (guard := interrupt.current_guard()):  # of several, which others have started
            guard.watch(ProcessWatch([], guard.end, os.getppid()))
        try:
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(job)()
        except OSError as error:  # Hydra makes the run directory before the job
            if has_dir or error.errno not in {*REASONS, errno.EEXIST} or error.filename is None:
                raise
            raise UserError(write_error(Path(os.fsdecode(error.filename)), error, "run_dir")) from error
        if sweep.OUTCOMES:
            from semcorr.cli.sweep.table import print_summary

            sys.exit(print_summary(sweep.OUTCOMES) or None)


def check_run(cfg: DictConfig) -> None:
    """Refuse what is wrong with a configuration, before anything is locked, drawn, encoded or written.

    Args:
        cfg: Of train or evaluate; it stays as it is.
    """
    from hydra.utils import instantiate

    from semcorr.engine.build import check_config
    from semcorr.engine.trainer_options import check_trainer

    copied = cfg.copy()
    check_config(copied)
    check_trainer(copied)
    for key in CHEAP:
        if key in copied:
            instantiate(copied[key])


@contextmanager
def _no_empty_folders(name: str) -> Iterator[None]:
    """Take away the folders that Hydra made for a run that was refused."""
    place, absent = find_run_place(sys.argv[1:], name), list_absent_folders(find_run_place(sys.argv[1:], name))
    before = _contents(place)
    try:
        yield
    finally:
        for folder in (_contents(place) - before) | {*absent[:1]}:
            with suppress(OSError):
                if os.listdir(folder) == [SWEEP]:
                    (folder / SWEEP).unlink()
                folder.rmdir()
        for folder in absent:
            with suppress(OSError):
                folder.rmdir()


def _contents(folder: Path) -> set[Path]:
    """What is in a folder; nothing where there is none, or none to be seen."""
    with suppress(OSError):
        return {*folder.iterdir()}
    return set()


@contextmanager
def lock_run(cfg: DictConfig, context: Any, name: str) -> Iterator[None]:
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


def compose_sweep_job(cfg: DictConfig, verb: str) -> tuple[list[str], DictConfig]:
    """What was typed for a job of a sweep, and its configuration without Hydra's own part."""
    overrides, sources = list(cfg.hydra.overrides.task), _sources(cfg.hydra)
    with open_dict(cfg):
        del cfg["hydra"]
    if verb == "train" and cfg.checkpoint is not None:
        raise UserError(
            "`checkpoint` goes on with one training run, and a sweep has many. Leave it out: the same line with the "
            "same run_dir goes on with all that are half done."
        )
    complete = _resumed(cfg, overrides, sources)
    check_run(complete)
    return overrides, complete


def _resumed(cfg: DictConfig, overrides: Sequence[str], sources: Sequence[Mapping[str, str]]) -> DictConfig:
    """As `with_checkpoint`, in a Hydra run; nothing is drawn where only the saved configuration says."""
    complete = merge_checkpoint_config(cfg, overrides, config_search_path(str(conf_dir()), sources))
    if cfg.checkpoint is not None and not {"data", "data.root", "experiment"} & {*_typed(overrides)}:
        refuse_drawing(complete.data)
    return complete


def _sources(context: Any) -> Sequence[Mapping[str, str]]:
    """The trees of a Hydra run, with those of --config-dir and hydra.searchpath."""
    sources: Sequence[Mapping[str, str]] = context.runtime.config_sources
    return sources


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


@contextmanager
def report_user_errors(name: str) -> Iterator[None]:
    """End the program with a sentence for a user's mistake, a signal or the machine's limits; ours keep a traceback."""
    with guard_signals() as guard:
        try:
            if guard is not None:
                guard.begin()
            yield
            if sys.stdout is not None:
                sys.stdout.flush()  # a pipe that nobody reads is noticed here, not while the interpreter ends
            if guard is not None and guard.number is not None:  # and somebody has swallowed it
                raise Interrupted(guard.number)
        except BaseException as error:
            code = end_program(error, name, guard)
            if code is None:
                raise
            sys.exit(code)


def run_app(app: "typer.Typer", line: Sequence[str] | None = None, prog_name: str | None = None) -> None:
    """Run a Typer application: whatever goes wrong in it, or with its line, goes through the same door.

    Args:
        app: Its commands.
        line: Its words; those of the program, if left out.
        prog_name: As --help calls it.
    """
    import typer

    raise_open_files()
    with report_user_errors("evaluate"):
        command = typer.main.get_command(app)
        words = check_words(command, sys.argv[1:] if line is None else line)
        try:
            code = command.main(words, prog_name, standalone_mode=False)
        except (typer.Abort, EOFError):  # at a question
            raise KeyboardInterrupt from None
        except Exception as error:
            if isinstance(error, typer.BadParameter.__mro__[2]):  # any that `check_words` has not foreseen
                told = getattr(error, "format_message", error.__str__)()
                raise UserError(" ".join(told.split())) from None
            raise
        sys.exit(code if isinstance(code, int) else 0)


def end_program(error: BaseException, name: str, guard: Guard | None = None) -> int | None:
    """Say why the program ends, and end what it has started; return its exit code, None if the fault is ours.

    Args:
        error: What came to the door.
        name: Of the configuration tree, for keys that there are not.
        guard: Over the signals of this process.
    """
    if isinstance(error, Interrupted | KeyboardInterrupt) or (guard is not None and guard.number is not None):
        code = (guard or Guard()).say()
        if guard is not None and guard.number is not None:
            interrupt.end_children()
        return code
    if _is_closed(error):
        return CLOSED
    if not isinstance(error, Exception):
        return None
    ranks = guard.ranks if guard is not None else None
    lost = error if isinstance(error, LostProcessError) else ranks and ranks.explain(error)
    message, code = (str(lost), lost.code) if lost else (user_message(error, name), 2)
    if message and lost and guard is not None:
        message = guard.complete(message)
    if not lost and not is_speaker():
        time.sleep(TURN)
    if ranks is not None:
        ranks.kill()
        interrupt.leave_within_seconds(1 if message is None else code)
    for word in sys.argv[1:] if message else ():
        if LINE_END in word:  # of a file's name, which must not pass for another line
            message = str(message).replace(word, escape_controls(word))
    if message:
        print(f"Error: {escape_controls(message, keep=LINE_END)}", file=sys.stderr)
    return None if message is None else code


def _is_closed(error: BaseException) -> bool:
    """Tell whether nobody reads what we print, as behind `| head`; nothing more is printed then.

    Rich and click turn the error into an exit of their own.
    """
    if isinstance(error, SystemExit):
        closed = any(isinstance(cause, BrokenPipeError) for cause in _chain(error))
    else:
        closed = isinstance(error, BrokenPipeError) and any(map(_is_unread, (1, 2)))
    if closed:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in filter(_is_unread, (1, 2)):
            os.dup2(nowhere, number)
        os.close(nowhere)
    return closed


def _is_unread(number: int) -> bool:
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


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


def user_message(error: BaseException, name: str) -> str | None:
    """What to tell the user, or None if the fault is ours."""
    for cause in _chain(error):
        if isinstance(cause, UserError):  # a loader's process prepends its traceback
            return str(cause).rsplit("UserError: ", 1)[-1].strip()
    if isinstance(error, LostProcessError):
        return str(error) or "another process of this run has failed, and says why"
    if (limit := explain_limit(error)) is not None:
        return limit
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    if type(error).__name__ == "InstantiationException":
        reason, located = error.__cause__, re.match(r"Error locating target '[^']*'", str(error))
        if located:  # typed, or of a plug-in
            return f"{located[0]} ({reason}). Correct `_target_`, or install what it is in."
        if type(reason).__name__ == "MisconfigurationException":  # Lightning's, of its own options
            return f"`trainer`: {' '.join(str(reason).split())}"
        return str(error).splitlines()[0] if isinstance(reason, TypeError | ValueError) else None
    text = str(error).strip()
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        return _unknown_choice(str(error.missing_cfg_file), list(error.options or ()))
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        key = unknown[1]
        cfg = compose_chosen_groups(name)
        listed, others = [*_flat(cfg), "experiment", *PLACED], _unlisted_options(cfg, key.rpartition(".")[0])
        if key in others:
            return f"`{key}` is an option that the configuration does not list. Put + before it: +{key}=VALUE"
        candidates = {each for each in (*listed, *others) if not key.startswith(f"{each}.")}
        near = difflib.get_close_matches(key, candidates, n=2, cutoff=0.75)
        near = [each if each in listed else f"+{each}" for each in near]
        hint = f"Did you mean {' or '.join(near)}?" if near else "See the keys with --cfg job."
        if key.startswith("test.") or key == "test":
            hint = "A second benchmark is chosen first: data@test=NAME."
        return f"unknown config key `{key}`. {hint}"
    return re.sub(r"\s*\n\s*", " ", text.partition("Config search path")[0].strip())


def _unknown_choice(given: str, options: list[str]) -> str:
    """Say that a group has no such file, with those that are near, or all there are."""
    group, _, choice = given.rpartition("/")
    top, folder = group.partition("/")[0], conf_dir() / group.partition("/")[0]
    nested = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("*/**/*.yaml")]
    whole = given.removeprefix(f"{top}/") if top else choice
    names = sorted({*(f"{group}/{each}".removeprefix(f"{top}/") for each in options), *nested})
    near = difflib.get_close_matches(whole, names, n=3, cutoff=0.6) or [
        name for name in names if name.startswith(whole)
    ]
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(names)}."
    return f"`{top or choice}` has no choice {whole!r}. {hint}"


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


def _unlisted_options(cfg: DictConfig, section: str) -> list[str]:
    """Return, as whole keys, what the call of a section may be given and the configuration does not list."""
    from semcorr.engine.options import accepted_options

    node = OmegaConf.select(cfg, section) if section else None
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return []
    taken = accepted_options(node._target_, node)
    return [f"{section}.{name}" for name in taken.stated if name not in (*node, *taken.required)] if taken else []


def main() -> None:
    """Semcorr VERB ...: the same as python -m semcorr.VERB ..."""
    typed = sys.argv[1] if len(sys.argv) > 1 else ""
    if typed in ("-h", "--help"):
        print(f"Usage: semcorr VERB ...   with VERB one of {', '.join(VERBS)}; semcorr VERB --help says more")
        return
    with report_user_errors("evaluate"):
        if not typed:
            raise UserError(f"no command is given. Give semcorr VERB, with VERB one of {', '.join(VERBS)}.")
        if typed not in VERBS:
            raise UserError(f"there is no command `{typed}`. {suggest_near(typed, VERBS)}")
        del sys.argv[1]
        importlib.import_module(f"semcorr.{typed}").main()


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
