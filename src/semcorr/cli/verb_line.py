"""Checks of the line of a command with flags, before Typer reads a word of it and before anything is imported.

Typer takes a flag for another's value, the last of two values, NaN, and names of folders that are blank.
"""

import difflib
import importlib
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, get_args, get_origin, get_type_hints, runtime_checkable

from semcorr.cli.errors import run_and_report
from semcorr.core.errors import UserError
from semcorr.core.limits import raise_open_files
from semcorr.core.ranges import Pattern, Range, require
from semcorr.core.terminal import configure_logging

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
    """The choices of a flag.

    Args:
        names: Names of the choices, or a function that lists them; it is called only if the flag is given.
    """

    names: Sequence[str] | Callable[[], Sequence[str]]


@dataclass(frozen=True)
class Without:
    """Flags beside which a flag has no effect, by the names of their parameters."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


@dataclass(frozen=True)
class Needs:
    """The flag without which another has no effect, by the name of its parameter."""

    name: str


@runtime_checkable
class Parameter(Protocol):
    """A parameter of a command, as Click describes it."""

    name: str
    param_type_name: str
    opts: list[str]
    secondary_opts: list[str]
    nargs: int
    required: bool
    metavar: str | None


@runtime_checkable
class Option(Parameter, Protocol):
    """A parameter with a flag."""

    multiple: bool
    is_flag: bool


@runtime_checkable
class Command(Protocol):
    """A command without subcommands, as Click describes it."""

    callback: Callable[..., object]
    params: Sequence[Parameter]


PRECISION = OneOf(("32", "bf16", "16"))
DEVICE = Pattern(r"(cpu|cuda|mps|xpu)(:\d{1,3})?", "cpu or cuda")


def check_words(command: object, words: Sequence[str]) -> list[str]:
    """Refuse a line that cannot be meant; return it with flags first, and with the user's home in place of `~`.

    Args:
        command: Command of Click, as `typer.main.get_command` returns it.
        words: Words of the line, without the program's name.

    Raises:
        UserError: A word cannot be meant; the message names it, and says what is allowed.
    """
    if "--help" in words:
        return [*words]
    subcommands: Mapping[str, object] = getattr(command, "commands", {})
    if subcommands:
        hidden = {name for name, each in subcommands.items() if getattr(each, "hidden", False)}  # deprecated names
        _check_subcommand(words, subcommands, hidden)
        return [words[0], *check_words(subcommands[words[0]], words[1:])]
    assert isinstance(command, Command)
    hints = get_type_hints(command.callback, include_extras=True)
    options = {
        flag: parameter
        for parameter in command.params
        if isinstance(parameter, Option)
        for flag in (*parameter.opts, *parameter.secondary_opts)
        if flag.startswith("-")
    }
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    values, flag_by_name, positional = _parse_words(words, options)
    _check_arguments(positional, arguments, options)
    for flag, name, value in values:
        if not options[flag].is_flag:
            _check_value(flag, value, hints.get(name))
    for name, flag in flag_by_name.items():
        all_flags = {option.name: key for key, option in options.items()}
        _check_combination(flag, flag_by_name, hints.get(name), all_flags)
    flags = [
        flag if options[flag].is_flag else f"{flag}={_expand_home(value, hints.get(name))}"
        for flag, name, value in values
    ]
    paths = [_expand_home(value, hints.get(argument.name)) for value, argument in _pair_up(positional, arguments)]
    return [*flags, "--", *paths] if paths else flags


def _check_subcommand(words: Sequence[str], commands: Collection[str], hidden: Collection[str]) -> None:
    """Refuse a line that does not begin with one of the subcommands.

    Args:
        words: Words of the line.
        commands: Names of all subcommands.
        hidden: Accepted but not suggested.
    """
    names = [name for name in commands if name not in hidden]
    if not words:
        raise UserError(f"no command is given. Give one of {', '.join(names)}; --help says more.")
    if words[0] not in commands:
        if words[0].startswith("-"):
            raise UserError(f"`{words[0]}` stands before the command. Give one of {', '.join(names)} first.")
        raise UserError(f"there is no command `{words[0]}`. {suggest_near(words[0], names)}")


def suggest_near(word: str, known: Collection[str], most: int = 12) -> str:
    """Say which of the known words are near, or list at most `most` of them.

    >>> suggest_near("prnue", ["ls", "verify", "prune"]), suggest_near("x", ["ls", "verify"])
    ('Did you mean prune?', 'There are ls, verify.')
    """
    spellings = {name.lower(): name for name in known}
    close = [spellings[name] for name in difflib.get_close_matches(word.lower(), [*spellings], n=3)]
    listed = ", ".join([*known][:most]) + (", ..." if len(known) > most else "")
    return f"Did you mean {' or '.join(close)}?" if close else f"There are {listed}."


def _parse_words(
    words: Sequence[str], options: Mapping[str, Option]
) -> tuple[list[tuple[str, str, str]], dict[str, str], list[str]]:
    """Parse the words of a line.

    Returns:
        Flags, each with the name of its parameter and its value.
        The flag that was typed for each parameter.
        Words that are not flags, nor their values.
    """
    rest, values, positional = [*words], [], []
    flag_by_name: dict[str, str] = {}
    while rest:
        word = rest.pop(0)
        if word == "--":
            positional += rest
            break
        if not word.startswith("-") or word == "-":
            positional.append(word)
            continue
        flag, equals, value = word.partition("=")
        if flag not in options:
            raise UserError(_describe_unknown_flag(flag, options, word))
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
        if option.name in flag_by_name and not option.multiple:
            alias = f" as {flag_by_name[option.name]}" if flag_by_name[option.name] != flag else ""
            raise UserError(f"`{flag}` is given twice{', before' if alias else ''}{alias}. Give it once.")
        flag_by_name[option.name] = flag
        values.append((flag, option.name, value))
    return values, flag_by_name, positional


def _describe_unknown_flag(flag: str, options: Mapping[str, Option], word: str) -> str:
    """Say that a command has no such flag, and name those that are near, or all of them; or how a file is given."""
    if os.path.lexists(word):
        return f"`{word}` reads as a flag. Give ./{word} if the file is meant."
    if flag in HYDRA and flag not in options:
        return f"`{flag}` is a flag of train and evaluate, and none of this command. {suggest_near('', options)}"
    return f"unknown flag `{flag}`. {suggest_near(flag, options)} --help says more."


def _check_arguments(positional: Sequence[str], arguments: Sequence[Parameter], options: Mapping[str, Option]) -> None:
    """Refuse empty arguments, too many and too few."""
    if any(not word.strip() for word in positional):
        raise UserError("an argument is empty. Leave it out, or give what it stands for.")
    names = [argument.metavar or argument.name.upper() for argument in arguments]
    most = None if any(argument.nargs == -1 for argument in arguments) else len(arguments)
    takes = f"It takes {' '.join(names)}" if names else "It takes flags alone"
    if most is not None and len(positional) > most:
        key, equals, value = positional[most].partition("=")
        if equals and f"--{key.replace('_', '-')}" in options:
            raise UserError(f"`{positional[most]}` is not a flag. Give --{key.replace('_', '-')}={value}")
        settings = "; key=value is for train and evaluate" if equals else ""
        raise UserError(f"`{positional[most]}` is one argument too many. {takes}{settings}.")
    required = [name for name, argument in zip(names, arguments, strict=True) if argument.required]
    if len(positional) < len(required):
        absent = required[len(positional) :]
        raise UserError(
            f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} missing. {takes}; --help says more."
        )


def _pair_up(positional: Sequence[str], arguments: Sequence[Parameter]) -> list[tuple[str, Parameter]]:
    """Pair up words with arguments, of which only the last takes several."""
    return [(word, arguments[min(i, len(arguments) - 1)]) for i, word in enumerate(positional)]


def _check_value(flag: str, text: str, hint: object) -> None:
    """Refuse a value that the annotation of the flag's parameter does not allow."""
    kinds, marks = _split_annotation(hint)
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
            require(flag, _parse_number(text, kind), Annotated[kind, range_])


