"""Commands of Hydra: from a command line to a configuration, with our error messages and inherited configurations.

The only module that runs Hydra's application. A user's mistake ends in one sentence and exit code 2.
"""

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.main import _get_rerun_conf
from hydra.version import setbase
from omegaconf import DictConfig, open_dict, read_write

from semcorr.cli.compose import (
    expand_list_overrides,
    merge_checkpoint_config,
    override_keys,
    register_readouts,
)
from semcorr.cli.errors import report_user_errors, run_and_report
from semcorr.cli.sweep.plan import MULTIRUN, JobOutcome
from semcorr.cli.typed_line import check_line, find_run_place, list_absent_folders
from semcorr.core import interrupt
from semcorr.core.errors import UserError
from semcorr.core.files import REASONS, write_error, write_text
from semcorr.core.late_imports import postpone_compiler
from semcorr.core.limits import raise_open_files
from semcorr.core.ranks import ProcessWatch, is_first_process
from semcorr.core.terminal import configure_logging, print_line
from semcorr.core.typed_settings import record_settings
from semcorr.engine.known_targets import conf_dir, config_search_path
from semcorr.engine.lean_lightning import import_lightning
from semcorr.engine.run_lock import lock_folder, lock_new_folder
from semcorr.engine.saved_config import refuse_generating

HEADLINE_GROUPS = ("experiment", "data", "backbone", "finetune", "head", "protocol")  # in the first line of a run
# To build, to see that it works.
QUICK_SECTIONS = ("localise", "protocol", "loss", "optimizer", "scheduler", "augment", "pairs", "pose", "corrupt")


@dataclass
class HydraTask:
    """Task of a command as Hydra takes it: called for a run; for a sweep, launchers record the outcomes of its jobs.

    Args:
        task: Function that runs a configuration.
        name: Name of the command and of its configuration, such as `train`.

    Attributes:
        is_started: Whether it was called, so that the run directory exists.
        outcomes: Outcomes of a sweep's jobs by the identities of these: Hydra hands nothing back from a multirun.
    """

    task: Callable[[DictConfig], object]
    name: str
    is_started: bool = field(default=False, init=False)
    outcomes: dict[str, JobOutcome] = field(default_factory=dict, init=False)

    def __call__(self, cfg: DictConfig) -> object:
        """Check a configuration, lock its run directory and run the task."""
        self.is_started = True
        import_lightning()
        context = cast("DictConfig", HydraConfig.get())  # Hydra declares the dataclass of its schema
        output_dir = Path(context.runtime.output_dir)
        cfg.run_dir = str(output_dir)
        try:
            with report_user_errors(self.name):
                print_line(f"{self.name}: {_describe_choices(cfg, context)}")
                cfg = _complete_config(cfg, list(context.overrides.task), _config_sources(context))
                _refuse_second_place(cfg, context)
                check_run(cfg)
                with lock_run(cfg, context, self.name):
                    return self.task(cfg)
        finally:
            with suppress(OSError):  # Hydra makes the folder first; leave none behind that stayed empty
                output_dir.rmdir()


