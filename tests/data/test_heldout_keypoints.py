"""Keypoints held out of a training: which they are, what training is left with, and what is scored."""

import json
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch

from semcorr.core.errors import UserError
from semcorr.data.heldout_keypoints import hide_keypoints, list_heldout
from semcorr.data.keypoints import flip_permutation
from semcorr.data.record import ImageRecord, PairRecord
from semcorr.data.synthetic import Synthetic
from semcorr.train import train


def pair_of(visible: tuple[int, ...], other: tuple[int, ...], rows: int = 6, **options) -> PairRecord:
    images = []
    for ids in (visible, other):
        displayed = torch.zeros(rows, dtype=torch.bool)
        displayed[list(ids)] = True
        images.append(ImageRecord(f"{ids}", Path(), (9, 9), torch.zeros(rows, 2), displayed, (0.0, 0.0, 8.0, 8.0)))
    return PairRecord("pair", options.pop("category", "cat"), *images, 8.0, **options)


def synthetic(creatures: Path, **options) -> Synthetic:
    return Synthetic(root=str(creatures), size=32, train=3, val=2, test=3, pixels=96, **options)


def test_half_is_every_second_keypoint_and_never_one_of_two_twins():
    plain = pair_of((0, 1), (0, 1))

    assert list_heldout("half", plain) == [1, 3, 5]
    assert list_heldout("half", plain._replace(flip=(1, 0, 3, 2, 4, 5))) == [2, 3, 5]
    assert list_heldout("half", plain._replace(flip=(1, 0))) == [
        2,
        3,
        5,
    ]  # fewer than rows: the widest category has more


@pytest.mark.parametrize("category", ["cat", "horse", "bicycle"])
def test_the_halves_of_spair_are_two_of_its_ids_apart_at_most(category):
    flip = flip_permutation("spair71k", category)
    pair = pair_of((0,), (0,), rows=30, flip=flip)

    heldout = list_heldout("half", pair)

    assert abs(len(heldout) - 15) <= 1
    assert {flip[i] for i in heldout if i < len(flip)} <= {*heldout}


def test_ids_are_checked():
    pair = pair_of((0, 1), (0, 1), flip=(1, 0, 2, 3, 4, 5))

    assert list_heldout([5, 2], pair) == [2, 5]
    with pytest.raises(UserError, match=r"9 is not a keypoint of cat, whose ids are 0 to 5. Leave it out"):
        list_heldout([9], pair)
    with pytest.raises(UserError, match=r"keypoint 1 of cat is 0 in a mirror image. Hold out both or neither"):
        list_heldout([1], pair)


def test_hidden_keypoints_are_not_visible_and_pairs_without_others_are_dropped(caplog):
    pairs = [pair_of((0, 1, 2), (0, 1)), pair_of((1, 3), (1, 2, 3))]
    shared = pairs[0].source

    hidden = hide_keypoints([*pairs, pairs[0]._replace(target=shared)], [1, 3], "made train")

    assert [pair.source.visible.nonzero().flatten().tolist() for pair in hidden] == [[0, 2], [0, 2]]
    assert hidden[0].source is hidden[1].source is hidden[1].target  # one record, whose view is made once
    assert shared.visible.sum() == 3
    assert "made train: 1 of 3 pairs share only keypoints that are held out" in caplog.text
    with pytest.raises(UserError, match=r"`data.heldout_keypoints` leaves no pair of made train a keypoint"):
        hide_keypoints(pairs[1:], [1, 3], "made train")


def test_training_and_validation_are_without_and_the_test_is_whole(creatures):
    """Each image of a split has what it had, less those."""
    whole, half = synthetic(creatures), synthetic(creatures, heldout_keypoints="half")

    for split in ("train", "val"):
        kept = {pair.name: pair for pair in half.pairs(split)}
        for pair in whole.pairs(split):
            expected = pair.source.visible.clone()
            expected[list_heldout("half", pair)] = False
            assert pair.name not in kept or torch.equal(kept[pair.name].source.visible, expected)
        assert 0 < len(kept) <= len(whole.pairs(split))
    assert all(
        torch.equal(a.target.visible, b.target.visible)
        for a, b in zip(whole.pairs("test"), half.pairs("test"), strict=True)
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_pairs_that_are_scored_whole_are_not_trained_or_validated_on(creatures, split):
    data = synthetic(creatures, heldout_keypoints="half", split=split)

    assert len(data.pairs(split)) == len(synthetic(creatures).pairs(split))
    data.setup("test")
    with pytest.raises(UserError, match=rf"data\.split={split} is scored with these keypoints"):
        data.setup("fit")


@pytest.mark.parametrize("value", ["quarter", "[-1]", "3", "[a]"])
def test_what_is_no_choice_is_refused(config, tiny, value):
    with pytest.raises(UserError, match=r"`data.heldout_keypoints` must be .*half"):
        train(config("train", *tiny, f"data.heldout_keypoints={value}"))


@pytest.mark.integration
def test_a_run_scores_both_halves_apart(config, tiny, tmp_path, capsys):
    """As counted in its own rows."""
    train(config("train", *tiny, "finetune=frozen", "data.heldout_keypoints=half", "protocol=semcorr"))

    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    rows = parquet.read_table(tmp_path / "run/predictions.parquet").to_pylist()
    heldout = {pair: list_heldout("half", pair_of((0,), (0,), 30, flip=flip_permutation("spair71k", pair)))
               for pair in {row["category"] for row in rows}}  # fmt: skip
    counts = {"trained": [0, 0], "held_out": [0, 0]}
    for row in rows:
        half = counts["held_out" if row["keypoint"] in heldout[row["category"]] else "trained"]
        half[0] += 1
        half[1] += row["error"] <= 0.1
    for name, (count, correct) in counts.items():
        scores = metrics["heldout_keypoints"][name]
        assert scores["keypoints"] == count > 0
        assert scores["all"]["point"]["0.1"] == pytest.approx(correct / count)
    assert sum(count for count, _ in counts.values()) == metrics["keypoints"]
    assert "Held-out keypoints" in capsys.readouterr().out


@pytest.mark.integration
def test_a_run_without_the_option_has_no_halves(config, tiny, tmp_path):
    train(config("train", *tiny, "finetune=frozen"))

    assert "heldout_keypoints" not in json.loads((tmp_path / "run/metrics.json").read_text())
