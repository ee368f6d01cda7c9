"""Measure the time that one evaluation spends on checks: of finite numbers, intact files, options and folders.

    python scripts/check_cost.py data=spair data.root=SPair-71k backbone=dinov2 trainer=cpu

Every function of semcorr that is named as a check is timed, whichever module calls it, on the process's first thread;
of nested checks the outermost counts. Their sum is compared with the time of the whole evaluation, from composing the
configuration to writing the last file, and with that of the same line as a command, which starts Python and imports.
"""

import functools
import importlib
import pkgutil
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FunctionType, ModuleType

from omegaconf import OmegaConf

import semcorr

NAMED = re.compile(r"_?(require|check|refuse|validate)(_\w+)?|\w+_checksum|are_finite|read_run_config|_guess_kind")


class Stopwatch:
    """Seconds and calls by function; of nested calls the outermost is timed."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._is_running = False

    def time(self, function: FunctionType) -> Callable[..., object]:
        """Wrap a function to time its calls."""
        name = f"{function.__module__}.{function.__qualname__}"

        @functools.wraps(function)
        def timed(*args: object, **kwargs: object) -> object:
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
    """Import all modules of semcorr that can be imported here, and return them."""
    for info in pkgutil.walk_packages(semcorr.__path__, "semcorr."):
        if not info.name.endswith("__main__"):
            with suppress(ImportError, SystemExit):
                importlib.import_module(info.name)
    return [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "semcorr"]


def list_checks(modules: list[ModuleType]) -> Iterator[tuple[ModuleType | type, str, FunctionType]]:
    """Yield each namespace that holds a check, the name of the check in it, and the check."""
    classes = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    own_classes = [cls for cls in classes if cls.__module__.partition(".")[0] == "semcorr"]
    namespaces: list[ModuleType | type] = [*modules, *own_classes]
    for namespace in namespaces:
        for name, value in list(vars(namespace).items()):
            is_own = isinstance(value, FunctionType) and value.__module__.partition(".")[0] == "semcorr"
            if is_own and NAMED.fullmatch(value.__name__):
                yield namespace, name, value


def main() -> None:
    """Evaluate as the command line would, and print a table."""
    stopwatch = Stopwatch()
    wrapped: dict[FunctionType, Callable[..., object]] = {}
    for namespace, name, check in list_checks(import_modules()):
        setattr(namespace, name, wrapped.setdefault(check, stopwatch.time(check)))
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from semcorr.evaluate import main as evaluate

    # Hydra and OmegaConf parse the same texts after our checks; whoever comes first fills the tables of their grammars.
    OverridesParser.create().parse_overrides(["data.workers=0", *sys.argv[1:]])
    assert OmegaConf.create({"root": "a", "data": "${root}/b"}).data == "a/b"
    with tempfile.TemporaryDirectory() as folder:
        overrides = sys.argv[1:]
        start = time.perf_counter()
        evaluate(["data.workers=0", f"run_dir={folder}/run", *overrides])
        elapsed = time.perf_counter() - start
        line = ["-m", "semcorr.evaluate", "data.workers=0", f"run_dir={folder}/command", *overrides]
        start = time.perf_counter()
        subprocess.run([sys.executable, *line], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        command = time.perf_counter() - start
    for name, seconds in sorted(stopwatch.seconds.items(), key=lambda item: -item[1]):
        print(f"{1000 * seconds:9.1f} ms {stopwatch.calls[name]:7d} calls  {name}")
    total = sum(stopwatch.seconds.values())
    print(
        f"{1000 * total:9.1f} ms of {elapsed:.2f} s: {100 * total / elapsed:.2f} %; of {command:.2f} s, the whole "
        f"command with its start: {100 * total / command:.2f} % ({len(wrapped)} checks are timed)"
    )


if __name__ == "__main__":
    main()
