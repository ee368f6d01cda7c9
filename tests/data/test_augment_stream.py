"""Augmented training: a sample follows from the seed and its number."""

import numpy as np
import pytest
import torch
from augmented_pairs import equal

from semcorr.core.types import PairBatch
from semcorr.data import benchmark
from semcorr.data.dataset import PairDataset, TrainingPairs
from semcorr.data.loaders import BatchSize, SampleIndex
from semcorr.engine.build import build_datamodule_and_module
from semcorr.engine.module import CorrespondenceModule
from semcorr.train import train

pytestmark = pytest.mark.integration


def fit_data(config, tiny, *line: str):
    data = build_datamodule_and_module(config("train", *tiny, *line, "data.batch_size=3", "data.steps=2"))[1]
    data.setup("fit")
    return data


def test_augment_none_leaves_the_pairs_as_they_are(config, tiny):
    data = fit_data(config, tiny)
    assert data.augment is None

    dataset = data.train_dataloader().dataset
    plain = PairDataset(data.pairs("train"), data.size, data.resize)

    assert all(equal(dataset[SampleIndex(pair=i, number=7)], plain[i]) for i in range(4))


def in_floats(pair: PairBatch) -> PairBatch:
    """The pair as loaders handed it on before they left pixels in bytes."""
    return pair._replace(source=pair.source._replace(image=pair.source.image.float() / 255),
                         target=pair.target._replace(image=pair.target.image.float() / 255))  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "dtype"),
    [("none", torch.uint8), ("flip", torch.uint8), ("colour", torch.float32), ("geometric", torch.float32),
     ("standard", torch.float32), ("warps", torch.float32)],
)  # fmt: skip
def test_pixels_are_those_of_floats_bit_for_bit_and_bytes_where_nothing_is_lost(config, tiny, choice, dtype):
    data = fit_data(config, tiny, f"augment={choice}")
    pairs, dataset = PairDataset(data.pairs("train"), data.size, data.resize), data.train_dataloader().dataset

    for number in range(4):
        draw = SampleIndex(number, number)
        found, before = dataset[draw], in_floats(pairs[draw.pair])
        if data.augment is not None:
            rng = np.random.default_rng([data.seed, draw.number])
            before = data.augment(before, data.pairs("train")[draw.pair], rng)
        assert found.source.image.dtype == found.target.image.dtype == dtype
        assert equal(in_floats(found) if dtype == torch.uint8 else found, before)


def test_batches_of_images_are_bytes_too(config, tiny):
    plain, recoloured = (fit_data(config, tiny, "data.all_pairs=3", f"augment={name}") for name in ("flip", "colour"))

    assert next(iter(plain.train_dataloader())).view.image.dtype == torch.uint8
    assert next(iter(recoloured.train_dataloader())).view.image.dtype == torch.float32


@pytest.mark.parametrize(("choice", "value_bytes"), [("none", 1), ("flip", 1), ("standard", 4)])
def test_what_a_loader_needs_is_known(config, tiny, monkeypatch, choice, value_bytes):
    data, plans = fit_data(config, tiny, f"augment={choice}"), []
    real = benchmark.plan_loading
    monkeypatch.setattr(benchmark, "plan_loading", lambda batch, *rest: plans.append(batch) or real(batch, *rest))

    data.train_dataloader()
    data.encode_batch = 5
    data.encoding_loader([], [])

    assert plans == [BatchSize(6, data.size, value_bytes), BatchSize(5, data.size, 1)]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("choice", ["flip", "colour", "geometric", "standard", "warps"])
def test_every_choice_changes_training_pairs_and_no_others(config, tiny, choice):
    plain, data = fit_data(config, tiny), fit_data(config, tiny, f"augment={choice}")

    assert not equal(*(next(iter(d.train_dataloader())) for d in (plain, data)))
    assert equal(*(next(iter(d.val_dataloader())) for d in (plain, data)))
    assert equal(*(next(iter(d.encoding_loader(d.images_to_evaluate("val", 2), [[0, 1]]))) for d in (plain, data)))


@pytest.mark.slow
def test_the_batches_do_not_depend_on_the_number_of_loader_processes(config, tiny):
    batches = [list(fit_data(config, tiny, "augment=standard", f"data.workers={n}").train_dataloader()) for n in (0, 2)]

    assert equal(*map(tuple, batches))


def test_two_uses_of_a_pair_differ_and_a_use_repeated_does_not(config, tiny):
    data = fit_data(config, tiny, "augment=standard")
    pairs = PairDataset(data.pairs("train"), data.size, data.resize)
    dataset, other_seed = (TrainingPairs(pairs, data.augment, seed) for seed in (1, 2))

    assert equal(dataset[SampleIndex(0, 5)], dataset[SampleIndex(0, 5)])
    assert not equal(dataset[SampleIndex(0, 5)], dataset[SampleIndex(0, 6)])
    assert not equal(dataset[SampleIndex(0, 5)], other_seed[SampleIndex(0, 5)])


@pytest.mark.slow
def test_a_run_broken_off_resumes_to_the_same_weights_with_augmentation(config, tiny, tmp_path, monkeypatch):
    line = ["augment=standard", "finetune.blocks=1", "data.steps=2", "data.batch_size=3", "trainer.max_epochs=2"]
    whole, broken = (config("train", *tiny, *line, f"run_dir={tmp_path / name}") for name in ("whole", "broken"))
    train(whole)

    def stop(module: CorrespondenceModule, batch: PairBatch, batch_idx: int) -> None:
        if module.global_step == 3:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(CorrespondenceModule, "on_train_batch_end", lambda m, outputs, batch, i: stop(m, batch, i))
        with pytest.raises(InterruptedError):
            train(broken)
    broken.checkpoint = broken.run_dir
    train(broken)

    expected, found = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "broken")
    )
    assert all(value.equal(found[name]) for name, value in expected.items())
