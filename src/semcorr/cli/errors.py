"""End of a command: a mistake, a signal or a limit of the machine becomes a sentence and an exit code."""

import difflib
import inspect
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from semcorr.cli.compose import STEPS, compose_chosen_groups, read_line_trees
from semcorr.cli.part_errors import describe_damaged_file, describe_failed_call, is_override_error
from semcorr.cli.section_shapes import check_sections, find_choice
from semcorr.core import interrupt
from semcorr.core.errors import UserError
from semcorr.core.interrupt import Guard, Interrupted, guard_signals
from semcorr.core.limits import explain_limit
from semcorr.core.ranks import LostProcessError, check_launch_numbers, is_first_process
from semcorr.core.terminal import escape_controls
from semcorr.engine.known_targets import conf_dir, config_search_path
from semcorr.engine.packages import find_tree

PLACED = ("data@test",)  # groups that are chosen for another place
LINE_END = "\n"
CLOSED_PIPE = 141  # exit code of a command that writes to a pipe that nobody reads any more
REPORT_SECONDS = 2.0  # that the first process has to report an error that all processes of a run have


def run_and_report(run: Callable[[], int], words: Sequence[str], name: str = "evaluate") -> int:
    """Run a command, report its errors as `report_user_errors` does, and return its exit code.

    Args:
        run: Function that does what the line says, and returns an exit code.
        words: Words of the line.
        name: Name of the command's configuration, to find keys near an unknown one.
    """
    try:
        with report_user_errors(name, words):
            return run()
    except SystemExit as end:  # a reported error; or the help of Hydra, or of Typer
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)


@contextmanager
def report_user_errors(name: str, words: Sequence[str] = ()) -> Iterator[None]:
    """Report a user's mistake, a signal or the machine's limits in a sentence, and leave the block with an exit code.

    Defects of ours keep their traceback.

    Args:
        name: Name of the command's configuration, to find keys near an unknown one.
        words: Words of the command's line; inside another such block they are those of that one.

    Raises:
        SystemExit: Something was reported.
    """
    is_outermost, own = interrupt.current_guard() is None, inspect.unwrap(report_user_errors)
    try:
        with guard_signals([own.__code__], words) as guard:
            try:
                if guard is not None:
                    guard.begin()
                check_launch_numbers()
                yield
                if sys.stdout is not None:
                    sys.stdout.flush()  # a pipe that nobody reads is noticed here, not while the interpreter ends
                if guard is not None:
                    guard.raise_swallowed()
            except BaseException as error:
                if guard is not None:
                    guard.hold()
                code = end_program(error, name, guard)
                if guard is not None and not is_outermost:
                    guard.release()
                if code is None:
                    raise
                raise SystemExit(code) from error
    except KeyboardInterrupt:  # Python's own, before the guard is in place
        if not is_outermost:
            raise
        raise SystemExit(Guard().say()) from None


def end_program(error: BaseException, name: str, guard: Guard | None = None) -> int | None:
    """Say why the program ends, and end what it has started; return its exit code, None if the fault is ours.

    Args:
        error: Error that ends the program.
        name: Name of the command's configuration, to find keys near an unknown one.
        guard: Guard of the signals of this process.
    """
    if isinstance(error, Interrupted | KeyboardInterrupt) or (guard is not None and guard.number is not None):
        code = (guard or Guard()).say()
        if guard is not None and guard.number is not None:
            interrupt.end_children()
        return code
    if _is_closed(error):
        return CLOSED_PIPE
    if not isinstance(error, Exception):
        return None
    ranks = guard.ranks if guard is not None else None
    lost_process = error if isinstance(error, LostProcessError) else ranks and ranks.explain(error)
    words = guard.words if guard is not None else ()
    message, code = (str(lost_process), lost_process.code) if lost_process else (user_message(error, name, words), 2)
    if message and lost_process and guard is not None:
        message = guard.complete(message)
    if not lost_process and not is_first_process():
        time.sleep(REPORT_SECONDS)
    if ranks is not None:
        ranks.kill()
        interrupt.leave_within_seconds(1 if message is None else code)
    for word in words if message else ():
        if LINE_END in word:  # in a file's name, which must not pass for another line
            message = str(message).replace(word, escape_controls(word))
    if message:
        print(f"Error: {escape_controls(message, keep=LINE_END)}", file=sys.stderr)
    return None if message is None else code


def _is_closed(error: BaseException) -> bool:
    """Tell whether nobody reads what we print, as behind `| head`; nothing more is printed then.

    Rich and click turn the error into an exit of their own.
    """
    if isinstance(error, SystemExit):
        is_closed = any(isinstance(cause, BrokenPipeError) for cause in _iterate_causes(error))
    else:
        is_closed = isinstance(error, BrokenPipeError) and any(map(_is_unread, (1, 2)))
    if is_closed:
        null_device = os.open(os.devnull, os.O_WRONLY)
        for descriptor in filter(_is_unread, (1, 2)):
            os.dup2(null_device, descriptor)
        os.close(null_device)
    return is_closed


