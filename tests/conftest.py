"""A tiny drawn benchmark, and one line to compose a configuration as the command line would."""

# torch and what needs it are imported by who runs tests: the process that only hands them out starts 8 seconds earlier.
import gc
from collections import Counter
from collections.abc import Callable
from inspect import isclass
from pathlib import Path

import jaxtyping
import pytest
from jaxtyping import install_import_hook, jaxtyped
from omegaconf import DictConfig
from repository import ROOT, SMALL


def check_arrays(*, typechecker: Callable[..., object]) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Decorate functions with arrays in their signatures, and no others: checking those took a fifth of the time."""
    decorate = jaxtyped(typechecker=typechecker)
    return lambda part: decorate(part) if isclass(part) or "jaxtyping." in str(part.__annotations__) else part


# Functions with arrays in their signatures check types, shapes and kinds at every call; mypy has read all the others.
jaxtyping.jaxtyped = check_arrays
install_import_hook(
    [
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        for path in sorted((ROOT / "src").rglob("*.py"))
        if "from jaxtyping import" in path.read_text() and path.name != "shapes.py"  # which is such a check itself
    ],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)


def pytest_configure(config: pytest.Config) -> None:
    """Use one thread for each process that runs tests: the suite runs two on two cores."""
    gc.set_threshold(100_000, 20, 100)  # looking for cycles among what torch and others import took 9 % of the time
    if not config.getoption("numprocesses", None):
        import torch

        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that is marked `sampled(n)` leave every nth case to `make test`; `make slow` runs the others, too."""
    counts: Counter[str] = Counter()
    for item in items:
        if sampled := item.get_closest_marker("sampled"):
            name = item.nodeid.partition("[")[0]
            if counts[name] % sampled.args[0]:
                item.add_marker(pytest.mark.slow)
            counts[name] += 1


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test draws the same whatever ran before it, in whichever process."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def creatures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen training images, ten for validation, fifteen for testing."""
    from semcorr.data.synthetic import write_synthetic

    root = tmp_path_factory.mktemp("data") / "synthetic"
    return write_synthetic(root, images={"trn": 3, "val": 2, "test": 3}, size=96)


@pytest.fixture
def tiny(creatures: Path) -> list[str]:
    """Overrides for a run of seconds: random four-block transformer, tiny drawings."""
    data = ["data=synthetic", f"data.root={creatures}", *SMALL, "data.workers=0"]
    return [*data, "backbone=tiny", "trainer=cpu", "trainer.val_check_interval=null"]


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DictConfig]:
    """config("train", "finetune.blocks=2") is what that command line gives the program."""
    from hydra import compose, initialize_config_dir

    from semcorr.engine.known_targets import conf_dir

    def build(name: str, *overrides: str) -> DictConfig:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            run_dir = [] if any(o.startswith("run_dir=") for o in overrides) else [f"run_dir={tmp_path / 'run'}"]
            return compose(name, [*overrides, *run_dir])

    return build
