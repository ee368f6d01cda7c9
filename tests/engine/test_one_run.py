"""A run directory is one run: another is refused, the same one again replaces all its files or none."""

import json
from pathlib import Path

import pytest

from semcorr.core.errors import UserError
from semcorr.engine.run_dir import EARLIER_RESULTS, METRICS, RESULTS, refuse_other_run, replace_results
from semcorr.engine.run_lock import remove_leftovers
from semcorr.evaluate import evaluate
from semcorr.train import train

pytestmark = pytest.mark.integration


@pytest.fixture
def finished(config, tiny) -> Path:
    cfg = config("evaluate", *tiny)
    evaluate(cfg)
    return Path(cfg.run_dir)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


def test_other_runs_are_refused_and_the_same_one_leaves_nothing_stale(config, tiny, finished):
    before = content(finished)
    others = ["localise=argmax", "backbone.size=128", "seed=3", "head=bottleneck", "data.split=val", "kap=true",
              "protocol=dift", "trainer.precision=bf16-mixed", "+trainer.limit_test_batches=1", "backbone.depth=3",
              "data.root=elsewhere", "finetune=lora"]  # fmt: skip
    for other in others:
        cfg = config("evaluate", *tiny, other)
        with pytest.raises(UserError, match=r"^`run_dir`: .+ holds another run, with .+ Choose another run_dir[.]$"):
            evaluate(cfg)
    with pytest.raises(UserError, match="holds an evaluation"):
        train(config("train", *tiny))
    assert content(finished) == before

    (finished / "audit.json").write_text("{}")
    (finished / "tracks.png").write_text("stale")
    evaluate(config("evaluate", *tiny, "data.encode_batch=2", "callbacks=device_stats"))
    assert not (finished / "audit.json").exists()
    assert not (finished / "tracks.png").exists()
    assert json.loads((finished / METRICS).read_text())["pck"] == json.loads(before[METRICS])["pck"]


def test_scores_without_a_configuration_are_not_replaced(config, tiny, tmp_path):
    (tmp_path / METRICS).write_text("{}")

    with pytest.raises(UserError, match=r"scores without a config\.yaml"):
        refuse_other_run(tmp_path, config("evaluate", *tiny))


@pytest.mark.parametrize("at", range(7))
def test_an_error_while_results_are_exchanged_leaves_the_earlier_ones(tmp_path, monkeypatch, at):
    for name in RESULTS:
        (tmp_path / name).write_text("old")
    before, calls, replace = content(tmp_path), [], Path.replace

    def broken(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return replace(path, target)

    def exchange() -> None:
        with replace_results(tmp_path) as folder:
            for name in ("config.yaml", *RESULTS[:5]):
                (folder / name).write_text("new")
            monkeypatch.setattr(Path, "replace", broken)

    try:
        exchange()
    except KeyboardInterrupt:
        assert content(tmp_path) == before
    else:
        assert at == 6
        assert {*content(tmp_path).values()} == {b"new"}


def test_what_a_killed_process_had_moved_away_is_put_back(tmp_path):
    folder = tmp_path / ".results.123-x-0a1b2c3d.part"
    (folder / EARLIER_RESULTS).mkdir(parents=True)
    (folder / EARLIER_RESULTS / METRICS).write_text("old")
    (folder / EARLIER_RESULTS / "matches.png").write_text("old")
    (tmp_path / "predictions.parquet").write_text("new")

    remove_leftovers(tmp_path)

    assert content(tmp_path) == {METRICS: b"old", "matches.png": b"old"}
