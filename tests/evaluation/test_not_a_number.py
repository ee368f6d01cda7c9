"""NaN and infinity are never scored: a sentence names the weight and its file, the layer and the image, the pair."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import nn

from semcorr.cli.errors import user_message
from semcorr.core.errors import UserError
from semcorr.core.finite import FiniteWatch, are_finite, require_finite
from semcorr.data.record import ImageRecord, PairRecord, check_pairs
from semcorr.engine.build import build_datamodule_and_module
from semcorr.evaluate import evaluate
from semcorr.inference import Matcher
from semcorr.models.weights.loading import load_weights, require_finite_weights
from semcorr.store.frozen import FrozenPrefix
from semcorr.train import train

pytestmark = pytest.mark.integration

NAN, INF = math.nan, math.inf
QUICK = ["finetune.blocks=2", "data.steps=2", "data.batch_size=4", "trainer.max_epochs=1"]


def poisoned(path: Path, config, tiny, name: str = "blocks.1.mlp.fc1.weight", value: float = NAN) -> Path:
    """A file of the tiny network's weights, with one number that is none."""
    module, _ = build_datamodule_and_module(config("evaluate", *tiny))
    state = {key: each.clone() for key, each in module.backbone.model.state_dict().items()}
    state[name].view(-1)[3] = value
    torch.save(state, path)
    return path


def spoil_one_image(monkeypatch, at: int = 2, value: float = NAN) -> list[int]:
    """From now on, the image that is encoded at place `at` gets a feature that is no number."""
    own, count = FrozenPrefix.compute, [0]

    def spoiled(self, image):
        values = {key: each.clone() for key, each in own(self, image).items()}
        if count[0] == at:
            for each in values.values():
                each.view(-1)[5] = value
        count[0] += 1
        return values

    monkeypatch.setattr(FrozenPrefix, "compute", spoiled)
    return count


# -- numbers --


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_number_of_a_million_is_noticed(dtype, value):
    values = torch.ones(2, 1000, 500, dtype=dtype)
    values[1, 999, 499] = value

    assert are_finite(values).tolist() == [True, False]


def test_half_precision_does_not_overflow_in_the_check():
    assert are_finite(torch.full((1, 512, 60, 60), 6e4, dtype=torch.float16)).tolist() == [True]


def test_numbers_whose_length_is_infinite_have_no_cosine_and_are_refused():
    assert are_finite(torch.full((1, 4), 1e30)).tolist() == [False]


def test_whole_numbers_and_nothing_are_finite():
    assert are_finite(torch.arange(6).view(2, 3)).tolist() == [True, True]
    FiniteWatch("x").check()


def test_the_first_image_of_a_batch_is_named_whatever_came_with_it():
    values = torch.ones(3, 4)
    values[1:] = NAN

    with pytest.raises(
        UserError, match=r"^`backbone`: tiny, layers \[3\]: the features of image b are not finite: NaN"
    ):
        require_finite("`backbone`: tiny, layers [3]", ["a", "b", "c"], {"0": torch.ones(3, 2), "4": values})


# -- weights --


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_file_of_weights_that_are_not_finite_is_refused_by_name(config, tiny, tmp_path, value):
    path = poisoned(tmp_path / "weights.pth", config, tiny, value=value)

    with pytest.raises(Exception) as error:
        evaluate(config("evaluate", *tiny, f"backbone.weights={path}"))

    assert user_message(error.value, "evaluate") == (
        f"`backbone.weights`: {path}: 1 of the 9216 numbers in blocks.1.mlp.fc1.weight are not finite (NaN or "
        "infinite). Give another copy of the weights."
    )


def test_an_infinite_running_variance_would_make_features_zero_and_is_refused():
    layer = nn.BatchNorm2d(3)
    weights = layer.state_dict() | {"running_var": torch.tensor([1.0, INF, 1.0])}

    with pytest.raises(UserError, match=r"`head\.weights`: f\.pth: 1 of the 3 numbers in running_var"):
        load_weights(layer, weights, "f.pth", option="head.weights")

    assert layer.running_var.isfinite().all()  # nothing was loaded


def test_large_weights_are_accepted():
    require_finite_weights({"a": torch.full((4,), 3e38), "b": torch.zeros(0), "c": torch.tensor(3)}, "x")


@pytest.mark.slow
def test_a_checkpoint_that_is_not_finite_is_refused_by_name(config, tiny, tmp_path):
    train(config("train", *tiny, *QUICK, "finetune.norm=true", f"run_dir={tmp_path / 'run'}"))
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    content["state_dict"]["backbone.model.norm.bias"][0] = NAN
    torch.save(content, path)

    with pytest.raises(UserError) as error:
        evaluate(
            config(
                "evaluate",
                *tiny,
                "finetune.blocks=2",
                "finetune.norm=true",
                f"checkpoint={tmp_path / 'run'}",
                f"run_dir={tmp_path / 'new'}",
            )
        )

    assert str(error.value).startswith(f"`checkpoint`: {path}: 1 of the 48 numbers in backbone.model.norm.bias are not")
    with pytest.raises(UserError, match=r"backbone\.model\.norm\.bias"):
        Matcher.load(tmp_path / "run")


