"""Checks of a command line as it was typed, before Hydra composes anything: mistakes are refused by their text.

Hydra's grammar is a language of its own, in which a path with a blank, a comma or a bracket is something else. Its
errors say where a parser stood; these say what to type.
"""

import difflib
import logging
import os
import re
import shlex
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from semcorr.cli.compose import read_search_path
from semcorr.core.errors import UserError
from semcorr.core.ranks import is_first_process
from semcorr.engine.known_targets import REMOVABLE
from semcorr.engine.packages import check_line_trees

KEY = re.compile(r"(?P<sign>~|\+{0,2})(?P<key>[^\s=~+]+?)(?:=(?P<value>.*))?", re.DOTALL)
SEVERAL = re.compile(r"\s[+~]{0,2}[A-Za-z_][\w.@/]*=")  # a second setting in the same argument
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first takes an eighth of the time
OPTIONAL = ("experiment", "data@test")  # groups whose choice may be none
LISTED = ("localise", "protocol", "logger", "callbacks", "experiment")  # groups that take a list of choices
PATHS = ("run_dir", "hydra.run.dir", "hydra.sweep.dir")  # by which Hydra makes a folder before we see its value
log = logging.getLogger(__name__)


def check_line(line: Sequence[str], name: str, tree: Path) -> list[str]:
    """Refuse a command line that cannot be meant, and return it with Hydra's flags first, as Hydra wants it.

    Args:
        line: Arguments of the program.
        name: Name of the configuration, such as `train`.
        tree: Folder of the configurations.

    Raises:
        UserError: An argument cannot be meant; the message names it, and says what to type instead.
    """
    settings, is_sweep, flags = _split_line(line)
    overrides = [_parse_setting(text) for text in settings]
    groups = {path.relative_to(tree).as_posix() for path in tree.glob("*") if path.is_dir()}
    sections = read_sections(tree / f"{name}.yaml")
    for text, override in zip(settings, overrides, strict=True):
        _check_setting(text, override, groups, sections, is_sweep)
    _warn_of_duplicates(settings, overrides)
    check_line_trees(_list_config_dirs(flags), "--config-dir")
    check_line_trees(read_search_path(settings), "hydra.searchpath")
    return [*flags, *settings]


def _list_config_dirs(flags: Sequence[str]) -> list[str]:
    """List the folder of `--config-dir`, if it is given; without a folder, Hydra says what it lacks."""
    folder = get_args_parser().parse_args([*flags]).config_dir
    return [folder] if folder else []


def read_sections(path: Path) -> set[str]:
    """Return the keys at the top of the configuration of a verb, those of its groups included."""
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
    groups = [next(iter(entry)) for entry in content["defaults"] if isinstance(entry, dict)]
    sections = (group.rpartition("@")[2] for group in groups if not group.startswith("override "))
    return {*sections, *content, "hydra"} - {"defaults"}


class _Parser(ArgumentParser):
    """A parser of Hydra's flags that raises a user's error."""

    def error(self, message: str) -> NoReturn:
        """Raise the error that argparse would print."""
        raise UserError(f"{message}. --hydra-help lists the flags.")


def _split_line(line: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    """Split a line into its settings and its flags; return, between them, whether it is a sweep."""
    parser = get_args_parser()
    parser.__class__ = _Parser  # argparse would print its usage and leave
    flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    if {"--version"} & {*line}:
        return [], False, [*line]  # prints and ends, in Hydra
    arguments, unknown = parser.parse_known_intermixed_args([*line])
    if unknown:
        near = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(flags)}; settings are key=value."
        raise UserError(f"unknown flag `{unknown[0]}`. {hint}")
    rest = [*line]
    for setting in arguments.overrides:
        rest.remove(setting)
    return list(arguments.overrides), bool(arguments.multirun), rest


def _parse_setting(text: str) -> Override:
    """Parse a setting by Hydra's grammar, or say what it should have been."""
    try:
        override = OverridesParser.create().parse_override(text)
        if override.key_or_group:
            return override
    except (HydraException, ValueError):
        pass
    if not text.strip():
        raise UserError("an argument is empty: leave it out. Settings are key=value.")
    if SEVERAL.search(text.strip()):
        raise UserError(f"`{text}` holds several settings in one argument. Give each by itself: {text.strip()}")
    stripped = re.sub(r"\s*=\s*", "=", text.strip(), count=1)
    match = KEY.fullmatch(stripped)
    if match is None:
        raise UserError(f"`{text}` is not a setting. Settings are key=value, as seed=1.")
    sign, key, value = match["sign"], match["key"], match["value"]
    if value is None:
        raise UserError(f"`{text}` has no value. Give {sign}{key}=VALUE.")
    if value.startswith("="):
        raise UserError(f"`{text}` has more than one `=` between key and value. Give {key}={value.lstrip('= ')}")
    if value.startswith("~"):
        value = os.path.expanduser(value)
        return _require_quotes(text, sign + key, value, "`~` is not read as your home here")
    if value[:1] in "'\"" and value[:1]:
        bare = value.strip("'\"")
        return _require_quotes(text, sign + key, bare, "its quotes are not closed, or something follows them")
    if _is_setting(stripped) and stripped != text:
        raise UserError(f"`{text}` has a blank beside the key. Give {shlex.quote(stripped)}")
    return _require_quotes(text, sign + key, value, "such a value must be quoted twice, for the shell and for Hydra")


def _is_setting(text: str) -> bool:
    """Tell whether Hydra's grammar can read a text."""
    try:
        OverridesParser.create().parse_override(text)
    except (HydraException, ValueError):
        return False
    return True


