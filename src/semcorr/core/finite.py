"""Checks that numbers are finite, in one pass: a NaN that is scored gives a wrong result without a warning."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from semcorr.core.errors import UserError

MAX_PENDING_BATCHES = 32  # batches that are checked together on a device for which each check would have to wait
HALF = (torch.float16, torch.bfloat16)
REMEDY = "Check the weights; in half precision, try trainer.precision=32-true and store.dtype=float32"


def are_finite(values: Tensor) -> Bool[Tensor, " b"]:
    """Tell for each entry of the first axis whether its numbers are finite, and its length is.

    A sum of squares in single precision: where it overflows there is no cosine either. It reads every number once and
    writes none; `isfinite` writes a flag per number and takes twenty times as long. Half precision does not overflow.

    >>> are_finite(torch.tensor([[1.0, 2.0], [torch.inf, 0.0]]))
    tensor([ True, False])
    """
    if not values.is_floating_point():
        return torch.ones(len(values), dtype=torch.bool, device=values.device)
    if values.ndim < 2:
        return values.isfinite()
    if values.dtype in HALF and values.device.type == "cpu" and values.ndim > 2:  # read in full it is slow on a CPU
        rough = are_finite(values.sum(-1).float())  # finite only if all it sums up is; it may overflow, though
        if bool(rough.all()):
            return rough
    precise = torch.promote_types(values.dtype, torch.float32)
    return torch.linalg.vector_norm(values, dim=tuple(range(1, values.ndim)), dtype=precise).isfinite()


def require_finite(origin: str, names: Sequence[str], values: Mapping[str, Tensor], remedy: str = REMEDY) -> None:
    """Refuse features of a batch of images that are not finite. On a GPU this waits for them.

    Args:
        origin: What computed the features, or where they were read.
        names: Names of the images.
        values: Features by name, batch first; more than one tensor where a network was cut.
        remedy: Sentence that tells what to do.

    Raises:
        UserError: Features are not finite; the message names the first such image.
    """
    watch = FiniteWatch(origin, remedy)
    watch.record(names, values)
    watch.check()


class FiniteWatch:
    """Watch for features that are not finite, without waiting for a GPU at each batch.

    Args:
        origin: What computes the features.
        remedy: Sentence that tells what to do.
    """

    def __init__(self, origin: str, remedy: str = REMEDY) -> None:
        self.origin, self.remedy = origin, remedy
        self._flags: list[tuple[Sequence[str], Tensor]] = []

    def record(self, names: Sequence[str], values: Mapping[str, Tensor]) -> None:
        """Check a batch: at once on the CPU, elsewhere together with later ones, so that it does not wait.

        Args:
            names: Names of the images.
            values: Features by name, batch first.

        Raises:
            UserError: It names the first image whose features are not finite, of this batch or of an earlier one.
        """
        flags = [are_finite(value.detach()) for value in values.values()]
        if flags:
            self._flags.append((names, torch.stack(flags).all(0)))
            if flags[0].device.type == "cpu" or len(self._flags) >= MAX_PENDING_BATCHES:
                self.check()

    def check(self) -> None:
        """Check the batches that are not checked yet.

        Raises:
            UserError: It names the first image whose features are not finite.
        """
        pending, self._flags = self._flags, []
        finite = torch.cat([flags for _, flags in pending]).tolist() if pending else []
        for name, is_finite in zip((name for names, _ in pending for name in names), finite, strict=True):
            if not is_finite:
                raise UserError(
                    f"{self.origin}: the features of image {name} are not finite: NaN, infinite or too large to be "
                    f"compared. {self.remedy}"
                )
