"""A teacher of a training: other values of its trained weights, a moving average of them or those of another run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import Range, check_arguments
from semcorr.core.terminal import print_line
from semcorr.core.text_files import JsonObject
from semcorr.engine.checkpoints import read_checkpoint
from semcorr.models.finetune.state import base_weights_id, require_same_base
from semcorr.models.losses import ExtraInput, Loss, list_reads
from semcorr.models.losses.gaussian_cross_entropy import annealed_value


class Teacher:
    """Other values of the trained weights of a module, by which it computes without gradients for a while.

    All that is frozen is shared with the module: a teacher takes as much memory as the trained weights.

    Args:
        module: The module, on its device.
    """

    def __init__(self, module: nn.Module) -> None:
        self.weights = {name: value.detach().clone() for name, value in trained_weights(module).items()}

    @torch.no_grad()
    def follow(self, module: nn.Module, momentum: float) -> None:
        """Move the teacher's values towards the module's own.

        Args:
            module: The student, with the same trained weights.
            momentum: Share of the teacher's values that stays, from 0 to 1.
        """
        for name, value in trained_weights(module).items():
            self.weights[name].lerp_(value.detach(), 1 - momentum)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take the given values, which may be on another device.

        Raises:
            UserError: One is missing or of another shape.
        """
        require_weights_of(self.weights, weights)
        for name, value in self.weights.items():
            value.copy_(weights[name])

    @contextmanager
    def take_over(self, module: nn.Module) -> Iterator[None]:
        """Let the module compute by the values of the teacher, in eval mode and without gradients.

        Values are exchanged, not copied. Autocast forgets the weights that it has converted, before and after: it
        knows them by their parameters, which stay.
        """
        was_training = module.training
        self._exchange(module)
        module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._exchange(module)
            module.train(was_training)

    def _exchange(self, module: nn.Module) -> None:
        for name, parameter in trained_weights(module).items():
            parameter.data, self.weights[name] = self.weights[name], parameter.data
        torch.clear_autocast_cache()


def trained_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters of a module by name, without those of its loss, which serve training alone."""
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and not name.startswith("loss.")
    }


def require_weights_of(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Refuse weights for a teacher in which one that is trained is missing or of another shape."""
    for name, value in expected.items():
        if name not in weights or weights[name].shape != value.shape:
            raise UserError(
                f"`callbacks.ema_teacher.run`: its checkpoint has no {name} of shape {list(value.shape)}. Give a "
                "run with the same backbone, finetune and head."
            )


@runtime_checkable
class Student(Protocol):
    """A module that a teacher can be given to."""

    teacher: Teacher | None
    backbone: Backbone
    loss: Loss | None


def require_teacher(module: nn.Module, callbacks: Sequence[Callback], begins: bool = True) -> None:
    """Refuse a loss without the teacher that it learns from, and a teacher whose run does not fit.

    `semcorr.train` calls it before it writes anything.

    Args:
        module: The module that is to be trained.
        callbacks: Callbacks of the training.
        begins: Whether the training begins; one that is resumed has its teacher's weights in its checkpoint.

    Raises:
        UserError: The loss needs a teacher and there is none, or the weights of its run are of another module.
    """
    teachers = [callback for callback in callbacks if isinstance(callback, EMATeacher)]
    if not isinstance(module, Student) or ExtraInput.TEACHER not in list_reads(module.loss):
        return
    if not teachers:
        raise UserError("`loss` learns from a teacher, and there is none. Give callbacks=ema_teacher as well.")
    for teacher in teachers if begins else ():
        if (weights := teacher.read_run(module.backbone)) is not None:
            require_weights_of(trained_weights(module), weights)


class EMATeacher(Callback):
    """A teacher that follows the student: a moving average of the weights that are trained, kept with checkpoints.

    With momentum 1 it stays what it was at the start: with `run` a fixed teacher, as PMD's. With momentum 0 it is the
    student itself, as SemiMatch's. Where no loss learns from a teacher, there is none.

    Args:
        momentum: Share of the teacher that each optimiser step leaves.
        momentum_end: What it rises to along a cosine; None keeps it.
        run: Directory of a run with the same backbone, `finetune` and head, whose trained weights the teacher starts
            from; None: the student's own.
        until: Share of the training by whose end `momentum_end` is reached.
    """

    @check_arguments("callbacks.ema_teacher")
    def __init__(
        self,
        momentum: Annotated[float, Range(least=0, most=1)] = 0.99,
        momentum_end: Annotated[float, Range(least=0, most=1)] | None = 0.9995,
        run: str | None = None,
        until: Annotated[float, Range(above=0, most=1)] = 1.0,
    ) -> None:
        self.momentum, self.run, self.until = momentum, run, until
        self.momentum_end = momentum if momentum_end is None else momentum_end
        self._teacher: Teacher | None = None
        self._saved: dict[str, Tensor] | None = None
        self._steps, self._total = 0, 0  # the total is that of a resumed run, or 0 until the training begins

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module a teacher; that of the checkpoint, if a run is resumed."""
        if not isinstance(pl_module, Student):
            raise UserError("`callbacks.ema_teacher` teaches a training on pairs only. Leave it out.")
        start, self._saved = self._saved, None  # not to be in memory for the whole run
        if ExtraInput.TEACHER not in list_reads(pl_module.loss):
            print_line("No teacher: `loss` learns from none, so `callbacks.ema_teacher` does nothing.")
            return
        self._teacher = pl_module.teacher = Teacher(pl_module)
        start = self.read_run(pl_module.backbone) if start is None else start
        if start is not None:
            self._teacher.load(start)

    def read_run(self, backbone: Backbone) -> dict[str, Tensor] | None:
        """Return the weights of the run, if there is one; it must have been trained on the same base."""
        if self.run is None:
            return None
        try:
            content = read_checkpoint(Path(self.run), "best")
            require_same_base(content["base"], base_weights_id(backbone))
        except UserError as error:
            reason = str(error).removeprefix("`checkpoint`: ")
            raise UserError(f"`callbacks.ema_teacher.run`: {reason}") from error
        state: dict[str, Tensor] = content["state_dict"]
        return state

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the length of the training; that of a resumed run is the one it was laid out for."""
        self._steps, self._total = trainer.global_step, self._total or int(trainer.estimated_stepping_batches)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Follow the student after each step of the optimiser, of which a batch is a part if they are accumulated."""
        if self._teacher is not None and trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self._teacher.follow(pl_module, self.momentum_at(self._steps, self._total))

    def momentum_at(self, step: int, steps: int) -> float:
        """Return the momentum of a step of a training of so many steps.

        >>> teacher = EMATeacher(0.9, 1.0)
        >>> [round(teacher.momentum_at(step, 100), 3) for step in (0, 50, 100)]
        [0.9, 0.95, 1.0]
        """
        return annealed_value(step, self.momentum, self.momentum_end, 0, round(steps * self.until))

    def state_dict(self) -> JsonObject:
        """Return the weights of the teacher for a checkpoint, and the steps over which its momentum rises."""
        if self._teacher is None:
            return {}
        rises = {"total_steps": self._total} if self.momentum_end != self.momentum else {}
        return {"weights": self._teacher.weights, **rises}

    def load_state_dict(self, state_dict: JsonObject) -> None:
        """Keep the weights of a checkpoint until the training begins."""
        self._saved, self._total = state_dict.get("weights"), state_dict.get("total_steps", 0)
