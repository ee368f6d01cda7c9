"""Runs on corrupted images: the pairs of the clean run, features of their own, the same digits however made."""

import json

import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from semcorr.cli.compose import compose_config
from semcorr.core.errors import UserError
from semcorr.engine.build import build_datamodule
from semcorr.engine.finished_run import read_evaluated_run, require_same_pairs
from semcorr.engine.run_dir import config_hash
from semcorr.evaluate import evaluate

pytestmark = pytest.mark.integration


def scores(run) -> dict:
    metrics = json.loads((run / "metrics.json").read_text())
    return {key: metrics[key] for key in ("pck", "pairs", "images")}


def test_a_corrupted_run_has_the_pairs_of_the_clean_one_and_other_scores(config, tiny, tmp_path, capsys):
    runs = {}
    for name in ("none", "snow"):
        runs[name] = tmp_path / name
        options = [] if name == "none" else ["corrupt.severity=5"]
        evaluate(config("evaluate", *tiny, f"corrupt={name}", *options, f"run_dir={runs[name]}"))

    clean, snowy = (read_evaluated_run(run) for run in runs.values())
    require_same_pairs(clean, snowy)
    assert scores(runs["none"])["images"] == scores(runs["snow"])["images"]
    assert scores(runs["none"])["pck"] != scores(runs["snow"])["pck"]
    metrics = {name: json.loads((run / "metrics.json").read_text()) for name, run in runs.items()}
    assert metrics["snow"]["corruption"] == {"kind": "snow", "severity": 5, "images": "both", "seed": 0}
    assert "corruption" not in metrics["none"]
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("images corrupted: snow, severity 5") == 1
    assert not any(
        "corrupted" in name for name in pq.read_table(runs["snow"] / "predictions.parquet")["target"].to_pylist()
    )


def test_the_store_keeps_corrupted_features_apart_and_gives_the_same_digits(config, tiny, tmp_path):
    store = ["store=disk", f"store.root={tmp_path / 'store'}"]
    numbers = {}
    lines = {"clean": "corrupt=none", "fog": "corrupt=fog", "again": "corrupt=fog", "plain": "corrupt=fog"}
    for name, line in lines.items():
        evaluate(config("evaluate", *tiny, *store[: 0 if name == "plain" else 2], line, f"run_dir={tmp_path / name}"))
        numbers[name] = scores(tmp_path / name)["pck"]

    assert numbers["fog"] == numbers["again"] == numbers["plain"]
    assert numbers["clean"] != numbers["fog"]


def test_with_the_target_alone_corrupted_scores_are_others(config, tiny, tmp_path):
    for images in ("both", "target"):
        line = ["corrupt=gaussian_noise", "corrupt.severity=5", f"corrupt.images={images}"]
        evaluate(config("evaluate", *tiny, *line, f"run_dir={tmp_path / images}"))
    assert scores(tmp_path / "both")["pck"] != scores(tmp_path / "target")["pck"]
    assert scores(tmp_path / "both")["images"] == scores(tmp_path / "target")["images"]


def test_a_job_without_corruption_is_the_job_of_before_there_was_any(config):
    cfg = config("evaluate", "data=synthetic")
    before = OmegaConf.create({key: value for key, value in cfg.items() if key != "corrupt"})
    assert config_hash(cfg) == config_hash(before) != config_hash(config("evaluate", "data=synthetic", "corrupt=fog"))


def test_a_short_name_is_a_corruption_and_its_severity():
    cfg = compose_config("evaluate", ["corrupt=fog_5"])
    assert (cfg.corrupt._target_.rpartition(".")[2], cfg.corrupt.severity) == ("Fog", 5)


@pytest.mark.parametrize("line", [["data=tss"], ["data=tapvid_davis"]])
def test_benchmarks_without_pairs_of_keypoints_refuse_it(config, line):
    cfg = config("evaluate", *line, "data.resize=squash", "corrupt=fog")
    with pytest.raises(UserError, match=r"`corrupt` changes the images of pairs of keypoints, and data=\w+ has none"):
        build_datamodule(cfg, "data", ())


def test_of_a_training_only_the_benchmark_that_is_scored_is_corrupted(config, creatures):
    line = ["data=synthetic", f"data.root={creatures}", "data.resize=squash", "corrupt=fog"]
    alone = build_datamodule(config("train", *line), "data", ())
    assert alone.corruption is not None
    cfg = config("train", *line, "data@test=synthetic", f"test.root={creatures}", "test.resize=squash")
    assert build_datamodule(cfg, "data", ()).corruption is None
    assert build_datamodule(cfg, "test", ()).corruption is not None
