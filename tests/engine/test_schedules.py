"""Learning rates step by step, and of a run that is broken off and gone on with."""

from unittest.mock import Mock

import pytest
import torch
from lightning import Trainer
from torch.optim import AdamW

from semcorr.core.errors import UserError
from semcorr.data.spair import SPair
from semcorr.engine.optim import adamw, count_step_pairs, scale_rates, step_decay
from semcorr.engine.run_config import check_config
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


@pytest.mark.parametrize(("rule", "factor"), [("linear", 4.0), ("sqrt", 2.0)])
def test_rates_grow_with_the_pairs_of_a_step_and_so_does_the_schedule(rule, factor):
    head, backbone = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    scaled = adamw([head], [backbone], lr=0.1, backbone_lr=0.01, lr_scaling=rule, lr_batch_size=8)
    scale_rates(scaled, step_pairs=32)

    found = rates(step_decay(scaled, steps=2, epoch_steps=1), 2)

    assert found[0] == pytest.approx([0.1 * factor, 0.01 * factor])
    assert found[1] == pytest.approx([0.05 * factor, 0.005 * factor])


@pytest.mark.parametrize("options", [{"lr_scaling": "linear"}, {"lr_batch_size": 8}])
def test_half_a_scaling_is_refused_from_python_too(options):
    with pytest.raises(UserError, match=r"is null\. Give both"):
        adamw([torch.nn.Parameter(torch.ones(2))], [], **options)


def test_without_a_scaling_rates_are_as_given_for_any_step():
    given = optimizer()
    scale_rates(given, step_pairs=32)
    assert [group["lr"] for group in given.param_groups] == [1.0, 0.1]


@pytest.mark.parametrize(
    ("options", "pairs"),
    [({"batch_size": 4}, 4 * 3 * 2), ({"global_batch_size": 12}, 12 * 2), ({"batch_size": 1000}, 15 * 3 * 2)],
)
def test_the_pairs_of_an_optimiser_step_are_those_of_all_processes_and_accumulated_batches(creatures, options, pairs):
    data = SPair(str(creatures), 32, **options)
    data.pairs = lambda split: range(15)

    assert count_step_pairs(Mock(spec=Trainer, world_size=3, accumulate_grad_batches=2), data) == pairs


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["optimizer.lr_scaling=sqrt"], "`optimizer.lr_scaling` is sqrt, and optimizer.lr_batch_size is null"),
        (["optimizer.lr_batch_size=8"], "`optimizer.lr_batch_size` is 8, and optimizer.lr_scaling is null"),
        (["optimizer.lr_scaling=linear", "optimizer.lr_batch_size=8", "data.all_pairs=4"], "goes by the pairs of a"),
    ],
)
def test_a_scaling_that_is_not_said_in_full_is_refused(config, tiny, line, message):
    with pytest.raises(UserError, match=message):
        check_config(config("train", *tiny, *line))


@pytest.mark.parametrize(
    ("line", "each", "in_all"),
    [([], 8, None), (["data.batch_size=3"], 3, None), (["data.global_batch_size=6"], None, 6)],
)
def test_a_step_has_8_pairs_on_each_process_where_nothing_is_given(config, tiny, line, each, in_all):
    cfg = config("train", *tiny, *line)
    check_config(cfg)
    assert (cfg.data.batch_size, cfg.data.global_batch_size) == (each, in_all)


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
