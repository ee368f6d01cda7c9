"""Benchmarks without pairs of keypoints: videos, dense flow and masks, for evaluation alone."""

import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, cast

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from semcorr.core.errors import UserError
from semcorr.core.ranges import OptionsOf, require
from semcorr.data.benchmark import BenchmarkModule
from semcorr.data.datamodule import PairDataModule
from semcorr.data.loaders import BatchSize, require_enough_batches, shard

Case = TypeVar("Case")


class EvaluationBenchmark(BenchmarkModule):
    """A benchmark that is scored and not trained on; a step of the test is one of its `cases`.

    Args:
        root: The benchmark's folder.
        size: Side of the square the backbone sees, in pixels.
        options: The other options of `BenchmarkModule`; training options of other benchmarks are checked and ignored.

    Attributes:
        official: Published counts, by what is counted, or by that and the split: "videos", "videos, val".
        title: Name of the benchmark in messages; empty: `name`.
        cases_name: Name of its cases in messages.
        is_video: Whether its images are frames, which are encoded one by one.
        section: Section of metrics.json that its scores are in.
        has_readout: Whether matches are read out, by `localise`.
    """

    official: Mapping[str, int] = {}
    title = ""
    cases_name = "pairs"
    is_video = False
    section = ""
    has_readout = True

    def __init__(self, root: str, size: int, **options: Annotated[Any, OptionsOf(PairDataModule)]) -> None:
        own = inspect.signature(BenchmarkModule.__init__).parameters
        self._check_ignored({key: options.pop(key) for key in options.keys() - own.keys()})
        super().__init__(root, size, **options)
        if self.split not in self.splits:
            raise UserError(f"`data.split` must be one of {', '.join(self.splits)}, got {self.split!r}")

    def _check_ignored(self, training: Mapping[str, object]) -> None:
        """Refuse training options that no benchmark has, or with values that none takes."""
        parameters = inspect.signature(PairDataModule.__init__).parameters
        for key, value in training.items():
            if key not in parameters:
                raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {key!r}")
            require(f"data.{key}", value, parameters[key].annotation)

    @abstractmethod
    def cases(self, split: str) -> Sequence[object]:
        """Return what a split is scored by, one for each step. It may depend on the backbone's size."""

    @abstractmethod
    def check(self, split: str) -> None:
        """Read a split, so that bad data is reported; the backbone's size need not be known yet."""

    def count(self, split: str) -> dict[str, int]:
        """Count what a split has, for `prepare --verify`."""
        return {self.cases_name: len(self.cases(split))}

    def setup(self, stage: str) -> None:
        """Read the benchmark now, so that bad data is reported before anything runs.

        Raises:
            UserError: The stage is not `test`, or the split cannot be read.
        """
        if stage != "test":
            raise UserError(
                f"`{self.name}` has nothing to train on. Train on another benchmark, for example data=spair, then "
                f"python -m semcorr.evaluate checkpoint=RUN_DIR data={self.name}."
            )
        self.check(self.split)

    def test_dataloader(self) -> DataLoader:
        """Return the loader of this process's share of the cases, one a batch and without pixels."""
        own = self.share_cases(self.cases(self.split))
        return DataLoader(cast(Dataset, own), batch_size=None, collate_fn=keep_case)  # any sequence is a data set

    def share_cases(self, cases: Sequence[Case]) -> list[Case]:
        """Return this process's share of the cases: each is on exactly one process."""
        rank, world = self._place()
        numbers = [[i] for i in range(len(cases))]
        require_enough_batches(numbers, world)
        return [cases[i] for (i,) in shard(numbers, rank, world)]

    def loader(self, images: Dataset[Tensor]) -> DataLoader[Tensor]:
        """Return a loader of images as the backbone sees them, in batches of `encode_batch`."""
        at_once = self.encoding_batch
        plan = self.plan_loading(BatchSize(at_once, self.size))
        return DataLoader(
            images, at_once, num_workers=plan.workers, prefetch_factor=plan.prefetch, pin_memory=self.on_gpu
        )


def keep_case(case: Case) -> Case:
    """Hand on a case as it is: PyTorch's conversion would make lists of the tuples in it."""
    return case
