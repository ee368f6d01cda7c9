"""Packages that wait: nothing is loaded before it is asked for, and then it is the real one, once."""

import json
import subprocess
import sys

import pytest

from semcorr.core.late_imports import OptimizedModule, disable, is_compile_supported, postpone_compiler

pytestmark = pytest.mark.integration

METRICS = """
import sys
from semcorr.core.late_imports import postpone_metrics
postpone_metrics()
import torchmetrics
from torchmetrics import Metric, MetricCollection
first = torchmetrics
assert "torchmetrics.functional" not in sys.modules
assert torchmetrics.__version__[0].isdigit() and type(torchmetrics) is not type(sys)

from torchmetrics import MeanMetric  # the whole
assert sys.modules["torchmetrics"] is first and type(first) is type(sys)
assert "torchmetrics.functional" in sys.modules
assert first.Metric is Metric and first.MetricCollection is MetricCollection and issubclass(MeanMetric, Metric)
assert first.metric is sys.modules["torchmetrics.metric"]
mean = MeanMetric(); mean.update(1.0); mean.update(3.0)
assert mean.compute() == 2
"""

COMPILER = """
import inspect
import sys
import torch
from torch import nn
from semcorr.core.late_imports import postpone_compiler

names = lambda: {name for name in sys.modules if name.startswith("torch._dynamo")}
with postpone_compiler():
    from torch._dynamo import OptimizedModule
    from torch._dynamo.utils import is_compile_supported
    @torch.compiler.disable
    def twice(x):
        return 2 * x
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)
    optimizer.zero_grad(); optimizer.step()
    assert names() == {"torch._dynamo", "torch._dynamo.utils"}
    assert twice(3) == 6 and not isinstance(nn.Identity(), OptimizedModule)
    inspect.getmodule(sys._getframe())  # it asks all modules for their files, as registering an operation does
    assert names() == {"torch._dynamo", "torch._dynamo.utils"}
assert not names() and not any("late_imports" in type(finder).__module__ for finder in sys.meta_path)
assert twice(3) == 6 and not isinstance(nn.Identity(), OptimizedModule) and not names()

compiled = torch.compile(nn.Linear(2, 2), backend="eager")  # the compiler itself
assert isinstance(compiled, OptimizedModule) and not isinstance(nn.Identity(), OptimizedModule)
assert isinstance(compiled, torch._dynamo.OptimizedModule)
assert torch.equal(torch.compile(lambda x: twice(x) + 1, backend="eager")(torch.ones(2)), torch.full((2,), 3.0))
optimizer.zero_grad(); optimizer.step()
assert is_compile_supported("cpu") == torch._dynamo.utils.is_compile_supported("cpu")
"""

RELIED_ON = """
import inspect
import sys
import torch
from semcorr.core import late_imports
from semcorr.engine.lean_lightning import import_lightning

loaded = lambda: sorted(name for name in sys.modules if name.startswith("torch._dynamo"))
assert not loaded(), f"PyTorch {torch.__version__} loads its compiler itself: {loaded()}"
import_lightning()
with late_imports.postpone_compiler():
    import timm
    import torchvision
    extra = {*loaded()} - {late_imports.COMPILER, late_imports.COMPILER_FUNCTIONS}
    assert not extra, f"an import asks more of the compiler than its stand-in holds: {sorted(extra)}"
assert not loaded(), loaded()

from torch import _dynamo  # the compiler itself: what stands in for it is named and called as there
pairs = [
    (late_imports.disable, _dynamo.disable, ["recursive"]),
    (late_imports.break_graph, _dynamo.graph_break, []),
    (late_imports.is_compile_supported, _dynamo.utils.is_compile_supported, []),
]
for ours, theirs, shared in pairs:
    parameters, own = (inspect.signature(function).parameters for function in (theirs, ours))
    for name in shared:
        assert (parameters[name].default, [*parameters].index(name)) == (own[name].default, [*own].index(name)), name
    first, stand_in = ([each for each in found.values()][0] for found in (parameters, own))
    assert (first.default is first.empty, stand_in.default is stand_in.empty) in ((True, True), (False, False)), ours
assert inspect.isclass(_dynamo.OptimizedModule) and issubclass(_dynamo.OptimizedModule, torch.nn.Module)
assert {"_dynamo", "disable"} <= {*torch.compiler.disable.__code__.co_names}, "torch.compiler.disable asks elsewhere"
"""

ASKED_FOR = """
import sys
import torch
from semcorr.core.late_imports import postpone_compiler
with postpone_compiler():
    import torch._dynamo
    {line}
    package = sys.modules["torch._dynamo"]
    assert package.__file__ and package is torch._dynamo and package.config.__name__ == "torch._dynamo.config"
assert sys.modules["torch._dynamo"] is package is torch._dynamo
for name in ("eval_frame", "utils", "backends.registry"):
    module = sys.modules[f"torch._dynamo.{{name}}"]
    assert module.__spec__.loader is not None and "semcorr" not in type(module.__spec__.loader).__module__, name
from torch._dynamo import eval_frame, utils
assert eval_frame is sys.modules["torch._dynamo.eval_frame"] and utils is sys.modules["torch._dynamo.utils"]
assert eval_frame.OptimizedModule is package.OptimizedModule
"""


LINES = (
    "torch._dynamo.config.verbose",
    "import torch._dynamo.eval_frame",
    "from torch._dynamo.backends.registry import lookup_backend",
    "from torch._dynamo.utils import counters",
    "from torch._dynamo import list_backends",
)
# Each script is run by a fork of a process that has imported torch, which takes seconds, and nothing else.
FORKS = """
import os, sys
import torch
codes = []
for script in sys.argv[1:]:
    child = os.fork()
    if not child:
        exec(script, {"__name__": "__main__"})
        os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(codes)
"""


def require_success(*scripts: str) -> None:
    done = subprocess.run([sys.executable, "-c", FORKS, *scripts], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout) == [0] * len(scripts), done.stderr


def test_postponed_modules_load_on_use_and_pytorch_is_as_the_stand_in_assumes():
    """It saves an evaluation 4 of 16 seconds of a processor.

    Where `RELIED_ON` fails, PyTorch or an importer has changed: follow it in core/late_imports.py, or delete
    `postpone_compiler` if a run loads the compiler anyway.
    """
    require_success(RELIED_ON, METRICS, COMPILER, ASKED_FOR.format(line=LINES[0]))


@pytest.mark.slow
def test_any_other_attribute_of_the_compiler_loads_it():
    require_success(*(ASKED_FOR.format(line=line) for line in LINES[1:]))


def test_a_compiler_that_is_loaded_stays(monkeypatch):
    import torch._dynamo

    with postpone_compiler():
        assert sys.modules["torch._dynamo"] is torch._dynamo
    compiled = torch.compile(torch.nn.Identity(), backend="eager")
    assert isinstance(compiled, OptimizedModule)
    assert not isinstance(torch.nn.Identity(), OptimizedModule)
    assert is_compile_supported("cpu") == torch._dynamo.utils.is_compile_supported("cpu")


def test_a_function_without_the_compiler_is_called_as_it_is():
    @disable
    def divide(a: float, b: float) -> float:
        """Divide."""
        return a / b

    assert (divide(6, b=3), divide.__name__, divide.__doc__) == (2, "divide", "Divide.")
    assert disable(recursive=False)(divide)(6, 3) == 2
