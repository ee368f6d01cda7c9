"""Ranges of options, stated in the signature they belong to: `rank: Count`, `temperature: Temperature`.

A configuration may hold anything: text, null, lists, NaN, 1e30. Types and ranges are checked by one function, whether
an option comes from a configuration (`semcorr.engine.options`) or from Python (`check_arguments`).
"""

import inspect
import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from functools import wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeGuard,
    TypeVar,
    Union,
    get_args,
    get_origin,
    runtime_checkable,
)

from semcorr.core.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")
LARGEST = 1e6  # most that a number may be whose range states no end: what is larger is a slip of the keyboard
WHOLE = 2**31 - 1  # the same of a whole number: no count or size is larger
BUILT = "something that is built, with a _target_"  # what an object of ours is in a configuration
DIGITS = 60  # characters of a value that a message shows


@dataclass(frozen=True)
class Range:
    """Range in which a number must lie.

    Args:
        least: Smallest number that is allowed; None: no such end.
        most: Largest number that is allowed; None: no such end.
        above: Number that it must exceed; None: no such end.
        below: Number that it must stay below; None: no such end.
        off: Whether the smallest number switches something off.
        odd: Whether it must be odd.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    off: bool = False
    odd: bool = False

    def contains(self, value: float) -> bool:
        """Tell whether a number lies in the range; it must not be implausible either, see `LARGEST`."""
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and not (self.odd and value % 2 == 0)
            and not self.is_implausible(value)
        )

    def is_implausible(self, value: float) -> bool:
        """Tell whether a number is beyond anything that is meant, where no end is stated."""
        most = WHOLE if isinstance(value, numbers.Integral) else LARGEST
        upper = self.most is None and self.below is None and value > most
        return upper or (self.least is None and self.above is None and value < -most)

    def describe(self) -> str:
        """Say where a number must lie, as after "must be"."""
        off = ", which is off," if self.off else ""
        end = f" and at most {_format_number(self.most)}" if self.most is not None else ""
        if self.below is not None:
            end = f" and {'less than' if self.off else 'below'} {_format_number(self.below)}"
        if self.odd:
            return "odd and positive" if self.most is None else f"odd, between 1 and {_format_number(self.most)}"
        if self.above is not None:
            return f"more than {_format_number(self.above)}{end}" if self.above or end else "positive"
        if self.least is None:
            return end.removeprefix(" and ") or "finite"
        if self.most is not None:
            return f"between {_format_number(self.least)}{off} and {_format_number(self.most)}"
        if self.off and not end:
            return f"{_format_number(self.least)}{off} or more"
        return f"at least {_format_number(self.least)}{off}{end}"


class OptionsOf(NamedTuple):
    """Marker of `**options` that are passed on: `**options: Annotated[object, OptionsOf(StableDiffusion)]`.

    Attributes:
        target: Function or class that takes the options; or, with `by`, a function from the value of that option to a
            list of such targets, empty where none is known.
        by: The option that decides which target takes the options; empty if none does.
    """

    target: Callable[..., Any]
    by: str = ""


@runtime_checkable
class DataclassInstance(Protocol):
    """An object of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field]]


@dataclass(frozen=True)
class Pattern:
    """Pattern that a text must match.

    Args:
        pattern: Regular expression that the whole text must match.
        words: Description of the pattern, as after "must be".
    """

    pattern: str
    words: str


Count = Annotated[int, Range(least=1)]
Whole = Annotated[int, Range(least=0)]
Seed = Annotated[int, Range(least=0, most=2**32 - 1)]  # what NumPy and Lightning take
Positive = Annotated[float, Range(above=0)]
Weight = Annotated[float, Range(least=0, off=True)]  # of a term, or how strong something is
Dropout = Annotated[float, Range(least=0, below=1)]
Share = Annotated[float, Range(least=0, most=1)]
Rate = Annotated[float, Range(least=0, most=10)]  # of learning
Temperature = Annotated[float, Range(least=1e-6, most=1e6)]  # below, a similarity over it is infinite
Sigma = Annotated[float, Range(least=1e-3, most=1e6)]  # below, a distance over its square is
Window = Annotated[int, Range(least=1, odd=True)]
NotEmpty = Annotated[str, Pattern(r"(?s).*\S.*", "text, not empty")]


