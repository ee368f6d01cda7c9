"""Settings as they were typed on the line of the command that runs, for messages about what came of them.

A configuration does not tell what was typed from what a file brought. From Python nothing is typed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_SETTINGS: ContextVar[tuple[str, ...] | None] = ContextVar("typed settings", default=None)


@contextmanager
def record_settings(settings: Sequence[str]) -> Iterator[None]:
    """Record what was typed, for as long as the block lasts.

    Args:
        settings: Words of a line, as `finetune=lora`; those without `=` are left out.
    """
    token = _SETTINGS.set(tuple(word for word in settings if "=" in word))
    try:
        yield
    finally:
        _SETTINGS.reset(token)


def list_settings() -> tuple[str, ...] | None:
    """Return the settings that were typed; None where no line is known, as in Python."""
    return _SETTINGS.get()


def find_setting(key: str) -> str | None:
    """Return the typed setting that gives a key its value: the key itself, a section around it, or an experiment.

    >>> with record_settings(["experiment=demo", "finetune=lora", "+callbacks.a.x=1"]):
    ...     [find_setting(key) for key in ("finetune.rank", "callbacks.a.x", "seed")]
    ['finetune=lora', '+callbacks.a.x=1', 'experiment=demo']
    """
    settings_by_key = {read_key(setting): setting for setting in _SETTINGS.get() or ()}  # of two the last counts
    parts = key.split(".")
    around = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((settings_by_key[name] for name in (*around, "experiment") if name in settings_by_key), None)


def read_key(setting: str) -> str:
    """Return the key of a setting, without its sign and the name of a group before it.

    >>> read_key("+upsample@backbone.upsample=anyup")
    'backbone.upsample'
    """
    return setting.lstrip("+~").partition("=")[0].rpartition("@")[2]


def format_setting(value: object) -> str:
    """Format a value as it is typed.

    >>> format_setting(None), format_setting(True), format_setting([1, None])
    ('null', 'true', '[1,null]')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(format_setting, value))}]"
    return str(value)
