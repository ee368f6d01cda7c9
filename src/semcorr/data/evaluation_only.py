"""Benchmarks without pairs of keypoints: videos, dense flow and masks, for evaluation alone."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, OptionsOf, Whole, check_arguments, require
from semcorr.data.datamodule import PairDataModule
from semcorr.data.download.recipe import DownloadRecipe
from semcorr.data.loaders import (
    BatchSize,
    LoaderPlan,
    encoding_batch_size,
    num_loader_workers,
    plan_loading,
    require_enough_batches,
    require_workers,
    shard,
)
from semcorr.data.views import fit_to_square, split_resize


class EvaluationBenchmark(LightningDataModule, ABC):
    """A benchmark that is scored and not trained on; a step of the test is one of its `cases`.

    Args:
        root: The benchmark's folder.
        size: Side of the square the backbone sees, in pixels.
        split: One of `splits`.
        resize: `squash`, `letterbox` or `corner`.
        encode_batch: Images encoded at once; as in `loading` if left out.
        workers: Loader processes; as in `loading` if left out.
        training: Training options of other benchmarks, checked and ignored.

    Attributes:
        official: Published counts, by what is counted, or by that and the split: "videos", "videos, val".
        cases_name: What its cases are called in messages.
        section: Section of metrics.json that its scores are in.
        has_readout: Whether matches are read out, by `localise`.
    """

    name = ""
    splits: Sequence[str] = ("test",)
    official: Mapping[str, int] = {}
    recipe: DownloadRecipe | None = None
    cases_name = "pairs"
    section = ""
    has_readout = True

    @check_arguments("data")
    def __init__(
        self,
        root: str,
        size: int,
        split: str = "test",
        resize: str = "squash",
        encode_batch: Count | None = None,
        workers: Whole | None = None,
        **training: Annotated[object, OptionsOf(PairDataModule)],
    ) -> None:
        super().__init__()
        if split not in self.splits:
            raise UserError(f"`data.split` must be one of {', '.join(self.splits)}, got {split!r}")
        if size:
            fit_to_square((1, 1), size, resize)  # refuses another word, or a margin that leaves nothing
        else:  # the backbone's, which is not known yet
            split_resize(resize)
        require_workers(workers)
        self._check_ignored(training)
        self.root, self.size, self.split, self.resize = Path(root), size, split, resize
        self.encode_batch, self.workers = encode_batch, workers

    def _check_ignored(self, training: Mapping[str, object]) -> None:
        """Refuse training options that no benchmark has, or with values that none takes."""
        parameters = inspect.signature(PairDataModule.__init__).parameters
        for key, value in training.items():
            if key not in parameters:
                raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {key!r}")
            require(f"data.{key}", value, parameters[key].annotation)

    @abstractmethod
    def cases(self, split: str) -> Sequence[Any]:
        """Return what a split is scored by, one for each step. It may depend on the backbone's size."""

    @abstractmethod
    def check(self, split: str) -> None:
        """Read a split, so that bad data is reported; the backbone's size need not be known yet."""

    def count(self, split: str) -> dict[str, int]:
        """Count what a split has, for `prepare --verify`."""
        return {self.cases_name: len(self.cases(split))}

    def setup(self, stage: str) -> None:
        """Read the benchmark now, so that bad data is reported before anything runs."""
        if stage != "test":
            raise UserError(
                f"`{self.name}` has nothing to train on. Train on another benchmark, for example data=spair, then "
                f"python -m semcorr.evaluate checkpoint=RUN_DIR data={self.name}."
            )
        self.check(self.split)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the loader of this process's share of the cases, one a batch and without pixels."""
        own = self.own_cases()
        return DataLoader(cast(Dataset[Any], own), batch_size=None, collate_fn=keep_case)  # any sequence is a data set

    def own_cases(self) -> list[Any]:
        """Return this process's share of the cases: each is on exactly one process."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        cases = self.cases(self.split)
        numbers = [[i] for i in range(len(cases))]
        require_enough_batches(numbers, world)
        return [cases[i] for (i,) in shard(numbers, rank, world)]

    @property
    def on_gpu(self) -> bool:
        """Whether features are computed on a GPU."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def loader(self, images: Dataset[Tensor]) -> DataLoader[Tensor]:
        """Return a loader of images as the backbone sees them, in batches of `encode_batch`."""
        at_once = encoding_batch_size(self.encode_batch, self.on_gpu)
        plan = self.plan_loading(at_once)
        return DataLoader(
            images, at_once, num_workers=plan.workers, prefetch_factor=plan.prefetch, pin_memory=self.on_gpu
        )

    def plan_loading(self, images: int) -> LoaderPlan:
        """Choose the loader processes for batches of so many images, by what shared memory has room for."""
        local = self.trainer.num_devices if self.trainer else 1
        workers = num_loader_workers(self.workers, self.on_gpu, local)
        return plan_loading(BatchSize(images, self.size), workers, self.workers is not None, local)


def keep_case(case: Any) -> Any:
    """Hand on a case as it is: PyTorch's conversion would make lists of the tuples in it."""
    return case
