"""Training steps whose features, loss or gradients are not finite: none of them gets into a checkpoint."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.finite import are_finite


class WatchedStep(NamedTuple):
    """A batch, or the gradients of a step, with flags that may still be on their way."""

    step: int
    labels: Sequence[str]  # what each flag is of, in words
    flags: Tensor  # (n) bool
    shown: str  # what the batch began with


class StepWatch:
    """Notice the first step that is not finite, without waiting for a GPU at each.

    Args:
        every: Steps that are looked at together on a GPU; on a CPU each is, at once.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self._seen: list[WatchedStep] = []

    def see(
        self, step: int, images: Sequence[str], shown: Sequence[str], values: Tensor, terms: Mapping[str, Tensor]
    ) -> None:
        """Look at a batch before its gradients are computed.

        Args:
            step: Optimiser steps made before.
            images: Names of the images whose features
            shown: are of a batch with these pairs, or of these images.
            values: The features, first axis first.
            terms: Of the loss, by name.
        """
        labels = [*(f"the features of image {name}" for name in images), *(f"the loss {name}" for name in terms)]
        flags = torch.cat(
            [are_finite(values.detach()), torch.stack([each.detach() for each in terms.values()]).isfinite()]
        )
        self._add(WatchedStep(step, labels, flags, f"the batch began with {shown[0]}"))

    def see_gradients(self, step: int, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Look at gradients before a step is made by them."""
        moved = [(name, each.grad) for name, each in parameters if each.grad is not None]
        if moved:
            lengths = torch.stack([torch.linalg.vector_norm(grad.float()) for _, grad in moved])
            self._add(
                WatchedStep(
                    step, [f"the gradient of {name}" for name, _ in moved], lengths.isfinite(), "the loss is finite"
                )
            )

    def settle(self) -> None:
        """Look at all that was seen.

        Raises:
            UserError: It names the first step that was not finite, and what of it.
        """
        seen, self._seen = self._seen, []
        finite = torch.cat([each.flags for each in seen]).tolist() if seen else []
        for each in seen:
            flags, finite = finite[: len(each.labels)], finite[len(each.labels) :]
            for label, good in zip(each.labels, flags, strict=True):
                if not good:
                    raise UserError(
                        f"step {each.step + 1} of the training: {label} is not finite (NaN or infinite); {each.shown}. "
                        "Nothing of this step is saved. Lower optimizer.lr and optimizer.backbone_lr, or set "
                        "trainer.gradient_clip_val=1"
                    )

    def _add(self, one: WatchedStep) -> None:
        self._seen.append(one)
        if one.flags.device.type == "cpu" or len(self._seen) >= 2 * self.every:
            self.settle()
