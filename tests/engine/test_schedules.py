"""Learning rates step by step, and of a run that is broken off and gone on with."""

import pytest
import torch
from torch.optim import AdamW

from semcorr.core.errors import UserError
from semcorr.engine.optim import adamw, step_decay
from semcorr.train import train

pytestmark = pytest.mark.integration


def optimizer() -> AdamW:
    head, backbone = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    return adamw([head], [backbone], lr=1.0, backbone_lr=0.1)


def rates(schedule, steps: int) -> list[list[float]]:
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in schedule.optimizer.param_groups])
        schedule.optimizer.step()
        schedule.step()
    return found


def test_the_rate_is_halved_after_the_first_and_the_second_epoch():
    found = rates(step_decay(optimizer(), steps=12, epoch_steps=3), 12)

    expected = [1.0] * 3 + [0.5] * 3 + [0.25] * 6
    assert [head for head, _ in found] == expected
    assert [backbone for _, backbone in found] == pytest.approx([rate / 10 for rate in expected])


def test_milestones_and_factor_are_options():
    found = rates(step_decay(optimizer(), steps=8, epoch_steps=2, milestones=[3, 1], factor=0.1), 8)

    assert [head for head, _ in found] == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_a_resumed_schedule_has_the_rates_of_one_that_was_never_broken_off():
    whole = rates(step_decay(optimizer(), steps=8, epoch_steps=2), 8)
    first = step_decay(optimizer(), steps=8, epoch_steps=2)
    rates(first, 3)
    again = step_decay(optimizer(), steps=8, epoch_steps=2)
    again.optimizer.load_state_dict(first.optimizer.state_dict())
    again.load_state_dict(first.state_dict())

    assert rates(again, 5) == whole[3:]


def test_a_milestone_before_the_first_epoch_is_refused():
    with pytest.raises(UserError, match=r"`scheduler\.milestones"):
        step_decay(optimizer(), steps=8, epoch_steps=2, milestones=[0])


@pytest.mark.slow
def test_a_trained_run_has_the_rates_of_its_epochs_and_may_be_made_longer(config, tiny, tmp_path):
    line = [*tiny, "finetune.blocks=1", "data.steps=2", "data.batch_size=4", "scheduler=step_decay"]
    rate = "optimizer.backbone_lr=1e-4"
    train(config("train", *line, rate, "trainer.max_epochs=1", "trainer.accumulate_grad_batches=2"))
    longer = config("train", *line, rate, "trainer.max_epochs=3", "trainer.accumulate_grad_batches=2")
    longer.checkpoint = longer.run_dir

    train(longer)

    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 3  # one step of two batches in each epoch
    assert saved["lr_schedulers"][0]["_last_lr"] == pytest.approx([2.5e-5])
