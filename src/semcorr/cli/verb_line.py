"""The line of a command with flags: every word of it is checked before Typer reads one, or anything is imported.

Typer takes a flag for another's value, the last of two values, NaN, and names of folders that are blank.
"""

import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, get_args, get_origin, get_type_hints, runtime_checkable

from semcorr.cli.errors import report_user_errors
from semcorr.core.errors import UserError
from semcorr.core.limits import raise_open_files
from semcorr.core.ranges import Pattern, Range, require
from semcorr.core.text_files import JsonMapping

if TYPE_CHECKING:  # the commands that are Hydra's do without
    import typer

NUMBER = re.compile(r"-[\d.].*|-inf|-nan", re.IGNORECASE)  # no flag, though it begins with a dash
HYDRA = {
    "-m", "--multirun", "-c", "--cfg", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--hydra-help", "--info", "-i", "--resolve", "--package", "-p", "--run", "-r", "--shell-completion", "-sc",
    "--experimental-rerun", "--version",
}  # fmt: skip


@dataclass(frozen=True)
class OneOf:
    """What a flag may be.

    Args:
        names: All of them, or what lists them.
    """

    names: Sequence[str] | Callable[[], Sequence[str]]


@dataclass(frozen=True)
class Without:
    """Flags beside which this one has no effect, by the names of their parameters."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


@dataclass(frozen=True)
class Needs:
    """The flag without which this one has no effect, by the name of its parameter."""

    name: str


@runtime_checkable
class Parameter(Protocol):
    """Of a command, as Click describes it."""

    name: str
    param_type_name: str
    opts: list[str]
    secondary_opts: list[str]
    nargs: int
    required: bool
    metavar: str | None


@runtime_checkable
class Option(Parameter, Protocol):
    """One with a flag."""

    multiple: bool
    is_flag: bool


PRECISION = OneOf(("32", "bf16", "16"))
DEVICE = Pattern(r"(cpu|cuda|mps|xpu)(:\d{1,3})?", "cpu or cuda")


def check_words(command: object, words: Sequence[str]) -> list[str]:
    """Refuse a line that cannot be meant, and return it with `~/` as the home that it is.

    Args:
        command: As `typer.main.get_command` gives it.
        words: Without the program's name.

    Raises:
        UserError: It names the word, and says what is allowed.
    """
    if "--help" in words:
        return [*words]
    subs: JsonMapping = getattr(command, "commands", {})
    if subs:
        _check_sub(words, subs)
        return [words[0], *check_words(subs[words[0]], words[1:])]
    hints = get_type_hints(command.callback, include_extras=True)
    options: dict[str, Option] = {
        flag: each for each in command.params for flag in (*each.opts, *each.secondary_opts) if flag.startswith("-")
    }
    arguments: list[Parameter] = [each for each in command.params if each.param_type_name == "argument"]
    read, given, loose = _read(words, options)
    _check_arguments(loose, arguments, options)
    for flag, name, value in read:
        if not options[flag].is_flag:
            _check_value(flag, value, hints.get(name))
    for name, flag in given.items():
        _check_others(name, flag, given, hints.get(name), {each.name: key for key, each in options.items()})
    flags = [
        flag if options[flag].is_flag else f"{flag}={_at_home(value, hints.get(name))}" for flag, name, value in read
    ]
    paths = [_at_home(value, hints.get(each.name)) for value, each in _paired(loose, arguments)]
    return [*flags, "--", *paths] if paths else flags


def _check_sub(words: Sequence[str], subs: JsonMapping) -> None:
    if not words:
        raise UserError(f"no command is given. Give one of {', '.join(subs)}; --help says more.")
    if words[0] not in subs:
        if words[0].startswith("-"):
            raise UserError(f"`{words[0]}` stands before the command. Give one of {', '.join(subs)} first.")
        raise UserError(f"there is no command `{words[0]}`. {suggest_near(words[0], subs)}")


def suggest_near(word: str, known: Sequence[str] | JsonMapping, most: int = 12) -> str:
    """Say which of the known words is near, or all there are.

    >>> suggest_near("prnue", ["ls", "verify", "prune"]), suggest_near("x", ["ls", "verify"])
    ('Did you mean prune?', 'There are ls, verify.')
    """
    spelt = {each.lower(): each for each in known}
    close = [spelt[each] for each in difflib.get_close_matches(word.lower(), [*spelt], n=3)]
    listed = ", ".join([*known][:most]) + (", ..." if len(known) > most else "")
    return f"Did you mean {' or '.join(close)}?" if close else f"There are {listed}."


def _read(
    words: Sequence[str], options: Mapping[str, Option]
) -> tuple[list[tuple[str, str, str]], dict[str, str], list[str]]:
    """Flags with the names of their parameters and their values; which flag gave a parameter; and what is no flag."""
    rest, read, loose = [*words], [], []
    given: dict[str, str] = {}
    while rest:
        word = rest.pop(0)
        if word == "--":
            loose += rest
            break
        if not word.startswith("-") or word == "-":
            loose.append(word)
            continue
        flag, equals, value = word.partition("=")
        if flag not in options:
            raise UserError(_unknown(flag, options))
        option = options[flag]
        if option.is_flag and equals:
            raise UserError(f"`{word}`: {flag} takes no value. Give {flag} alone, or leave it out.")
        if not option.is_flag and not equals:
            if not rest:
                raise UserError(f"`{flag}` has no value. Give {flag} VALUE, or leave it out.")
            value = rest.pop(0)
            if value.startswith("-") and not NUMBER.fullmatch(value):
                raise UserError(f"`{flag}` has no value: `{value}` reads as a flag. Give {flag}={value} if it is none.")
        if not option.is_flag and not value.strip():
            raise UserError(f"`{flag}` has no value. Give {flag} VALUE, or leave it out.")
        if option.name in given and not option.multiple:
            told = f" as {given[option.name]}" if given[option.name] != flag else ""
            raise UserError(f"`{flag}` is given twice{', before' if told else ''}{told}. Give it once.")
        given[option.name] = flag
        read.append((flag, option.name, value))
    return read, given, loose


def _unknown(flag: str, options: Mapping[str, Option]) -> str:
    if flag in HYDRA and flag not in options:
        return f"`{flag}` is a flag of train and evaluate, and none of this command. {suggest_near('', options)}"
    return f"unknown flag `{flag}`. {suggest_near(flag, options)} --help says more."


def _check_arguments(loose: Sequence[str], arguments: Sequence[Parameter], options: Mapping[str, Option]) -> None:
    if any(not word.strip() for word in loose):
        raise UserError("an argument is empty. Leave it out, or give what it stands for.")
    names = [each.metavar or each.name.upper() for each in arguments]
    most = None if any(each.nargs == -1 for each in arguments) else len(arguments)
    takes = f"It takes {' '.join(names)}" if names else "It takes flags alone"
    if most is not None and len(loose) > most:
        key, equals, value = loose[most].partition("=")
        if equals and f"--{key.replace('_', '-')}" in options:
            raise UserError(f"`{loose[most]}` is no flag. Give --{key.replace('_', '-')}={value}")
        settings = "; key=value is for train and evaluate" if equals else ""
        raise UserError(f"`{loose[most]}` is one argument too many. {takes}{settings}.")
    required = [name for name, each in zip(names, arguments, strict=True) if each.required]
    if len(loose) < len(required):
        absent = required[len(loose) :]
        raise UserError(
            f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} missing. {takes}; --help says more."
        )


def _paired(loose: Sequence[str], arguments: Sequence[Parameter]) -> list[tuple[str, Parameter]]:
    """Words with the arguments that they are; only the last takes several."""
    return [(word, arguments[min(i, len(arguments) - 1)]) for i, word in enumerate(loose)]


def _check_value(flag: str, text: str, hint: object) -> None:
    kinds, marks = _parts(hint)
    for mark in marks:
        if isinstance(mark, OneOf):
            names = mark.names() if callable(mark.names) else mark.names
            if text not in names:
                raise UserError(f"`{flag}` has no choice {text!r:.60}. {suggest_near(text, names)}")
        if isinstance(mark, Pattern):
            require(flag, text, Annotated[str, mark])
    range_ = next((mark for mark in marks if isinstance(mark, Range)), Range())
    for kind in (int, float):
        if kind in kinds:
            require(flag, _number(text, kind), Annotated[kind, range_])


def _number(text: str, kind: type) -> object:
    """Of a text; the text itself, if it is none. Typer takes no digits of other scripts."""
    try:
        return kind(text) if text.isascii() else text
    except ValueError:
        return text


def _parts(hint: object) -> tuple[set[object], list[object]]:
    """The plain types in an annotation, and its marks."""
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        kinds, others = _parts(inner)
        return kinds, [*marks, *others]
    kinds, marks = ({hint} if not get_args(hint) else set()), []
    for each in get_args(hint):
        inside, found = _parts(each)
        kinds, marks = kinds | inside, [*marks, *found]
    return kinds, marks


def _check_others(name: str, flag: str, given: Mapping[str, str], hint: object, flags: Mapping[str, str]) -> None:
    """What goes with it, and what does not."""
    for mark in _parts(hint)[1]:
        if isinstance(mark, Without) and (beside := [given[other] for other in mark.names if other in given]):
            raise UserError(f"`{flag}` has no effect beside {beside[0]}. Leave one of them out.")
        if isinstance(mark, Needs) and mark.name not in given:
            raise UserError(f"`{flag}` has no effect without {flags[mark.name]}. Give both, or leave it out.")


def _at_home(text: str, hint: object) -> str:
    """A path below `~`, which a shell leaves as it is in `--out=~/x`."""
    is_path = Path in _parts(hint)[0]
    return os.path.expanduser(text) if is_path and (text == "~" or text.startswith("~/")) else text


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
            text = getattr(error, "format_message", None)  # Click's, installed or Typer's copy of it
            if text is None:
                raise
            raise UserError(" ".join(text().split())) from None  # which `check_words` has not foreseen
        sys.exit(code if isinstance(code, int) else 0)
