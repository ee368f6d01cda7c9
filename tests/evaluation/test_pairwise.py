"""A backbone that must see both images of a pair is given both, in training and in evaluation."""

from pathlib import Path

import pytest
import torch
from omegaconf import open_dict
from pair_backbones import HalfMixed, Together
from tiny_dense import write_caltech
from tiny_tapvid import static, write

from semcorr.core.errors import UserError
from semcorr.engine.build import build_datamodule_and_module, build_training_parts
from semcorr.engine.scoring import score_and_save
from semcorr.engine.trainer import build_trainer
from semcorr.evaluate import evaluate


def scored(cfg, kind=None):
    if kind is not None:
        with open_dict(cfg):
            cfg.backbone._target_ = f"{kind.__module__}.{kind.__name__}"
    module, data = build_datamodule_and_module(cfg)
    metrics = score_and_save(cfg, build_trainer(cfg, Path(cfg.run_dir)), module, data)
    return metrics["pck"], module.result.tables["predictions"].drop_columns("score").to_pylist()


@pytest.mark.slow
def test_pairs_encoded_together_score_as_images_encoded_alone_where_nothing_is_mixed(config, tiny):
    alone = scored(config("evaluate", *tiny))
    together = scored(config("evaluate", *tiny), Together)

    assert alone[0] == together[0]
    for a, b in zip(alone[1], together[1], strict=True):
        assert a.keys() == b.keys()
        assert a["predicted_x"] == pytest.approx(b["predicted_x"], abs=1e-2)


@pytest.mark.slow
def test_what_the_other_image_adds_is_seen_in_evaluation(config, tiny):
    assert scored(config("evaluate", *tiny), Together)[1] != scored(config("evaluate", *tiny), HalfMixed)[1]


def test_training_gives_both_images_to_the_pair(config, tiny):
    cfg = config("train", *tiny, "data.batch_size=2")
    with open_dict(cfg):
        cfg.backbone._target_ = f"{HalfMixed.__module__}.HalfMixed"
    module, data = build_datamodule_and_module(cfg, ("fit",), build_training_parts(cfg))
    batch = next(iter(data.train_dataloader()))

    similarity = module(batch.source, batch.target)

    a, b = module.backbone.pair(batch.source.image.float() / 255, batch.target.image.float() / 255)
    assert torch.equal(similarity, module.head(a, b, batch.source.keypoints))
    assert not torch.equal(similarity, module.head(b, a, batch.source.keypoints))


def test_a_video_has_no_pairs(config, tmp_path):
    root = write(tmp_path / "davis", still=static())
    cfg = config("evaluate", "data=tapvid_davis", f"data.root={root}", "backbone=tiny", "trainer=cpu")
    with open_dict(cfg):
        cfg.backbone._target_ = f"{Together.__module__}.Together"

    with pytest.raises(UserError, match=r"needs pairs of images, and .+ is a video"):
        evaluate(cfg)


def test_pairs_whose_pixels_are_matched_are_seen_together(config, tmp_path):
    root = write_caltech(tmp_path / "caltech")
    line = ["data=caltech101", f"data.root={root}", "data.workers=0", "backbone=tiny", "trainer=cpu"]
    plain = evaluate(config("evaluate", *line))
    cfg = config("evaluate", *line, f"run_dir={tmp_path / 'together'}")
    with open_dict(cfg):
        cfg.backbone._target_ = f"{Together.__module__}.Together"
    together = evaluate(cfg)
    assert together["pairs"] == plain["pairs"] == 2
    assert together["labels"] == pytest.approx(plain["labels"], abs=1e-3)
