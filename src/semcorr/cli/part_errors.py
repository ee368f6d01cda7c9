"""Errors of the configuration files and the classes of parts, which may be of another package, as sentences."""

import re
from traceback import walk_tb

import yaml
from hydra.errors import HydraException, InstantiationException
from hydra.plugins.config_source import ConfigSource

from semcorr.engine.missing_targets import OWN_PACKAGES, describe_missing_target, format_reason
from semcorr.engine.packages import find_tree


def describe_damaged_file(error: BaseException) -> str | None:
    """Say what is wrong with a configuration file that could not be read while a line was composed; None if none.

    Hydra lets the errors of YAML and of its own header through, and the frame of its reader knows the file.
    """
    path = None
    for frame, _ in walk_tb(error.__traceback__):
        values = frame.f_locals
        if frame.f_code.co_name == "load_config" and isinstance(source := values.get("self"), ConfigSource):
            tree = find_tree(source.full_path())
            path = tree and tree / source._normalize_file_name(values["config_path"])
    if path is None or isinstance(error, HydraException):
        return None
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = error.problem or "it is not YAML"
        reason = f"{error.context}, {problem}" if problem.startswith("but ") else problem
        return f"{place}: {reason}. Correct it."
    if isinstance(error, UnicodeDecodeError):
        content = path.read_bytes()
        line = next(i for i, text in enumerate(content.split(b"\n"), 1) if not _is_utf8(text))
        return f"{path}, line {line}: it is not UTF-8. Save it as UTF-8."
    return f"{path}: {' '.join(str(error).split())}. Correct it."


def is_override_error(error: BaseException) -> bool:
    """Tell whether an error comes from giving the values of a line to a composed configuration.

    OmegaConf lets some of Python's errors through, as of a key of a list.
    """
    return any(frame.f_code.co_name == "_apply_overrides_to_config" for frame, _ in walk_tb(error.__traceback__))


def describe_failed_call(error: InstantiationException) -> str | None:
    """Say why a part of the configuration could not be built; None if the fault is ours.

    Args:
        error: Error of Hydra, which names the target and, on lines of their own, the reason and the key.
    """
    text, reason = str(error), error.__cause__
    key = re.search(r"^full_key: (\S+)$", text, re.M)
    start = f"`{key[1]}._target_`: " if key else ""
    if match := re.match(r"Error locating target '([^']*)'", text):  # typed, or of a plug-in
        return f"{start}{describe_missing_target(match[1])}"
    match = re.match(r"Error in (?:call to target|creating partial\() ?'?([\w.]+)", text)
    if match is None or reason is None:
        return " ".join(text.split())
    target = match[1]
    if target.startswith(OWN_PACKAGES) and not isinstance(reason, TypeError | ValueError):
        return None
    return f"{start}{target} failed: {format_reason(reason)}{_describe_place(reason, target)}."


def _describe_place(error: BaseException, target: str) -> str:
    """Return the line of the target's own module that an error comes from, in brackets."""
    place = ""
    for frame, line in walk_tb(error.__traceback__):
        if target.startswith(f"{frame.f_globals.get('__name__')}."):
            place = f" (line {line} of {frame.f_code.co_filename})"
    return place


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
