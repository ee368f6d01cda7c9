"""Detection of training steps whose features, loss or gradients are not finite, before a checkpoint is saved."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.finite import are_finite

FEATURES, SIMILARITIES = "the features of image", "the similarities"  # how labels begin


class WatchedStep(NamedTuple):
    """A batch, or the gradients of a step, with flags that may still be computed on a GPU."""

    step: int
    labels: Sequence[str]  # description of each flag
    flags: Tensor  # (n) bool
    description: str  # description of the batch, for messages


class StepWatch:
    """Detection of the first step that is not finite, without waiting for a GPU at each step.

    Args:
        every: Number of steps that are checked together on a GPU; on a CPU each step is checked at once.
        is_backbone_frozen: Whether no training changes the features.
    """

    def __init__(self, every: int = 50, is_backbone_frozen: bool = False) -> None:
        self.every, self.is_backbone_frozen = every, is_backbone_frozen
        self._seen: list[WatchedStep] = []

    def record_batch(
        self,
        step: int,
        images: Sequence[str],
        batch_names: Sequence[str],
        values: Tensor,
        terms: Mapping[str, Tensor],
        similarity: Tensor | None = None,
    ) -> None:
        """Record a batch before its gradients are computed.

        Args:
            step: Number of optimiser steps before this one.
            images: Names of the images, one per feature map.
            batch_names: Names of the pairs of the batch, or of its images, for messages.
            values: Features of the images, along the first axis.
            terms: Terms of the loss, by name.
            similarity: Similarities of the first step, which tell a head's NaN from a loss's; a head may give infinity.
        """
        labels = [*(f"{FEATURES} {name} are" for name in images), *(f"the loss {name} is" for name in terms)]
        flags = [are_finite(values.detach()), torch.stack([term.detach() for term in terms.values()]).isfinite()]
        if similarity is not None:
            labels.insert(len(images), f"{SIMILARITIES} are")
            flags.insert(1, ~similarity.detach().isnan().any()[None])
        self._add(WatchedStep(step, labels, torch.cat(flags), f"the batch began with {batch_names[0]}"))

    def record_gradients(self, step: int, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Record the gradients before the optimiser uses them.

        Args:
            step: Number of optimiser steps before this one.
            parameters: Parameters by name; those without a gradient are ignored.
        """
        gradients = [(name, parameter.grad) for name, parameter in parameters if parameter.grad is not None]
        if gradients:
            norms = torch.stack([torch.linalg.vector_norm(gradient.float()) for _, gradient in gradients])
            self._add(
                WatchedStep(
                    step,
                    [f"the gradient of {name} is" for name, _ in gradients],
                    norms.isfinite(),
                    "the loss is finite",
                )
            )

    def check(self) -> None:
        """Check all recorded steps.

        Raises:
            UserError: A step is not finite; the message names the first such step and the value.
        """
        steps, self._seen = self._seen, []
        all_flags = torch.cat([step.flags for step in steps]).tolist() if steps else []
        for step in steps:
            flags, all_flags = all_flags[: len(step.labels)], all_flags[len(step.labels) :]
            for label, is_finite in zip(step.labels, flags, strict=True):
                if not is_finite:
                    raise UserError(
                        f"step {step.step + 1} of the training: {label} not finite (NaN or infinite); "
                        f"{step.description}. Nothing of this step is saved. {self._find_remedy(step.step, label)}"
                    )

    def _find_remedy(self, step: int, label: str) -> str:
        """Return what to do: where no update has come before, the part itself is the cause, and no rate."""
        is_of_features = label.startswith(FEATURES)
        if step and not (is_of_features and self.is_backbone_frozen):
            return "Lower optimizer.lr and optimizer.backbone_lr, or set trainer.gradient_clip_val=1"
        part = "the way from it to `loss`" if label.startswith("the gradient") else "`loss`"
        if is_of_features:
            part = "`backbone._target_`"
        elif label.startswith(SIMILARITIES):
            part = "`head._target_`"
        return (
            f"No update has changed this yet: {part} itself gives it. Correct that, or give trainer.precision=32-true "
            "where it has 16 bits."
        )

    def _add(self, step: WatchedStep) -> None:
        """Record a step, and check the recorded ones if they are on a CPU or enough."""
        self._seen.append(step)
        if step.flags.device.type == "cpu" or len(self._seen) >= 2 * self.every:
            self.check()
