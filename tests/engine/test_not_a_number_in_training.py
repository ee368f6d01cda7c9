"""A step that is not finite ends training in a sentence that names it, and nothing of it gets into a checkpoint."""

import math

import pytest
import torch
from torch import nn

from semcorr.core.errors import UserError
from semcorr.engine.module import CorrespondenceModule
from semcorr.engine.step_watch import StepWatch
from semcorr.train import train

pytestmark = pytest.mark.integration

NAN = math.nan
QUICK = ["finetune.blocks=2", "data.steps=2", "data.batch_size=4"]


class Sum(nn.Module):
    """A loss that is not finite from a step on, in its value or in its gradient."""

    reads_descriptors, lookup = False, "centre"

    def __init__(self, at: int, gradient: bool = False) -> None:
        super().__init__()
        self.at, self.gradient = at, gradient

    def forward(self, step):
        value = step.similarity.mean()
        if step.number < self.at:
            return value
        return (value - value.detach()).abs().sqrt() if self.gradient else value * NAN  # sqrt at 0: infinite slope


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (False, r"^step 4 of the training: the loss Sum is not finite \(NaN or infinite\); the batch began with pair "),
        (True, r"^step 4 of the training: the gradient of backbone\.model\.blocks\.\d.* is not finite"),
    ],
)
def test_a_loss_that_is_not_finite_ends_training_and_no_checkpoint_has_it(
    config, tiny, tmp_path, monkeypatch, gradient, message
):
    loss = Sum(3, gradient)
    line = [*QUICK, "trainer.max_epochs=3"]
    monkeypatch.setattr(
        CorrespondenceModule, "loss", property(lambda self: loss, lambda self, value: None), raising=False
    )

    with pytest.raises(UserError, match=message):
        train(config("train", *tiny, *line, f"run_dir={tmp_path / 'run'}"))

    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2  # of the first epoch, which was good
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_weights_that_are_not_finite_do_not_replace_a_checkpoint(config, tiny, tmp_path, monkeypatch):
    def broken(self, *_):
        if self.global_step == 4:  # the last of the second epoch
            with torch.no_grad():
                next(p for p in self.parameters() if p.requires_grad).fill_(NAN)

    monkeypatch.setattr(CorrespondenceModule, "on_train_batch_end", broken, raising=False)
    monkeypatch.setattr(CorrespondenceModule, "on_validation_epoch_start", lambda self: None)
    monkeypatch.setattr(CorrespondenceModule, "validation_step", lambda self, batch: None)
    monkeypatch.setattr(CorrespondenceModule, "on_validation_epoch_end", lambda self: self.log("val/all/pck@0.1", 0.5))

    with pytest.raises(UserError, match=r"^step 4 of the training, not saved: .* numbers in backbone\.model\."):
        train(config("train", *tiny, *QUICK, "trainer.max_epochs=2", f"run_dir={tmp_path / 'run'}"))

    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_on_a_gpu_steps_are_looked_at_together_and_the_first_is_named(monkeypatch):
    class Far(torch.Tensor):
        """As if it lay on a device that must be waited for."""

        @property
        def device(self):
            return torch.device("meta")

    watch = StepWatch(every=2)
    monkeypatch.setattr(
        watch, "_add", lambda one: StepWatch._add(watch, one._replace(flags=one.flags.as_subclass(Far)))
    )
    for step in range(3):  # nothing is said at once
        loss = torch.tensor(NAN if step else 1.0)
        watch.record_batch(
            step, ["a"], [f"pair {step}"], torch.ones(1, 2), {"dense": torch.tensor(1.0), "contrastive": loss}
        )

    with pytest.raises(UserError, match=r"^step 2 of the training: the loss contrastive .* began with pair 1"):
        watch.check()


def test_features_are_named_before_the_loss_they_spoil():
    maps = torch.tensor([[1.0], [NAN]])

    with pytest.raises(UserError, match=r"^step 1 of the training: the features of image b are not finite"):
        StepWatch().record_batch(0, ["a", "b"], ["pair x"], maps, {"loss": torch.tensor(NAN)})


@pytest.mark.parametrize(
    ("values", "similarity", "loss", "part"),
    [
        (NAN, 1.0, NAN, "`backbone._target_`"),
        (1.0, NAN, NAN, "`head._target_`"),
        (1.0, math.inf, NAN, "`loss`"),
        (1.0, 1.0, math.inf, "`loss`"),
    ],
)
def test_before_the_first_update_the_part_itself_is_named_and_no_rate(values, similarity, loss, part):
    watch, similarities = StepWatch(), torch.full((1, 1, 2, 2), similarity)
    with pytest.raises(UserError, match=f"No update has changed this yet: {part} itself") as error:
        watch.record_batch(0, ["a"], ["pair x"], torch.tensor([[values]]), {"own": torch.tensor(loss)}, similarities)

    assert "optimizer.lr" not in str(error.value)


@pytest.mark.parametrize(("is_frozen", "remedy"), [(True, "`backbone._target_` itself"), (False, "Lower optimizer.lr")])
def test_features_of_a_frozen_backbone_are_no_matter_of_rates(is_frozen, remedy):
    with pytest.raises(UserError, match=rf"^step 5 .*{remedy}"):
        StepWatch(is_backbone_frozen=is_frozen).record_batch(
            4, ["a"], ["pair x"], torch.tensor([[NAN]]), {"own": torch.tensor(NAN)}
        )


def test_infinite_similarities_of_a_finite_loss_are_taken():
    similarity = torch.full((1, 1, 2, 2), -math.inf)
    StepWatch().record_batch(0, ["a"], ["pair x"], torch.ones(1, 1), {"own": torch.tensor(1.0)}, similarity)
