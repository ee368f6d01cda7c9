"""Every option of a configuration against the signature that it goes to, before anything is read or built."""

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from hydra._internal.utils import _locate
from lightning import Callback
from omegaconf import DictConfig, OmegaConf
from torch import nn

from semcorr.core.errors import UserError
from semcorr.core.ranges import BUILT, NotEmpty, OptionsOf, Range, Seed, require, require_kind
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.engine.known_targets import CONTROLS

TOP: JsonObject = {  # options that go to no constructor
    "seed": Seed,
    "feature_dropout": Annotated[float, Range(least=0, below=1, off=True)],
    "kap": bool,
    "compile": str | None,
    "name": NotEmpty,
    "run_dir": NotEmpty,
    "checkpoint": NotEmpty | None,
    "data_root": NotEmpty,
}
SEVERAL = ("logger", "callbacks")  # sections that may hold any number of calls, by names of the user's
FITTED = ("channels", "maps", "grid")  # of a head: null is the backbone's


def check_options(cfg: DictConfig) -> None:
    """Refuse the first option that its constructor does not take, or that is not of the type or range it states.

    Args:
        cfg: Of a verb. Values that are missing (???) are left for those who need them.

    Raises:
        UserError: It names the option by its whole key, and says what is allowed.
    """
    content = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(content, dict)
    for key, hint in TOP.items():
        if key in content:
            require(key, content[key], hint)
    for name, node in content.items():
        _check(str(name), node)


class AcceptedOptions(NamedTuple):
    """What a call takes.

    Attributes:
        stated: Annotations by name.
        is_open: It takes other names as well.
        is_ours: The annotations are written to be checked in full: with ranges, and nothing unsaid.
        required: What has no default.
    """

    stated: JsonObject
    is_open: bool
    is_ours: bool
    required: Sequence[str] = ()


def _check(key: str, node: object) -> None:
    """A node and all below it."""
    inner = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    if isinstance(node, Mapping) and "_target_" in node:
        _check_call(key, node)
    elif key in SEVERAL and isinstance(node, Mapping):
        for name, each in inner:
            if not _is_built(each):
                raise UserError(f"`{key}.{name}` must be {BUILT}, got {each!r:.60}")
    for name, value in inner:
        _check(f"{key}.{name}", value)


def _check_call(key: str, node: JsonMapping) -> None:
    """The options of one call."""
    if not isinstance(node["_target_"], str):
        raise UserError(f"`{key}._target_` must be text, the path of a class or function, got {node['_target_']!r:.60}")
    taken = accepted_options(node["_target_"], node)
    if taken is None:
        _refuse_absent(f"{key}._target_", node["_target_"])
        return
    is_one_of_several = key.partition(".")[0] in SEVERAL
    absent = [name for name in taken.required if name not in (*node, "save_dir")] if is_one_of_several else []
    if absent and not node.get("_args_"):
        raise UserError(f"`{key}` needs `{absent[0]}`. Give +{key}.{absent[0]}=VALUE.")
    if key.startswith("callbacks."):
        _require_callback(key, node["_target_"])
    for name, value in node.items():
        if name in CONTROLS or (key in SEVERAL and _is_built(value)):
            continue
        if name not in taken.stated:
            if not taken.is_open:
                raise UserError(_unknown(key, str(name), [*taken.stated]))
            continue
        if not _is_built(value) and value != "???" and not (value is None and _is_fitted(key, name)):
            check = require if taken.is_ours else require_kind
            check(f"{key}.{name}", value, taken.stated[name])


def _refuse_absent(key: str, target: str) -> None:
    """Refuse what is not there, unless it is ours: then something is to be installed, which its own error says."""
    try:
        located: object = _locate(target)
        reason = f"a {type(located).__name__} is nothing that can be called"
    except ImportError as error:
        reason = " ".join(str(error).split())
    if not target.startswith(("semcorr.", "hydra_plugins.")):
        raise UserError(f"`{key}`: there is no {target!r} ({reason}). Correct it, or install what it is in.")


def _require_callback(key: str, target: str) -> None:
    """Of a function nobody knows what it makes before it is called."""
    located: object = _locate(target)
    if inspect.isclass(located) and not issubclass(located, Callback):
        raise UserError(f"`{key}` must be a callback of Lightning, and {target} is none.")


