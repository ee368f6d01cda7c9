"""What benchmarks share whose labels are carried from one image to another."""

from abc import abstractmethod

from jaxtyping import UInt8
from torch import Tensor

from semcorr.data.dense_pairs import DenseBenchmark, DensePair


class LabelTransferBenchmark(DenseBenchmark):
    """A benchmark whose pairs have a label for each pixel of both images; 0 is background."""

    section = "labels"

    @abstractmethod
    def labels(self, pair: DensePair) -> tuple[UInt8[Tensor, "h w"], UInt8[Tensor, "height width"]]:
        """Return the labels of source and target."""
