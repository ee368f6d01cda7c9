"""Going on with a run: where it was, and no further than its learning rate was laid out."""

import pytest
import torch

from semcorr.module import Correspondence
from semcorr.train import train

QUICK = ["finetune.blocks=1", "data.steps=3", "data.batch_size=4"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_two_batches_see_the_same_random_numbers_and_a_resumed_run_sees_them_again(
    config, tiny, monkeypatch, accumulate
):
    """Also where several batches make one step: three batches to an epoch, broken off in the second."""
    seeds, step = [], Correspondence.training_step

    def noted(module: Correspondence, batch) -> torch.Tensor:
        seeds.append(torch.initial_seed())
        if len(seeds) == 5:
            raise InterruptedError
        return step(module, batch)

    monkeypatch.setattr(Correspondence, "training_step", noted)
    cfg = config("train", *tiny, *QUICK, "trainer.max_epochs=2", f"trainer.accumulate_grad_batches={accumulate}")
    with pytest.raises(InterruptedError):
        train(cfg)
    cfg.checkpoint = cfg.run_dir
    train(cfg)

    place = [seed - 42 * 1_000_003 for seed in seeds]
    assert place == [0, 1, 2, 3, 4, 3, 4, 5]  # the last two anew after the break