def _unknown(key: str, name: str, names: list[str]) -> str:
    """Say that a call has no such option, with what is near."""
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    hint = (
        f"Did you mean {' or '.join(f'{key}.{each}' for each in near)}?"
        if near
        else f"It has {', '.join(names) or 'none'}."
    )
    return f"`{key}.{name}` is no option of `{key}`. {hint}"


def accepted_options(target: str, node: JsonMapping) -> AcceptedOptions | None:
    """What a target takes; None of one that is not there, which is said when it is to be called.

    Args:
        target: Its path.
        node: The call, by whose options some say what else they take.
    """
    try:
        located = _locate(target)
    except ImportError:
        return None
    return _accepted(located, node) if callable(located) else None


def _accepted(target: object, node: JsonMapping) -> AcceptedOptions:
    ours = str(getattr(target, "__module__", "")).startswith(("semcorr", "hydra_plugins."))
    stated, is_open = dict[str, Any](), False
    functions = [*_called(target)] or [target]
    for function in functions:
        try:
            signature = _signature(function)
        except (ValueError, TypeError):  # of a built-in, which has none
            return AcceptedOptions(stated, True, ours)
        for name, one in list(signature.parameters.items()):
            if one.kind is one.VAR_KEYWORD:
                handed = _handed(one.annotation)
                more = [_accepted(each, node) for each in _targets(handed, node)] if handed else []
                is_open |= handed is None and (not ours or function is functions[-1])
                is_open |= handed is not None and (not more or (any(each.is_open for each in more) and not handed.by))
                stated = {key: hint for each in more for key, hint in each.stated.items()} | stated
            elif one.kind is not one.VAR_POSITIONAL and name != "self":
                stated.setdefault(name, one.annotation)
    first = _signature(functions[0]).parameters.items()
    required = [
        name
        for name, one in first
        if one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL) and name != "self"
    ]
    return AcceptedOptions(stated, is_open, ours, required)


@cache
def _signature(function: object) -> inspect.Signature:
    """With annotations in place of their texts, as far as they can be looked up."""
    signature = inspect.signature(function)
    if not any(isinstance(one.annotation, str) for one in signature.parameters.values()):
        return signature
    try:
        hints = get_type_hints(inspect.unwrap(function), include_extras=True)
    except Exception:  # whatever somebody's annotations refer to
        hints = {}
    plain = [
        one.replace(annotation=hints.get(name, inspect.Parameter.empty)) for name, one in signature.parameters.items()
    ]
    return signature.replace(parameters=plain)


def _handed(annotation: object) -> OptionsOf | None:
    if get_origin(annotation) is not Annotated:
        return None
    return next((each for each in get_args(annotation) if isinstance(each, OptionsOf)), None)


def _targets(handed: OptionsOf, node: JsonMapping) -> list[object]:
    """To whom `**options` are handed on."""
    return list(handed.target(node.get(handed.by))) if handed.by else [handed.target]


def _is_fitted(key: str, name: object) -> bool:
    return key == "head" and name in FITTED


def _is_built(value: object) -> bool:
    """A node with a target, or a list with one in it."""
    if isinstance(value, list):
        return any(map(_is_built, value))
    return isinstance(value, Mapping) and "_target_" in value


def stated_parameters(target: object) -> JsonObject:
    """Names and annotations of everything that a target of ours takes, what it hands on included.

    Of other people's, whose annotations are not written to be checked, nothing.
    """
    taken = _accepted(target, {}) if callable(target) else None
    return taken.stated if taken and taken.is_ours else {}


def _nothing() -> None:
    """Take no arguments."""


def _called(target: object) -> Iterator[object]:
    """A function; of a class its constructor, and those above as far as **options go on."""
    if not inspect.isclass(target):
        yield target
        return
    for each in target.__mro__:
        if each is nn.Module:  # whose **kwargs are only there to be refused
            yield _nothing
            return
        if "__init__" in vars(each) and each is not object:
            yield vars(each)["__init__"]
            rest = [
                one
                for one in inspect.signature(vars(each)["__init__"]).parameters.values()
                if one.kind is one.VAR_KEYWORD
            ]
            if not rest or _handed(rest[0].annotation):
                return