def _parse_number(text: str, kind: type[int] | type[float]) -> float | str:
    """Return the number that a text is, or the text if it is none. Typer takes no digits of other scripts."""
    try:
        return kind(text) if text.isascii() else text
    except ValueError:
        return text


def _split_annotation(hint: object) -> tuple[set[object], list[object]]:
    """Split an annotation into its plain types and its marks."""
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        kinds, inner_marks = _split_annotation(inner)
        return kinds, [*marks, *inner_marks]
    kinds, marks = ({hint} if not get_args(hint) else set()), []
    for member in get_args(hint):
        member_kinds, member_marks = _split_annotation(member)
        kinds, marks = kinds | member_kinds, [*marks, *member_marks]
    return kinds, marks


def _check_combination(flag: str, flag_by_name: Mapping[str, str], hint: object, all_flags: Mapping[str, str]) -> None:
    """Refuse a flag that has no effect beside another, or without another.

    Args:
        flag: The flag.
        flag_by_name: The flag that was typed for each parameter.
        hint: Annotation of the parameter.
        all_flags: A flag of every parameter of the command.
    """
    for mark in _split_annotation(hint)[1]:
        if isinstance(mark, Without):
            excluded = [flag_by_name[other] for other in mark.names if other in flag_by_name]
            if excluded:
                raise UserError(f"`{flag}` has no effect beside {excluded[0]}. Leave one of them out.")
        if isinstance(mark, Needs) and mark.name not in flag_by_name:
            raise UserError(f"`{flag}` has no effect without {all_flags[mark.name]}. Give both, or leave it out.")


def _expand_home(text: str, hint: object) -> str:
    """Expand a path below `~`, which a shell leaves as it is in `--out=~/x`."""
    is_path = Path in _split_annotation(hint)[0]
    return os.path.expanduser(text) if is_path and (text == "~" or text.startswith("~/")) else text


def run_app(app: "typer.Typer", words: Sequence[str], prog_name: str) -> int:
    """Run a Typer application, report all errors in it and in its line, and return the exit code.

    Args:
        app: The application.
        words: Words of its line.
        prog_name: Name of the program in --help.
    """
    import typer

    def run() -> int:
        command = typer.main.get_command(app)
        try:
            code = command.main(check_words(command, words), prog_name, standalone_mode=False)
        except (typer.Abort, EOFError):  # at a question
            raise KeyboardInterrupt from None
        except Exception as error:
            text = getattr(error, "format_message", None)  # Click's, installed or Typer's copy of it
            if text is None:
                raise
            raise UserError(" ".join(text().split())) from None  # which `check_words` has not foreseen
        return code if isinstance(code, int) else 0

    configure_logging()
    raise_open_files()
    return run_and_report(run, words)


def run_lazy_app(module: str, words: Sequence[str], prog_name: str) -> int:
    """Import a Typer application, run it as `run_app` does, and return the exit code.

    Args:
        module: Name of the module that has the application as `app`. Its import takes seconds, in which a signal is
            reported, too.
        words: Words of its line.
        prog_name: Name of the program in --help.
    """

    def run() -> int:
        app: typer.Typer = importlib.import_module(module).app
        return run_app(app, words, prog_name)

    return run_and_report(run, words)
