"""What every benchmark has: a folder, a split, the square that its images fill, and the processes that load them."""

from abc import ABC
from collections.abc import Sequence
from pathlib import Path

from lightning import LightningDataModule

from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import Count, Whole, check_arguments
from semcorr.data.download.recipe import DownloadRecipe
from semcorr.data.loaders import (
    BatchSize,
    LoaderPlan,
    encoding_batch_size,
    num_loader_workers,
    plan_loading,
    require_workers,
)
from semcorr.data.views import fit_to_square, split_resize


class BenchmarkModule(LightningDataModule, ABC):
    """A benchmark as a LightningDataModule, whatever it is scored by.

    Args:
        root: The benchmark's folder.
        size: Side of the square that images are resized to, in pixels; the backbone's, 0 while it is not known.
        split: The split that is scored, one of `splits`.
        resize: `squash`, `letterbox` or `corner`; or `corner+PIXELS`, with a margin on all sides.
        encode_batch: Number of images encoded at once; None: as `loaders.encoding_batch_size` chooses.
        workers: Number of loader processes that decode images; None: as `loaders.num_loader_workers` chooses.

    Attributes:
        name: Name of the benchmark in commands and messages.
        splits: Names of its splits.
        recipe: How it is downloaded; None: it cannot be.
    """

    name = ""
    splits: Sequence[str] = ("test",)
    recipe: DownloadRecipe | None = None

    @check_arguments("data")
    def __init__(
        self,
        root: str,
        size: int,
        split: str = "test",
        resize: str = "squash",
        encode_batch: Count | None = None,
        workers: Whole | None = None,
    ) -> None:
        super().__init__()
        if size:
            fit_to_square((1, 1), size, resize)  # refuses another word, or a margin that leaves nothing
        else:
            split_resize(resize)
        require_workers(workers)
        self.root, self.size, self.split, self.resize = Path(root), size, split, resize
        self.encode_batch, self.workers = encode_batch, workers

    def fit_backbone(self, backbone: Backbone) -> None:
        """Resize images to the square that a backbone is evaluated at."""
        self.size = backbone.size

    @property
    def encoding_batch(self) -> int:
        """The number of images encoded at once."""
        return encoding_batch_size(self.encode_batch, self.on_gpu)

    @property
    def on_gpu(self) -> bool:
        """Whether features are computed on a GPU."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def plan_loading(self, batch: BatchSize) -> LoaderPlan:
        """Choose the loader processes for batches of a size, by what shared memory has room for."""
        local = self._local_processes()
        workers = num_loader_workers(self.workers, self.on_gpu, local)
        return plan_loading(batch, workers, self.workers is not None, local)

    def _place(self) -> tuple[int, int]:
        """Return this process's rank, and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _local_processes(self) -> int:
        """Return the number of processes on this machine, which share its cores and its memory."""
        return self.trainer.num_devices if self.trainer else 1