def require(option: str, value: object, hint: object) -> None:
    """Refuse a value that an annotation does not allow.

    Args:
        option: Name of the option, as a user types it.
        value: Value that was given.
        hint: Type, with a `Range` where it is a number; unions, lists and null included. What is not a type of plain
            values (a class of ours, a callable) allows everything but those.

    Raises:
        UserError: It is of another type, out of range, NaN or infinite.

    >>> require("finetune.rank", 0, Count)
    Traceback (most recent call last):
    semcorr.core.errors.UserError: `finetune.rank` must be at least 1, got 0
    >>> require("loss.temperature", "warm", Temperature | None)
    Traceback (most recent call last):
    semcorr.core.errors.UserError: `loss.temperature` must be a number, between 1e-06 and 1000000, or null, got 'warm'
    """
    if (allowed := _describe_refusal(value, hint)) is not None:
        raise UserError(f"`{option}` must be {allowed}, got {_format_value(value)}")


def require_kind(option: str, value: object, hint: object) -> None:
    """Refuse a value of another type than a third-party annotation says, as far as it can be checked.

    The ranges of such options are unknown, null often stands for a default that the annotation leaves out, and what is
    no type of plain values may be made of any.

    Args:
        option: Name of the option, as a user types it.
        value: Value that was given; None is allowed.
        hint: Annotation of another package.

    Raises:
        UserError: It is of another type.

    >>> require_kind("head.width", "wide", int)
    Traceback (most recent call last):
    semcorr.core.errors.UserError: `head.width` must be a whole number, got 'wide'
    """
    words = None if value is None else _describe_kind_refusal(value, hint)
    if words is not None:
        raise UserError(f"`{option}` must be {words}, got {_format_value(value)}")


def _describe_kind_refusal(value: object, hint: object) -> str | None:
    if get_origin(hint) in (Union, UnionType):
        refused = [_describe_kind_refusal(value, member) for member in get_args(hint) if member is not NoneType]
        return None if None in refused or not refused else " or ".join(dict.fromkeys(map(str, refused)))
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if kind is bool:
        return None if isinstance(value, bool) else "true or false"
    if kind is int:
        return None if is_integer else "a whole number"
    if kind is float:
        return None if _is_number(value) and not math.isnan(value) else "a number"
    if kind in (str, Path):
        return None if isinstance(value, str) else "text"
    if get_origin(kind) is Literal:
        return None if value in get_args(kind) else f"one of {', '.join(map(str, get_args(kind)))}"
    if kind in (list, tuple, Sequence) or get_origin(kind) in (list, tuple, Sequence):
        if not isinstance(value, list | tuple):
            return None if isinstance(value, str) and get_args(kind)[:1] == (str,) else "a list"
        inside = [item for item in get_args(kind) if item is not Ellipsis]
        refused_each = [_describe_kind_refusal(item, inside[0]) for item in value] if len({*inside}) == 1 else []
        return next((f"a list, each entry {words}" for words in refused_each if words), None)
    if kind in (dict, Mapping) or get_origin(kind) in (dict, Mapping):
        return None if isinstance(value, Mapping) else "a mapping"
    return None


