"""Every option of a configuration against the signature that it goes to, before anything is read or built."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

from hydra._internal.utils import _locate
from omegaconf import DictConfig, OmegaConf

from semcorr.core.ranges import OptionsOf, Seed, Within, require

TOP: dict[str, Any] = {  # options that go to no constructor
    "seed": Seed,
    "feature_dropout": Annotated[float, Within(least=0, below=1, off=True)],
    "kap": bool,
    "compile": str | None,
    "run_dir": str,
    "checkpoint": str | None,
    "data_root": str,
}
FITTED = ("channels", "maps", "grid")  # of a head: null is the backbone's


def check_options(cfg: DictConfig) -> None:
    """Refuse the first option that is not of the type, or not in the range, that its constructor states.

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


def _check(key: str, node: Any) -> None:
    """A node and all below it."""
    inner = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    if isinstance(node, Mapping) and isinstance(node.get("_target_"), str):
        stated = _stated(node["_target_"])
        for name, value in node.items():
            given = not _is_built(value) and value != "???" and not (value is None and _is_fitted(key, name))
            if name in stated and given:
                require(f"{key}.{name}", value, stated[name])
    for name, value in inner:
        _check(f"{key}.{name}", value)


def _stated(target: str) -> dict[str, Any]:
    """Options of a target; none of one that is not there, which is said when it is to be called."""
    try:
        return parameters(_locate(target))
    except ImportError:
        return {}


def _is_fitted(key: str, name: Any) -> bool:
    return key == "head" and name in FITTED


def _is_built(value: Any) -> bool:
    """A node with a target, or a list with one in it."""
    if isinstance(value, list):
        return any(map(_is_built, value))
    return isinstance(value, Mapping) and "_target_" in value


def parameters(target: Any) -> dict[str, Any]:
    """Names and annotations of everything that a target of ours takes, what it hands on included.

    Of other people's, whose annotations are not written to be checked, nothing.
    """
    if not callable(target) or not str(getattr(target, "__module__", "")).startswith(("semcorr", "hydra_plugins.")):
        return {}
    stated: dict[str, Any] = {}
    for function in _called(target):
        for name, one in inspect.signature(function).parameters.items():
            if one.kind is one.VAR_KEYWORD:
                handed = next((each for each in get_args(one.annotation) if isinstance(each, OptionsOf)), None)
                more = parameters(handed.target) if handed and get_origin(one.annotation) is Annotated else {}
                stated = more | stated
            elif name != "self":
                stated.setdefault(name, one.annotation)
    return stated


def _called(target: Any) -> Iterator[Any]:
    """A function; of a class its constructor, and those above as far as **options go on."""
    if not inspect.isclass(target):
        yield target
        return
    for each in target.__mro__:
        if "__init__" in vars(each) and each is not object:
            yield vars(each)["__init__"]
            kinds = [one.kind for one in inspect.signature(vars(each)["__init__"]).parameters.values()]
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                return
