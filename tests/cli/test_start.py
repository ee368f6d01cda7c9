"""What a run imports: nothing that takes seconds and serves other runs."""

import json
import subprocess
import sys

import pytest
from repository import SMALL

pytestmark = pytest.mark.integration

UNUSED = (
    "torchvision", "timm", "transformers", "peft", "scipy.stats", "torchmetrics.functional", "matplotlib", "wandb",
    "PIL.PdfImagePlugin",
)  # fmt: skip
COMPILER = ("torch._dynamo", "torch._inductor", "sympy")  # PyTorch's optimisers import it
PROGRAM = f"""
import json, sys
from semcorr.{{verb}} import main
main(sys.argv[1:])
print(json.dumps([name for name in {UNUSED + COMPILER} if name in sys.modules]))
"""


@pytest.mark.parametrize(("verb", "options"), [("evaluate", []), ("train", ["finetune.blocks=1"])])
def test_a_run_imports_no_library_that_it_does_not_use(verb, options, creatures, tmp_path):
    backbone = ["backbone=efficientnet_lite0", "backbone._target_=semcorr.benchmark.first_image.TimedPatches"]
    line = [
        *("data=synthetic", f"data.root={creatures}", *SMALL, "data.workers=0", *backbone, "backbone.size=64"),
        *("trainer=cpu", f"run_dir={tmp_path / 'run'}", *options),
    ]
    program = [sys.executable, "-c", PROGRAM.format(verb=verb), *line]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imported = json.loads(done.stdout.splitlines()[-1])
    assert [name for name in imported if verb == "evaluate" or name not in COMPILER] == []
    assert "First image at" in done.stdout
    assert (tmp_path / "run" / "metrics.json").is_file()
