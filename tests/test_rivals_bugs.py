"""What other evaluators got wrong, by name, and that it cannot happen here.

Padding in PF-WILLOW's threshold (dhpf, CATs): test_readers. Filesystem order in AP-10K (GeoAware): test_ap10k. Frozen
backbones that cannot be switched on, gradients wiped between steps, a best score forgotten on resuming (Visual-AI):
test_tuning_grid, test_train. Scores of the main process alone (Visual-AI): test_distributed.
"""

import random

import pytest
from lightning import Trainer
from test_protocols import SIDE, Blots, Painted
from tiny_ap10k import write_released

from semcorr.data.ap10k import AP10K
from semcorr.data.record import longer_side
from semcorr.data.spair import SPair
from semcorr.evaluate import evaluate
from semcorr.heads.cosine import Cosine
from semcorr.module import Correspondence
from semcorr.protocol import several
from semcorr.read_outs import Published


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
        module = Correspondence(
            Painted(), Cosine(), Published(), lambda backbone: None, protocols=several(None, resize)
        )
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        Trainer(enable_model_summary=False, **quiet).test(module, datamodule=data, verbose=False)
        scores.append((module.scores, module.table))

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
