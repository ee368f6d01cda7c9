"""Whole runs on pose-variant pairs: what is encoded, what is kept, what is learned and saved."""

import pytest
import torch
from lightning import Trainer
from posed_pairs import PAPER, Whole

from semcorr.core.errors import UserError
from semcorr.engine.build import build_datamodule_and_module, build_training_parts, use_cached_features
from semcorr.evaluate import evaluate
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.heads.cosine import Cosine
from semcorr.models.losses import SymmetricContrastive
from semcorr.train import train

pytestmark = pytest.mark.integration

LINE = ["data.batch_size=2", "data.steps=3", "trainer.max_epochs=1"]
VARIANTS = ["pairs=pose_variant", "finetune.blocks=2"]


def module_of(config, *line):
    cfg = config("train", *line)
    return build_datamodule_and_module(cfg, ("fit",), build_training_parts(cfg))


def fitted(config, *line):
    """The module after three steps, their losses, and the optimiser."""
    module, data = module_of(config, *line)
    use_cached_features(module, data)
    losses: list[float] = []
    module.log = lambda name, value, **options: losses.append(value.item())
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, max_epochs=1,
        limit_val_batches=0, use_distributed_sampler=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module, losses, trainer.optimizers[0]


@pytest.mark.sampled(4)
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training", "ignore:.*does not have many workers")
@pytest.mark.parametrize(
    "line",
    [
        [],
        ["pairs.double_flip=0", "loss=together", "feature_dropout=0.2"],
        ["augment=flip", "loss=contrastive"],
        ["data.all_pairs=3"],
        ["data.all_pairs=3", "loss=geo_aware_released", "loss.trained_grid=8"],
    ],
    ids=" ".join,
)
def test_training_from_what_is_kept_gives_the_same_losses(config, tiny, line):
    line = [*tiny, *LINE, *VARIANTS, "optimizer.backbone_lr=1e-3", *line]
    off, kept = fitted(config, *line, "store.place=off"), fitted(config, *line)

    assert kept[0].uses_cached_features
    assert not off[0].uses_cached_features
    assert len(off[1]) == 3
    assert kept[1] == pytest.approx(off[1], rel=1e-5)


@pytest.mark.parametrize(
    ("line", "count"),
    [
        (["pairs=plain"], 4),
        ([], 8),
        (["pairs.double_flip=0"], 6),
        (["pairs=plain", "data.all_pairs=3"], 3),
        (["data.all_pairs=3"], 6),
    ],
)
def test_one_more_image_is_encoded_for_each(config, tiny, monkeypatch, line, count):
    """Of two pairs, or of three images."""
    seen, real = [], TimmModel.forward

    def counted(self, image):
        seen.append(len(image))
        return real(self, image)

    monkeypatch.setattr(TimmModel, "forward", counted)
    module, data = module_of(config, *tiny, *LINE, *VARIANTS, "store.place=off", *line)
    use_cached_features(module, data)
    module.log = lambda *args, **options: None

    module.training_step(next(iter(data.train_dataloader())))

    assert seen == [count]


@pytest.mark.sampled(4)
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training", "ignore:.*does not have many workers")
@pytest.mark.parametrize(
    ("loss", "learned"),
    [
        ("annealed", set()),
        ("learned_temperature", {"loss.temperature.theta"}),
        ("contrastive", {"loss.t"}),
        ("dense", set()),
        ("together", {"loss.learned.contrastive.t"}),
    ],
)
def test_what_a_loss_learns_moves_at_the_heads_rate_and_is_saved(config, tiny, loss, learned):
    line = [*tiny, *LINE, "finetune.blocks=1", f"loss={loss}", "optimizer.lr=1e-2", "scheduler=constant"]
    module, _, optimizer = fitted(config, *line)
    checkpoint: dict = {}
    module.on_save_checkpoint(checkpoint)

    saved = {name: value for name, value in checkpoint["state_dict"].items() if name.startswith("loss.")}
    assert set(saved) == learned
    assert all(value.any() for value in saved.values())
    assert [group["lr"] for group in optimizer.param_groups] == ([1e-2] if learned else []) + [1e-4]


@pytest.mark.slow
def test_a_run_is_scored_again_without_its_loss(config, tiny, tmp_path):
    line = [*tiny, *LINE, *VARIANTS, "data.steps=1", "loss=together", f"run_dir={tmp_path / 'run'}"]
    metrics = train(config("train", *line))

    again = evaluate(
        config(
            "evaluate",
            *tiny,
            "protocol=unified",
            "finetune.blocks=2",
            f"checkpoint={tmp_path / 'run'}",
            f"run_dir={tmp_path / 'e'}",
        )
    )

    assert again["pck"] == metrics["pck"]


def test_a_temperature_alone_is_nothing_to_train(config, tiny, tmp_path, capsys):
    train(config("train", *tiny, "finetune.blocks=0", "loss=learned_temperature", f"run_dir={tmp_path / 'frozen'}"))

    assert "Nothing to train" in capsys.readouterr().out


def test_another_loss_cannot_go_on_with_what_one_learned(config, tiny):
    module, _ = module_of(config, *tiny, *LINE, "loss=learned_temperature")
    other, _ = module_of(config, *tiny, *LINE, "loss=contrastive")
    checkpoint: dict = {}
    module.on_save_checkpoint(checkpoint)

    with pytest.raises(UserError, match="train different weights: loss"):
        other.on_load_checkpoint(checkpoint)


def test_feature_dropout_is_for_training_alone(config, tiny):
    module, data = module_of(config, *tiny, *LINE, "feature_dropout=0.5", "finetune.blocks=1")
    module.log = lambda *args, **options: None
    batch = next(iter(data.train_dataloader()))
    torch.manual_seed(0)
    first, second = (module.training_step(batch).item() for _ in range(2))
    torch.manual_seed(0)

    assert module.training_step(batch).item() == first != second
    assert torch.equal(module(batch.source, batch.target), module(batch.source, batch.target))


def test_what_cannot_go_together_is_refused_before_anything_runs(config, tiny):
    module, _ = module_of(config, *tiny, *LINE)
    parts = {"backbone": module.backbone, "localise": module.localise, "finetune": lambda backbone: None}
    with pytest.raises(UserError, match=r"`loss` compares descriptors of keypoints, and the head Whole has none"):
        type(module)(head=Whole(), loss=SymmetricContrastive(), **parts)
    module.backbone.pairwise = True
    with pytest.raises(UserError, match=r"`pairs`: vit_tiny_patch16_224 sees images in pairs.*Set pairs=plain"):
        type(module)(head=Cosine(), variants=PAPER, **parts)
    with pytest.raises(UserError, match=r"`feature_dropout` must be at least 0, which is off, and less than 1, got 1"):
        type(module)(head=Cosine(), dropout=1, **parts)