def _require_quotes(text: str, key: str, value: str, reason: str) -> NoReturn:
    """Refuse a setting whose value must be in quotes, and say how to type it."""
    remedy = quote_setting(key, value)
    if not _is_setting(remedy):
        raise UserError(f"`{text}` is not a setting: its key cannot be read. Settings are key=value, as seed=1.")
    raise UserError(f"`{text}`: {reason}. Give {shlex.quote(remedy)}")


def quote_setting(key: str, value: str) -> str:
    r"""Return a setting whose value Hydra takes as it is, in quotes where it must be.

    >>> print(quote_setting("run_dir", "a b, (1)"))
    run_dir='a b, (1)'
    >>> quote_setting("seed", "3")
    'seed=3'
    """
    plain = f"{key}={value}"
    if value and _is_setting(plain):
        override = OverridesParser.create().parse_override(plain)
        if not override.is_sweep_override() and isinstance(override.value(), str | int | float):
            return plain
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def _check_setting(text: str, override: Override, groups: set[str], sections: set[str], is_sweep: bool) -> None:
    """Refuse a setting that Hydra can read, and that cannot be meant."""
    key, package = override.key_or_group, override.package
    top = (package or key).split(".")[0] if package != "" else key
    if key == "hydra/sweeper" and not is_sweep:
        raise UserError(f"`{text}` chooses the jobs of a sweep, and this is one run. Add -m, or leave it out.")
    if key.startswith(("hydra.", "hydra/")) and key not in PATHS:
        return
    if override.is_delete():
        _refuse_deletion(text, key, sections)
        return
    if override.is_sweep_override():
        if not is_sweep:
            values = text.partition("=")[2]
            raise UserError(
                f"`{text}` is several values, and this is not a sweep. Add -m for a sweep over them; as one text give "
                f"{shlex.quote(_quote_always(key, values))}, as a list {shlex.quote(f'{key}=[{values}]')}"
            )
        return
    value = override.value()
    if key in groups and value is None and (f"{key}@{package}" if package else key) in OPTIONAL:
        raise UserError(f"`{text}`: nothing is chosen for `{key}` unless it is named. Leave it out.")
    if key in groups and isinstance(value, list) and key not in LISTED:
        raise UserError(f"`{text}`: `{key}` is one choice, {key}=NAME. Several are a sweep: -m {key}=NAME,NAME")
    names = value if isinstance(value, list) else [value]
    if key in groups and not all(isinstance(name, str) for name in names):
        raise UserError(f"`{text}`: `{key}` is chosen by name, {key}=NAME, as the files of conf/{key} are named.")
    if key in PATHS and (value is None or isinstance(value, list | dict | bool)):
        raise UserError(f"`{text}`: `{key}` must be text, the path of a folder. Give {key}=DIR.")
    if isinstance(value, str) and not value.strip():
        raise UserError(f"`{text}` has no value. Give {key}=VALUE, or leave it out.")
    if (override.is_add() or override.is_force_add()) and top.partition("@")[0] not in sections:
        near = difflib.get_close_matches(top, sections, n=2, cutoff=0.6)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(sorted(sections - {'hydra'}))}."
        raise UserError(f"`{text}`: nothing reads `{top}`. {hint}")


def _quote_always(key: str, value: str) -> str:
    """Return a setting with its value in quotes, whether it needs them or not."""
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def _refuse_deletion(text: str, key: str, sections: set[str]) -> None:
    """Refuse a setting that takes out what a run needs."""
    parts = key.split(".")
    if key in OPTIONAL or len(parts) > 2 or parts[0] == "callbacks":
        return
    if parts[0] in REMOVABLE and len(parts) == 2 and not parts[1].startswith("_"):
        return
    if parts[0] not in sections:
        near = difflib.get_close_matches(parts[0], sections, n=1)
        raise UserError(f"`{text}`: there is no `{parts[0]}`." + (f" Did you mean {near[0]}?" if near else ""))
    if len(parts) == 1:
        raise UserError(f"`{text}`: a run needs `{key}`. Choose another by {key}=..., or leave this out.")
    raise UserError(f"`{text}`: an option is not taken out but given, as {key}=VALUE.")


def _warn_of_duplicates(settings: Sequence[str], overrides: Sequence[Override]) -> None:
    """Warn which of two values of a key counts."""
    last: dict[str, tuple[str, str]] = {}
    for text, override in zip(settings, overrides, strict=True):
        key = f"{override.key_or_group}@{override.package or ''}".rstrip("@")
        value = text.partition("=")[2]
        if key in last and last[key][1] != value and is_first_process():
            log.warning("`%s` is given twice: %s counts, not %s", key, text, last[key][0])
        last[key] = (text, value)
    # Lightning gives both to the processes that it starts.
    if "run_dir" in last and "hydra.run.dir" in last and is_first_process():
        raise UserError("`run_dir` and `hydra.run.dir` say the same thing twice. Give run_dir alone.")


def find_run_place(typed: Sequence[str], name: str) -> Path:
    """Return the run directory of a line, or the folder in which a run without one gets its own.

    Args:
        typed: Arguments of the program.
        name: Name of the configuration, such as `train`.
    """
    names = [text.removeprefix("name=") for text in typed if text.startswith("name=")]
    folder = {"null": "None"}.get(names[-1], names[-1]) if names else name
    run_dirs = [text.partition("=")[2] for text in typed if text.startswith(("run_dir=", "hydra.run.dir="))]
    return Path((run_dirs[-1] if run_dirs else f"runs/{folder}").strip("'\"").partition("${")[0] or ".")


def list_absent_folders(place: Path) -> list[Path]:
    """List the folders that do not exist yet on the way to a place, the innermost first."""
    return [folder for folder in (place, *place.parents) if not os.path.lexists(folder)]