# -- features --


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_an_image_whose_features_are_not_finite_is_named(config, tiny, tmp_path, monkeypatch, store):
    spoil_one_image(monkeypatch)
    place = [f"store.root={tmp_path / 'store'}"] if store == "disk" else []

    with pytest.raises(UserError) as error:
        evaluate(config("evaluate", *tiny, f"store={store}", *place))

    assert str(error.value).startswith("`backbone`: vit_tiny_patch16_224, layers [3]: the features of image cat/"), (
        error
    )
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_features_too_large_for_the_stores_half_precision_are_reported_not_stored(config, tiny, tmp_path, monkeypatch):
    spoil_one_image(monkeypatch, value=1e6)  # finite as computed, infinite in float16

    with pytest.raises(UserError, match=r"not finite.*try trainer\.precision=32-true and store\.dtype=float32"):
        evaluate(config("evaluate", *tiny, "store=disk", f"store.root={tmp_path / 'store'}"))

    assert len([*(tmp_path / "store").rglob("*.safetensors")]) == 2  # those before it


def test_features_that_an_earlier_run_has_stored_are_looked_at_again(config, tiny, tmp_path, monkeypatch):
    line = ["store=disk", f"store.root={tmp_path / 'store'}"]
    with monkeypatch.context() as earlier:  # a version that did not look
        spoil_one_image(earlier)
        earlier.setattr("semcorr.store.encode.require_finite", lambda *_: None)
        with pytest.raises(UserError, match="finds no finite place"):
            evaluate(config("evaluate", *tiny, *line))

    with pytest.raises(UserError, match=r"^`store\.root`: .*: the features of image cat/.* not finite.*Remove .*store"):
        evaluate(config("evaluate", *tiny, *line))


def test_what_a_head_makes_of_features_is_looked_at(config, tiny):
    module, data = build_datamodule_and_module(config("evaluate", *tiny, "head=bottleneck"))
    with torch.no_grad():
        module.head.block.conv3[1].bias[0] = INF
    with pytest.raises(UserError, match=r"layers \[3\], through head BottleneckHead: the features of image"):
        Trainer(accelerator="cpu", logger=False, enable_progress_bar=False).test(module, data, verbose=False)


def test_a_matcher_names_the_picture():
    matcher = Matcher.load("backbone=tiny")
    own = matcher.module.backbone.forward
    matcher.module.backbone.forward = lambda image: own(image)._replace(values=own(image).values * INF)

    with pytest.raises(UserError, match=r"the features of image image are not finite.*try precision=32$"):
        matcher.encode(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))


# -- answers --


def test_a_similarity_that_is_no_number_is_not_scored_as_wrong(config, tiny, monkeypatch):
    module, data = build_datamodule_and_module(config("evaluate", *tiny))
    own = type(module.head).compare

    def spoiled(self, descriptors, target):
        similarity = own(self, descriptors, target).clone()
        similarity[..., 3, 3] = NAN
        return similarity

    monkeypatch.setattr(type(module.head), "compare", spoiled)
    with pytest.raises(UserError, match=r"^`localise`: window_soft_argmax\(.* finds no finite place for keypoint 0"):
        Trainer(accelerator="cpu", logger=False, enable_progress_bar=False).test(module, data, verbose=False)


def record(**changed) -> PairRecord:
    points, seen = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([True, True])
    image = ImageRecord("a", Path("a.jpg"), (9, 9), points, seen, (0.0, 0.0, 9.0, 9.0))
    extent = changed.pop("extent", 9.0)
    return PairRecord("a-b", "cat", image, image._replace(name="b", **changed), extent)


@pytest.mark.parametrize("extent", [0.0, -1.0, NAN, INF, 1e-50])
def test_an_extent_that_nothing_can_be_measured_by_is_refused(extent):
    with pytest.raises(UserError, match=r"^bench: pair a-b has extent .*; its target has no size\. Drop it\.$"):
        check_pairs([record(extent=extent)], "bench")


@pytest.mark.parametrize("changed", [{"keypoints": torch.tensor([[NAN, 2.0], [3.0, 4.0]])}, {"box": (0, 0, INF, 9)}])
def test_annotations_that_are_not_finite_are_refused(changed):
    with pytest.raises(UserError, match=r"^bench: the keypoints and box of b must be finite numbers"):
        check_pairs([record(**changed)], "bench")


def test_a_keypoint_that_is_not_visible_may_be_anything():
    seen = torch.tensor([True, False])
    check_pairs([record(keypoints=torch.tensor([[1.0, 2.0], [NAN, 4.0]]), visible=seen)], "bench")