def check_arguments(group: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function or a constructor: its arguments must be what its annotations say, or it raises a UserError.

    Args:
        group: Group of its options in the configuration, as `loss`; named in the message. Empty: they are in none.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        hints = {
            key: parameter.annotation
            for key, parameter in signature.parameters.items()
            if _is_plain(parameter.annotation)
        }

        @wraps(function)
        def check_and_call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                arguments = signature.bind_partial(*args, **kwargs).arguments
            except TypeError:
                return function(*args, **kwargs)  # Python says best what is wrong
            for key in arguments.keys() & hints.keys():
                require(f"{group}.{key}" if group else key, arguments[key], hints[key])
            return function(*args, **kwargs)

        return check_and_call

    return decorate


def require_fields(options: DataclassInstance, group: str) -> None:
    """Refuse a field of a dataclass that its annotation does not allow; the first line of its `__post_init__`.

    Args:
        options: The object.
        group: Group of its options in the configuration, as `store`; named in the message.

    Raises:
        UserError: A field is of another type, or out of range.
    """
    for option in fields(options):
        require(f"{group}.{option.name}", getattr(options, option.name), option.type)


def _describe_refusal(value: object, hint: object) -> str | None:
    """Return what an annotation allows, in words, if it does not allow this; else None."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    refused = [_describe_member_refusal(value, member) for member in members]
    if None in refused:
        return None
    words = [text for text in refused if text is not None and text not in ("null", BUILT)] or [BUILT]
    join = ", or " if any("," in text for text in words) else " or "
    return join.join(map(str, [*dict.fromkeys(words), *(["null"] if NoneType in members else [])]))


def _describe_member_refusal(value: object, hint: object) -> str | None:
    range_ = next((item for item in get_args(hint)[1:] if isinstance(item, Range)), None)
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if kind is Any or kind is inspect.Parameter.empty:
        return None
    if kind in (int, float):
        return _describe_number_refusal(value, kind, range_ or Range())
    if kind in (NoneType, None):
        return None if value is None else "null"
    if kind is bool:
        return None if isinstance(value, bool) else "true or false"
    if kind is str:
        spelled = next((item for item in get_args(hint)[1:] if isinstance(item, Pattern)), Pattern("(?s).*", "text"))
        return None if isinstance(value, str) and re.fullmatch(spelled.pattern, value) else spelled.words
    if get_origin(kind) is Literal:
        return None if value in get_args(kind) else f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) in (Sequence, list, tuple):
        return _describe_list_refusal(value, get_args(kind)[0])
    if get_origin(kind) is Mapping:
        return None if isinstance(value, Mapping) else "a mapping"
    plain = value is None or isinstance(value, bool | numbers.Number | str | list | tuple)
    return BUILT if plain else None


def _describe_number_refusal(value: object, kind: type, range_: Range) -> str | None:
    is_integer, words = kind is int, range_.describe()
    if not _is_number(value) or (is_integer and not isinstance(value, numbers.Integral)):
        if words == "finite":
            return "a whole number" if is_integer else "a finite number"
        return f"{'a whole number' if is_integer else 'a number'}, {words}"
    if isinstance(value, float) and not math.isfinite(value):
        return words
    if range_.is_implausible(value):
        most = WHOLE if isinstance(value, numbers.Integral) else LARGEST
        return f"at most {_format_number(most)}" if value > 0 else f"at least {_format_number(-most)}"
    return None if range_.contains(value) else words


def _describe_list_refusal(value: object, of: object) -> str | None:
    if of is str and isinstance(value, str):
        return None
    if not isinstance(value, Sequence) or isinstance(value, str):
        return "a list"
    refused = next((words for item in value if (words := _describe_refusal(item, of))), None)
    return refused and f"a list, each entry {refused}"


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_plain(hint: object) -> bool:
    """Tell whether an annotation describes what a user types: a number, text, ..."""
    if get_origin(hint) in (Union, UnionType):
        return any(_is_plain(member) for member in get_args(hint) if member is not NoneType)
    if get_origin(hint) in (Annotated, Sequence, list, tuple):
        return _is_plain(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return True
    return hint in (int, float, bool, str)


def _format_number(number: float | None) -> str:
    """Format all digits of an integer, a few of any other number."""
    return f"{number:.0f}" if number is not None and number == int(number) and abs(number) < 1e12 else f"{number:g}"


def _format_value(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= DIGITS else f"{text[:DIGITS]}..."
