"""Late imports of what a package imports at its top and a run does not use.

Lightning, timm and torchvision import PyTorch's compiler (`torch._dynamo`, with SymPy and Inductor) for a class to test
against and a decorator, and Lightning imports all of torchmetrics (with SciPy's statistics and transformers) for two
classes. A run waits for both longer than for PyTorch itself. Here both wait until something of them is needed.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_loader
from inspect import isfunction
from types import ModuleType

METRICS = "torchmetrics"
METRIC_MODULES = {"Metric": "torchmetrics.metric", "MetricCollection": "torchmetrics.collections"}
COMPILER, COMPILER_FUNCTIONS = "torch._dynamo", "torch._dynamo.utils"


class _MetricsPackage(ModuleType):
    """The package torchmetrics before its `__init__` has run: it runs for what `METRIC_MODULES` does not hold."""

    def __getattr__(self, name: str) -> object:
        if name == "__version__":
            return version(METRICS)
        if name in METRIC_MODULES:
            try:
                importlib.import_module(f"{METRICS}.utilities")  # which torchmetrics.metric expects to be there
                return getattr(importlib.import_module(METRIC_MODULES[name]), name)
            except ImportError:  # another version, whose modules need the whole
                pass
        elif name == "_logger":  # which its modules import from it
            import logging

            return logging.getLogger(METRICS)
        self.__class__ = ModuleType  # type: ignore[assignment] # from here on the package itself
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(self)
        return getattr(self, name)


def postpone_metrics() -> None:
    """Let `torchmetrics` wait, for the rest of the process, until more of it is needed than its base classes."""
    spec = None if METRICS in sys.modules else find_spec(METRICS)
    if spec is not None:
        module = module_from_spec(spec)
        module.__class__ = _MetricsPackage
        sys.modules[METRICS] = module


class _CompilerModule(ModuleType):
    """A stand-in of a module of the compiler, which is loaded for what the stand-in does not hold."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # `from` asks any module for `__path__`, `inspect` all of them for `__file__`
            raise AttributeError(name)
        return getattr(load_compiler(self.__name__), name)


class _CompiledType(type):
    """The type of `OptimizedModule`: its instances are those of the compiler's class, as soon as there is one."""

    def __instancecheck__(cls, instance: object) -> bool:
        compiler = _loaded_compiler()
        return compiler is not None and isinstance(instance, getattr(compiler, cls.__name__, ()))


class OptimizedModule(metaclass=_CompiledType):
    """The stand-in of the class of compiled modules, to test against."""


def disable(function: Callable | None = None, recursive: bool = True, **options: str | bool | None) -> Callable:
    """Return a function that is not compiled: the stand-in of the decorator `torch.compiler.disable`.

    Args:
        function: Function; None returns a decorator.
        recursive: Whether the functions that it calls are not compiled either.
        **options: Other options of the compiler's own decorator.

    >>> disable(lambda x: x + 1)(1)
    2
    """
    if function is None:
        return lambda function: disable(function, recursive, **options)
    if not isfunction(function):
        return load_compiler().disable(function, recursive, **options)
    disabled: list[Callable] = []

    @wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        """Call the function: while the compiler is not loaded, nothing compiles it."""
        compiler = _loaded_compiler()
        if compiler is None:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(compiler.disable(function, recursive, **options))
        return disabled[0](*args, **kwargs)

    return call


def break_graph(message: str = "") -> None:
    """Do nothing: the stand-in of `graph_break`, which ends what is being compiled."""


def is_compile_supported(device: object) -> bool:
    """Tell whether the compiler works on a device, by the compiler's own function."""
    return load_compiler(COMPILER_FUNCTIONS).is_compile_supported(device)


class _CompilerFinder(MetaPathFinder):
    """A finder that loads the compiler for any other of its modules."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if not name.startswith(f"{COMPILER}."):
            return None
        load_compiler()
        return spec_from_loader(name, _Loaded(sys.modules[name])) if name in sys.modules else find_spec(name)


class _Loaded(Loader):
    """A loader of a module that was loaded while it was looked for."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__
        module.__spec__ = None  # with its own, Python would run it a second time

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


@contextmanager
def postpone_compiler() -> Iterator[None]:
    """Let PyTorch's compiler wait while other packages are imported; whatever needs more of it loads it."""
    import torch  # noqa: F401 # it imports parts of the compiler itself, in an order of its own

    if COMPILER in sys.modules:
        yield
        return
    package, functions = _CompilerModule(COMPILER), _CompilerModule(COMPILER_FUNCTIONS)
    vars(package).update(__path__=[], utils=functions)
    vars(package).update(OptimizedModule=OptimizedModule, disable=disable, graph_break=break_graph)
    vars(functions).update(is_compile_supported=is_compile_supported)
    sys.modules |= {COMPILER: package, COMPILER_FUNCTIONS: functions}
    sys.meta_path.insert(0, _CompilerFinder())
    try:
        yield
    finally:
        _remove_stand_ins()


def load_compiler(name: str = COMPILER) -> ModuleType:
    """Load a module of the compiler, in the place of its stand-in."""
    _remove_stand_ins()
    return importlib.import_module(name)


def _loaded_compiler() -> ModuleType | None:
    """Return the compiler, if it is loaded."""
    module = sys.modules.get(COMPILER)
    return None if isinstance(module, _CompilerModule) else module


def _remove_stand_ins() -> None:
    for name in (COMPILER, COMPILER_FUNCTIONS):
        if isinstance(sys.modules.get(name), _CompilerModule):
            del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _CompilerFinder)]
