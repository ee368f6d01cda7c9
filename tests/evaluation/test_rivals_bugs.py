"""What other evaluators got wrong, by name, and that it cannot happen here.

Padding in PF-WILLOW's threshold (dhpf, CATs): test_readers. Filesystem order in AP-10K (GeoAware): test_ap10k. Frozen
backbones that cannot be switched on (Visual-AI): test_tuning_grid. Scores of the main process alone (Visual-AI):
test_distributed.
"""

import random

import pytest
import torch
from lightning import Trainer
from painted_pairs import SIDE, Blots, Painted
from tiny_ap10k import write_released

from semcorr.data.ap10k import AP10K
from semcorr.data.record import longer_side
from semcorr.data.spair import SPair
from semcorr.engine.module import CorrespondenceModule
from semcorr.evaluate import evaluate
from semcorr.evaluation import evaluator
from semcorr.evaluation.protocols import protocol_list
from semcorr.matching.readouts import ProtocolReadout
from semcorr.models.heads.cosine import Cosine
from semcorr.train import train

pytestmark = pytest.mark.integration


def test_a_test_number_is_of_every_pair_of_the_split(config, tiny, creatures):
    """GeoAware's TEST_SAMPLE and sd-dino's SAMPLE are 20 pairs a category by default, probe3d's 200."""
    listed = (creatures / "Layout" / "large" / "test.txt").read_text().split()

    metrics = evaluate(config("evaluate", *tiny, "protocol=all"))

    assert metrics["pairs"] == len(set(listed)) > 20


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_the_order_of_the_pairs_does_not_change_a_digit(tmp_path, resize):
    """GeoAware's seeds, and so its numbers, depend on the order in which categories are read."""

    class Shuffled(Blots):
        seed_of_order = 0

        def records(self, split):
            pairs = list(super().records(split))
            random.Random(self.seed_of_order).shuffle(pairs)
            return pairs

    scores = []
    for seed in range(3):
        data = Shuffled(root=str(tmp_path), size=SIDE, resize=resize, workers=0)
        data.seed_of_order = seed
        module = CorrespondenceModule(
            Painted(), Cosine(), ProtocolReadout(), lambda backbone: None, protocols=protocol_list(None, resize)
        )
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        Trainer(enable_model_summary=False, **quiet).test(module, datamodule=data, verbose=False)
        scores.append((module.result.scores, module.result.tables["predictions"]))

    assert scores[0][0] == scores[1][0] == scores[2][0]
    assert scores[0][1].equals(scores[1][1])


def test_models_are_selected_on_validation_pairs_none_of_which_is_tested(creatures):
    """MARCO validates on the test split."""
    data = SPair(root=str(creatures), size=96, workers=0)
    data.setup("fit")

    chosen_on, tested = (
        {name for batch in loader for name in batch.pair} for loader in (data.val_dataloader(), data.test_dataloader())
    )

    images = [{i.name for p in data.pairs(split) for i in (p.source, p.target)} for split in ("train", "val", "test")]
    assert chosen_on == {pair.name for pair in data.pairs("val")}
    assert not chosen_on & tested
    assert not images[0] & images[2]
    assert not images[1] & images[2]


def test_ap10ks_extent_is_that_of_the_box_and_not_the_images_diagonal(tmp_path):
    """Hesam-AHT's is the diagonal: about twice as lenient."""
    pairs = AP10K(root=str(write_released(tmp_path)), size=32).pairs("test")

    assert len(pairs) > 0
    for pair in pairs:
        width, height = pair.target.size
        assert pair.extent == longer_side(pair.target.box) < (width**2 + height**2) ** 0.5


@pytest.mark.parametrize("name", ["dinov2", "dinov2_reg", "dinov3", "dino", "ibot", "clip", "sam", "mae", "siglip2"])
def test_a_transformer_is_read_after_its_last_block(config, name):
    """A course project reads block 4 unless told otherwise."""
    assert config("evaluate", f"backbone={name}").backbone.layers == [-1]


QUICK = ["finetune.blocks=1", "data.steps=4", "data.batch_size=1"]


@pytest.mark.slow
def test_gradients_add_up_over_the_batches_of_a_step(config, tiny, monkeypatch):
    """Visual-AI clears them before every batch, so that of an accumulated step only the last one counts."""
    alone, stepped, real = [], [], CorrespondenceModule.training_step

    def moving(module):
        return [parameter for parameter in module.parameters() if parameter.requires_grad]

    def training_step(self, batch):
        loss = real(self, batch)
        alone.append(torch.autograd.grad(loss, moving(self), retain_graph=True))
        return loss

    monkeypatch.setattr(CorrespondenceModule, "training_step", training_step)
    monkeypatch.setattr(
        CorrespondenceModule,
        "on_before_optimizer_step",
        lambda self, optimizer: stepped.append([parameter.grad.clone() for parameter in moving(self)]),
        raising=False,
    )
    train(config("train", *tiny, *QUICK, "trainer.max_epochs=1", "trainer.accumulate_grad_batches=2"))

    assert (len(alone), len(stepped)) == (4, 2)
    for i, found in enumerate(stepped):
        for one, other, mean in zip(alone[2 * i], alone[2 * i + 1], found, strict=True):
            torch.testing.assert_close(mean, (one + other) / 2)


@pytest.mark.slow
@pytest.mark.parametrize(("later", "kept"), [(0.1, True), (0.9, False)])
def test_a_resumed_run_knows_the_best_score_of_before(config, tiny, tmp_path, monkeypatch, later, kept):
    """Visual-AI starts again from zero, and the first score after resuming overwrites the best weights."""
    line = [*tiny, *QUICK, "trainer.max_epochs=2", "trainer.val_check_interval=null", "protocol=semcorr"]
    validated, real, start = [0.5, later, later], evaluator.metrics_dict, CorrespondenceModule.on_train_batch_start

    def scores_of(*given):
        scores = real(*given)
        scores["pck"]["all"]["image"]["0.1"] = validated.pop(0)
        return scores

    def broken_off(self, batch, batch_idx):
        assert self.current_epoch == 0, "the power fails"
        return start(self, batch, batch_idx)

    monkeypatch.setattr(evaluator, "metrics_dict", scores_of)
    with monkeypatch.context() as patch:
        patch.setattr(CorrespondenceModule, "on_train_batch_start", broken_off)
        with pytest.raises(AssertionError, match="the power fails"):
            train(config("train", *line))
    first = best_weights(tmp_path / "run")
    again = config("train", *line)
    again.checkpoint = again.run_dir
    train(again)

    assert all(map(torch.equal, first, best_weights(tmp_path / "run"))) == kept


def best_weights(run):
    return list(torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"].values())
