"""Measure what the checks of one evaluation cost: numbers that are finite, files that are whole, options, places.

    python scripts/check_cost.py data=spair data.root=SPair-71k backbone=dinov2 trainer=cpu

Every function of semcorr that is named for a check is timed, whichever module calls it, on the process's first thread;
of nested ones the outermost counts. Their sum is compared with the whole evaluation, from composing to its last file.
"""

import functools
import importlib
import pkgutil
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any

import semcorr

NAMED = re.compile(r"_?(require|check|refuse)(_\w+)?|checksum|are_finite|see|settle|read_run_config|_kind")


class Stopwatch:
    """Seconds by function; of calls within calls the outermost is timed."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._is_running = False

    def time(self, function: FunctionType) -> Callable[..., Any]:
        """Wrap a function."""
        name = f"{function.__module__}.{function.__qualname__}"

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._is_running:
                return function(*args, **kwargs)
            self._is_running, start = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._is_running = False
                self.seconds[name] += time.perf_counter() - start
                self.calls[name] += 1

        return timed


def import_modules() -> list[ModuleType]:
    """Import what can be imported here."""
    for found in pkgutil.walk_packages(semcorr.__path__, "semcorr."):
        if not found.name.endswith("__main__"):
            with suppress(ImportError, SystemExit):
                importlib.import_module(found.name)
    return [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "semcorr"]


def list_checks(modules: list[ModuleType]) -> Iterator[tuple[Any, str, FunctionType]]:
    """Yield each namespace that holds a check, its name there, and the check."""
    classes = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    ours = [one for one in classes if one.__module__.partition(".")[0] == "semcorr"]
    for space in [*modules, *ours]:
        for name, value in list(vars(space).items()):
            is_ours = isinstance(value, FunctionType) and value.__module__.partition(".")[0] == "semcorr"
            if is_ours and NAMED.fullmatch(value.__name__):
                yield space, name, value


def main() -> None:
    """Evaluate as the command line would, and print a table."""
    stopwatch = Stopwatch()
    wrapped: dict[FunctionType, Callable[..., Any]] = {}
    for space, name, check in list_checks(import_modules()):
        setattr(space, name, wrapped.setdefault(check, stopwatch.time(check)))
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from semcorr.evaluate import main as evaluate

    OverridesParser.create().parse_overrides(["seed=1"])
    with tempfile.TemporaryDirectory() as folder:
        typed = sys.argv[1:]
        sys.argv = ["semcorr.evaluate", "data.workers=0", f"run_dir={folder}/run", *typed]
        start = time.perf_counter()
        evaluate()
        whole = time.perf_counter() - start
    for name, seconds in stopwatch.seconds.most_common():
        print(f"{1000 * seconds:9.1f} ms {stopwatch.calls[name]:7d} calls  {name}")
    total = sum(stopwatch.seconds.values())
    print(f"{1000 * total:9.1f} ms of {whole:.2f} s: {100 * total / whole:.2f} % ({len(wrapped)} checks are timed)")


if __name__ == "__main__":
    main()