def hydra_main(
    task: Callable[[DictConfig], object], name: str, summary: str, examples: Sequence[str], words: Sequence[str]
) -> int:
    """Run `task` on the configuration `conf/<name>.yaml` with the overrides of a line, and return the exit code.

    Args:
        task: Function that runs a configuration.
        name: Name of the command and of its configuration, such as `train`.
        summary: What the command does, in a sentence, for its help.
        examples: Lines of the command without the program, for its help, as `backbone=dinov2 finetune.blocks=2`.
        words: Words of the line.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, so that the message is ours
    configure_logging()

    def run() -> int:
        if {"-h", "--help"} & {*words}:
            from semcorr.cli.hydra_help import print_help

            print_help(name, summary, examples)
            return 0
        with _remove_empty_folders(words, name):
            return _run_line(HydraTask(task, name), words)

    raise_open_files()
    return run_and_report(run, words, name)


def _run_line(task: HydraTask, words: Sequence[str]) -> int:
    """Run a task, or the jobs of a sweep, on the configuration of a line; return the exit code."""
    line = check_line(words, task.name, conf_dir())
    register_readouts(line)
    if "LOCAL_RANK" in os.environ and (guard := interrupt.current_guard()):  # one process of several
        guard.watch(ProcessWatch([], guard.end, os.getppid()))
    try:
        with record_settings(line):
            _run_hydra_line(task, expand_list_overrides(line))
    except OSError as error:  # Hydra makes the run directory before the job
        if task.is_started or error.errno not in {*REASONS, errno.EEXIST} or error.filename is None:
            raise
        raise UserError(write_error(Path(os.fsdecode(error.filename)), error, "run_dir")) from error
    if not task.outcomes:
        return 0
    from semcorr.cli.sweep.table import print_summary

    return print_summary([*task.outcomes.values()])


def _run_hydra_line(task: HydraTask, line: Sequence[str]) -> None:
    """Do what `hydra.main` does, with a line that it is handed: `hydra.main` parses `sys.argv`.

    Lightning repeats `sys.argv` for the other processes of a run, which read it as this one did: it stays as typed.
    """
    setbase("1.3")
    parser = get_args_parser()
    arguments = parser.parse_args([*line])
    if arguments.experimental_rerun is not None:
        task(_get_rerun_conf(arguments.experimental_rerun, arguments.overrides))
    else:
        _run_hydra(arguments, parser, task, str(conf_dir()), task.name)


def _describe_choices(cfg: DictConfig, context: DictConfig) -> str:
    """Describe what a line chose of the groups that decide what a run does; the others are those of `checkpoint`."""
    choices, typed = context.runtime.choices, {*override_keys(context.overrides.task)}
    inherits = cfg.checkpoint is not None and "experiment" not in typed
    groups = [group for group in HEADLINE_GROUPS if choices.get(group) is not None and (group in typed or not inherits)]
    run = [f"checkpoint={cfg.checkpoint}"] if cfg.checkpoint is not None else []
    return ", ".join([*run, *(f"{group}={choices[group]}" for group in groups)])


def _refuse_second_place(cfg: DictConfig, context: DictConfig) -> None:
    """Refuse a run directory that was typed for a training that is resumed in its own.

    Args:
        cfg: Complete configuration, with the directory of the run.
        context: Hydra's own configuration, with the directory that was typed.
    """
    if "loss" not in cfg or cfg.checkpoint is None or not is_first_process():  # Lightning types it for the others
        return
    place = Path(context.runtime.output_dir)
    if _is_place_typed(context) and place.resolve() != Path(cfg.run_dir).resolve():
        raise UserError(
            f"`run_dir` has no effect beside `checkpoint`: a resumed run stays in its directory, got {place}. Leave it "
            f"out, copy {cfg.checkpoint} and give checkpoint=COPY, or train its best weights further as a new run by "
            f"start_from={cfg.checkpoint} run_dir=NEW"
        )


def _is_place_typed(context: DictConfig) -> bool:
    """Tell whether a line names a run directory."""
    keys = (override.lstrip("+").partition("=")[0] for override in (*context.overrides.task, *context.overrides.hydra))
    return bool({"run_dir", "hydra.run.dir"} & {*keys})


def check_run(cfg: DictConfig) -> None:
    """Refuse what is wrong with a configuration, before anything is locked, drawn, encoded or written.

    Args:
        cfg: Configuration of train or evaluate; it is not changed.

    Raises:
        UserError: An option is unknown, has a value that is not allowed, or does not go with another.
    """
    from semcorr.cli.sweep.objective import check_objective
    from semcorr.engine.run_config import check_config
    from semcorr.engine.trainer_options import check_trainer

    copy = cfg.copy()
    with postpone_compiler():  # backbones are imported to see what options they take
        check_config(copy)
        from semcorr.engine.build import build_part
    check_objective(copy.objective)
    check_trainer(copy)
    for key in QUICK_SECTIONS:
        if key in copy:
            build_part(key, copy[key])


@contextmanager
def _remove_empty_folders(words: Sequence[str], name: str) -> Iterator[None]:
    """Undo what Hydra did for a run that was refused: remove its folders, restore the line of the sweep before."""
    run_place = find_run_place(words, name)
    absent = list_absent_folders(run_place)
    before, multirun = _list_folder(run_place), _read_file(run_place / MULTIRUN)
    try:
        yield
    except Exception:  # a sweep that has not begun: errors of its jobs are outcomes
        if multirun is not None and _read_file(run_place / MULTIRUN) not in (multirun, None):
            write_text(run_place / MULTIRUN, multirun, "run_dir")
        raise
    finally:
        for folder in (_list_folder(run_place) - before) | {*absent[:1]}:
            with suppress(OSError):
                if os.listdir(folder) == [MULTIRUN]:
                    (folder / MULTIRUN).unlink()
                folder.rmdir()
        for folder in absent:
            with suppress(OSError):
                folder.rmdir()


def _read_file(path: Path) -> str | None:
    """Return the text of a file; None if there is none."""
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text()
    return None


def _list_folder(folder: Path) -> set[Path]:
    """List what is in a folder; nothing if it does not exist or cannot be read."""
    with suppress(OSError):
        return {*folder.iterdir()}
    return set()


@contextmanager
def lock_run(cfg: DictConfig, context: DictConfig, name: str) -> Iterator[None]:
    """Lock the run directory for this command alone until the block ends; make a new one where none was named.

    Args:
        cfg: Configuration, whose `run_dir` is replaced by the directory that is locked.
        context: Hydra's own configuration, by which Lightning starts the other processes of the run.
        name: Name of the command.
    """
    is_default = cfg.run_dir == context.runtime.output_dir and not _is_place_typed(context)
    with (lock_new_folder if is_default else lock_folder)(Path(cfg.run_dir), name) as folder:
        if is_default:
            cfg.run_dir = str(folder)
            with read_write(context), open_dict(context):
                context.run.dir = context.runtime.output_dir = str(folder)
        yield


def compose_sweep_job(cfg: DictConfig, verb: str) -> tuple[list[str], DictConfig]:
    """Return the overrides of a job of a sweep, and its complete configuration without Hydra's own part.

    Args:
        cfg: Configuration as Hydra composed it for the job; its own part is removed from it.
        verb: Command of the job, `train` or `evaluate`.

    Raises:
        UserError: The configuration is refused, or continues one training run.
    """
    overrides, sources = list(cfg.hydra.overrides.task), _config_sources(cfg.hydra)
    with open_dict(cfg):
        del cfg["hydra"]
    if verb == "train" and cfg.checkpoint is not None:
        raise UserError(
            "`checkpoint` goes on with one training run, and a sweep has many. Leave it out: the same line with the "
            "same run_dir goes on with all that are half done."
        )
    complete = _complete_config(cfg, overrides, sources)
    check_run(complete)
    return overrides, complete


def _complete_config(cfg: DictConfig, overrides: Sequence[str], sources: Sequence[Mapping[str, str]]) -> DictConfig:
    """Merge the configuration of `checkpoint`; refuse to draw a benchmark that only the saved configuration names."""
    complete = merge_checkpoint_config(cfg, overrides, config_search_path(str(conf_dir()), sources))
    if cfg.checkpoint is not None and not {"data", "data.root", "experiment"} & {*override_keys(overrides)}:
        refuse_generating(complete.data)
    return complete


def _config_sources(context: DictConfig) -> Sequence[Mapping[str, str]]:
    """Return the folders of configurations of a Hydra run, with those of --config-dir and hydra.searchpath."""
    sources: Sequence[Mapping[str, str]] = context.runtime.config_sources
    return sources
