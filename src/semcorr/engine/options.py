"""Checks of every option of a configuration against the signature it is passed to, before anything is built."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, NamedTuple, get_args, get_origin, get_type_hints

from lightning import Callback
from torch import nn

from semcorr.core.errors import UserError
from semcorr.core.ranges import BUILT, NotEmpty, OptionsOf, Pattern, Range, Seed, Share, require, require_kind
from semcorr.core.text_files import JsonObject
from semcorr.engine.known_targets import CONTROLS, LATER_CALLS, MULTIPLE_CALLS, REMOVABLE
from semcorr.engine.missing_targets import OWN_PACKAGES, describe_missing_target, locate_target
from semcorr.models.backbones.steps import add_steps

TOP_LEVEL: JsonObject = {  # options that go to no constructor
    "seed": Seed,
    "feature_dropout": Annotated[float, Range(least=0, below=1, off=True)],
    "keep_from": Share,
    "monitor": Annotated[
        str,
        Pattern(
            r"val/(all|geo|std)/pck@0\.(01|05|1|15|2)",
            "val/SUBSET/pck@ALPHA, SUBSET one of all, geo, std, ALPHA one of 0.01, 0.05, 0.1, 0.15, 0.2",
        ),
    ],
    "kap": bool,
    "compile": str | None,
    "name": NotEmpty,
    "objective": NotEmpty,
    "run_dir": NotEmpty,
    "checkpoint": NotEmpty | None,
    "start_from": NotEmpty | None,
    "data_root": NotEmpty,
}
# Options of any backbone, of the steps after its features.
STEPS = [name for name in inspect.signature(add_steps).parameters if name != "backbone"]
FITTED_OPTIONS = ("channels", "maps", "grid")  # options of a head; null takes the backbone's


def check_options(content: JsonObject) -> None:
    """Refuse the first option that its constructor does not take, or that is not of the stated type or range.

    Args:
        content: Resolved configuration of a command. Missing values (???) are left to the code that needs them.

    Raises:
        UserError: An option is refused; the message names its whole key and says what is allowed.
    """
    for key, hint in TOP_LEVEL.items():
        if key in content:
            require(key, content[key], hint)
    for name, node in content.items():
        _check_node(name, node)


class AcceptedOptions(NamedTuple):
    """The options that a call takes.

    Attributes:
        annotations: Annotations by the names of the options.
        is_open: Whether the call takes other names as well.
        is_semcorr: Whether the annotations can be checked in full: ours state ranges and leave nothing out.
        required: Names of the options without a default.
    """

    annotations: JsonObject
    is_open: bool
    is_semcorr: bool
    required: Sequence[str] = ()


def _check_node(key: str, node: object) -> None:
    """Check a node and all below it."""
    inner = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    if isinstance(node, Mapping) and "_target_" in node:
        _check_call(key, node)
    elif key in MULTIPLE_CALLS and isinstance(node, Mapping):
        for name, value in inner:
            if not _is_built(value):
                raise UserError(f"`{key}.{name}` must be {BUILT}, got {value!r:.60}")
    for name, value in inner:
        _check_node(f"{key}.{name}", value)


def _check_call(key: str, node: Mapping[str, object]) -> None:
    """Check the options of one call."""
    target = node["_target_"]
    if not isinstance(target, str):
        raise UserError(f"`{key}._target_` must be text, the path of a class or function, got {target!r:.60}")
    accepted = accepted_options(target, node)
    if accepted is None:
        _refuse_missing(f"{key}._target_", target)
        return
    _require_partial(key, node, accepted)
    is_whole = key.partition(".")[0] in MULTIPLE_CALLS or (key in REMOVABLE and not node.get("_partial_"))
    missing = [name for name in accepted.required if name not in (*node, "save_dir")] if is_whole else []
    if missing and not node.get("_args_"):
        raise UserError(f"`{key}` needs `{missing[0]}`. Give +{key}.{missing[0]}=VALUE.")
    if key.startswith("callbacks."):
        _require_callback(key, target)
    steps = _resolve_signature(add_steps).parameters
    for name, value in node.items():
        if name in CONTROLS or (key in MULTIPLE_CALLS and _is_built(value)):
            continue
        if key == "backbone" and name in STEPS:
            if not _is_built(value):
                require(f"{key}.{name}", value, steps[str(name)].annotation)
            continue
        if name not in accepted.annotations:
            if not accepted.is_open:
                raise UserError(_format_unknown_option(key, str(name), [*accepted.annotations]))
            continue
        if not _is_built(value) and value != "???" and not (value is None and _is_fitted(key, name)):
            hint = accepted.annotations[name]
            check = require if accepted.is_semcorr or _states_range(hint) else require_kind
            check(f"{key}.{name}", value, hint)


def _states_range(hint: object) -> bool:
    """Tell whether an annotation of another package has a range of ours, as `Temperature`."""
    return any(isinstance(member, Range | Pattern) or _states_range(member) for member in get_args(hint))


def _require_partial(key: str, node: Mapping[str, object], accepted: AcceptedOptions) -> None:
    """Refuse to call at once what is called later, which would lack arguments."""
    target = str(node["_target_"])
    is_later = key in LATER_CALLS and (key in ("optimizer", "scheduler") or not inspect.isclass(locate_target(target)))
    missing = [name for name in accepted.required if name not in node]
    if is_later and missing and not (node.get("_partial_") or node.get("_args_")):
        raise UserError(
            f"`{key}`: {target} is called later, with `{missing[0]}`, which no configuration has. Add "
            f"`_partial_: true` to its YAML, or give ++{key}._partial_=true"
        )


def _refuse_missing(key: str, target: str) -> None:
    """Refuse a target that cannot be imported, unless it is ours: its own error says what is to be installed."""
    if not target.startswith(OWN_PACKAGES):
        raise UserError(f"`{key}`: {describe_missing_target(target)}")


def _require_callback(key: str, target: str) -> None:
    """Refuse a class that is not a callback; what a function returns is known only when it is called."""
    located = locate_target(target)
    if inspect.isclass(located) and not issubclass(located, Callback):
        raise UserError(f"`{key}` must be a callback of Lightning, and {target} is not one.")


def _format_unknown_option(key: str, name: str, names: list[str]) -> str:
    """Return the message that a call has no such option, with similar names."""
    similar = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    if similar:
        hint = f"Did you mean {' or '.join(f'{key}.{option}' for option in similar)}?"
    elif key in REMOVABLE:  # the experiment may have chosen another one
        hint = f"It has {', '.join(names) or 'none'}. If the experiment gives it, add '~{key}.{name}'."
    else:
        hint = f"It has {', '.join(names) or 'none'}."
    return f"`{key}.{name}` is not an option of `{key}`. {hint}"


def accepted_options(target: str, node: Mapping[str, object]) -> AcceptedOptions | None:
    """Return the options that a target takes; None if it cannot be imported, which is an error when it is called.

    Args:
        target: Path of a class or function.
        node: The call; some targets take further options that depend on the given ones.
    """
    located = locate_target(target)
    return _inspect_options(located, node) if callable(located) else None


def _inspect_options(target: Callable[..., object], node: Mapping[str, object]) -> AcceptedOptions:
    ours = str(getattr(target, "__module__", "")).startswith(("semcorr", "hydra_plugins."))
    stated: JsonObject = {}
    is_open = False
    functions = [*_iterate_constructors(target)] or [target]
    for function in functions:
        try:
            signature = _resolve_signature(function)
        except (ValueError, TypeError):  # of a built-in, which has none
            return AcceptedOptions(stated, True, ours)
        for name, parameter in list(signature.parameters.items()):
            if parameter.kind is parameter.VAR_KEYWORD:
                marker = _find_options_marker(parameter.annotation)
                inner = (
                    [_inspect_options(callee, node) for callee in _find_option_targets(marker, node)] if marker else []
                )
                is_open |= marker is None and (not ours or function is functions[-1])
                is_open |= marker is not None and (not inner or (any(x.is_open for x in inner) and not marker.by))
                stated = {key: hint for options in inner for key, hint in options.annotations.items()} | stated
            elif parameter.kind is not parameter.VAR_POSITIONAL and name != "self":
                stated.setdefault(name, parameter.annotation)
    first = _resolve_signature(functions[0]).parameters.items()
    required = [
        name
        for name, parameter in first
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and name != "self"
    ]
    return AcceptedOptions(stated, is_open, ours, required)


@cache
def _resolve_signature(function: Callable[..., object]) -> inspect.Signature:
    """Return a signature whose textual annotations are resolved, as far as they can be."""
    signature = inspect.signature(function)
    if not any(isinstance(parameter.annotation, str) for parameter in signature.parameters.values()):
        return signature
    try:
        hints = get_type_hints(inspect.unwrap(function), include_extras=True)
    except Exception:  # whatever somebody's annotations refer to
        hints = {}
    parameters = [
        parameter.replace(annotation=hints.get(name, inspect.Parameter.empty))
        for name, parameter in signature.parameters.items()
    ]
    return signature.replace(parameters=parameters)


def _find_options_marker(annotation: object) -> OptionsOf | None:
    if get_origin(annotation) is not Annotated:
        return None
    return next((argument for argument in get_args(annotation) if isinstance(argument, OptionsOf)), None)


def _find_option_targets(marker: OptionsOf, node: Mapping[str, object]) -> list[Callable[..., object]]:
    """Return the callables that `**options` are passed on to."""
    return list(marker.target(node.get(marker.by))) if marker.by else [marker.target]


def _is_fitted(key: str, name: object) -> bool:
    return key == "head" and name in FITTED_OPTIONS


def _is_built(value: object) -> bool:
    """Tell whether a value is a node with a target, or a list that contains one."""
    if isinstance(value, list):
        return any(map(_is_built, value))
    return isinstance(value, Mapping) and "_target_" in value


def _take_nothing() -> None:
    """Take no arguments."""


def _iterate_constructors(target: Callable[..., object]) -> Iterator[Callable[..., object]]:
    """Yield a function itself, or the constructors of a class, base classes included as far as **options reach them."""
    if not inspect.isclass(target):
        yield target
        return
    for base in target.__mro__:
        if base is nn.Module:  # whose **kwargs are only there to be refused
            yield _take_nothing
            return
        if "__init__" in vars(base) and base is not object:
            yield vars(base)["__init__"]
            keyword_options = [
                parameter
                for parameter in inspect.signature(vars(base)["__init__"]).parameters.values()
                if parameter.kind is parameter.VAR_KEYWORD
            ]
            if not keyword_options or _find_options_marker(keyword_options[0].annotation):
                return
