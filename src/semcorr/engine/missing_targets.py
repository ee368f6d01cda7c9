"""Reasons why a class or function of a configuration cannot be imported, in plain words."""

import difflib
import pkgutil
from importlib import import_module
from traceback import walk_tb
from types import ModuleType

from hydra._internal.utils import _locate

OWN_PACKAGES = ("semcorr.", "hydra_plugins.")  # whose defects are ours


def locate_target(target: str) -> object:
    """Return the class or function of a path; None if it cannot be imported, which `describe_missing_target` explains.

    A module that ends the program while it is imported cannot be imported, either.
    """
    try:
        return _locate(target)
    except (ImportError, ValueError, SystemExit):
        return None


def describe_missing_target(target: str) -> str:
    """Say why there is nothing to call at a path, and what to do.

    Args:
        target: Path of a class or function, as `my_package.backbone.MyBackbone`.
    """
    parts = target.split(".")
    if not all(parts):
        return f"{target!r} is not a path as my_package.backbone.MyBackbone. Correct it."
    found: object = None
    for count, part in enumerate(parts, 1):
        if count > 1 and hasattr(found, part):
            found = getattr(found, part)
            continue
        name, parent = ".".join(parts[:count]), ".".join(parts[: count - 1])
        if count > 1 and not isinstance(found, ModuleType):
            return f"there is no {target!r} ({parent} has no {part}). {_suggest(parent, part, found)}"
        try:
            found = import_module(name)
        except (Exception, SystemExit) as error:
            if not isinstance(error, ModuleNotFoundError) or error.name != name:
                return f"{target!r} cannot be imported: {_describe_failed_import(error)}"
            reason = f"{parent} has no {part}" if parent else f"no module {part} is found"
            return f"there is no {target!r} ({reason}). {_suggest(parent, part, found)}"
    kind = type(found).__name__
    return f"there is no {target!r} (a {kind} is nothing that can be called). Correct it, or install what it is in."


def format_reason(error: BaseException) -> str:
    """Format an error as a line: its kind, and what it says.

    >>> format_reason(ValueError("width  must be even"))
    'ValueError: width must be even'
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def _suggest(parent: str, part: str, found: object) -> str:
    """Suggest names that a module or class has, near one that it has not."""
    names = {name for name in dir(found) if not name.startswith("_")} if parent else set()
    names |= {module.name for module in pkgutil.iter_modules(getattr(found, "__path__", []))}
    near = difflib.get_close_matches(part, sorted(names), n=2)
    if near:
        return f"Did you mean {' or '.join(f'{parent}.{name}' for name in near)}?"
    return "Correct it, or install what it is in."


def _describe_failed_import(error: BaseException) -> str:
    """Say in which line of which file an import has failed, and what to do."""
    remedy = "Install what it needs, or correct it." if isinstance(error, ImportError) else "Correct it."
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: SyntaxError: {error.msg}. {remedy}"
    place = ""
    for frame, line in walk_tb(error.__traceback__):
        if frame.f_code.co_name == "<module>":
            place = f"{frame.f_code.co_filename}, line {line}: "
    return f"{place}{format_reason(error)}. {remedy}"