def _is_unread(descriptor: int) -> bool:
    """Tell whether a file descriptor is a pipe that nobody reads."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def user_message(error: BaseException, name: str, words: Sequence[str] = ()) -> str | None:
    """Return the message for a user's mistake or a limit of the machine; None if the fault is ours.

    Args:
        error: Error that was raised; its causes are examined, too.
        name: Name of the command's configuration, to find keys near an unknown one.
        words: Words of the line, whose choices say which keys there are.
    """
    for cause in _iterate_causes(error):
        if isinstance(cause, UserError):  # a loader's process prepends its traceback
            return str(cause).rsplit("UserError: ", 1)[-1].strip()
    if isinstance(error, LostProcessError):
        return str(error) or "another process of this run has failed, and says why"
    if (limit := explain_limit(error)) is not None:
        return limit
    for refusal in (error, error.__cause__):
        if type(refusal).__name__ == "MisconfigurationException":  # Lightning's, of its own options
            return f"`trainer`: {' '.join(str(refusal).split())}"
    if (damage := describe_damaged_file(error)) is not None:
        return damage
    if not isinstance(error, HydraException | OmegaConfBaseException):
        is_composing = is_override_error(error)
        return _describe_misshapen_section(compose_chosen_groups(name, words), words) if is_composing else None
    if isinstance(error, InstantiationException):
        return describe_failed_call(error)
    text = str(error).strip()
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        return _describe_unknown_choice(str(error.missing_cfg_file), list(error.options or ()), words)
    if "does not support sweep type : INTERVAL" in text:
        return (
            "an interval is searched, by hydra/sweeper=optuna. Add that, or give the values of a sweep: KEY=1e-4,1e-3"
        )
    if text.startswith("'hydra/sweeper/optuna' is validated"):
        return "the package hydra-optuna-sweeper, for Optuna 2, has a sweeper of the same name. pip uninstall it"
    match = re.search(r"Could not override '([^']+)'", text)
    if match:
        key = match[1]
        cfg = compose_chosen_groups(name, words)
        if misshapen := _describe_misshapen_section(cfg, words):  # a file without the key that is given a value
            return misshapen
        keys, unlisted = (
            [*_list_keys(cfg), "experiment", *PLACED, *STEPS],
            _list_unlisted_options(cfg, key.rpartition(".")[0]),
        )
        if key in unlisted:
            return f"`{key}` is an option that the configuration does not list. Put + before it: +{key}=VALUE"
        candidates = {candidate for candidate in (*keys, *unlisted) if not key.startswith(f"{candidate}.")}
        near = difflib.get_close_matches(key, candidates, n=2, cutoff=0.75)
        near = [candidate if candidate in keys else f"+{candidate}" for candidate in near]
        hint = f"Did you mean {' or '.join(near)}?" if near else "See the keys with --cfg job."
        if key.startswith("test.") or key == "test":
            hint = "A second benchmark is chosen first: data@test=NAME."
        elif key.startswith("backbone.upsample."):
            hint = "An upsampler is chosen first: backbone.upsample=NAME."
        elif key.startswith("corrupt.") and not any(re.match("corrupt=(?!none$)", word) for word in words):
            hint = "A corruption is chosen first: corrupt=NAME."
        return f"unknown config key `{key}`. {hint}"
    return re.sub(r"\s*\n\s*", " ", text.partition("Config search path")[0].strip())


def _list_trees(words: Sequence[str]) -> tuple[str, ...]:
    """Return the addresses of the trees that a line composes from."""
    return config_search_path(str(conf_dir())) + read_line_trees(words)


def _describe_misshapen_section(cfg: DictConfig, words: Sequence[str]) -> str | None:
    """Say which chosen section is not shaped as a run needs it; None if there is none."""
    try:
        check_sections(cfg, words, _list_trees(words))
    except UserError as refused:
        return str(refused)
    return None


def _describe_unknown_choice(path: str, options: list[str], words: Sequence[str]) -> str:
    """Say that a group has no such file, and name those that are near, or all of them; say which file names it."""
    group, _, choice = path.rpartition("/")
    top = group.partition("/")[0]
    full_choice, trees = path.removeprefix(f"{top}/") if top else choice, _list_trees(words)
    if file := find_choice(top, full_choice, trees, "yml"):
        return f"`{top or choice}` has no choice {full_choice!r}: {file} ends in .yml. Rename it to {file.stem}.yaml."
    folders = [folder / top for folder in map(find_tree, trees) if folder is not None and top]
    files = {file: file.relative_to(folder).with_suffix("") for folder in folders for file in folder.rglob("*.yaml")}
    names = sorted(
        {*(f"{group}/{option}".removeprefix(f"{top}/") for option in options), *map(Path.as_posix, files.values())}
    )
    kind, _, severity = full_choice.rpartition("_")
    if top == "corrupt" and kind in names and kind != "none":
        from semcorr.data.corruptions.corruption import SEVERITIES  # NumPy and Pillow take time to import

        return f"`corrupt.severity` must be between {SEVERITIES[0]} and {SEVERITIES[-1]}, got {severity!r}"
    near = difflib.get_close_matches(full_choice, names, n=3, cutoff=0.6) or [
        name for name in names if name.startswith(full_choice)
    ]
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(names)}."
    namer = None
    if not any(full_choice in word for word in words):  # but in the defaults of a file
        namer = next((file for file in sorted(files) if full_choice in file.read_text(errors="replace")), None)
    origin = f", which {namer} names" if namer else ""
    return f"`{top or choice}` has no choice {full_choice!r}{origin}. {hint}"


def _list_unlisted_options(cfg: DictConfig, section: str) -> list[str]:
    """Return the keys of options that the target of a section accepts and the configuration does not list."""
    from semcorr.engine.options import accepted_options

    node = OmegaConf.select(cfg, section) if section else None
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return []
    options = accepted_options(node._target_, node)
    return (
        [f"{section}.{name}" for name in options.annotations if name not in (*node, *options.required)]
        if options
        else []
    )


def _list_keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield the keys of a configuration, those of sections included."""
    for key, value in cfg.items_ex(resolve=False):
        if str(key).startswith("_"):
            continue
        yield f"{prefix}{key!s}"
        if isinstance(value, DictConfig):
            yield from _list_keys(value, f"{prefix}{key!s}.")


def _iterate_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes, the outermost first, up to one that was raised `from None`."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
