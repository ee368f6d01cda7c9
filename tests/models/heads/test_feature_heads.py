"""Bottleneck, aggregation, attention and upsampling: published sizes, options, whole programs."""

import pytest
import torch

from semcorr.core.errors import UserError
from semcorr.engine.build import build_datamodule_and_module
from semcorr.evaluate import evaluate
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.heads.aggregation import Aggregation
from semcorr.models.heads.attention import CrossAttention, SelfAttention
from semcorr.models.heads.bottleneck import BottleneckHead
from semcorr.models.heads.upsample import Upsample
from semcorr.train import train


@pytest.mark.parametrize(
    ("head", "count"),
    [
        (lambda: BottleneckHead(768), 628_992),
        (lambda: Aggregation([1280, 1280, 640, 768]), 5_150_208 + 4),
        (lambda: Aggregation([768]), 628_992 + 1),
        (lambda: SelfAttention(768), 5_901_312),
        (lambda: CrossAttention(768), 11_802_624),
        (lambda: Upsample(1024), 8_413_184),
    ],
    ids=["bottleneck", "aggregation", "aggregation of one", "self", "cross", "upsample"],
)
def test_heads_have_the_published_sizes(head, count):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in head().parameters()) == count


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (
            lambda: BottleneckHead(48, groups=32),
            "`head.groups` must divide the 48 channels that go out and the 12 of the middle: one of 1, 2, 3, 4, 6, 12 "
            "here, got 32. Or set `head.width` to a multiple of it.",
        ),
        (lambda: BottleneckHead(64, groups=0), "`head.groups` must divide .* one of 1, 2, 4, 8, 16 here, got 0"),
        (lambda: Aggregation([8], dropout=1), "`head.dropout` must be at least 0 and below 1, got 1"),
        (lambda: SelfAttention(48, heads=5), "`head.heads` must divide the 48 channels of the features, got 5"),
        (lambda: CrossAttention(48, depth=0), "`head.depth` must be at least 1, got 0"),
        (lambda: SelfAttention(6, heads=3), "channels divide by 4, for positions; got 6"),
        (lambda: Upsample(8, stages=0), "`head.stages` must be at least 1, got 0"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_range(attempt, message):
    with pytest.raises(UserError, match=message):
        attempt()


# -- whole programs --
QUICK = ["finetune=frozen", "data.steps=12", "data.batch_size=2", "trainer.max_epochs=1", "optimizer.lr=1e-2"]
SMALL = {
    "bottleneck": [],
    "aggregation": ["head.out=32", "head.width=8", "head.groups=4"],
    "self_attention": [],
    "cross_attention": [],
    "upsample": [],
    "decoder": [],
}


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many images each run of the backbone was given."""
    calls, real = [], TimmModel.read_maps

    def counted(self, image):
        calls.append(len(image))
        return real(self, image)

    monkeypatch.setattr(TimmModel, "read_maps", counted)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batches"),
    [
        pytest.param("bottleneck", [], marks=pytest.mark.slow),
        ("cross_attention", ["data.all_pairs=3"]),
        *(
            pytest.param(name, [], marks=pytest.mark.slow)
            for name in ("aggregation", "self_attention", "cross_attention")
        ),
        pytest.param("upsample", ["data.all_pairs=3"], marks=pytest.mark.slow),
        pytest.param("decoder", ["data.all_pairs=3"], marks=pytest.mark.slow),
    ],
)
def test_a_head_alone_trains_from_stored_features_and_evaluates_to_the_same(
    config, tiny, tmp_path, encoded, name, batches
):
    """Of 15 images to train on and 10 to validate none is encoded twice; the test of 15 starts afresh."""
    line = [*tiny, "backbone.size=32", f"head={name}", *SMALL[name]]
    module, _ = build_datamodule_and_module(config("train", *line, "finetune=frozen"))
    before = {key: value.clone() for key, value in module.trainable_state_dict().items()}
    encoded.clear()

    trained = train(config("train", *line, *QUICK, *batches))

    assert 30 < sum(encoded) <= 15 + 10 + 15  # 12 steps look at 48 images or more
    after = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert set(after) == set(before)
    assert all(key.startswith("head.") for key in after)
    assert any(not torch.equal(value, before[key]) for key, value in after.items())
    again = evaluate(
        config(
            "evaluate",
            *line,
            "protocol=unified",
            "finetune=frozen",
            f"checkpoint={tmp_path / 'run'}",
            f"run_dir={tmp_path / 'again'}",
        )
    )
    assert again["pck"] == trained["pck"]


@pytest.mark.slow
def test_an_untrained_attention_scores_what_the_cosine_scores(config, tiny, tmp_path):
    line = [*tiny, "backbone.size=32"]

    cosine, within, across = (
        evaluate(config("evaluate", *line, f"head={name}", f"run_dir={tmp_path / name}"))
        for name in ("cosine", "self_attention", "cross_attention")
    )

    assert within["pck"] == across["pck"] == cosine["pck"]


@pytest.mark.slow
def test_head_and_backbone_train_together(config, tiny, tmp_path):
    train(config("train", *tiny, *QUICK, "backbone.size=32", "finetune=blocks_1", "head=bottleneck"))

    after = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert {key.split(".")[0] for key in after} == {"backbone", "head"}
